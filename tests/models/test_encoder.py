"""The shared encoder: its options, and the methods that a family may override."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from loud import loud_config

from qa_flax.models.blocks import PreNormBlock
from qa_flax.models.configs import EncoderConfig
from qa_flax.models.encoder import Encoder, PositionsAfterPadding

IDS = jnp.asarray([[5, 6, 7, 0]])
MASK = jnp.asarray([[1, 1, 1, 0]])


def config(**changes) -> EncoderConfig:
    return EncoderConfig.from_hf(loud_config("bert", **changes).to_dict())


def make(kind=Encoder, **options):
    return kind(config(), dtype=jnp.dtype("float32"), **options)


def paths(encoder) -> set[str]:
    return {".".join(map(str, path[:-1])) for path, _ in nnx.to_flat_state(nnx.state(encoder))}


def test_options_add_only_the_modules_that_are_needed():
    plain = paths(make())
    assert {"embeddings.word", "embeddings.position", "layers.1.attention.query"} <= plain
    assert not plain & {"project", "last_norm"}
    assert paths(make(size=16)) == plain  # the hidden size: no projection
    assert paths(make(size=8)) == plain | {"project"}
    assert paths(make(last_norm=True, block=PreNormBlock)) == plain | {"last_norm"}
    assert paths(make(types=0, positions=0)) == plain - {
        "embeddings.token_type",
        "embeddings.position",
    }


def test_a_family_can_override_token_types_and_layer_arguments():
    class Layer(nnx.Module):
        """Adds 10 and its position to each token that may be attended to."""

        def __init__(self, config, *, dtype):
            pass

        def __call__(self, hidden, mask, positions, rngs=None):
            return hidden + jnp.where(mask[:, 0, 0], 10 + positions, 0)[..., None]

    class Family(Encoder):
        def types_of(self, input_ids, token_type_ids):
            return jnp.ones_like(input_ids)

        def layer_args(self, input_ids, attention_mask, segment_ids, positions):
            return *super().layer_args(input_ids, attention_mask, segment_ids, positions), positions

    encoder = make(Family, block=Layer)
    table = encoder.embeddings.token_type.embedding
    values = np.random.default_rng(0).normal(size=table.shape)
    table.set_value(jnp.asarray(values, jnp.float32))
    hidden = encoder(IDS, MASK)
    # The normalised vector of type 1 for every token, because all other tables are zeros.
    expected = np.asarray(table[1])
    expected = (expected - expected.mean()) / expected.std()
    added = np.array([20, 22, 24, 0])[:, None]  # by two layers
    np.testing.assert_allclose(hidden, [expected + added], atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "positions"), [(Encoder, [0, 1, 2, 3]), (PositionsAfterPadding, [1, 2, 3, 0])]
)
def test_positions_are_counted_as_in_bert_or_in_roberta(kind, positions):
    assert make(kind).positions_of(IDS, None, None).tolist() == [positions]
    assert make(kind).positions_of(IDS, IDS, None).tolist() == IDS.tolist()
