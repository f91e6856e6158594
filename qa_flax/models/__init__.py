"""Stage 4 of 7: windows -> span logits (device, JAX); reads and writes checkpoints."""
