from cases.case import BLOCK, BLOCK_CHANGED, OTHER_TASK_FIELDS, RELATIVE_POSITIONS, Case

CASE = Case(
    BLOCK | {"type_vocab_size": 2, "pad_token_id": 0, "sep_token_id": 39, "attention_window": 4},
    BLOCK_CHANGED | {"sep_token_id": 38, "attention_window": 6},
    OTHER_TASK_FIELDS | {"onnx_export"},
    unsupported=(
        RELATIVE_POSITIONS,
        (
            {"attention_window": 5},
            "attention_window=5 is not supported for longformer; supported: an ",
        ),
        ({"attention_window": 0}, "attention_window=0 is not supported for longformer"),
        (
            {"attention_window": [4]},
            r"attention_window=\[4\] is not .* or 2 of them, one per layer",
        ),
        ({"attention_mode": "n2"}, "attention_mode='n2' is not supported for longformer"),
        ({"ignore_attention_mask": True}, "ignore_attention_mask=True is not supported"),
        ({"sep_token_id": None}, "sep_token_id=None is not supported for longformer"),
    ),
    variations=(
        {
            "hidden_act": "gelu_new",
            "layer_norm_eps": 1e-2,
            "pad_token_id": 5,
            "sep_token_id": 38,
            "attention_window": 6,
        },
        {"pad_token_id": 1},
        {"attention_window": (4, 8)},
        {"attention_window": (16, 4), "num_attention_heads": 1},
        {"attention_window": 32},  # at least as long as every row
    ),
    lengths=(12, 7, 30),
    needs_separators=True,
    can_pack=False,
    max_length=39,
)
