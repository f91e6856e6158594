"""The processes of a run: who they are, how they exchange values, join, fail and stop together.

Beside the stages: with one process everything here is a no-op.
"""


class ProcessError(RuntimeError):
    """The processes of a run cannot work together; the message says which, and what to do."""
