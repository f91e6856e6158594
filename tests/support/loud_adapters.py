"""LoRA adapters with large random weights, for the models of `loud.py`."""

import jax
import numpy as np
from flax import nnx
from loud import loud_model

from qa_flax import LoraConfig, get_peft_model


def adapted(family="bert", base=None, seed=0, **settings):
    """A model whose adapters and head are random, as if they had been trained."""
    rank = 4 if family == "squeezebert" else 3  # a multiple of its groups
    config = LoraConfig(**({"r": rank, "lora_alpha": 5, "target_modules": "all-linear"} | settings))
    model = get_peft_model(loud_model(3, family=family) if base is None else base, config)
    random = np.random.default_rng(seed)
    params = nnx.state(model, nnx.Param)
    model.set_params(jax.tree.map(lambda p: random.normal(0, 0.3, p.shape).astype("f4"), params))
    return model
