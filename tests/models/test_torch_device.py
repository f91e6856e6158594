"""The device as PyTorch scripts look at it."""

import copy
import json
import pickle

import pytest

from qa_flax.models.torch_device import Device


def test_the_device_is_one_for_torch_too():
    torch = pytest.importorskip("torch")
    device = Device("cpu")
    assert torch.ones(2).to(device).device == device == torch.device("cpu")
    assert torch.zeros(2, device=device).device.type == device.type == "cpu"
    assert torch.nn.Linear(2, 2).to(device).weight.device == device
    assert torch.device(device) == device != torch.device("cpu", 0)


def test_the_device_is_a_string_that_compares_hashes_prints_and_copies():
    device = Device("cpu")
    assert device == "cpu" != device.upper()
    assert f"device: {device}" == "device: cpu"
    assert {device: 1}["cpu"] == 1
    assert device.index is None
    assert json.loads(json.dumps([device])) == ["cpu"]
    for copied in (copy.deepcopy(device), pickle.loads(pickle.dumps(device))):
        assert (copied, copied.type) == ("cpu", "cpu")
