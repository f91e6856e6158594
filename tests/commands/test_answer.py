"""`qa-flax answer`: at a prompt in a terminal, piped, in batches; what it reads and refuses."""

import contextlib
import gzip
import io
import json
import os
import re
import signal
import sys
import threading
from pathlib import Path

import fake_gs
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from qa_flax import QuestionAnswerer
from qa_flax.answering import answerer as answerer_module
from qa_flax.answers.calibration import Calibration
from qa_flax.cli import main
from qa_flax.commands.answer import parser
from qa_flax.commands.answer.progress import Progress
from qa_flax.commands.answer.texts import read_texts
from qa_flax.data.rejected import ExampleError
from qa_flax.models.fingerprint import fingerprint

ADA, ELBE, *_ = tiny.CONTEXTS
QUESTION = "Who wrote the first program?"
WINDOWS = ["--max_seq_len=64", "--doc_stride=16"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.model(initializer_range=0.2).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def answerer(model):
    return QuestionAnswerer(model, max_seq_len=64, doc_stride=16)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with a text and a folder of texts."""
    monkeypatch.chdir(tmp_path)
    Path("ada.txt").write_bytes(ADA.replace(". ", ".\r\n").encode())
    for name, text in (("b.md", ELBE), ("a/elbe.TXT", ELBE), ("a/tokyo.txt", tiny.CONTEXTS[3])):
        path = Path("docs", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def run(model, *arguments):
    main(["answer", f"--model_name_or_path={model}", *WINDOWS, *arguments])


def error_of(capfd, model, *arguments):
    """The message of a command that fails with status 2."""
    with pytest.raises(SystemExit) as exit_:
        run(model, *arguments)
    assert exit_.value.code == 2
    message = capfd.readouterr().err
    assert message.count("qa-flax: error: ") == 1
    assert "Traceback" not in message
    return message.split("qa-flax: error: ")[1].strip()


def lines_of(name):
    text = Path(name).read_bytes().decode()
    assert text.endswith("\n")
    assert "\r" not in text
    return [json.loads(line) for line in text.splitlines()]


def is_at(context, answer):
    return context[answer["start"] : answer["end"]] == answer["answer"]


# ---- questions in words --------------------------------------------------------------------------


def test_a_question_is_answered_with_its_figures_and_passage(model, answerer, folder, capfd):
    run(model, "--context", "ada.txt", "--question", QUESTION)
    out, err = capfd.readouterr()
    context = Path("ada.txt").read_bytes().decode()
    expected = answerer(question=QUESTION, context=context)
    headline, *passage = out.splitlines()
    place = f"characters {expected['start']}-{expected['end']}"
    assert headline == f"{expected['answer']}  score {expected['score']:.4f}, {place}"
    assert all(line.startswith("  ") and len(line) <= 80 for line in passage)
    shown = " ".join(line.strip() for line in passage)
    assert f"[[{expected['answer']}]]" in shown
    assert shown.replace("[[", "").replace("]]", "") == context.replace("\r\n", " ")
    assert re.search(r"^Model: .* \(bert, 19,474 parameters, float32\) on 8 x cpu$", err, re.M)
    assert re.search(rf"^Context: ada.txt, {len(context)} characters, \d\d tokens$", err, re.M)


def test_several_questions_and_answers_are_told_apart(model, answerer, folder, capfd):
    questions = [QUESTION, "When was it written?"]
    flags = [f"--question={question}" for question in questions]
    run(model, "--context=ada.txt", *flags, "--top_k=2", "--no_align_to_words")
    out = capfd.readouterr().out
    blocks_of_output = out.split("Question: ")[1:]
    assert [block.splitlines()[0] for block in blocks_of_output] == questions
    context = Path("ada.txt").read_bytes().decode()
    for question, block in zip(questions, blocks_of_output, strict=True):
        answers = answerer(question=question, context=context, top_k=2, align_to_words=False)
        for number, answer in enumerate(answers, 1):
            assert f"\n{number}. {answer['answer']}  score" in block


def test_piped_questions_are_answered_one_by_one(model, folder, capfd, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"\ufeff{QUESTION}\r\n\n  When was it?  \n"))
    run(model, "--context=ada.txt")
    out = capfd.readouterr().out
    assert re.findall("^Question: (.*)$", out, re.M) == [QUESTION, "When was it?"]
    assert out.count(" score ") == 2
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    message = error_of(capfd, model, "--context=ada.txt")
    assert message.startswith("no question: standard input is empty; give --question or --input")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), "utf-8"))
    assert "standard input is not UTF-8 text" in error_of(capfd, model, "--context=ada.txt")


def test_no_answer_is_said_and_no_sure_answer_too(model, folder, capfd):
    arguments = ["--context=ada.txt", f"--question={QUESTION}"]
    run(model, *arguments, "--version_2_with_negative", "--top_k=99", "--max_answer_length=1")
    assert re.search(r"^\d+\. \(no answer\)  score [\d.e-]+$", capfd.readouterr().out, re.M)
    run(model, *arguments, "--answers=2", "--threshold=1")
    out = capfd.readouterr().out
    assert out == "(no answer with a confidence of at least 1: see --threshold)\n"


@contextlib.contextmanager
def terminal(monkeypatch, *lines, width=60):
    """A terminal with what a user types; yields a function that returns what it shows at last."""
    import fcntl
    import struct
    import termios

    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    os.write(master, "".join(lines).encode(errors="surrogateescape"))
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    received = []

    def read():
        with contextlib.suppress(OSError):  # the other end was closed
            while data := os.read(master, 1 << 16):
                received.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(slave, "r") as stdin, os.fdopen(os.dup(slave), "w") as stdout:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stdout", stdout)
        yield lambda: b"".join(received).decode(errors="replace").replace("\r\n", "\n")
    reader.join()
    os.close(master)


@pytest.mark.parametrize("end", ["\n", "quit\n", "\x04"])
def test_a_prompt_asks_until_the_user_ends_it(model, answerer, folder, monkeypatch, capfd, end):
    typed = [f"{QUESTION}\n", "caf\udce9\n", "When was it written?\n", end]
    with terminal(monkeypatch, *typed) as shown:
        run(model, "--context=ada.txt")
    text = shown()
    assert text.count("Question: ") == 4
    context = Path("ada.txt").read_bytes().decode()
    for question in (QUESTION, "When was it written?"):
        answer = answerer(question=question, context=context)["answer"]
        assert f"\n{answer}  score " in text.replace("Question: ", "\n")
        assert f"\x1b[1;7m{answer.split()[0]}" in text
    err = capfd.readouterr().err
    assert 'empty line, "quit" or Ctrl-D ends' in err
    assert err.count("that is no UTF-8 text") == 1


def test_ctrl_c_during_an_answer_leads_back_to_the_prompt(model, folder, monkeypatch, capfd):
    """The signal arrives while windows are computed. One at the prompt ends the command."""
    show, calls = Progress.__call__, []

    def interrupted(self, done, total):
        calls.append((done, total))
        show(self, done, total)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Progress, "__call__", interrupted)
    with terminal(monkeypatch, f"{QUESTION}\n", f"{QUESTION}\n", "\n") as shown:
        run(model, "--context=ada.txt")
    assert shown().count("  score ") == 1
    assert "interrupted; Ctrl-D ends" in capfd.readouterr().err


def test_no_color_is_respected(model, folder, monkeypatch):
    with terminal(monkeypatch, f"{QUESTION}\n", "\n") as shown:
        monkeypatch.setenv("NO_COLOR", "1")
        run(model, "--context=ada.txt")
    text = shown()
    assert "[[" in text
    assert "\x1b" not in text


def test_a_wrong_question_does_not_end_the_prompt(model, folder, monkeypatch, capfd):
    lines = [f"{QUESTION}\n", "\n"]
    with terminal(monkeypatch, *lines) as shown:
        run(model, "--context=ada.txt", "--max_seq_len=20", "--doc_stride=30")
    assert shown().count("Question: ") == 2
    assert "qa-flax: --doc_stride 30 is too large for --max_seq_len 20" in capfd.readouterr().err


# ---- texts ---------------------------------------------------------------------------------------


def test_a_folder_is_asked_as_a_whole_and_each_answer_names_its_file(
    model, answerer, folder, capfd, caplog
):
    Path("docs/.hidden.txt").write_text("Hidden.")
    Path("docs/latin.txt").write_bytes("naïve".encode("latin-1"))
    Path("docs/binary.md").write_bytes(bytes(range(256)))
    Path("docs/empty.txt").write_bytes(b"")
    Path("docs/more.pdf").write_bytes(b"%PDF-1.4")
    arguments = ["--context", "docs", "ada.txt", "docs/b.md", f"--question={QUESTION}"]
    run(model, *arguments, "--top_k=3", "--normalize=each")
    out, err = capfd.readouterr()
    texts = {"docs/b.md": ELBE, "docs/a/elbe.TXT": ELBE, "docs/a/tokyo.txt": tiny.CONTEXTS[3]}
    texts["ada.txt"] = Path("ada.txt").read_bytes().decode()
    answers = answerer(question=QUESTION, contexts=texts, top_k=3, normalize="each")
    for number, answer in enumerate(answers, 1):
        head = f"{number}. {answer['answer']}  confidence {answer['confidence']:.4f}, score "
        (line,) = [line for line in out.splitlines() if line.startswith(head)]
        assert f", {answer['context']}, characters {answer['start']}-{answer['end']}" in line
    total = sum(map(len, texts.values()))
    assert re.search(rf"^Context: 4 files, {total} characters, \d+ tokens$", err, re.M)
    (warning,) = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert warning.splitlines() == [
        "docs: 3 of 6 files are left out:",
        "  - docs/binary.md is no text",
        "  - docs/empty.txt is empty (0 bytes)",
        "  - docs/latin.txt is not UTF-8 (byte 0xef in line 1)",
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dev.json", '{"data": [{"paragraphs": [{"context" : "Ada.", "qas": []}]}]}'),
        ("rows.JSONL", '{"id": 1, "context": "Ada.", "question": "Who?"}\n'),
        ("rows.csv", "id,Question,Context\n1,Who?,Ada.\n"),
    ],
)
def test_a_file_of_data_is_not_taken_for_a_text(folder, name, content):
    Path(name).write_text(content)
    with pytest.raises(ExampleError, match=f"--context {name}: .*--input {name}"):
        read_texts([name])
    Path("settings.json").write_text('{"port": 80}')
    assert read_texts(["settings.json"]).by_name == {"settings.json": '{"port": 80}'}


def test_texts_may_be_compressed_or_in_utf_16(model, answerer, folder, capfd):
    Path("wide.txt").write_bytes(ADA.encode("utf-16"))
    Path("small.txt.gz").write_bytes(gzip.compress(ADA.encode("utf-8-sig")))
    expected = answerer(question=QUESTION, context=ADA)
    for name in ("wide.txt", "small.txt.gz"):
        run(model, "--context", name, "--question", QUESTION)
        place = f"characters {expected['start']}-{expected['end']}"
        assert f"{expected['answer']}  score {expected['score']:.4f}, {place}" in (
            capfd.readouterr().out
        )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.txt", None, "--context no.txt: there is no such file or folder; check the path"),
        ("The sky is blue", None, "it takes the name of a file with the text, not the text itself"),
        ("a " * 400, None, " a ...: there is no such file or folder"),
        ("a.pdf", b"%PDF-1.4 \0", "a.pdf is a PDF document; give its text as a file of plain text"),
        ("a.zip", b"PK\x03\x04", "a.zip is a damaged zip archive; give its text"),
        ("l.txt", b"na\xefve", "l.txt is not UTF-8 (byte 0xef in line 1); it is probably Latin-1"),
        ("b.txt", bytes(range(99)), "b.txt is no text; give a file of plain text in UTF-8"),
        ("e.txt", b" \n", "e.txt is empty (only white space)"),
        ("p.txt", b"version https://git-lfs.github.com/spec/v1", "run `git lfs pull`"),
        ("docs/x", {}, "--context docs/x: this folder has no *.txt or *.md files;"),
        ("docs/y", {"a.doc": b"a"}, "*.md files (other files: docs/y/a.doc); give files"),
        ("docs/z", {"a.txt": b"\xff"}, "no *.txt or *.md file that can be read; give files"),
    ],
)
def test_what_is_no_text_is_refused_with_what_it_is(capfd, folder, name, content, message):
    if isinstance(content, dict):
        Path(name).mkdir()
        for file, data in content.items():
            Path(name, file).write_bytes(data)
    elif content is not None:
        Path(name).write_bytes(content)
    assert message in error_of(capfd, "nothing", "--context", name, "--question=Q")


@pytest.mark.parametrize("text", ["ORCs are green.", "412 people live there.", "<p>Hello</p>"])
def test_a_text_may_begin_like_other_files_and_messages(folder, text):
    Path("t.txt").write_text(text)
    assert read_texts(["t.txt"]).by_name == {"t.txt": text}


# ---- batches -------------------------------------------------------------------------------------


def write_rows(name, rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def test_a_batch_has_a_line_for_each_question_in_their_order(model, answerer, folder, capfd):
    rows = [dict(row, answers="wrong", title=7) for row in tiny.rows()]
    write_rows("in.jsonl", rows)
    run(model, "--input=in.jsonl", "--output=out/y.jsonl", "--handle_impossible_answer")
    lines = lines_of("out/y.jsonl")
    assert [(line["id"], line["question"]) for line in lines] == [
        (row["id"], row["question"]) for row in rows
    ]
    answers = answerer(rows, handle_impossible_answer=True)
    for row, line, expected in zip(rows, lines, answers, strict=True):
        assert list(line) == ["id", "question", "answer", "score", "start", "end"]
        assert is_at(row["context"], line) or not line["answer"]
        assert line["answer"] == expected["answer"]
        assert line["score"] == pytest.approx(expected["score"], rel=1e-5)
    assert rows[8]["question"] in Path("out/y.jsonl").read_text()  # Japanese, not escaped
    assert [path.name for path in Path("out").iterdir()] == ["y.jsonl"]
    err = capfd.readouterr().err
    assert "in.jsonl: 12 read = 12 used + 0 repaired + 0 rejected" in err
    assert re.search(r"^12 questions in .* per second\): out/y.jsonl$", err, re.M)


def test_a_question_without_a_sure_answer_has_an_empty_one(model, folder, capfd):
    write_rows("in.jsonl", [{"question": QUESTION, "context": ADA}])
    run(model, "--input=in.jsonl", "--output=y.jsonl", "--answers=2", "--threshold=1")
    assert lines_of("y.jsonl") == [
        {"id": "row-0", "question": QUESTION}
        | {"answer": "", "score": None, "start": 0, "end": 0, "answers": []}
    ]
    assert "1 question in " in (err := capfd.readouterr().err)
    assert "1 of them without an answer: y.jsonl" in err


def test_questions_without_a_context_are_asked_of_the_given_texts(model, answerer, folder):
    rows = [{"id": 7, "question": QUESTION}, {"id": 8, "question": "What?", "context": ELBE}]
    rows.append({"id": 9, "question": "When?", "context": " "})
    write_rows("in.jsonl", rows)
    run(
        model,
        "--input=in.jsonl",
        "--output=y.jsonl",
        "--context=docs",
        "--answers=2",
        "--threshold=0",
    )
    first, own, last = lines_of("y.jsonl")
    texts = {"docs/b.md": ELBE, "docs/a/elbe.TXT": ELBE, "docs/a/tokyo.txt": tiny.CONTEXTS[3]}
    for line in (first, last):
        assert list(line)[-2:] == ["context", "answers"]
        assert line["id"] == ("7" if line is first else "9")
        assert all(is_at(texts[answer["context"]], answer) for answer in line["answers"])
        assert line["answer"] == line["answers"][0]["answer"]
    expected = answerer(question=QUESTION, contexts=texts, answers=2, threshold=0)
    assert [a["answer"] for a in first["answers"]] == [a["answer"] for a in expected]
    assert "context" not in own
    assert is_at(ELBE, own)


@pytest.mark.parametrize("source", ["csv", "question", "stdin"])
def test_a_batch_may_be_questions_alone(model, folder, monkeypatch, source):
    arguments = ["--context=ada.txt", "--output=y.jsonl", "--top_k=2"]
    if source == "csv":
        Path("q.csv").write_text(f'Question\n{QUESTION}\n"Who, when?"\n')
        arguments += ["--input=q.csv"]
    elif source == "question":
        arguments += [f"--question={QUESTION}", "--question=Who, when?"]
    else:
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\nWho, when?\n"))
    run(model, *arguments)
    lines = lines_of("y.jsonl")
    assert [line["id"] for line in lines] == ["row-0", "row-1"]
    assert [line["question"] for line in lines] == [QUESTION, "Who, when?"]
    assert all(len(line["answers"]) == 2 for line in lines)


def test_rows_that_cannot_be_used_are_refused_or_left_out(model, folder, capfd):
    row = {"id": "a", "q": QUESTION, "context": ADA}
    write_rows("in.jsonl", [row, dict(row, id="b", q=" "), dict(row, id="c"), dict(row, id="c")])
    arguments = ["--input=in.jsonl", "--output=y.jsonl", "--question_column=q"]
    message = error_of(capfd, model, *arguments)
    assert 'question is empty or only white space: 1 (ids "b")' in message
    assert "leave them out with --bad_rows skip" in message
    assert not Path("y.jsonl").exists()
    run(model, *arguments, "--bad_rows=skip")
    assert [line["id"] for line in lines_of("y.jsonl")] == ["a", "c"]
    rejected = lines_of("y.rejected.jsonl")
    assert [line["row"]["id"] for line in rejected] == ["b", "c"]
    write_rows("in.jsonl", [row])
    run(model, *arguments, "--bad_rows=skip", "--overwrite_output")
    assert not Path("y.rejected.jsonl").exists()


def test_an_interrupted_batch_keeps_what_was_answered(model, folder, monkeypatch, capfd):
    rows = [{"id": str(n), "question": QUESTION, "context": ADA} for n in range(6)]
    write_rows("in.jsonl", rows)
    monkeypatch.setattr(answerer_module, "STREAM_QUESTIONS", 2)
    show, calls = Progress.__call__, []

    def interrupted(self, done, total):
        calls.append(done)
        show(self, done, total)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Progress, "__call__", interrupted)
    arguments = ["--input=in.jsonl", "--output=y.jsonl"]
    with pytest.raises(SystemExit) as exit_:
        run(model, *arguments)
    assert exit_.value.code == 130
    assert not Path("y.jsonl").exists()
    kept = [line["id"] for line in lines_of("y.jsonl.partial")]
    assert kept == ["0", "1", "2", "3"]
    assert "4 of 6 questions are answered; their answers stay in y.jsonl.partial" in (
        capfd.readouterr().err
    )
    run(model, *arguments)
    assert len(lines_of("y.jsonl")) == 6
    assert not Path("y.jsonl.partial").exists()


def test_answers_are_written_to_a_bucket(model, folder, tmp_path_factory):
    root = fake_gs.register(str(tmp_path_factory.mktemp("buckets")))
    write_rows("in.jsonl", [{"question": QUESTION, "context": ADA}])
    run(model, "--input=in.jsonl", "--output=gs://answers/new/y.jsonl")
    (root / "answers" / "story.txt").write_text(ADA)
    assert len(lines_of(root / "answers" / "new" / "y.jsonl")) == 1
    run(model, "--context=gs://answers/story.txt", f"--question={QUESTION}")


# ---- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no text to ask about: give a file or a folder with --context, or --input"),
        (["--context=ada.txt", "--question= "], "--question is empty"),
        (["--context=ada.txt", "--question=caf\udce9"], "--question is no UTF-8 text"),
        (["--context=ada.txt", "--top_k=0", "--threshold=2"], "--top_k is 0; it must be a whole"),
        (["--context=ada.txt", "--answers=2", "--top_k=2"], "--answers and --top_k both say"),
        (["--context=ada.txt", "--threshold=0.5"], "--threshold selects among the answers"),
        (["--context=ada.txt", "--normalize=all", "--question=Q"], "there is only one; remove it"),
        (["--context=ada.txt", "--bad_rows=skip"], "--bad_rows says how to read --input"),
        (["--context=ada.txt", "--overwrite_output"], "has no effect without --output"),
        (["--input=in.jsonl"], "--input needs --output, the name of a .jsonl file"),
        (["--input=in.jsonl", "--question=Q"], "both give the questions; remove one"),
        (["--input=in.jsonl", "--output=y.csv"], "written as JSON Lines; give a name that ends in"),
        (["--input=in.jsonl", "--output=d.jsonl"], "--output d.jsonl is a folder"),
        (["--input=in.jsonl", "--output=old.jsonl"], "exists already; add --overwrite_output to"),
        (
            ["--input=in.jsonl", "--output=./in.jsonl", "--overwrite_output"],
            "--output ./in.jsonl would overwrite in.jsonl, which is read",
        ),
        (
            ["--input=y.jsonl.partial", "--output=y.jsonl"],
            "--output y.jsonl would overwrite y.jsonl.partial, which is read",
        ),
        (["--input=no.jsonl", "--output=y.jsonl"], "no.jsonl: no such file"),
        (["--input=in.jsonl", "--output=y.jsonl"], "are asked of --context."),
        (["--input=q.txt", "--output=y.jsonl", "--context=ada.txt"], "is piped: qa-flax answer"),
        (["--context=ada.txt", "--n_best_size=3"], "instead of --n_best_size, use --top_k"),
        (["--context=ada.txt", "--handle_impossible_answer=maybe"], "use true or false"),
    ],
)
def test_wrong_arguments_are_refused_with_what_to_do(capfd, folder, arguments, message):
    write_rows("in.jsonl", [{"question": QUESTION}])
    Path("d.jsonl").mkdir()
    Path("old.jsonl").write_text("kept")
    Path("q.txt").write_text("Who is it?\n")
    assert message in error_of(capfd, "nothing", *arguments)
    assert Path("old.jsonl").read_text() == "kept"


def test_windows_beyond_the_models_positions_are_refused(model, folder, capfd):
    message = error_of(capfd, model, "--context=ada.txt", "--question=Q", "--max_seq_len=999")
    assert message.startswith("--max_seq_len is 999, but ")
    assert message.endswith("windows of 128 tokens only; use --max_seq_len 128 or less")


def test_the_names_of_qa_flax_run_are_known():
    arguments = ["--model_name_or_path=m", "--max_seq_length=9", "--max_answer_length=8"]
    arguments += ["--version_2_with_negative", "True", "--max_query_length=6"]
    values = vars(parser().parse_args(arguments))
    assert values["max_seq_len"] == 9
    assert values["max_answer_len"] == 8
    assert values["max_question_len"] == 6
    assert values["handle_impossible_answer"] is True


# ---- models --------------------------------------------------------------------------------------


def test_a_model_without_a_trained_head_says_so(model, folder, tmp_path, caplog):
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in model.iterdir():
        (bare / file.name).write_bytes(file.read_bytes())
    tensors = load_file(bare / "model.safetensors")
    tensors = {name: t for name, t in tensors.items() if not name.startswith("qa_outputs")}
    save_file(tensors, bare / "model.safetensors", {"format": "pt"})
    run(bare, "--context=ada.txt", f"--question={QUESTION}")
    assert "has no span head: qa_outputs.bias and qa_outputs.weight are newly init" in caplog.text
    assert "Fine-tune the model before using its answers" in caplog.text


def test_a_calibrated_model_shows_its_confidence(model, answerer, folder, tmp_path, capfd):
    known = fingerprint(answerer.model)
    Calibration(temperature=2.0, fingerprint=known).write(tmp_path / "made")
    run(model, "--context=ada.txt", f"--question={QUESTION}", "--calibration=made")
    out, err = capfd.readouterr()
    assert re.match(r".*  confidence 0\.\d{4}, score ", out)
    assert ", float32, calibrated) on" in err
    message = error_of(capfd, model, "--context=ada.txt", "--question=Q", "--calibration=docs")
    assert message.startswith("docs has no calibration.json")
    Path("made/calibration.json").write_text("{")
    message = error_of(capfd, model, "--context=ada.txt", "--question=Q", "--calibration=made")
    assert message.endswith("calibrate the model again, or delete the file")
