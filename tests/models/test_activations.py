"""The exact GELU. BERT's variations in test_families.py compare all activations with PyTorch."""

import jax.numpy as jnp
import numpy as np

from qa_flax.models.activations import ACTIVATIONS


def test_gelu_is_exact():
    x = np.linspace(-4, 4, 9)
    from math import erf

    exact = np.array([v * 0.5 * (1 + erf(v / np.sqrt(2))) for v in x])
    assert np.abs(np.asarray(ACTIVATIONS["gelu"](jnp.asarray(x, jnp.float32))) - exact).max() < 1e-6
