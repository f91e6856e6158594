"""The Hugging Face trainer contract over the stages (host)."""
