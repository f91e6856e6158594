"""Train small tokenizers of three kinds, built like those of BERT, RoBERTa and XLM-R."""

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "Paris is the capital of France. It lies on the river Seine, and has two million people.",
    "The 👩‍👩‍👧‍👦 lives in Köln;\r\nits cafe\u0301 serves\u00a0tea (东京, 京都 are in 日本).",
    "A naïve approach: count 1, 2, 3 ... then stop. \u200bZero-width, \tand   several   spaces.",
    "\u202bالقاهرة هي عاصمة مصر\u202c and the Nile runs through it.",  # noqa: RUF001
]


def word_piece(*, texts=TEXTS, vocab_size=120, **settings):
    """BERT's: WordPiece, lower case."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=special, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return _wrap(backend, inputs, names | settings)


def byte_level(add_prefix_space=False, *, texts=TEXTS, vocab_size=330, **settings):
    """RoBERTa's: byte-level BPE, two separators, no token types."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=add_prefix_space
    )
    return _wrap(backend, ["input_ids", "attention_mask"], _ROBERTA_NAMES | settings)


def metaspace(*, texts=TEXTS, vocab_size=150, **settings):
    """XLM-R's: Unigram over Metaspace with NFKC."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", "<s> $A </s> </s> $B </s>", [("<s>", 0), ("</s>", 2)]
    )
    return _wrap(backend, ["input_ids", "attention_mask"], _ROBERTA_NAMES | settings)


_ROBERTA_NAMES = {
    "cls_token": "<s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "bos_token": "<s>",
}


def _wrap(backend, inputs, names):
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=inputs, **names)
