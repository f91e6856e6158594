"""Small test data built in memory: a tokenizer, twelve tricky examples, and a tiny BERT."""

import datasets
import numpy as np
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import BertConfig, BertTokenizerFast

from qa_flax import AutoModelForQuestionAnswering, load_examples

VOCABULARY = 240
CONTEXTS = [
    "Ada Lovelace wrote the first program in 1843. Charles Babbage designed the engine it was for.",
    "The river Elbe flows through Bohemia, Dresden and Hamburg before it meets the sea.",
    "Café Zürich sells 12½ kinds of cake; the naïve guest orders one, the wise guest orders two.",
    "東京は日本の首都です。 Tokyo is the capital of Japan, and Kyoto was the capital before it.",
    "One. " * 40 + "The treasure lies under the old oak tree. " + "Two. " * 40,
    "Short.",
]
QUESTIONS = [
    ("Who wrote the first program?", 0, "Ada Lovelace"),
    ("When was it written?", 0, "1843"),
    ("  Who designed the engine?", 0, "Charles Babbage"),
    ("Where does the Elbe end?", 1, "the sea"),
    ("Which cities does it pass?", 1, "Dresden and Hamburg"),
    ("How many kinds of cake?", 2, "12½"),
    ("What does the naïve guest order?", 2, "one"),
    ("What is the capital of Japan?", 3, "Tokyo"),
    ("首都はどこですか?", 3, "東京"),
    ("Where is the treasure?", 4, "under the old oak tree"),
    ("What is short?", 5, "Short"),
    ("Who lives on the moon?", 5, None),
]


def rows() -> list[dict]:
    result = []
    for n, (question, context, answer) in enumerate(QUESTIONS):
        context = CONTEXTS[context]
        answers = {"text": [], "answer_start": []}
        if answer is not None:
            answers = {"text": [answer], "answer_start": [context.index(answer)]}
        result.append(
            {
                "id": f"q{n}",
                "title": "",
                "context": context,
                "question": question,
                "answers": answers,
            }
        )
    return result


def examples(answerable: bool = False) -> datasets.Dataset:
    """All twelve examples, or only the eleven with an answer."""
    return load_examples([row for row in rows() if row["answers"]["text"] or not answerable])


def repeated_examples(count: int) -> datasets.Dataset:
    """The examples with an answer several times, with ids of their own."""
    answerable = [row for row in rows() if row["answers"]["text"]]
    return load_examples(
        [{**row, "id": f"{row['id']}-{n}"} for n in range(count) for row in answerable]
    )


def tokenizer() -> BertTokenizerFast:
    """WordPiece with BERT's special tokens; its vocabulary has every character and some words.

    The vocabulary is computed, not trained: training breaks ties differently in every process.
    """
    normalizer = normalizers.BertNormalizer(lowercase=True)
    texts = [normalizer.normalize_str(text) for text in [*CONTEXTS, *(q for q, *_ in QUESTIONS)]]
    characters = sorted(set("".join(texts)) - {" "})
    words = sorted(set(" ".join(texts).split()))[::2]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = special + characters + [f"##{c}" for c in characters] + words
    vocabulary = {token: n for n, token in enumerate(dict.fromkeys(tokens))}
    assert len(vocabulary) <= VOCABULARY
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(t, backend.token_to_id(t)) for t in ("[CLS]", "[SEP]")],
    )
    return BertTokenizerFast(tokenizer_object=backend, model_max_length=512)


def config(**changes) -> BertConfig:
    """A small BERT; its weights are ten times larger than HF's default, to make errors visible."""
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return BertConfig(**(settings | changes))


def model(seed: int = 0, **changes) -> AutoModelForQuestionAnswering:
    return AutoModelForQuestionAnswering.from_config(config(**changes), seed=seed)


def random_batch(rng: np.random.Generator, rows: int, length: int = 24) -> dict[str, np.ndarray]:
    """Inputs `[rows, length]` with different amounts of padding, and labels; all rows are valid."""
    lengths = rng.integers(6, length + 1, rows)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    return {
        "input_ids": rng.integers(5, VOCABULARY, (rows, length)).astype(np.int32) * mask,
        "attention_mask": mask,
        "token_type_ids": (np.arange(length) > 5).astype(np.int32) * mask,
        "start_positions": rng.integers(0, 6, rows).astype(np.int32),
        "end_positions": rng.integers(0, 6, rows).astype(np.int32),
        "valid": np.ones(rows, bool),
    }
