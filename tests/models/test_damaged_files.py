"""Damaged files of a model folder give one message, or the same model and tokenizer, or another
value where nothing can tell: never an error from deep inside."""

import json
import os
import shutil
import time

import numpy as np
import pytest
import tiny
import trained
from transformers import RobertaConfig

from qa_flax import AutoModelForQuestionAnswering
from qa_flax.data.tokenizer_checks import check_fit
from qa_flax.data.tokenizer_files import load_tokenizer
from qa_flax.train.tokenizer_fit import model_numbers, position_limit

SECONDS = float(os.environ.get("QA_FLAX_FUZZ_SECONDS", "60"))
WORDS = [b"-1", b"0", b"1e999", b"null", b"[]", b"{}", b'"x"', b"true", b"99999999999", b"\xff"]


def flip(data, random):
    place = random.integers(len(data))
    return data[:place] + bytes([data[place] ^ (1 << random.integers(8))]) + data[place + 1 :]


def cut(data, random):
    return data[: random.integers(len(data))]


def insert(data, random):
    place = random.integers(len(data) + 1)
    return data[:place] + random.bytes(random.integers(1, 9)) + data[place:]


def word(data, random):
    place = random.integers(len(data) + 1)
    size = random.integers(0, 6)
    return data[:place] + WORDS[random.integers(len(WORDS))] + data[place + size :]


def value(data, random):
    """Another value of one key of a JSON object."""
    try:
        values = json.loads(data)
    except ValueError:
        return flip(data, random)
    name = list(values)[random.integers(len(values))]
    values[name] = json.loads(WORDS[random.integers(8)])
    return json.dumps(values).encode()


def folders(parent):
    bert = parent / "bert"
    tiny.model().save_pretrained(bert)
    tiny.tokenizer().save_pretrained(bert)
    roberta = parent / "roberta"
    config = RobertaConfig(**tiny.config().to_dict() | {"vocab_size": 340, "model_type": "roberta"})
    AutoModelForQuestionAnswering.from_config(config).save_pretrained(roberta)
    parts = json.loads(trained.byte_level().backend_tokenizer.to_str())["model"]
    (roberta / "vocab.json").write_text(json.dumps(parts["vocab"]))
    (roberta / "merges.txt").write_text("\n".join(" ".join(pair) for pair in parts["merges"]))
    words = parent / "words"
    tiny.model().save_pretrained(words)
    vocabulary = tiny.tokenizer().get_vocab()
    (words / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n")
    return bert, roberta, words


@pytest.mark.slow
def test_damaged_files_give_one_message(tmp_path):
    random = np.random.default_rng(int(os.environ.get("QA_FLAX_FUZZ_SEED", "0")))
    sources = folders(tmp_path)
    end, counts = time.monotonic() + SECONDS, {"refused": 0, "loaded": 0}
    while time.monotonic() < end:
        source = sources[random.integers(len(sources))]
        copy = shutil.copytree(source, tmp_path / "copy")
        files = sorted(path.name for path in copy.iterdir())
        name = files[random.integers(len(files))]
        changes = [flip, cut, insert, word] + [value] * (2 * name.endswith(".json"))
        change = changes[random.integers(len(changes))]
        (copy / name).write_bytes(change((copy / name).read_bytes(), random))
        try:
            model = AutoModelForQuestionAnswering.from_pretrained(copy)
            check_fit(load_tokenizer(str(copy), argument="--x"), model_numbers(model), "--x")
            position_limit(model)
            model(np.ones((1, 8), np.int32))
            counts["loaded"] += 1
        except (ValueError, OSError):
            counts["refused"] += 1
        except BaseException as error:
            kept = shutil.copytree(copy, tmp_path / f"failed-{name}")
            raise AssertionError(f"{change.__name__} of {source.name}/{name}: {kept}") from error
        shutil.rmtree(copy)
    print(counts)
    assert counts["refused"] > 0
