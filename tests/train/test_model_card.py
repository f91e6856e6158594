"""The model card: what the Hub reads from it, and text of data that is made harmless."""

import json

import datasets
import pytest
import tiny
import yaml
from huggingface_hub import ModelCard
from tiny_trainers import arguments
from transformers.trainer_callback import TrainerState

from qa_flax import QuestionAnsweringTrainer, Trainer
from qa_flax.train.base_card import BaseCard
from qa_flax.train.card_data import CardFacts, data_of_arguments
from qa_flax.train.model_card import EvaluatedData, model_card, widget_example

SCORES = {"eval_exact_match": 61.5, "eval_f1": 72.25, "eval_loss": 1.0}


def state(*entries, **fields):
    return TrainerState(log_history=list(entries), **fields)


def card_of(tmp_path, data=(), base=None, **settings):
    history = state({"step": 4, "epoch": 1.0, **SCORES})
    card = model_card(arguments(tmp_path), history, base or BaseCard(), data, **settings)
    file = tmp_path / "README.md"
    card.save(file)
    loaded = ModelCard.load(file)
    assert loaded.data.to_dict() == card.data.to_dict()
    return loaded


def test_the_metadata(tmp_path):
    data = EvaluatedData("SQuAD", "rajpurkar/squad", "plain_text", "validation")
    base = BaseCard("google-bert/bert-base-cased", False, ("en",), {"license": "apache-2.0"})
    card = card_of(tmp_path / "my-model", [data], base, tags=["own"])
    values = card.data.to_dict()
    assert values["library_name"] == "transformers"
    assert values["pipeline_tag"] == "question-answering"
    assert values["base_model"] == "google-bert/bert-base-cased"
    assert values["license"] == "apache-2.0"
    assert values["language"] == "en"
    assert values["datasets"] == ["rajpurkar/squad"]
    assert values["metrics"] == ["exact_match", "f1"]
    assert values["tags"] == ["own", "generated_from_trainer", "qa_flax", "jax"]
    for result, (metric, value) in zip(
        card.data.eval_results, [("exact_match", 61.5), ("f1", 72.25)], strict=True
    ):
        assert result.task_type == "question-answering"
        assert (result.dataset_type, result.dataset_name) == ("rajpurkar/squad", "SQuAD")
        assert (result.dataset_config, result.dataset_split) == ("plain_text", "validation")
        assert (result.metric_type, result.metric_value) == (metric, value)
    assert card.data.model_name == "my-model"
    assert "version of [google-bert/bert-base-cased](https://huggingface.co/google" in card.text
    for name in ("qa_flax", "JAX", "Transformers", "Datasets", "Tokenizers"):
        assert f"\n- {name} " in card.text


def test_without_evaluation_there_are_no_scores_and_no_example(tmp_path):
    data = EvaluatedData("x", widget={"text": "q", "context": "c"})
    card = model_card(arguments(tmp_path), state(), BaseCard(is_folder=True), [data])
    values = ModelCard(str(card)).data.to_dict()
    assert not values.keys() & {"model-index", "widget", "metrics", "base_model", "datasets"}
    assert "was fine-tuned from a local checkpoint on" in card.text


def test_text_of_names_and_data_stays_text(tmp_path):
    evil = "a\n---\n# b <script>|`[x](y)`\x1b[31m\u202e: {#} 'q' \"r\" \ud800"
    data = EvaluatedData(evil, widget={"text": "Who: # said 'no'?", "context": "--- yes: {1}"})
    card = card_of(tmp_path, [data], model_name=evil, tags=[evil])
    assert card.data.eval_results[0].dataset_name == card.data.model_name
    assert card.data.widget == [{"text": "Who: # said 'no'?", "context": "--- yes: {1}"}]
    text = (tmp_path / "README.md").read_text()
    assert "<script>" not in card.text.replace("\\<script\\>", "")
    assert "\n# b" not in card.text
    assert not {"\x1b", "\u202e"} & set(text)
    assert text.count("\n---\n") == 1 + text.startswith("---\n") - 1


def test_scores_are_those_of_the_saved_model(tmp_path):
    early = {"step": 2, "eval_f1": 80.0, "eval_exact_match": 70.0}
    late = {"step": 4, "eval_f1": 75.0, "eval_exact_match": 60.0}
    end = {"step": 4, "train_runtime": 1.0, "train_loss": 2.0}
    data = [EvaluatedData("x")]

    def f1(history, **changes):
        card = model_card(arguments(tmp_path, **changes), history, BaseCard(), data)
        return {r.metric_type: r.metric_value for r in card.data.eval_results}["f1"]

    assert f1(state(early, late, end)) == 75.0
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "metric_for_best_model": "f1"}
    best |= {"save_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    assert f1(state(early, late, end, best_global_step=2), **best) == 80.0
    again = {**early, "step": 4, "eval_f1": 80.5}
    assert f1(state(early, late, end, again, best_global_step=2), **best) == 80.5
    nan = {"step": 4, "eval_f1": float("nan"), "eval_exact_match": 1.0}
    card = model_card(arguments(tmp_path), state(nan), BaseCard(), data)
    assert [r.metric_type for r in card.data.eval_results] == ["exact_match"]


def test_the_arguments_of_transformers(tmp_path):
    trainer = Trainer(tiny.model(), arguments(tmp_path))
    trainer.log({**SCORES})
    trainer.create_model_card(
        language="sv",
        license="mit",
        tags="mine",
        model_name="A name",
        finetuned_from="KB/bert-base-swedish-cased",
        tasks="question-answering",
        dataset_tags=["KBLab/overlim", "other/set"],
        dataset=["OverLim", "Other"],
        dataset_args=["qa_sv"],
    )
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.language == "sv"
    assert card.data.license == "mit"
    assert card.data.base_model == "KB/bert-base-swedish-cased"
    assert card.data.datasets == ["KBLab/overlim", "other/set"]
    results = card.data.eval_results
    assert [r.dataset_name for r in results] == ["OverLim", "OverLim", "Other", "Other"]
    assert [r.dataset_config for r in results] == ["qa_sv", "qa_sv", None, None]
    assert card.data.model_name == "A name"
    trainer.create_model_card(tags=["second"])  # tags of the card that is there are kept, as in HF
    tags = ModelCard.load(tmp_path / "README.md").data.tags
    assert {"second", "mine"} < set(tags)
    assert data_of_arguments(None, None, None) == []


def test_several_evaluation_sets_have_scores_each(tmp_path):
    sets = {name: datasets.Dataset.from_list([{"input_ids": [1]}]) for name in ("news", "mail")}
    examples = {name: tiny.examples() for name in sets}
    trainer = QuestionAnsweringTrainer(
        tiny.model(), arguments(tmp_path), eval_dataset=sets, eval_examples=examples
    )
    trainer.log({"eval_news_f1": 50.0, "eval_news_exact_match": 40.0})
    trainer.log({"eval_mail_f1": 60.0})
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "README.md")
    scores = {(r.dataset_name, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert scores == {
        ("news", "exact_match"): 40.0,
        ("news", "f1"): 50.0,
        ("mail", "f1"): 60.0,
    }
    assert "Elbe" in card.data.widget[0]["context"]


def test_facts_of_a_run_and_adapters(tmp_path):
    model = tiny.model()
    trainer = Trainer(model, arguments(tmp_path))
    trainer._card_facts = CardFacts([EvaluatedData("dev.json", split="validation")], "de")
    trainer.log({**SCORES})
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.language == "de"
    assert card.data.eval_results[0].dataset_type == "own-data"
    text = str(model_card(arguments(tmp_path), state(), BaseCard(), is_adapter=True))
    assert yaml.safe_load(text.split("---")[1])["library_name"] == "peft"


# ---- the widget ----------------------------------------------------------------------------------


def row(question, context, answer):
    start = context.find(answer)
    return {
        "question": question,
        "context": context,
        "answers": {"text": [answer], "answer_start": [start]},
    }


def test_the_widget_is_short_and_has_the_answer():
    long = "word " * 400 + "the treasure is here" + " word" * 400
    widget = widget_example([row("Where\x00 is\nit?", long, "treasure")])
    assert widget["text"] == "Where is it?"
    assert "treasure" in widget["context"]
    assert len(widget["context"]) <= 500
    assert set(widget["context"].split()) == {"word", "the", "treasure", "is", "here"}
    chosen = widget_example(tiny.examples())
    assert chosen["text"] == "Where does the Elbe end?"
    assert widget_example([row("What?", "Short.", "Short")])["context"] == "Short."
    japanese = "東" * 900 + "京" + "西" * 900
    assert "京" in widget_example([row("?", japanese, "京")])["context"]


@pytest.mark.parametrize(
    "example",
    [
        row("", "a context", "context"),
        row("q" * 500, "a context", "context"),
        row("q", "a context", "elsewhere"),
        row("q", "x" * 900, "x" * 800),
        {"question": "q", "context": "c", "answers": {"text": [], "answer_start": []}},
        {"question": "q", "context": "c", "answers": None},
    ],
)
def test_there_may_be_no_example(example):
    assert widget_example([example]) is None
    assert json.dumps(widget_example([])) == "null"
