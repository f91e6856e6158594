"""torch tensors that scripts pass, told from other arrays without importing torch (host)."""

from typing import Any

import numpy as np


def is_tensor(value: Any) -> bool:
    """Whether it is a torch tensor or an instance of a subclass."""
    return any(
        f"{kind.__module__}.{kind.__name__}" == "torch.Tensor" for kind in type(value).__mro__
    )


def tensor_to_numpy(tensor: Any) -> np.ndarray:
    """The values of a torch tensor on any device; NumPy has no bfloat16, so floats are float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def to_array(value: Any) -> np.ndarray:
    """A torch tensor, an array or a number as a NumPy array."""
    return tensor_to_numpy(value) if is_tensor(value) else np.asarray(value)
