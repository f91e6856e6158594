"""Stage 5 of 7: train and evaluation steps on all cores, optimizers, memory (device, JAX)."""
