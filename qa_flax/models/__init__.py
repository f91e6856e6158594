"""Stage 4 of 7: windows -> span logits (device, JAX); reads and writes checkpoints."""


class PushError(OSError):
    """The Hub could not be reached, or refused a request; the message says how to repeat it."""
