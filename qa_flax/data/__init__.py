"""Stages 1 to 3 of 7: data in any format -> examples -> windows -> batches (host; never JAX)."""
