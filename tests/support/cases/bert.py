from cases.case import (
    BLOCK,
    BLOCK_CHANGED,
    DECODER_SETTINGS,
    HEADS,
    OTHER_TASK_FIELDS,
    RELATIVE_POSITIONS,
    UNKNOWN_ACTIVATION,
    Case,
)

CASE = Case(
    BLOCK | {"type_vocab_size": 2},
    BLOCK_CHANGED,
    OTHER_TASK_FIELDS,
    unsupported=(*DECODER_SETTINGS, RELATIVE_POSITIONS, UNKNOWN_ACTIVATION, HEADS),
    # Only BERT is tested with every activation: all families share the functions.
    variations=(
        {"hidden_act": "gelu_fast"},
        {"hidden_act": "gelu_python"},
        {"hidden_act": "gelu_pytorch_tanh", "intermediate_size": 20, "vocab_size": 57},
        {"hidden_act": "leaky_relu"},
        {"hidden_act": "linear"},
        {"hidden_act": "mish"},
        {"hidden_act": "quick_gelu"},
        {"hidden_act": "relu", "type_vocab_size": 3, "num_hidden_layers": 1},
        {"hidden_act": "relu2"},
        {"hidden_act": "relu6"},
        {"hidden_act": "sigmoid"},
        {"hidden_act": "silu", "hidden_size": 24, "num_attention_heads": 3},
        {"hidden_act": "swish", "pad_token_id": None, "max_position_embeddings": 12},
        {"hidden_act": "tanh", "type_vocab_size": 2, "num_attention_heads": 1},
    ),
)
