from cases.case import (
    BLOCK,
    BLOCK_CHANGED,
    DECODER_SETTINGS,
    OTHER_TASK_FIELDS,
    RELATIVE_POSITIONS,
    Case,
)

SEPARATOR = 20

MODEL_TYPES = ("big_bird",)
CASE = Case(
    # Rows of up to 21 tokens have full attention.
    BLOCK | {"block_size": 3, "num_random_blocks": 1, "sep_token_id": SEPARATOR},
    BLOCK_CHANGED
    | {
        "hidden_act": "gelu",
        "sep_token_id": 22,
        "attention_type": "original_full",
        "use_bias": False,
        "rescale_embeddings": True,
        "block_size": 2,
        "num_random_blocks": 2,
    },
    OTHER_TASK_FIELDS,
    unsupported=(
        *DECODER_SETTINGS,
        RELATIVE_POSITIONS,
        (
            {"attention_type": "sparse"},
            "attention_type='sparse' is not supported for .*; supported: 'block_sparse', 'orig",
        ),
        ({"sep_token_id": None}, "sep_token_id=None is not supported"),
    ),
    variations=(
        {"block_size": 1},
        {
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-2,
            "pad_token_id": 5,
            "sep_token_id": 22,
            "use_bias": False,
            "rescale_embeddings": True,
            "block_size": 2,
            "num_random_blocks": 2,
        },
    ),
    # Long rows first: after a short row PyTorch's model stays in full attention.
    lengths=(30, 25, 12),
    types_change_after=SEPARATOR,
    can_pack=False,
)
