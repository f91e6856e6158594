"""Pushing a model to the Hub: a real HTTP server stands in, keeps the files and serves them."""

import numpy as np
import pytest
import tiny
from hub_stand_in import TOKEN
from huggingface_hub import ModelCard, constants
from tiny_trainers import values
from transformers import AutoTokenizer

from qa_flax import AutoModelForQuestionAnswering, LoraConfig, get_peft_model
from qa_flax.models import PushError
from qa_flax.models.push import check_repo_id, model_files, open_repo, pushed_line, upload

REPO = "ada/qa-bert"


@pytest.fixture
def folder(tmp_path):
    """What a training leaves: the model's files and others."""
    output = tmp_path / "out"
    tiny.model().save_pretrained(output)
    tiny.tokenizer().save_pretrained(output)
    (output / "README.md").write_text("---\ntags:\n- mine\n---\n\n# A model\n")
    for name in ("eval_results.json", "eval_predictions.json", "trainer_state.json", "notes.txt"):
        (output / name).write_text("{}")
    (output / ".qa_flax.lock").write_text("a process")
    for name in ("checkpoint-2/train_state", "profile", "onnx"):
        (output / name).mkdir(parents=True)
        (output / name / "state.json").write_text("{}")
    (output / "checkpoint-2" / "eval_results.json").write_text("{}")
    return output


def assert_same_weights(model, expected):
    for one, other in zip(values(model), values(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_pushed_model_and_its_tokenizer_are_loaded_again(hub):
    model = tiny.model(seed=3)
    commit = model.push_to_hub(REPO, private=True, tags=["squad", "tiny"], commit_message="First")
    assert str(commit).startswith(f"{hub.url}/{REPO}/commit/")
    assert hub.repos[REPO].private
    assert [c["summary"] for c in hub.repos[REPO].commits] == ["First"]
    tiny.tokenizer().push_to_hub(REPO)
    loaded = AutoModelForQuestionAnswering.from_pretrained(REPO)
    assert_same_weights(loaded, model)
    assert AutoTokenizer.from_pretrained(REPO)("What?") == tiny.tokenizer()("What?")
    card = ModelCard.load(REPO)
    assert card.data.pipeline_tag == "question-answering"
    assert card.data.library_name == "transformers"
    assert card.data.tags == ["squad", "tiny"]


def test_branches_and_pull_requests(hub):
    tiny.model(seed=1).push_to_hub(REPO)
    other = tiny.model(seed=2)
    for _ in range(2):  # the second time the branch exists
        other.push_to_hub(REPO, revision="v2")
    loaded = AutoModelForQuestionAnswering.from_pretrained(REPO, revision="v2")
    assert_same_weights(loaded, other)
    before = dict(hub.files(REPO))
    commit = tiny.model(seed=4).push_to_hub(REPO, create_pr=True)
    assert commit.pr_url == f"{hub.url}/{REPO}/discussions/1"
    assert hub.files(REPO) == before
    with pytest.raises(ValueError, match=r"create_pr=True .* revision='v2' would be ignored"):
        other.push_to_hub(REPO, create_pr=True, revision="v2")


def test_a_card_on_the_hub_is_kept(hub):
    model = tiny.model()
    model.push_to_hub(REPO)
    hub.repos[REPO].branches["main"]["README.md"] = b"---\nlicense: mit\n---\n\n# By hand\n"
    model.push_to_hub(REPO, tags="new")
    card = hub.files(REPO)["README.md"].decode()
    assert "license: mit" in card
    assert "# By hand" in card
    assert "- new" in card


def test_save_pretrained_pushes_what_it_wrote(hub, tmp_path):
    output = tmp_path / "my-model"
    output.mkdir()
    (output / "secret.txt").write_text("not a part of the model")
    tiny.model().save_pretrained(output, push_to_hub=True, max_shard_size="40KB", private=True)
    files = hub.files("ada/my-model")
    assert {"config.json", "README.md", "model.safetensors.index.json"} < files.keys()
    assert "secret.txt" not in files
    AutoModelForQuestionAnswering.from_pretrained("ada/my-model")
    hub.failures["commit"] = 500
    with pytest.raises(PushError, match=f"qa-flax push {tmp_path / 'again'} {REPO}"):
        tiny.model().save_pretrained(tmp_path / "again", push_to_hub=True, repo_id=REPO)
    AutoModelForQuestionAnswering.from_pretrained(tmp_path / "again")
    with pytest.raises(ValueError, match="needs a local folder"):
        tiny.model().save_pretrained("gs://bucket/x", push_to_hub=True)


def test_adapters_are_pushed_in_pefts_format(hub):
    adapters = get_peft_model(tiny.model(), LoraConfig(r=2, target_modules=["query"]))
    adapters.push_to_hub(REPO)
    assert {"adapter_config.json", "adapter_model.safetensors"} < hub.files(REPO).keys()
    assert ModelCard(hub.files(REPO)["README.md"].decode()).data.library_name == "peft"


def test_only_the_files_of_the_model_are_uploaded(hub, folder):
    sent, left = model_files(folder)
    assert left == [
        *("checkpoint-2/", "eval_predictions.json", "notes.txt", "profile/", "trainer_state.json")
    ]
    commit = upload(folder, open_repo(REPO))
    assert sorted(hub.files(REPO)) == sorted(sent)
    assert {"model.safetensors", "tokenizer.json", "README.md", "onnx/state.json"} < set(sent)
    lines = pushed_line(folder, commit).splitlines()
    assert lines[0].endswith(", ".join(sent))
    assert lines[1] == f"Not part of the model, and only in {folder}: {', '.join(left)}"


def test_a_folder_without_a_model_is_refused(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"has no model: config\.json with model\.safetensors"):
        model_files(folder)
    with pytest.raises(OSError, match="is not a folder"):
        model_files(tmp_path / "nothing")
    (tmp_path / "folds.json").write_text("{}")
    with pytest.raises(OSError, match="the models of several folds; push one of them"):
        model_files(tmp_path)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        pytest.param(
            401,
            "401 Unauthorized: the stand-in answers 401; the access token is missing, wrong",
            marks=pytest.mark.slow,
        ),
        (403, "403 Forbidden: the stand-in answers 403; the access token may not write there"),
        pytest.param(
            404,
            "404 Not Found: the stand-in answers 404; there is no such repository",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            409,
            "409 Conflict: the stand-in answers 409; something else changed the repository",
            marks=pytest.mark.slow,
        ),
        (500, "500 Internal Server Error: the stand-in answers 500; the server has a problem"),
        (0, "Server disconnected"),
    ],
)
def test_a_failed_push_says_what_happened_and_how_to_repeat_it(hub, folder, status, message):
    open_repo(REPO)
    hub.failures["/commit/"] = status
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(PushError) as error:
        upload(folder, REPO, revision="main")
    text = str(error.value)
    assert text.startswith(f"the push to {hub.url}/{REPO} failed: ")
    assert message in text
    assert text.endswith(f"To repeat only the push: qa-flax push {folder} {REPO} --revision main")
    assert TOKEN not in text
    assert not hub.files(REPO)
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    hub.failures.clear()
    upload(folder, REPO)
    assert "model.safetensors" in hub.files(REPO)


def test_a_hub_that_cannot_be_reached(hub, folder, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PushError, match=r"http://127\.0\.0\.1:9/ada/qa-bert failed: ConnectError"):
        open_repo(REPO)


def test_a_token_that_a_server_repeats_is_not_shown(hub):
    token = "answers"  # a word of the stand-in's message
    hub.failures["create"] = 403
    with pytest.raises(PushError) as error:
        open_repo(REPO, token=token)
    assert "the stand-in *** 403" in str(error.value)


def test_what_cannot_work_is_refused_before_any_request(hub, monkeypatch):
    for name in ("a b", "a/b/c", "", "ada/", "ada/-x", "ada/x..y", None, 3, "ada/x.git", " ada/x"):
        with pytest.raises(ValueError, match="cannot be the name of a repository"):
            check_repo_id(name)
    with pytest.raises(ValueError, match="hub_model_id='a b'"):
        check_repo_id("a b", "hub_model_id")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match="needs an access token that may write: log in with"):
        open_repo(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        open_repo(REPO, token=TOKEN)
    assert hub.requests == []


def test_a_private_model_is_not_pushed_to_a_public_repository(hub):
    assert open_repo("qa-bert") == REPO
    with pytest.raises(ValueError, match="exists and is public"):
        open_repo(REPO, private=True)
