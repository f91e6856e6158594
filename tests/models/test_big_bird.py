"""BigBird: random blocks in training, default token types, no answers in the question."""

import numpy as np
import pytest
from flax import nnx
from loud import loud_batch, loud_model, relative_error

torch = pytest.importorskip("torch", reason="needs the parity extra")
import transformers  # noqa: E402

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def logits_and_torch_logits(batch, directory, train=False, **changes):
    """Our logits and PyTorch's, each `[2, b, l]`: start, end."""
    model = loud_model(4, family="big_bird", **NO_DROPOUT, **changes)
    model.save_pretrained(directory)
    torch_model = transformers.AutoModelForQuestionAnswering.from_pretrained(directory)
    torch_model.train(train)
    with torch.no_grad():
        output = torch_model(**{name: torch.tensor(values) for name, values in batch.items()})

    @nnx.jit
    def run(model):
        return model(**batch, rngs=nnx.Rngs(dropout=0) if train else None)

    return np.stack(run(model)[:]), np.stack((output.start_logits, output.end_logits))


@pytest.mark.parametrize(
    ("length", "longest", "size", "r"),
    [
        (25, 40, 3, 1),
        (60, 64, 4, 3),
        *(  # The lengths for which PyTorch draws as in the paper's code. Each tests another branch.
            pytest.param(*sizes, marks=pytest.mark.slow)
            for sizes in (
                *((1020, 1024, 8, 2), (1024, 4096, 64, 3)),
                *((3072, 3072, 128, 3), (4096, 4096, 512, 1)),
            )
        ),
    ],
)
def test_training_draws_the_random_blocks_of_pytorch(length, longest, size, r, tmp_path):
    changes = {
        "max_position_embeddings": longest,
        "block_size": size,
        "num_random_blocks": r,
        "hidden_size": 4,
        "num_attention_heads": 2,
        "num_hidden_layers": 2 if length < 1000 else 1,
    }
    batch = loud_batch(length, 3 if length < 1000 else 1)
    actual, expected = logits_and_torch_logits(batch, tmp_path, train=True, **changes)
    assert relative_error(actual, expected) < 2e-5
    evaluated, _ = logits_and_torch_logits(batch, tmp_path, **changes)
    assert relative_error(evaluated, expected) > 1e-3


@pytest.mark.parametrize("length", [pytest.param(12, marks=pytest.mark.slow), 25])
def test_default_token_types_equal_pytorch(length, tmp_path):
    batch = loud_batch(length)
    with_types, _ = logits_and_torch_logits(batch, tmp_path)
    del batch["token_type_ids"]
    actual, expected = logits_and_torch_logits(batch, tmp_path)
    assert relative_error(actual, expected) < 2e-5
    assert relative_error(with_types, expected) > 1e-3


def test_answers_in_the_question_are_excluded_except_at_its_first_token():
    batch = loud_batch(12)
    batch["input_ids"][:] = 7
    batch["input_ids"][0, [4, 8]] = batch["input_ids"][1, 0] = 20
    excluded = np.asarray(loud_model(0, family="big_bird")(**batch).start) < -9e5
    assert np.flatnonzero(excluded[0]).tolist() == [1, 2, 3, 4]
    assert not excluded[1:].any()
