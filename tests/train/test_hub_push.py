"""A trainer with `push_to_hub`: when it pushes and what, and that a failure loses nothing."""

import logging
from concurrent.futures import Future

import pytest
import tiny
from hub_stand_in import TOKEN
from huggingface_hub import ModelCard
from tiny_trainers import WINDOW, arguments

from qa_flax import AutoModelForQuestionAnswering, Trainer, prepare_train_features
from qa_flax.models import PushError
from qa_flax.train.hub_push import BackgroundPushes, repo_name
from qa_flax.train.training_arguments import check_training_arguments

REPO = "ada/trained"


@pytest.fixture(scope="module")
def windows():
    return prepare_train_features(tiny.examples(answerable=True), tiny.tokenizer(), **WINDOW)


def trainer_in(folder, windows=None, **changes):
    changes = {"push_to_hub": True, "hub_model_id": REPO} | changes
    args = arguments(folder, **changes)
    return Trainer(tiny.model(), args, train_dataset=windows, processing_class=tiny.tokenizer())


def test_the_repository_is_created_before_the_training(hub, tmp_path):
    trainer = trainer_in(tmp_path / "out", hub_private_repo=True, hub_revision="dev")
    assert trainer.hub_model_id == REPO
    assert hub.repos[REPO].private
    assert set(hub.repos[REPO].branches) == {"main", "dev"}
    assert not hub.repos[REPO].commits
    assert repo_name(arguments(tmp_path / "by-folder")) == "by-folder"
    own = trainer_in(tmp_path / "by-folder", hub_model_id=None)
    assert own.hub_model_id == "ada/by-folder"


def test_what_cannot_be_pushed_to_fails_before_the_training(hub, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="hub_model_id='a b' cannot be the name of a repository"):
        trainer_in(tmp_path, hub_model_id="a b")
    with pytest.raises(PushError, match="You cannot write to eve/x"):
        trainer_in(tmp_path, hub_model_id="eve/x")
    with pytest.raises(PushError, match="401 Unauthorized"):
        trainer_in(tmp_path, hub_token="hf_wrong")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match="needs an access token"):
        trainer_in(tmp_path)
    trainer_in(tmp_path, hub_token=TOKEN)


def test_push_to_hub_saves_and_uploads_model_tokenizer_and_card(hub, tmp_path):
    trainer = trainer_in(tmp_path / "out", push_to_hub=False, hub_model_id=None)
    assert not hub.repos
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "eval_predictions.json").write_text("{}")
    trainer.save_metrics("eval", {"eval_f1": 1.0})
    commit = trainer.push_to_hub("My message", language="sv", tags="mine")
    assert commit.repo_url.repo_id == "ada/out"
    files = hub.files("ada/out")
    assert {"model.safetensors", "config.json", "tokenizer.json", "eval_results.json"} < set(files)
    assert "eval_predictions.json" not in files
    card = ModelCard(files["README.md"].decode())
    assert card.data.language == "sv"
    assert "mine" in card.data.tags
    assert hub.repos["ada/out"].commits[0]["summary"] == "My message"
    AutoModelForQuestionAnswering.from_pretrained("ada/out")

    future = trainer.push_to_hub(blocking=False, revision="later")
    assert isinstance(future, Future)
    assert future.result(60).commit_message == "End of training"
    assert hub.files("ada/out", "later").keys() == files.keys()


def test_save_model_pushes_as_in_transformers_and_a_failure_leaves_the_files(hub, tmp_path):
    trainer = trainer_in(tmp_path / "out")
    trainer.save_model(_internal_call=True)
    assert not hub.repos[REPO].commits
    hub.failures["/commit/"] = 500
    with pytest.raises(PushError, match=f"qa-flax push {tmp_path / 'out'} {REPO}"):
        trainer.save_model()
    AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out")
    hub.failures.clear()
    trainer.save_model()
    assert [c["summary"] for c in hub.repos[REPO].commits] == ["Model save"]


@pytest.mark.parametrize(
    ("strategy", "folders"),
    [
        pytest.param("end", set(), marks=pytest.mark.slow),
        pytest.param("every_save", {""}, marks=pytest.mark.slow),
        pytest.param("checkpoint", {"", "last-checkpoint"}, marks=pytest.mark.slow),
        pytest.param(
            "all_checkpoints", {"", "checkpoint-1", "checkpoint-2"}, marks=pytest.mark.slow
        ),
    ],
)
def test_checkpoints_are_pushed_as_hub_strategy_says(
    hub, tmp_path, windows, caplog, strategy, folders
):
    trainer = trainer_in(
        tmp_path / "out",
        windows,
        max_steps=2,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=1,  # the first is deleted while it may be uploaded
        hub_strategy=strategy,
        hub_always_push=True,
        hub_token=TOKEN,
    )
    trainer.train()
    trainer._finish_current_push()
    files = hub.files(REPO)
    assert {path.rpartition("/")[0].split("/")[0] for path in files} == folders
    if "" in folders:
        assert {"model.safetensors", "config.json", "tokenizer.json"} < files.keys()
        assert "run.json" not in files
    for folder in folders - {""}:
        assert {f"{folder}/run.json", f"{folder}/model.safetensors"} < files.keys()
        assert any(path.startswith(f"{folder}/train_state/") for path in files)
    if strategy == "checkpoint":
        assert '"global_step": 2' in files["last-checkpoint/trainer_state.json"].decode()
    assert not caplog.records
    assert not list((tmp_path / "out").glob(".push-*"))
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_a_push_that_fails_during_the_training_is_a_warning(hub, tmp_path, windows, caplog):
    trainer = trainer_in(
        tmp_path / "out", windows, max_steps=2, save_strategy="steps", save_steps=2
    )
    hub.failures["/commit/"] = 403
    trainer.train()
    trainer._finish_current_push()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "403 Forbidden" in record.getMessage()
    assert record.getMessage().endswith("The training goes on.")
    assert (tmp_path / "out" / "checkpoint-2" / "run.json").is_file()


def test_pushes_follow_each_other():
    pushes, done = BackgroundPushes(), []
    assert pushes.is_done()
    for n in range(5):
        pushes.start(lambda n=n: done.append(n))
    pushes.wait()
    assert done == list(range(5))


def test_arguments_of_the_hub_without_a_push_are_reported_and_a_token_never(tmp_path, caplog):
    args = arguments(tmp_path, hub_model_id="ada/x", hub_token="hf_secret", hub_strategy="end")
    check_training_arguments(args)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "hub_model_id='ada/x' has no effect without push_to_hub=True.",
        "hub_strategy='end' has no effect without push_to_hub=True.",
        "hub_token='***' has no effect without push_to_hub=True.",
    ]
    assert "hf_secret" not in repr(args) + args.to_json_string()
