"""Training, evaluation and prediction behind the API of Hugging Face's Trainer (host)."""
