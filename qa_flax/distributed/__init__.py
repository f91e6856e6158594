"""The processes of a run: who they are, how they exchange values, join, fail and stop together."""
