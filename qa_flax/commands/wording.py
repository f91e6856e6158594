"""Messages of the library in the words of the command line (host).

The library's messages name its own arguments, such as `misaligned="repair"`. Commands translate
them before they are printed: `--misaligned_answers repair`.
"""

import re

# Argument in Python -> argument of the command line.
_FLAGS = {
    "answers": "answers",
    "misaligned": "misaligned_answers",
    "bad_rows": "bad_rows",
    "long_questions": "long_questions",
    "version_2_with_negative": "version_2_with_negative",
    "question_column": "question_column",
    "context_column": "context_column",
    "answer_column": "answer_column",
    "id_column": "id_column",
    "mask": "mask",
}
# Those whose names are no words of their own, so that they are also translated without a value.
_NUMBERS = (
    *("max_seq_length", "doc_stride", "max_answer_length"),
    *("top_k", "max_seq_len", "max_answer_len", "max_question_len"),  # of `qa-flax answer`
)
_NAMES = (*_NUMBERS, *(name for name in _FLAGS if name.endswith("_column")))

_NUMBER = re.compile(rf"(?<![-\w])({'|'.join(_NUMBERS)})=(\d+)")
_TEXT_VALUE = re.compile(rf"(?<![-\w])({'|'.join(_FLAGS)})=([\"'])([^\"'\n]+)\2")
_TRUE = re.compile(rf"(?<![-\w])({'|'.join(_FLAGS)})=True\b")
_NAME = re.compile(rf"(?<![-\w])({'|'.join(_NAMES)})(?![\w=])")


def in_flags(message: str) -> str:
    """Return a message of the library with the command line's names of its arguments."""
    message = _TEXT_VALUE.sub(lambda m: f"--{_FLAGS[m[1]]} {m[3]}", message)
    message = _NUMBER.sub(r"--\1 \2", message)
    message = _TRUE.sub(lambda m: f"--{_FLAGS[m[1]]}", message)
    return _NAME.sub(r"--\1", message)
