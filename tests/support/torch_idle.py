"""Parameters that PyTorch's model has and does not use, of which no gradient comes."""

import torch
from loud import batch_of


def freeze_idle(reference, family, **changes):
    """Freeze the parameters of a PyTorch model that get no gradient, and return their names.

    transformers calls them trainable, although no optimizer changes a parameter without gradient.
    """
    inputs = {name: torch.tensor(ids) for name, ids in batch_of(family, **changes).items()}
    labels = torch.zeros(3, dtype=torch.long)
    reference(**inputs, start_positions=labels, end_positions=labels).loss.backward()
    idle = {name: p for name, p in reference.named_parameters() if p.grad is None}
    for parameter in idle.values():
        parameter.requires_grad_(False)
    return set(idle)
