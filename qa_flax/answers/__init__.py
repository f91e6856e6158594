"""Stages 6 and 7 of 7: logits -> spans -> answers -> scores (host; never imports JAX)."""
