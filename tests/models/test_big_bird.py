"""What only BigBird does: random blocks in training, types and answers after the question."""

import numpy as np
import pytest
from flax import nnx
from loud import loud_batch, loud_model, relative_error

torch = pytest.importorskip("torch", reason="needs the parity extra")
import transformers  # noqa: E402

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def both(batch, directory, train=False, **changes):
    """Our logits and PyTorch's, `[2, b, l]` each."""
    model = loud_model(4, family="big_bird", **NO_DROPOUT, **changes)
    model.save_pretrained(directory)
    theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(directory).train(train)
    with torch.no_grad():
        wanted = theirs(**{name: torch.tensor(values) for name, values in batch.items()})

    @nnx.jit
    def ours(model):
        return model(**batch, rngs=nnx.Rngs(dropout=0) if train else None)

    found = ours(model)
    return np.stack(found), np.stack((wanted.start_logits, wanted.end_logits))


@pytest.mark.parametrize(
    ("length", "longest", "size", "r"),
    [
        (25, 40, 3, 1),
        (60, 64, 4, 3),
        *(  # The lengths whose plans are the paper's, each with another of its cases.
            pytest.param(*sizes, marks=pytest.mark.slow)
            for sizes in (
                *((1020, 1024, 8, 2), (1024, 4096, 64, 3)),
                *((3072, 3072, 128, 3), (4096, 4096, 512, 1)),
            )
        ),
    ],
)
def test_training_draws_pytorch_s_random_blocks(length, longest, size, r, tmp_path):
    changes = {
        "max_position_embeddings": longest,
        "block_size": size,
        "num_random_blocks": r,
        "hidden_size": 4,
        "num_attention_heads": 2,
        "num_hidden_layers": 2 if length < 1000 else 1,
    }
    batch = loud_batch(length, 3 if length < 1000 else 1)
    trained, wanted = both(batch, tmp_path, train=True, **changes)
    assert relative_error(trained, wanted) < 2e-5
    assert relative_error(both(batch, tmp_path, **changes)[0], wanted) > 1e-3


@pytest.mark.parametrize("length", [pytest.param(12, marks=pytest.mark.slow), 25])
def test_token_types_are_those_of_pytorch_if_not_given(length, tmp_path):
    batch = loud_batch(length)
    given, _ = both(batch, tmp_path)
    del batch["token_type_ids"]
    found, wanted = both(batch, tmp_path)
    assert relative_error(found, wanted) < 2e-5
    assert relative_error(given, wanted) > 1e-3


def test_no_answer_is_in_the_question_but_at_its_first_token():
    batch = loud_batch(12)
    batch["input_ids"][:] = 7
    batch["input_ids"][0, [4, 8]] = batch["input_ids"][1, 0] = 20
    low = np.asarray(loud_model(0, family="big_bird")(**batch).start) < -9e5
    assert np.flatnonzero(low[0]).tolist() == [1, 2, 3, 4]
    assert not low[1:].any()
