"""Stages 1 to 3 of 7: any data -> examples -> windows -> batches (host; never JAX)."""
