"""The verbs of `qa-flax`: one file each, found by `cli.py`."""
