"""Ask a model questions: the inputs, settings and results of transformers 4's pipeline."""
