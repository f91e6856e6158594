"""Calls of `postprocess_qa_predictions` that write files are noted where somebody collects them."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from qa_flax import postprocess_qa_predictions
from qa_flax.answers.written import noting_answers

EXAMPLES = [{"id": "q0", "context": "Paris is big"}]
FEATURES = [{"example_id": "q0", "offset_mapping": [None, (0, 5), (6, 8), (9, 12), None]}]
LOGITS = np.array([[0.0, 3.0, 1.0, 0.5, -1.0]]), np.array([[0.0, 4.0, 1.0, 0.5, -1.0]])


def search(folder, **arguments):
    return postprocess_qa_predictions(EXAMPLES, FEATURES, LOGITS, output_dir=folder, **arguments)


def test_calls_that_write_are_noted(tmp_path):
    search(tmp_path)  # nobody collects
    with noting_answers() as outer:
        search(None)
        search(tmp_path, is_world_process_zero=False)
        with noting_answers() as written:
            search(tmp_path, prefix="eval", max_answer_length=7, null_score_diff_threshold=1.5)
        search(tmp_path)
    (answers,) = written
    assert (answers.folder, answers.prefix, answers.texts) == (tmp_path, "eval", {"q0": "Paris"})
    assert answers.features is FEATURES
    assert answers.settings["max_answer_length"] == 7
    assert answers.settings["null_score_diff_threshold"] == 1.5
    assert answers.settings["version_2_with_negative"] is False
    assert [call.prefix for call in outer] == [""]


def test_other_threads_have_their_own(tmp_path):
    def inside():
        with noting_answers() as written:
            search(tmp_path)
        return len(written)

    with noting_answers() as outer, ThreadPoolExecutor(1) as pool:
        assert pool.submit(inside).result() == 1
        pool.submit(search, tmp_path).result()
    assert outer == []
