"""`learning_curves`: the SVG picture of a log history, and the files with it."""

import json
import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import tiny
from tiny_trainers import WINDOW, arguments

from qa_flax import Trainer, learning_curves, prepare_train_features

SVG = "{http://www.w3.org/2000/svg}"


def parsed(history, **settings):
    """The elements of the picture by tag, after checks that hold for every picture."""
    text = str(learning_curves(history, **settings))
    root = ElementTree.fromstring(text)
    width, height = float(root.get("width")), float(root.get("height"))
    elements = {tag: list(root.iter(SVG + tag)) for tag in ("polyline", "circle", "line", "text")}
    for line in elements["polyline"]:
        for x, y in points_of(line):
            assert 0 < x < width
            assert 0 < y < height
    assert "nan" not in text.lower()
    assert "inf" not in text.lower()
    assert "<script" not in text
    return elements


def points_of(polyline):
    return [tuple(map(float, pair.split(","))) for pair in polyline.get("points").split()]


def texts(elements):
    return [element.text for element in elements["text"]]


def history_of(steps=8):
    return [
        {"step": step, "epoch": step / 4, "loss": 4 / step} | evaluation
        for step in range(1, steps + 1)
        for evaluation in [
            {
                "eval_loss": 1 + (step - 5) ** 2 / 25,
                "eval_runtime": 0.1,
                **{
                    f"{prefix}_{name}": scale * step
                    for prefix, scale in (("train", 12), ("eval", 9))
                    for name in ("exact_match", "f1", "accuracy_start", "accuracy_end")
                },
            }
        ]
    ]


def test_three_panels_with_both_sets_and_the_best_step():
    elements = parsed(history_of(), title="<a & b>\x00")
    labels = texts(elements)
    assert labels.count("<a & b>") == 1
    for label in ("training", "validation", "training F1", "validation EM", "validation end"):
        assert label in labels
    assert labels.count("step (2 epochs)") == 3
    assert labels.count("lowest validation loss: step 5") == 3
    assert len(elements["polyline"]) == 2 + 4 + 4
    assert len({line.get("class") for line in elements["polyline"]}) == 2
    # Lower values are further down, and the steps are equally far apart.
    eval_loss = points_of(elements["polyline"][1])
    assert max(eval_loss, key=lambda point: point[1])[0] == eval_loss[4][0]
    np.testing.assert_allclose(np.diff([x for x, _ in eval_loss]), 284 / 8, atol=0.11)
    assert "best model: step 3" in texts(parsed(history_of(), best_step=3))


@pytest.mark.parametrize("scale", [1e-9, 0.3, 1.0, 97.0, 4e8])
def test_the_axes_have_a_few_round_ticks_that_enclose_the_values(scale):
    history = [{"step": 37 * n, "loss": scale * (3.1 - 0.4 * n)} for n in range(1, 7)]
    elements = parsed(history)
    ticks = [text for text in elements["text"] if text.get("class") == "lc-minor"]
    values = [
        float(tick.text.replace(",", "")) for tick in ticks if tick.get("text-anchor") == "end"
    ]
    assert 3 <= len(values) <= 8
    np.testing.assert_allclose(np.diff(values), values[1] - values[0], rtol=1e-6)
    assert values[0] <= scale * 0.7 < scale * 2.7 <= values[-1] * (1 + 1e-9)
    steps = [tick.text for tick in ticks if tick.get("text-anchor") == "middle"]
    assert steps == ["0", "50", "100", "150", "200", "step"]


def test_gaps_single_points_many_points_and_nothing():
    nan = [{"step": n, "loss": math.nan if n in (4, 7) else 2.0 + n % 3} for n in range(1, 9)]
    elements = parsed([*nan, {"step": 3, "eval_loss": math.inf}, {"step": 5, "eval_loss": None}])
    assert [len(points_of(line)) for line in elements["polyline"]] == [3, 2]
    assert len(elements["circle"]) == 6  # the 8th point is alone
    assert "validation" not in texts(elements)
    many = [{"step": n, "loss": 1 + n % 7} for n in range(1, 5001)]
    many[3210]["loss"] = 90.0
    (line,) = parsed(many)["polyline"]
    points = points_of(line)
    assert 100 < len(points) <= 410
    peak = min(points, key=lambda point: point[1])
    assert (peak[0] - points[0][0]) / (points[-1][0] - points[0][0]) == pytest.approx(
        0.642, abs=0.002
    )
    assert texts(parsed([])) == ["Nothing was logged."]
    assert texts(parsed([{"step": 1, "other": 3}, {}])) == ["Nothing was logged."]


def test_sets_of_a_dict_have_lines_of_their_own_and_the_best_model_is_no_step():
    history = [
        {"step": 2, "eval_a_loss": 1.0, "eval_a_runtime": 1.0, "eval_a_HasAns_f1": 4},
        {"step": 2, "eval_b_loss": 2.0, "eval_b_runtime": 1.0, "eval_b_exact": 4},
        {"step": 3, "train_runtime": 5.0, "train_loss": 0.1},
        {"step": 3, "eval_a_loss": 0.5, "eval_a_runtime": 1.0},
    ]
    labels = texts(parsed(history))
    assert {"a", "b", "b EM"} <= set(labels)
    assert "training" not in labels
    assert len(parsed(history)["circle"]) == 3
    resumed = [*history, {"step": 4, "eval_a_loss": 0.4}]
    assert len(parsed(resumed)["circle"]) == 2 + 2


def test_other_sources(tmp_path):
    state = {"log_history": history_of(), "best_global_step": 6}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    from_file = learning_curves(tmp_path / "trainer_state.json")
    assert "best model: step 6" in str(from_file)
    assert from_file._repr_svg_() == str(learning_curves(str(tmp_path))) == str(from_file)
    from_file.save(tmp_path / "new" / "curves.svg")
    assert (tmp_path / "new" / "curves.svg").read_text() == str(from_file)
    for wrong in (3, [1], {"history": []}, None):
        with pytest.raises(ValueError, match=r"pass trainer\.state\.log_history"):
            learning_curves(wrong)
    with pytest.raises(FileNotFoundError):
        learning_curves(tmp_path / "other.json")


def test_both_schemes_have_a_colour_for_every_class():
    text = str(learning_curves(history_of()))
    (dark,) = re.findall(r"<style>@media \(prefers-color-scheme: dark\) \{(.*)\}</style>", text)
    used = set(re.findall(r'class="([^"]+)"', text))
    assert used <= set(re.findall(r"\.([a-z0-9-]+) \{", dark))
    assert all(name.startswith("lc-") for name in used)


@pytest.mark.slow
def test_a_training_leaves_the_picture_where_it_leaves_files(tmp_path):
    windows = prepare_train_features(tiny.examples(answerable=True), tiny.tokenizer(), **WINDOW)
    few = windows.select(range(2))

    def trained(folder, **changes):
        changes = {"max_steps": 1, "logging_steps": 1, "run_name": "the run"} | changes
        args = arguments(folder, eval_strategy="steps", **changes)
        trainer = Trainer(tiny.model(), args, train_dataset=few, eval_dataset=few)
        trainer.train()
        return trainer, folder / "learning_curves.svg"

    trainer, picture = trained(tmp_path / "none")
    assert not picture.parent.exists()
    trainer.save_state()
    before = picture.read_text()
    assert "the run" in before
    assert "validation" in before
    # An evaluation of its own in the same folder does not replace the curves by a point.
    again = Trainer(trainer.model, trainer.args, eval_dataset=few)
    again.evaluate()
    again.save_state()
    assert picture.read_text() == before
    # train() leaves the files of transformers', unless training questions are evaluated.
    (tmp_path / "exists").mkdir()
    assert not trained(tmp_path / "exists")[1].exists()
    assert trained(tmp_path / "exists", eval_train_samples=2)[1].exists()
