"""The device of inputs and outputs, as far as PyTorch scripts look at it (host, no JAX)."""

from typing import Any


class Device(str):
    """ "cpu", where `tensor.to(...)` puts the inputs and where outputs are; JAX places the rest.

    It is a string, which PyTorch accepts as a device, with the attributes of `torch.device`.
    """

    __slots__ = ()

    @property
    def type(self) -> str:
        """The kind of device, as of `torch.device`."""
        return str(self).partition(":")[0]

    @property
    def index(self) -> int | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The number of the device, as of `torch.device`; None, because the host has no numbers."""
        return None

    def __eq__(self, other: Any) -> bool:
        # A `torch.device` of the same name is the same device; it is never imported to compare.
        if type(other).__module__.split(".")[0] == "torch":
            other = str(other)
        return str.__eq__(self, other) is True

    def __ne__(self, other: Any) -> bool:
        return not self == other

    __hash__ = str.__hash__
