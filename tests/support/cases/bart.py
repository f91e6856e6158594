from cases.case import Case

# mBART has the same settings except `decoder_start_token_id`.
SIZES = {
    "vocab_size": 40,
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 40,
    "init_std": 0.2,
    "pad_token_id": 0,
}
CHANGED = {
    "vocab_size": 41,
    "d_model": 20,
    "encoder_layers": 3,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 33,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 34,
    "activation_function": "gelu_new",
    "dropout": 0.4,
    "attention_dropout": 0.4,
    "activation_dropout": 0.4,
    "max_position_embeddings": 41,
    "scale_embedding": True,
    "init_std": 0.3,
    "pad_token_id": 5,
}
# Fields of generation and of other tasks, and fields that the model ignores.
WITHOUT_EFFECT = frozenset(
    {
        "bos_token_id",
        "classifier_dropout",
        "eos_token_id",
        "forced_eos_token_id",
        "is_decoder",
        "is_encoder_decoder",
        "use_cache",
    }
)
UNSUPPORTED = (
    (
        {"activation_function": "gelu_10"},
        "activation_function='gelu_10' is not supported; supported: gelu, gelu_fast, ",
    ),
    ({"encoder_attention_heads": 3}, "d_model=16 is not a multiple of encoder_attention_heads=3"),
    ({"decoder_attention_heads": 3}, "d_model=16 is not a multiple of decoder_attention_heads=3"),
    ({"encoder_layerdrop": 0.1}, "encoder_layerdrop=0.1 is not supported for .*; supported: 0.0"),
    ({"decoder_layerdrop": 0.1}, "decoder_layerdrop=0.1 is not supported for .*; supported: 0.0"),
    (
        {"tie_word_embeddings": False},
        "tie_word_embeddings=False is not supported for .*; supported: True",
    ),
    ({"pad_token_id": None}, "pad_token_id=None is not supported for .*; set it to the id of"),
)
VARIATIONS = (
    {"is_decoder": True, "is_encoder_decoder": False, "use_cache": False},
    {"scale_embedding": True, "d_model": 12, "decoder_attention_heads": 3, "decoder_layers": 3},
)

CASE = Case(
    SIZES,
    CHANGED | {"decoder_start_token_id": 3},
    WITHOUT_EFFECT,
    unsupported=(
        *UNSUPPORTED,
        ({"decoder_start_token_id": None}, "decoder_start_token_id=None is not supported for bart"),
    ),
    variations=VARIATIONS,
    types=0,
)
