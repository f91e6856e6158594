from cases.case import (
    BLOCK,
    BLOCK_CHANGED,
    DECODER_SETTINGS,
    HEADS,
    OTHER_TASK_FIELDS,
    UNKNOWN_ACTIVATION,
    Case,
)

CASE = Case(
    BLOCK
    | {
        "input_embedding_size": 12,
        # No dropout in RemBERT's checkpoints.
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    },
    BLOCK_CHANGED | {"input_embedding_size": 8},
    OTHER_TASK_FIELDS | {"output_embedding_size", "classifier_dropout_prob"},
    unsupported=(*DECODER_SETTINGS, UNKNOWN_ACTIVATION, HEADS),
    # The embeddings are projected even if their size is the hidden size.
    variations=({"input_embedding_size": 16},),
    later=True,
)
