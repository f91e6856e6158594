"""Pre-train the tiny encoder that `qa-flax demo` starts from.

    python -m qa_flax.commands.demo.make_encoder [--seed 0] [--output_dir DIR]

A transformer of this size needs many steps to learn to match a name in the question with the same
name in the context. The demo's fine-tuning learns everything else in a minute, so pre-training
teaches the matching, on generated exercises (`encoder_text.py`). For each token of the context the
model predicts whether it is the first or the last token of the answer, whether its word occurs in
the question, and whether its sentence contains the answer. The heads are not saved.

The same seed gives the same vocabulary and, on the same hardware, the same weights.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, PreTrainedTokenizerFast

from qa_flax.commands.demo.encoder_text import WORDS, Exercise, make_exercise, make_name
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.models.qa import span_losses

SIZES = {
    "vocab_size": 1500,
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "max_position_embeddings": 128,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.05,
}
BATCH = 32
LEARNING_RATE = 2e-3
WARMUP = 100


class Phase(NamedTuple):
    """Train for `steps` batches of exercises with `fewest` to `most` sentences, `tokens` long."""

    steps: int
    fewest: int
    most: int
    tokens: int


# Start with short exercises: on them the model learns to match in a third of the time.
PHASES = (Phase(600, 2, 3, 56), Phase(600, 2, 5, 80), Phase(500, 3, 6, 104))


CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:;?!()'\"-"


# ---- vocabulary -------------------------------------------------------------------------------


def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Train an uncased WordPiece tokenizer on the words, names and numbers of the exercises."""
    rng = random.Random(f"{seed} vocabulary")
    names = (make_name(rng) for _ in range(40_000))
    numbers = (str(rng.randrange(10_000)) for _ in range(4_000))
    lines = [*names, *numbers, *(" ".join([word] * 1000) for word in WORDS)]
    rng.shuffle(lines)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = _tokenizer({token: id_ for id_, token in enumerate(special)})
    trainer = trainers.WordPieceTrainer(
        vocab_size=SIZES["vocab_size"],
        # The trainer breaks ties by token id, and it assigns the ids of single characters in an
        # order that differs from run to run. As special tokens they have fixed ids.
        special_tokens=[*special, *CHARACTERS, *(f"##{c}" for c in CHARACTERS)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    vocabulary = tokenizer.get_vocab()
    tokenizer = _tokenizer(vocabulary)  # a new tokenizer, in which the characters are not special
    sep_and_cls = [(token, vocabulary[token]) for token in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = processors.BertProcessing(*sep_and_cls)
    roles = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=SIZES["max_position_embeddings"],
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **dict(zip(roles, special, strict=True)),
    )


def _tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


# ---- exercises -> arrays ----------------------------------------------------------------------


def make_batch(tokenizer: Tokenizer, seed: int, step: int, phase: Phase) -> dict[str, np.ndarray]:
    """Build the batch of one step, a function of the arguments alone.

    Returns:
        `input_ids`, `attention_mask`, `token_type_ids` [B, L] int32; `valid` [B] float32, 0 for an
        exercise that is longer than L; `shift` [B] int32, the position of the first token; and the
        labels of `_labels` [B, L], 0 outside the context.
    """
    rng = random.Random(f"{seed} step {step}")
    exercises = [make_exercise(rng, phase.fewest, phase.most) for _ in range(BATCH)]
    tokenizer.enable_padding(length=phase.tokens)
    encoded = tokenizer.encode_batch([(e.question, e.context) for e in exercises])
    width = phase.tokens
    batch = {
        "input_ids": np.array([e.ids[:width] for e in encoded], np.int32),
        "attention_mask": np.array([e.attention_mask[:width] for e in encoded], np.int32),
        "token_type_ids": np.array([e.type_ids[:width] for e in encoded], np.int32),
        "valid": np.array([len(e.ids) == width for e in encoded], np.float32),
        # A random first position, so that short exercises train all position embeddings.
        "shift": np.array([rng.randrange(129 - width) for _ in encoded], np.int32),
    }
    offsets = np.array([e.offsets[:width] for e in encoded], np.int32)
    labels = [_labels(*pair) for pair in zip(exercises, offsets, strict=True)]
    is_context = batch["token_type_ids"] * (offsets[..., 1] > offsets[..., 0])
    names = ("start", "end", "repeated", "relevant")
    for name, rows in zip(names, zip(*labels, strict=True), strict=True):
        batch[name] = np.array(rows) * is_context
    return batch


def _labels(exercise: Exercise, offsets: np.ndarray) -> tuple[np.ndarray, ...]:
    """The labels of one exercise's tokens, whose character offsets are [L, 2].

    Returns:
        Four arrays [L], bool: is the answer's first token, is its last token, is part of a word
        that occurs in the question, is in the answer's sentence.
    """
    context, (first, last) = exercise.context, exercise.answer
    question_words = {word for word in exercise.question.split() if len(word) > 1}
    repeated = np.zeros(len(context) + 1, bool)
    position = 0
    for word in context.split(" "):
        repeated[position : position + len(word)] = word in question_words
        position += len(word) + 1
    starts, ends = offsets.T
    relevant = (starts >= exercise.sentence[0]) & (ends <= exercise.sentence[1])
    return (
        (starts == first) & (last > 0),
        (ends == last) & (last > 0),
        repeated[np.minimum(starts, len(context))],
        relevant,
    )


# ---- training ---------------------------------------------------------------------------------


def initialize(model: AutoModelForQuestionAnswering, seed: int) -> None:
    """Initialize embeddings and attention so that the model learns to match words quickly.

    The first quarter of each hidden vector encodes the position, the rest the word. Positions are
    sinusoidal (Vaswani et al. 2017). Queries and keys start nearly equal (Trockman and Kolter
    2023). In each layer, head 0 attends to the previous or the next token, head 1 to nearby tokens,
    and the other heads to the same word at other positions. All parameters are trained afterwards.
    """
    rng = np.random.default_rng(seed)
    h, heads = SIZES["hidden_size"], SIZES["num_attention_heads"]
    k = h // heads
    embeddings = model.encoder.embeddings
    rates = np.geomspace(np.pi / 2, np.pi / 96, k // 2)
    angles = np.arange(SIZES["max_position_embeddings"])[:, None] * rates
    positions = np.zeros((len(angles), h))
    positions[:, :k] = 0.07 * np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    embeddings.position.embedding[...] = jnp.asarray(positions, jnp.float32)
    for table in (embeddings.word, embeddings.token_type):
        table.embedding[...] = table.embedding[...].at[:, :k].set(0.0)
    high, middle = rates > 0.2, (rates < 0.5) & (rates > 0.06)
    for n, layer in enumerate(model.encoder.layers):
        query, key = 0.02 * rng.normal(size=(2, h, h))
        neighbour = (-1, 1)[n % 2]
        for head, (band, shift, gain) in enumerate(((high, neighbour, 5.0), (middle, 0, 3.0))):
            query[:k, head * k : head * k + k] += np.sqrt(gain) * _shift_matrix(rates, band, shift)
            key[:k, head * k : head * k + k] += np.sqrt(gain) * _shift_matrix(rates, band, 0)
        for head in range(2, heads):
            same = np.linalg.qr(rng.normal(size=(h - k, k)))[0]
            query[k:, head * k : head * k + k] += 1.15 * same
            key[k:, head * k : head * k + k] += 1.15 * same
        layer.attention.query.kernel[...] = jnp.asarray(query, jnp.float32)
        layer.attention.key.kernel[...] = jnp.asarray(key, jnp.float32)


def _shift_matrix(rates: np.ndarray, band: np.ndarray, shift: int) -> np.ndarray:
    """The matrix `[k, k]` that shifts sinusoids in `band` by `shift` positions, zeroing others."""
    cos, sin = (np.diag(band * function(rates * shift)) for function in (np.cos, np.sin))
    return np.block([[cos, sin], [-sin, cos]])


def make_loss(graphdef: nnx.GraphDef):
    """Build `loss(params, batch) -> (loss, metrics)` of the span head and of the word head."""

    def loss(params: Any, batch: dict[str, jax.Array]):
        model = nnx.merge(graphdef, params["model"])
        ids, mask, types = (batch[k] for k in ("input_ids", "attention_mask", "token_type_ids"))
        positions = jnp.arange(ids.shape[1])[None, :] + batch["shift"][:, None]
        hidden = model.encoder(ids, mask, types, positions)
        logits = jax.tree.map(lambda x: jnp.where(mask > 0, x, -1e4), model.head(hidden, ids))
        gold_start, gold_end = (jnp.argmax(batch[k], axis=1) for k in ("start", "end"))
        valid, rows = batch["valid"], batch["valid"].sum()
        span = (span_losses(logits, gold_start, gold_end) * valid).sum() / rows
        word_logits = hidden @ params["words"]
        tokens = (types * mask) * valid[:, None]
        repeated, relevant = (
            (optax.sigmoid_binary_cross_entropy(word_logits[..., i], batch[name]) * tokens).sum()
            / tokens.sum()
            for i, name in enumerate(("repeated", "relevant"))
        )
        correct = (logits.start.argmax(1) == gold_start) & (logits.end.argmax(1) == gold_end)
        metrics = {"span": span, "repeated": repeated, "relevant": relevant}
        metrics["exact"] = (correct * valid).sum() / rows
        return span + repeated + 2 * relevant, metrics

    return loss


def pretrain(tokenizer: PreTrainedTokenizerFast, seed: int) -> AutoModelForQuestionAnswering:
    """Train a new model through all `PHASES` and return it, with its span head."""
    model = AutoModelForQuestionAnswering.from_config(BertConfig(**SIZES), seed=seed)
    initialize(model, seed)
    graphdef, state = nnx.split(model)
    params = {"model": state, "words": jnp.zeros((SIZES["hidden_size"], 2))}
    steps = sum(phase.steps for phase in PHASES)
    rate = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, WARMUP, steps, LEARNING_RATE / 20)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=0.01)
    )
    loss = make_loss(graphdef)

    @jax.jit
    def update(params, opt_state, batch):
        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, metrics

    opt_state, step, started, recent = optimizer.init(params), 0, time.perf_counter(), []
    for phase in PHASES:
        for _ in range(phase.steps):
            batch = make_batch(tokenizer.backend_tokenizer, seed, step, phase)
            params, opt_state, metrics = update(params, opt_state, batch)
            recent.append(metrics)
            step += 1
            if step % 100 == 0:
                means = {name: np.mean([float(m[name]) for m in recent]) for name in metrics}
                text = "  ".join(f"{name} {mean:.3f}" for name, mean in means.items())
                seconds = time.perf_counter() - started
                print(f"{step:5}/{steps}  {seconds:5.0f} s  {text}", flush=True)
                recent = []
    nnx.update(model, params["model"])
    return model


# ---- files ------------------------------------------------------------------------------------


def save(model: AutoModelForQuestionAnswering, tokenizer: PreTrainedTokenizerFast, output: Path):
    """Write config.json, the tokenizer and the encoder's weights in float16, without the head."""
    tokenizer.backend_tokenizer.no_padding()
    with tempfile.TemporaryDirectory() as temporary:
        model.save_pretrained(temporary)
        tensors = load_file(Path(temporary) / "model.safetensors")
    encoder = {
        k: v.astype(np.float16) for k, v in tensors.items() if not k.startswith("qa_outputs")
    }
    output.mkdir(parents=True, exist_ok=True)
    save_file(encoder, output / "model.safetensors", metadata={"format": "pt"})
    BertConfig(**SIZES, architectures=["BertModel"], dtype="float16").save_pretrained(output)
    tokenizer.save_pretrained(output)


def main() -> None:
    """Pre-train and save the encoder; print its size and the time it took."""
    parser = argparse.ArgumentParser(
        description="Pre-train the encoder that `qa-flax demo` starts from."
    )
    parser.add_argument("--seed", type=int, default=0)
    folder = Path(__file__).with_name("encoder")
    parser.add_argument("--output_dir", type=Path, default=folder)
    args = parser.parse_args()
    started = time.perf_counter()
    tokenizer = make_tokenizer(args.seed)
    model = pretrain(tokenizer, args.seed)
    save(model, tokenizer, args.output_dir)
    size = sum(file.stat().st_size for file in args.output_dir.iterdir())
    seconds = time.perf_counter() - started
    print(f"{args.output_dir}: {size / 1e6:.2f} MB, created in {seconds / 60:.1f} minutes")


if __name__ == "__main__":
    main()
