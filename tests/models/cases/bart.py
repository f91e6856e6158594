from cases.case import Case

SIZES = {
    "vocab_size": 40,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 40,
    "init_std": 0.2,
    "pad_token_id": 0,
    "attention_dropout": 0.1,
    "activation_dropout": 0.1,
}
CHANGED = {
    "vocab_size": 41,
    "d_model": 20,
    "encoder_layers": 3,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 33,
    "decoder_ffn_dim": 33,
    "activation_function": "relu",
    "dropout": 0.4,
    "attention_dropout": 0.4,
    "activation_dropout": 0.4,
    "max_position_embeddings": 41,
    "scale_embedding": True,
    "init_std": 0.3,
    "pad_token_id": 5,
}
WITHOUT_EFFECT = frozenset(
    {"use_cache", "bos_token_id", "eos_token_id", "forced_eos_token_id", "classifier_dropout"}
)
REFUSED = (
    ({"encoder_layerdrop": 0.1}, "encoder_layerdrop=0.1 is not supported for .*; known: 0.0"),
    ({"decoder_layerdrop": 0.1}, "decoder_layerdrop=0.1 is not supported"),
    ({"is_encoder_decoder": False}, "is_encoder_decoder=False is not supported"),
    ({"is_decoder": True}, "is_decoder=True is not supported"),
    ({"tie_word_embeddings": False}, "tie_word_embeddings=False is not supported"),
    ({"decoder_attention_heads": 3}, "d_model=16 is not a multiple of decoder_attention_heads=3"),
    ({"encoder_attention_heads": 3}, "d_model=16 is not a multiple of encoder_attention_heads=3"),
    ({"activation_function": "gelu_10"}, "activation_function='gelu_10' is not known here"),
)

CASE = Case(
    SIZES,
    CHANGED | {"decoder_start_token_id": 3},
    WITHOUT_EFFECT,
    refused=REFUSED,
    types=0,
    packs=False,
)
