"""Make the tiny pre-trained encoder that `qa-flax demo` starts from.

    python -m qa_flax.commands.demo.make_encoder [--seed 0] [--output_dir DIR]

A transformer this small takes long to find out that a name in the question is the same as a name in
the context; all else the demo's fine-tuning teaches in a minute. So the encoder practises that on
generated exercises (`encoder_text.py`), asked of every context token: is it the first or last
of the answer, does its word occur in the question, does its sentence hold the answer. The heads are
thrown away. The same seed gives the same vocabulary and, on the same hardware, the same weights.
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
    """`steps` batches of exercises with `fewest` to `most` sentences, at most `tokens` long."""

    steps: int
    fewest: int
    most: int
    tokens: int


# Short exercises first: matching is found on them in a third of the time.
PHASES = (Phase(600, 2, 3, 56), Phase(600, 2, 5, 80), Phase(500, 3, 6, 104))


CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:;?!()'\"-"


# ---- vocabulary -------------------------------------------------------------------------------


def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """An uncased WordPiece vocabulary: the exercises' words, pieces of names and numbers."""
    rng = random.Random(f"{seed} vocabulary")
    names = (make_name(rng) for _ in range(40_000))
    numbers = (str(rng.randrange(10_000)) for _ in range(4_000))
    lines = [*names, *numbers, *(" ".join([word] * 1000) for word in WORDS)]
    rng.shuffle(lines)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = _tokenizer({token: n for n, token in enumerate(special)})
    trainer = trainers.WordPieceTrainer(
        vocab_size=SIZES["vocab_size"],
        # The trainer breaks ties by number, and numbers the pieces it meets in an order that
        # differs from run to run: all single characters are numbered here.
        special_tokens=[*special, *CHARACTERS, *(f"##{c}" for c in CHARACTERS)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer = _tokenizer(tokenizer.get_vocab())  # so that the characters are not special
    numbers_of = tokenizer.get_vocab()
    ends = [(token, numbers_of[token]) for token in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = processors.BertProcessing(*ends)
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
    """Arrays of the exercises of one step, a pure function of its arguments."""
    rng = random.Random(f"{seed} step {step}")
    exercises = [make_exercise(rng, phase.fewest, phase.most) for _ in range(BATCH)]
    tokenizer.enable_padding(length=phase.tokens)
    encoded = tokenizer.encode_batch([(e.question, e.context) for e in exercises])
    width = phase.tokens
    batch = {
        "input_ids": np.array([e.ids[:width] for e in encoded], np.int32),
        "attention_mask": np.array([e.attention_mask[:width] for e in encoded], np.int32),
        "token_type_ids": np.array([e.type_ids[:width] for e in encoded], np.int32),
        # An exercise that is too long has no say.
        "valid": np.array([len(e.ids) == width for e in encoded], np.float32),
        # Rows start anywhere, so that every position is trained by short exercises, too.
        "shift": np.array([rng.randrange(129 - width) for _ in encoded], np.int32),
    }
    offsets = np.array([e.offsets[:width] for e in encoded], np.int32)
    labels = [_labels(*pair) for pair in zip(exercises, offsets, strict=True)]
    inside = batch["token_type_ids"] * (offsets[..., 1] > offsets[..., 0])
    named = zip(("start", "end", "repeated", "relevant"), zip(*labels, strict=True), strict=True)
    for name, rows in named:
        batch[name] = np.array(rows) * inside
    return batch


def _labels(exercise: Exercise, offsets: np.ndarray) -> tuple[np.ndarray, ...]:
    """Per token: answer's start, answer's end, in a repeated word, in the answer's sentence."""
    context, (first, last) = exercise.context, exercise.answer
    asked = {word for word in exercise.question.split() if len(word) > 1}
    repeated = np.zeros(len(context) + 1, bool)
    position = 0
    for word in context.split(" "):
        repeated[position : position + len(word)] = word in asked
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


def begin(model: AutoModelForQuestionAnswering, seed: int) -> None:
    """Begin where matching is near: a quarter of each vector tells the position, the rest the word.

    Positions are waves (Vaswani et al. 2017). A head whose queries equal its keys (Trockman and
    Kolter 2023) looks at near tokens or, turned by one position, at the token before or after; on
    the other three quarters it looks at the same word elsewhere. All is trained like the rest.
    """
    rng = np.random.default_rng(seed)
    h, heads = SIZES["hidden_size"], SIZES["num_attention_heads"]
    k = h // heads
    embeddings = model.encoder.embeddings
    rates = np.geomspace(np.pi / 2, np.pi / 96, k // 2)
    angles = np.arange(SIZES["max_position_embeddings"])[:, None] * rates
    waves = np.zeros((len(angles), h))
    waves[:, :k] = 0.07 * np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    embeddings.position.embedding[...] = jnp.asarray(waves, jnp.float32)
    for table in (embeddings.word, embeddings.token_type):
        table.embedding[...] = table.embedding[...].at[:, :k].set(0.0)
    sharp, wide = rates > 0.2, (rates < 0.5) & (rates > 0.06)
    for n, layer in enumerate(model.encoder.layers):
        query, key = 0.02 * rng.normal(size=(2, h, h))
        turn = (-1, 1)[n % 2]
        for head, (chosen, shift, gain) in enumerate(((sharp, turn, 5.0), (wide, 0, 3.0))):
            query[:k, head * k : head * k + k] += np.sqrt(gain) * _turn(rates, chosen, shift)
            key[:k, head * k : head * k + k] += np.sqrt(gain) * _turn(rates, chosen, 0)
        for head in range(2, heads):
            same = np.linalg.qr(rng.normal(size=(h - k, k)))[0]
            query[k:, head * k : head * k + k] += 1.15 * same
            key[k:, head * k : head * k + k] += 1.15 * same
        layer.attention.query.kernel[...] = jnp.asarray(query, jnp.float32)
        layer.attention.key.kernel[...] = jnp.asarray(key, jnp.float32)


def _turn(rates: np.ndarray, chosen: np.ndarray, shift: int) -> np.ndarray:
    """The matrix `[k, k]` that moves the chosen waves by `shift` positions and drops the others."""
    cos, sin = (np.diag(chosen * wave(rates * shift)) for wave in (np.cos, np.sin))
    return np.block([[cos, sin], [-sin, cos]])


def make_loss(graphdef: nnx.GraphDef):
    """`loss(params, batch) -> (loss, measurements)` of the model and of the words' head."""

    def loss(params: Any, batch: dict[str, jax.Array]):
        model = nnx.merge(graphdef, params["model"])
        ids, mask, types = (batch[k] for k in ("input_ids", "attention_mask", "token_type_ids"))
        positions = jnp.arange(ids.shape[1])[None, :] + batch["shift"][:, None]
        hidden = model.encoder(ids, mask, types, positions)
        logits = jax.tree.map(lambda x: jnp.where(mask > 0, x, -1e4), model.head(hidden))
        gold_start, gold_end = (jnp.argmax(batch[k], axis=1) for k in ("start", "end"))
        valid, rows = batch["valid"], batch["valid"].sum()
        span = (span_losses(logits, gold_start, gold_end) * valid).sum() / rows
        words = hidden @ params["words"]
        tokens = (types * mask) * valid[:, None]
        repeated, relevant = (
            (optax.sigmoid_binary_cross_entropy(words[..., i], batch[name]) * tokens).sum()
            / tokens.sum()
            for i, name in enumerate(("repeated", "relevant"))
        )
        right = (logits.start.argmax(1) == gold_start) & (logits.end.argmax(1) == gold_end)
        found = {"span": span, "repeated": repeated, "relevant": relevant}
        found["exact"] = (right * valid).sum() / rows
        return span + repeated + 2 * relevant, found

    return loss


def pretrain(tokenizer: PreTrainedTokenizerFast, seed: int) -> AutoModelForQuestionAnswering:
    """Train through `PHASES` and return the model, its span head included."""
    model = AutoModelForQuestionAnswering.from_config(BertConfig(**SIZES), seed=seed)
    begin(model, seed)
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
        (_, found), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, found

    opt_state, step, started, recent = optimizer.init(params), 0, time.perf_counter(), []
    for phase in PHASES:
        for _ in range(phase.steps):
            batch = make_batch(tokenizer.backend_tokenizer, seed, step, phase)
            params, opt_state, found = update(params, opt_state, batch)
            recent.append(found)
            step += 1
            if step % 100 == 0:
                means = {k: np.mean([float(f[k]) for f in recent]) for k in found}
                shown = "  ".join(f"{k} {v:.3f}" for k, v in means.items())
                print(
                    f"{step:5}/{steps}  {time.perf_counter() - started:5.0f} s  {shown}", flush=True
                )
                recent = []
    nnx.update(model, params["model"])
    return model


# ---- files ------------------------------------------------------------------------------------


def save(model: AutoModelForQuestionAnswering, tokenizer: PreTrainedTokenizerFast, output: Path):
    """config.json, the tokenizer, and the encoder's weights alone, rounded to float16."""
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
    """Parse the arguments, make the encoder, say what it took."""
    parser = argparse.ArgumentParser(
        description="Make the encoder that `qa-flax demo` starts from."
    )
    parser.add_argument("--seed", type=int, default=0)
    place = Path(__file__).with_name("encoder")
    parser.add_argument("--output_dir", type=Path, default=place)
    args = parser.parse_args()
    started = time.perf_counter()
    tokenizer = make_tokenizer(args.seed)
    model = pretrain(tokenizer, args.seed)
    save(model, tokenizer, args.output_dir)
    size = sum(file.stat().st_size for file in args.output_dir.iterdir())
    seconds = time.perf_counter() - started
    print(f"{args.output_dir}: {size / 1e6:.2f} MB, made in {seconds / 60:.1f} minutes")


if __name__ == "__main__":
    main()
