from cases.case import Case

ROPE = {"rope_type": "default", "rope_theta": 1000.0}
# Fields of generation, of other tasks and of other attention kernels. max_position_embeddings has
# no effect because rotary positions have no limit.
OTHER_TASK_FIELDS = frozenset(
    {
        *("bos_token_id", "cls_token_id", "eos_token_id", "sep_token_id", "tie_word_embeddings"),
        *("classifier_pooling", "decoder_bias", "sparse_prediction", "sparse_pred_ignore_index"),
        *("deterministic_flash_attn", "max_position_embeddings"),
    }
)

CASE = Case(
    {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 3,  # global, local, global; the first has no attention norm
        "global_attn_every_n_layers": 2,
        "local_attention": 5,  # rows of 9 or more tokens are split into blocks of 2
        "num_attention_heads": 4,
        "intermediate_size": 32,
        "embedding_dropout": 0.1,
        "attention_dropout": 0.1,
        "mlp_dropout": 0.1,
        "classifier_dropout": 0.1,
        "initializer_range": 0.2,
        "pad_token_id": 0,
    },
    {
        "vocab_size": 41,
        "hidden_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 33,
        "hidden_activation": "gelu_new",
        "embedding_dropout": 0.4,
        "attention_dropout": 0.4,
        "mlp_dropout": 0.4,
        "classifier_dropout": 0.4,
        "classifier_activation": "silu",
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE},
        "local_attention": 8,
        "attention_bias": True,
        "mlp_bias": True,
        "norm_bias": True,
        "classifier_bias": True,
        "initializer_range": 0.3,
        "initializer_cutoff_factor": 0.5,
        "norm_eps": 1e-2,
        "pad_token_id": 5,
        # Older names, which transformers converts to `layer_types` and `rope_parameters`.
        "global_attn_every_n_layers": 1,
        "global_rope_theta": 100.0,
        "local_rope_theta": 100.0,
    },
    OTHER_TASK_FIELDS,
    unsupported=(
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "full_attention.rope_type='linear' is not supported for modernbert; "
            "supported: 'default'",
        ),
        (
            {"layer_types": ["full_attention", "chunked_attention", "sliding_attention"]},
            r"layer_types\[1\]='chunked_attention' is not supported for modernbert; "
            r"supported: 'full_",
        ),
        (
            {"initializer_cutoff_factor": 0.0},
            "initializer_cutoff_factor=0.0 is not supported .* above 0",
        ),
        ({"hidden_activation": "gelu_10"}, "hidden_activation='gelu_10' is not supported"),
        ({"classifier_activation": "gelu_10"}, "classifier_activation='gelu_10' is not supported"),
        ({"num_attention_heads": 3}, "hidden_size=16 is not a multiple of num_attention_heads=3"),
        (
            {"num_attention_heads": 16},
            "hidden_size=16 with num_attention_heads=16 gives heads of an odd size",
        ),
    ),
    variations=(
        {
            "hidden_activation": "gelu_new",
            "classifier_activation": "silu",
            "classifier_bias": True,
            "norm_eps": 1e-2,
            "pad_token_id": 5,
            "rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE},
            "local_attention": 8,
        },
        {"global_attn_every_n_layers": 1, "global_rope_theta": 100.0, "local_rope_theta": 100.0},
        {"local_attention": 1},  # a token attends to itself only
        {"local_attention": 2, "norm_bias": True, "attention_bias": True, "mlp_bias": True},
        {"local_attention": 128, "pad_token_id": None},
        {"layer_types": ["sliding_attention"] * 3},
    ),
    lengths=(12, 7, 19),
    types=0,
    max_length=None,
    golden_attention="sdpa",  # fully masked padding gets zeros, in "eager" the mean of the row
)
