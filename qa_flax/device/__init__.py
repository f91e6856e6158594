"""Stage 5 of 7: what the cores do: a step, all cores, the optimizer, memory (device, JAX)."""
