from cases.case import BLOCK, BLOCK_CHANGED, HEADS, RELATIVE_POSITIONS, UNKNOWN_ACTIVATION, Case

CHANGED = BLOCK_CHANGED.copy()
del CHANGED["layer_norm_eps"]  # needs normalization_type="layer_norm", as in a variation

CASE = Case(
    BLOCK
    | {
        "type_vocab_size": 2,
        "embedding_size": 6,
        "intra_bottleneck_size": 8,
        "num_feedforward_networks": 2,
    },
    CHANGED
    | {
        "embedding_size": 8,
        "trigram_input": False,
        "use_bottleneck": False,
        "intra_bottleneck_size": 12,
        "use_bottleneck_attention": True,
        "num_feedforward_networks": 3,
        "normalization_type": "layer_norm",
    },
    frozenset({"classifier_activation", "classifier_dropout", "tie_word_embeddings"})
    | {"layer_norm_eps"},  # without a LayerNorm
    unsupported=(
        RELATIVE_POSITIONS,
        UNKNOWN_ACTIVATION,
        HEADS,
        (
            {"normalization_type": "batch"},
            "normalization_type='batch' is not supported .*: 'no_norm', 'layer_norm'",
        ),
        (
            {"key_query_shared_bottleneck": False},
            "intra_bottleneck_size=8 with hidden_size=16 needs key_query_shared_bottleneck",
        ),
        (
            {"intra_bottleneck_size": 6},
            "intra_bottleneck_size=6 is not a multiple of num_attention_heads=4",
        ),
        (
            {"true_hidden_size": 12},
            "true_hidden_size=12 is not supported; with use_bottleneck=True it must be 8",
        ),
        ({"num_feedforward_networks": 0}, "num_feedforward_networks=0 .* whole number from 1"),
    ),
    variations=(
        {"normalization_type": "layer_norm", "layer_norm_eps": 1e-2, "use_bottleneck": False},
        {"key_query_shared_bottleneck": False, "intra_bottleneck_size": 16},
        {"key_query_shared_bottleneck": False, "use_bottleneck_attention": True},
        {"use_bottleneck_attention": True, "normalization_type": "layer_norm"},
        {"trigram_input": False, "embedding_size": 16},  # no transformation
        {"pad_token_id": None, "num_feedforward_networks": 1},
    ),
    sees_padding=True,
    padding_id=0,
    later=True,
)
