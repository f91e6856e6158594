"""Stage 4 of 7: windows -> span logits (device, JAX); a model from a checkpoint and back."""
