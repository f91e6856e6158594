from cases.case import Case

SIZES = {
    "vocab_size": 40,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 32,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "decoder_start_token_id": 0,
}

CASE = Case(
    SIZES,
    {
        "vocab_size": 41,
        "d_model": 20,
        "d_kv": 5,
        "d_ff": 33,
        "num_layers": 3,
        "num_decoder_layers": 1,
        "num_heads": 3,
        "relative_attention_num_buckets": 9,
        "relative_attention_max_distance": 8,
        "dropout_rate": 0.4,
        "layer_norm_epsilon": 1e-2,
        "initializer_factor": 0.7,
        "feed_forward_proj": "gated-gelu",
        "decoder_start_token_id": 3,
    },
    # Those of generation and of other tasks. The vector of the padding token is like any other.
    frozenset(
        {
            *("bos_token_id", "eos_token_id", "use_cache", "is_encoder_decoder", "is_decoder"),
            *("classifier_dropout", "tie_word_embeddings", "pad_token_id"),
        }
    ),
    unsupported=(
        ({"feed_forward_proj": "gelu_10"}, "feed_forward_proj='gelu_10' is not supported; "),
        (
            {"dense_act_fn": "relu", "feed_forward_proj": "silu"},
            "dense_act_fn='relu' contradicts feed_forward_proj='silu', which means .*='silu'",
        ),
        (
            {"is_gated_act": True},
            "is_gated_act=True contradicts feed_forward_proj='relu', which means .*=False",
        ),
        ({"pad_token_id": None}, "pad_token_id=None is not supported for t5; set it to the id of"),
        ({"decoder_start_token_id": None}, "decoder_start_token_id=None is not supported for t5"),
        (
            {"relative_attention_num_buckets": 3},
            "relative_attention_num_buckets=3 with .*; supported: 4 buckets or more",
        ),
        ({"relative_attention_max_distance": 4}, "with relative_attention_max_distance=4 is not"),
    ),
    variations=(
        {"feed_forward_proj": "gated-silu"},
        {
            "feed_forward_proj": "gelu_new",
            "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 40,
        },
        # Heads that are together smaller than the hidden states, as in mT5-small.
        {"num_heads": 3, "d_kv": 4, "feed_forward_proj": "gated-gelu"},
        {"pad_token_id": 5, "is_decoder": True, "tie_word_embeddings": False},
    ),
    # The longest row has relative positions beyond the largest distance.
    lengths=(12, 7, 30),
    types=0,
    max_length=None,
    later=True,
)
