from cases.case import Case

CASE = Case(
    {
        "vocab_size": 40,
        "dim": 16,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 32,
        "max_position_embeddings": 40,
        "initializer_range": 0.2,
    },
    {
        "vocab_size": 41,
        "dim": 20,
        "n_layers": 3,
        "n_heads": 2,
        "hidden_dim": 33,
        "activation": "gelu_new",
        "dropout": 0.4,
        "attention_dropout": 0.4,
        "qa_dropout": 0.4,
        "max_position_embeddings": 41,
        "sinusoidal_pos_embds": True,
        "initializer_range": 0.3,
        "pad_token_id": 5,
    },
    frozenset({"bos_token_id", "eos_token_id", "seq_classif_dropout", "tie_word_embeddings"}),
    unsupported=(
        (
            {"activation": "gelu_10"},
            "activation='gelu_10' is not supported; supported: gelu, gelu_fast, ",
        ),
        ({"n_heads": 3}, "dim=16 is not a multiple of n_heads=3"),
    ),
    types=0,
)
