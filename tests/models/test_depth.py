"""The level of every parameter, compared with the layer numbers in PyTorch's names."""

import pytest
from cases import CASES
from loud import loud_model
from torch_levels import expected_level

from qa_flax import LoraConfig, get_peft_model
from qa_flax.models.depth import depth_of
from qa_flax.models.families import FAMILIES
from qa_flax.models.weights import parameters, weight_name

DEEP = {
    "bart": {"encoder_layers": 3, "decoder_layers": 2},
    "mbart": {"encoder_layers": 3, "decoder_layers": 2},
    "t5": {"num_layers": 3, "num_decoder_layers": 2},
    "mt5": {"num_layers": 3, "num_decoder_layers": 2},
    "albert": {"num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2},
    "deberta-v2": {"conv_kernel_size": 3, "norm_rel_ebd": "layer_norm", "embedding_size": 12},
}


@pytest.mark.parametrize("family", sorted(CASES))
def test_levels_are_the_layer_numbers_in_pytorch_s_names(family):
    model = loud_model(family=family, **DEEP.get(family, {}))
    depth, prefix = depth_of(model), FAMILIES[family].prefix
    names = {path: weight_name(path, FAMILIES[family], prefix) for path, _ in parameters(model)}
    assert depth.levels.keys() == names.keys()
    is_t5 = family in ("t5", "mt5")
    encoder_layers = getattr(model.config, "num_layers" if is_t5 else "encoder_layers", 0)
    for path, name in names.items():
        expected = expected_level(name, family, depth.layers, encoder_layers)
        assert depth.levels[path] == expected, name
    assert set(depth.levels.values()) == set(range(depth.layers + 2))
    assert depth.is_shared == (family == "albert")


@pytest.mark.parametrize("family", ["bert", "bart", "albert"])
def test_adapters_are_on_the_level_of_their_layer(family):
    base = loud_model(family=family)
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear"))
    levels, plain = depth_of(model).levels, depth_of(base).levels
    adapters = [path for path in levels if path[-1].startswith("lora_")]
    assert adapters
    for path in adapters:
        assert levels[path] == plain[*path[:-1], "kernel"]
    assert depth_of(model).layers == depth_of(base).layers
