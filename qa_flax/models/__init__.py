"""Stage 4 of 7: window tokens -> span logits; `hf` loads and saves the models of `families`."""
