"""Torch tensors that are written through to their source, and follow it when it changes."""

import copy
import io
import pickle

import numpy as np
import pytest

from qa_flax.models.live_tensors import Source, live_tensor
from qa_flax.models.tensors import to_array

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[parity]'")


class Stored:
    """An array [3, 4] that is replaced when it is written."""

    def __init__(self):
        self.array = np.arange(12, dtype=np.float32).reshape(3, 4)
        self.source = Source(lambda: self.array, lambda: self.array, self.write)

    def write(self, array):
        self.array = array.copy()


@pytest.fixture
def stored():
    return Stored()


WRITERS = {
    "method": lambda t: t.mul_(2),
    "operator": lambda t: t.__iadd__(1),
    "index": lambda t: t.__setitem__((slice(1), 2), 9.0),
    "mask": lambda t: t.__setitem__(t > 6, -1.0),
    "row": lambda t: t[1].zero_(),
    "element of a row": lambda t: t[1].__setitem__(3, 5.0),
    "view": lambda t: t.view(-1)[4:7].fill_(8.0),
    "transposed": lambda t: t.T[1].add_(3.0),
    "detached": lambda t: t.detach()[2].copy_(torch.arange(4.0)),
    "data": lambda t: t.data.clamp_(2, 5),
    "data of a row": lambda t: t[0].data.fill_(2),
    "assigned data": lambda t: setattr(t, "data", torch.ones(3, 4)),
    "part of a split": lambda t: t.split(2)[1].sub_(1),
    "out=": lambda t: torch.add(t, 1, out=t),
    "on the CPU": lambda t: t.cpu().float().contiguous().neg_(),
    "initializer": lambda t: torch.nn.init.constant_(t, 0.25),
    "several": lambda t: torch._foreach_mul_([t], 2.0),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_write_reaches_the_source(stored, writer):
    plain = torch.from_numpy(stored.array.copy())
    tensor = live_tensor(stored.source)
    with torch.no_grad():
        WRITERS[writer](tensor)
        WRITERS[writer](plain)
    np.testing.assert_array_equal(stored.array, plain.numpy())
    assert not np.array_equal(stored.array, np.arange(12).reshape(3, 4))


def test_a_tensor_and_its_views_follow_the_source(stored):
    tensor = live_tensor(stored.source)
    row = tensor[1]
    stored.write(np.ones((3, 4), np.float32))
    assert (float(row.sum()), float(tensor.sum())) == (4.0, 12.0)
    stored.write(np.full((3, 4), 2, np.float32))
    row.mul_(10)
    assert stored.array.tolist() == [[2] * 4, [20] * 4, [2] * 4]


def test_results_are_plain_tensors(stored):
    tensor = live_tensor(stored.source)
    before = stored.array
    buffer = io.BytesIO()
    torch.save({"whole": tensor, "row": tensor[1]}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer)  # weights_only=True
    results = [tensor + 1, tensor.clone(), tensor.norm(), copy.deepcopy(tensor), *saved.values()]
    results += [pickle.loads(pickle.dumps(tensor)), tensor.to(torch.bfloat16)]
    for result in results:
        assert type(result) is torch.Tensor
        result.zero_()
    assert stored.array is before
    layer = torch.nn.Linear(4, 3)
    layer.load_state_dict({"weight": tensor, "bias": torch.zeros(3)})
    assert torch.equal(layer.weight, tensor)


def test_memory_that_torch_does_not_see_is_read_only(stored):
    tensor = live_tensor(stored.source)
    for array in (tensor.numpy(), tensor[1:].numpy(), np.asarray(tensor)):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1.0


def test_values_of_every_kind_become_arrays():
    import jax.numpy as jnp

    for value in (
        torch.ones(2, dtype=torch.bfloat16),
        torch.nn.Parameter(torch.ones(2)),
        torch.ones(2, dtype=torch.int64),
        jnp.ones(2, jnp.bfloat16),
        [1.0, 1.0],
    ):
        array = to_array(value)
        assert isinstance(array, np.ndarray)
        assert array.astype(np.float32).tolist() == [1.0, 1.0]
