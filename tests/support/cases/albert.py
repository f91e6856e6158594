from cases.case import BLOCK, BLOCK_CHANGED, HEADS, OTHER_TASK_FIELDS, RELATIVE_POSITIONS, Case

CASE = Case(
    BLOCK
    | {
        "type_vocab_size": 2,
        "embedding_size": 12,
        # A group of two blocks runs twice, then another group runs once.
        "num_hidden_layers": 3,
        "num_hidden_groups": 2,
        "inner_group_num": 2,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    },
    BLOCK_CHANGED
    | {
        "hidden_act": "gelu",
        "embedding_size": 16,
        "num_hidden_layers": 4,
        "num_hidden_groups": 3,
        "inner_group_num": 1,
    },
    OTHER_TASK_FIELDS | {"classifier_dropout_prob"},
    unsupported=(RELATIVE_POSITIONS, HEADS),
    variations=(
        # One block, as in every published checkpoint.
        {"num_hidden_layers": 5, "num_hidden_groups": 1, "inner_group_num": 1},
        {"num_hidden_layers": 7, "num_hidden_groups": 3},  # depends on rounding
        {"num_hidden_layers": 2, "num_hidden_groups": 3},  # a group that never runs
    ),
)
