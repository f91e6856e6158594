"""Training in the cells of a notebook: a real kernel, and every message that it sends."""

import itertools
import os
import random
import re
import signal
import time

import kernel
import pytest

pytestmark = pytest.mark.slow
pytest.importorskip("ipykernel", reason="needs the extra `notebook`")
pytest.importorskip("jupyter_client", reason="needs the extra `notebook`")

SETUP = """
import json, logging, os, signal, sys, threading
import numpy as np
import tiny
from qa_flax import (
    LoraConfig, QuestionAnsweringTrainer, Trainer, TrainingArguments, get_peft_model,
    postprocess_qa_predictions, prepare_train_features, prepare_validation_features, squad_metric,
)
from transformers.trainer_utils import EvalPrediction

# The training questions are evaluated, which the trainer warns of.
logging.getLogger("qa_flax.train.loading").setLevel(logging.ERROR)
examples = tiny.examples(answerable=True)
train_windows = prepare_train_features(examples, tiny.tokenizer(), 24, 3)
eval_windows = prepare_validation_features(examples, tiny.tokenizer(), 24, 3)
model = tiny.model()

def arguments(**changes):
    settings = {"output_dir": "out", "max_steps": 6, "logging_steps": 2, "save_strategy": "no",
                "per_device_eval_batch_size": 32, "report_to": "none"}
    return TrainingArguments(**(settings | changes))

def trainer_of(model=model, **changes):
    return Trainer(model, arguments(**changes), train_dataset=train_windows,
                   eval_dataset=eval_windows)

def post_process(examples, windows, logits):
    answers = postprocess_qa_predictions(examples, windows, logits)
    return EvalPrediction(
        predictions=[{"id": k, "prediction_text": v} for k, v in answers.items()],
        label_ids=[{"id": row["id"], "answers": row["answers"]} for row in examples])

def qa_trainer_of(model=model, **changes):
    return QuestionAnsweringTrainer(
        model, arguments(**changes), train_dataset=train_windows, eval_dataset=eval_windows,
        eval_examples=examples, post_process_function=post_process,
        compute_metrics=lambda scored: squad_metric(scored.predictions, scored.label_ids))
"""
STEPS = 1_000_000  # more than any cell waits for


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """A kernel in a folder of its own, in which the names of SETUP are defined."""
    with kernel.kernel(tmp_path_factory.mktemp("notebook")) as running:
        running.run(SETUP)
        yield running


def rows(table: str) -> list[list[str]]:
    """The cells of a table, the header first."""
    lines = re.findall(r"<tr.*?</tr>", table, re.S)
    return [re.findall(r"<t[hd]>(.*?)</t[hd]>", line) for line in lines]


def new_displays(cell: kernel.Cell) -> list[list[str]]:
    """Without the display of an earlier cell that this one has updated."""
    first = {c["transient"].get("display_id") for c in cell.of("display_data")}
    old = {c["transient"]["display_id"] for c in cell.of("update_display_data")} - first
    return cell.displays()[len(old) :]


def after(seconds: float):
    """Interrupt so long after the display of the training has appeared."""
    seen = []

    def is_due(cell) -> bool:
        if cell.of("display_data"):
            seen.append(time.monotonic())
        return bool(seen) and time.monotonic() - seen[0] >= seconds

    return is_due


# ---- progress ------------------------------------------------------------------------------------


def test_a_training_shows_one_bar_and_table_that_are_updated_in_place(shell):
    shell.run("trainer = qa_trainer_of(eval_strategy='steps', eval_steps=3, logging_steps=3)")
    cell = shell.run("output = trainer.train()")
    assert cell.stream("stderr") == cell.stream("stdout") == ""
    (display,) = cell.displays()
    assert "[0/6, compiling the first step]" in display[0]
    assert any("Evaluating" in state for state in display)
    assert "<progress value='6' max='6'" in display[-1]
    assert re.search(r"epoch 0\.\d+/1, loss \d\.\d{3}, lr \d", display[-1])
    assert "Evaluating" not in display[-1]
    header, *lines = rows(display[-1])
    assert header == ["Step", "Training Loss", "Exact Match", "F1", "Validation Loss"]
    history = shell.value("trainer.state.log_history")
    logs = {e["step"]: e for e in history if "loss" in e}
    evaluations = {e["step"]: e for e in history if "eval_loss" in e}
    names = ["eval_exact_match", "eval_f1", "eval_loss"]
    assert lines == [
        [str(n), *(f"{v:.4g}" for v in (logs[n]["loss"], *(evaluations[n][k] for k in names)))]
        for n in (3, 6)
    ]


def test_without_evaluations_each_log_is_a_row(shell):
    (display,) = shell.run("output = trainer_of(max_steps=5).train()").displays()
    header, *lines = rows(display[-1])
    assert header == ["Step", "Training Loss"]
    assert [line[0] for line in lines] == ["2", "4"]


def test_many_rows_and_updates_stay_small(shell):
    cell = shell.run("output = trainer_of(max_steps=600, logging_steps=1).train()")
    (display,) = cell.displays()
    assert len(rows(display[-1])) == 101
    assert rows(display[-1])[-1][0] == "600"
    assert max(map(len, display)) < 20_000


def test_evaluation_and_prediction_outside_a_training(shell):
    cell = shell.run("metrics = trainer_of(per_device_eval_batch_size=4).evaluate()")
    bar, table = cell.displays()
    assert bar[-1] == "", "the bar stays when the metrics are shown"
    assert "Evaluating" in bar[0]
    assert rows(table[-1])[0] == ["Step", "Validation Loss"]
    assert shell.value("sorted(metrics)")[0] == "epoch"  # transformers' callback would remove it
    (bar,) = shell.run("out = trainer_of().predict(eval_windows)").displays()
    assert bar[-1] == ""


def test_evaluating_before_training_with_epochs(shell):
    """transformers' own callback fails here: `state.epoch` is None."""
    shell.run("trainer = trainer_of(eval_strategy='epoch'); trainer.evaluate()")
    shell.run("output = trainer.train()")


def test_two_sets_and_values_of_a_script_share_the_row_of_a_step(shell):
    cell = shell.run("""
trainer = trainer_of(eval_strategy="steps", eval_steps=6)
trainer.eval_dataset = {"a": eval_windows, "<b>": eval_windows}
from transformers import TrainerCallback
class Own(TrainerCallback):
    def on_evaluate(self, args, state, control, **kwargs):
        if state.log_history[-1].get("train_f1") is None:
            trainer.log({"train_f1": 87.5})
trainer.add_callback(Own())
output = trainer.train()
""")
    header, line = rows(cell.displays()[-1][-1])
    assert header == ["Step", "Training Loss", "A Loss", "Train F1", "&lt;b&gt; Loss"]
    assert line[0] == "6"
    assert line[3] == "87.5"


def test_disable_tqdm_prints_the_logs(shell):
    cell = shell.run("output = trainer_of(disable_tqdm=True).train()")
    assert cell.displays() == []
    assert cell.stream("stderr") == ""
    assert cell.stream("stdout").count("\n") == 4  # three logs and the final metrics


def test_remove_callback_takes_either_name(shell):
    for name in (
        "transformers.ProgressCallback",
        "transformers.utils.notebook.NotebookProgressCallback",
    ):
        module, name = name.rsplit(".", 1)
        cell = shell.run(f"""
from {module} import {name}
trainer = trainer_of()
trainer.remove_callback({name})
output = trainer.train()
""")
        assert cell.displays() == []


def test_tokenizing_redraws_one_line(shell):
    cell = shell.run("windows = prepare_train_features(examples, tiny.tokenizer(), 24, 3)")
    text = cell.stream("stderr")
    assert text.startswith("\rTokenizing:   0%")
    assert re.search(r"\rTokenizing: 100%.* 11/11 .*\n$", text)
    assert text.count("\n") == 1


def test_the_shell_command_prints_lines_and_no_bars_below_each_other(shell):
    shell.run("""
model.save_pretrained("start"); tiny.tokenizer().save_pretrained("start")
rows = [{k: row[k] for k in ("id", "context", "question", "answers")} for row in examples]
_ = open("own.json", "w").write(json.dumps({"data": rows}))
""")
    cell = shell.run("""
!{sys.executable} -W ignore -m qa_flax run --model_name_or_path start --train_file own.json \
    --do_train --validation_file own.json --do_eval --eval_strategy steps --eval_steps 2 \
    --logging_steps 1 --max_steps 4 --max_seq_length 24 --doc_stride 3 --output_dir shell \
    --report_to none
""")
    text = cell.stream("stdout")
    assert "\x1b[A" not in text, "moves of the cursor to another line, which notebooks ignore"
    assert "step 4: loss " in text
    assert "eval_f1" in text
    assert "Tokenizing: 100%" in text


# ---- interrupting a cell -------------------------------------------------------------------------


def test_an_interrupted_training_keeps_its_weights_whenever_it_comes(shell):
    """Ten times at random: a step must not lose them, and each training continues from the last."""
    shell.run("model = tiny.model(); losses = [trainer_of(model).evaluate()['eval_loss']]")
    for seconds in random.Random(0).choices([0.0, 0.1, 0.2, 0.4, 0.8], k=10):
        cell = shell.run(
            f"trainer = trainer_of(model, max_steps={STEPS}); trainer.train()",
            interrupt_when=after(seconds),
            fails=True,
        )
        assert cell.error == "KeyboardInterrupt"
        (line,) = cell.stream("stderr").splitlines()
        assert re.match(r"Training was interrupted after step \d+ of 1000000\. The model has", line)
        assert "saved no checkpoint to resume from" in line
        shell.run("losses.append(trainer.evaluate()['eval_loss'])")
    losses = shell.value("losses")
    assert losses[-1] < losses[0]
    assert all(b < a + 0.2 for a, b in itertools.pairwise(losses))


def test_an_interrupted_training_is_resumed_or_begun_again(shell):
    cell = shell.run(
        "trainer = trainer_of(tiny.model(), output_dir='resumed', max_steps=1_000_000,"
        " save_strategy='steps', save_steps=5, save_total_limit=2); trainer.train()",
        interrupt_when=after(8.0),
        fails=True,
    )
    assert cell.error == "KeyboardInterrupt"
    step, checkpoint = map(
        int,
        re.search(
            r"after step (\d+) of .*resumed/checkpoint-(\d+)\.", cell.stream("stderr")
        ).groups(),
    )
    assert 0 < checkpoint <= step
    shell.run(f"trainer.args.max_steps = {checkpoint} + 7")
    resumed = shell.run("output = trainer.train(resume_from_checkpoint=True)")
    assert f"<progress value='{checkpoint}'" in resumed.displays()[0][0]
    assert shell.value("output.global_step, len(trainer.state.log_history)")[0] == checkpoint + 7
    shell.run("trainer.args.max_steps = 3; output = trainer.train()")
    assert shell.value("output.global_step") == 3


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.3])
def test_an_interrupt_while_the_first_step_is_compiled(shell, seconds):
    shell.run("""
bigger = tiny.model(num_hidden_layers=6)
trainer = Trainer(bigger, arguments(), train_dataset=train_windows, eval_dataset=eval_windows)
before = np.asarray(bigger.head.outputs.kernel).copy()
""")
    cell = shell.run("trainer.train()", interrupt_when=after(seconds), fails=True)
    assert cell.error == "KeyboardInterrupt"
    assert "after step" in cell.stream("stderr")
    assert shell.value("bool(np.isfinite(np.asarray(bigger.head.outputs.kernel)).all())")
    shell.run("output = trainer.train()")
    assert shell.value("output.global_step") == 6


def test_an_interrupted_evaluation_and_tokenization_leave_nothing_behind(shell):
    shell.run(
        "many = eval_windows.select([0] * 3000); trainer = trainer_of(per_device_eval_batch_size=1)"
    )
    cell = shell.run("trainer.evaluate(many)", interrupt_when=after(0.2), fails=True)
    assert cell.error == "KeyboardInterrupt"
    bar, _ = new_displays(shell.run("metrics = trainer.evaluate()"))
    total = shell.value("len(eval_windows)")
    assert all(f"max='{total}'" in state for state in bar if state), "it went on with the old bar"

    shell.run("""
none = {"text": [], "answer_start": []}
row = tiny.rows()[4]
long = [{**row, "id": f"{n}", "context": f"{n} " + 9 * row["context"], "answers": none}
        for n in range(3000)]
""")
    cell = shell.run(
        "windows = prepare_train_features(long, tiny.tokenizer(), 64, 16)",
        interrupt_when=lambda cell: "0/3000 " in cell.stream("stderr"),
        fails=True,
    )
    assert cell.error == "KeyboardInterrupt"
    again = shell.run("windows = prepare_train_features(examples, tiny.tokenizer(), 24, 3)")
    assert "11/11" in again.stream("stderr")


def test_an_evaluation_interrupted_during_training_ends_the_training(shell):
    shell.run("""
trainer = trainer_of(tiny.model(), max_steps=1_000_000, eval_strategy="steps", eval_steps=2,
                     per_device_eval_batch_size=1)
trainer.eval_dataset = eval_windows.select([0] * 1000)
""")
    cell = shell.run(
        "trainer.train()",
        interrupt_when=lambda cell: any("Evaluating" in d for ds in cell.displays() for d in ds),
        fails=True,
    )
    assert cell.error == "KeyboardInterrupt"
    assert "The model has the weights of step 2:" in cell.stream("stderr")
    bar, table = new_displays(shell.run("metrics = trainer.evaluate(eval_windows)"))
    assert "1000" not in bar[0]
    assert rows(table[-1])[0] == ["Step", "Validation Loss"]


# ---- the same process again ----------------------------------------------------------------------


def test_training_again_after_an_error_and_after_rerunning_the_cell(shell):
    build = "model = tiny.model(); trainer = trainer_of(model)"
    shell.run(build)
    shell.run("first = trainer.train()")
    shell.run("second = trainer.train()")
    assert shell.run("trainer.train(resume_from_checkpoint='nowhere')", fails=True).error
    shell.run("third = trainer.train()")
    shell.run("trainer.args.learning_rate = float('inf')")
    assert shell.run("trainer.train()", fails=True).error
    shell.run(build)
    shell.run("again = trainer.train()")
    assert shell.value("first.training_loss == again.training_loss")
    assert shell.value("second.training_loss < first.training_loss")


def test_memory_does_not_grow_with_the_trainings(shell):
    train = """
for _ in range(5):
    trainer = trainer_of(tiny.model(), output_dir="many", save_strategy="steps", save_steps=3)
    output = trainer.train()
"""
    resident = "int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGE_SIZE') >> 20"
    shell.run(train)
    sizes = []
    for _ in range(4):
        shell.run(train)
        sizes.append(shell.value(resident))
    print("MiB after 10, 15, 20 and 25 trainings:", sizes)
    assert sizes[-1] - sizes[0] < 60, sizes


def test_lora_and_saving_and_loading_in_cells(shell):
    shell.run("""
lora = LoraConfig(task_type="QUESTION_ANS", r=2, target_modules=["query", "value"])
adapters = get_peft_model(tiny.model(), lora)
trainer = trainer_of(adapters)
output = trainer.train()
trainer.save_model("adapters")
""")
    names = shell.value("os.listdir('adapters')")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(names)


# ---- threads, signals, event loop ----------------------------------------------------------------


def test_training_in_a_thread_with_checkpoints(shell):
    shell.run("""
failures = []
threading.excepthook = lambda failure: failures.append(repr(failure.exc_value))
trainer = trainer_of(tiny.model(), output_dir="thread", save_strategy="steps", save_steps=3)
thread = threading.Thread(target=trainer.train)
thread.start()
thread.join()
""")
    assert shell.value("failures, trainer.state.global_step, sorted(os.listdir('thread'))") == (
        [],
        6,
        ["checkpoint-3", "checkpoint-6"],
    )


def test_handlers_hooks_streams_and_the_event_loop_are_left_alone(shell):
    shell.run("""
import asyncio
def surroundings():
    names = ["SIGINT", "SIGTERM", "SIGHUP", "SIGALRM", "SIGUSR1"]
    loop = asyncio.get_running_loop()
    return [*(signal.getsignal(getattr(signal, n)) for n in names), sys.excepthook, sys.stdout,
            sys.stderr, threading.excepthook, loop, asyncio.run, type(loop).run_until_complete,
            asyncio.get_event_loop_policy(), get_ipython().showtraceback.__func__]
before = surroundings()
""")
    shell.run("""
trainer = trainer_of(tiny.model(), output_dir="loop", save_strategy="steps", save_steps=3)
output = trainer.train()
trainer.args.max_steps = 9
output = trainer.train(resume_from_checkpoint=True)
""")
    assert shell.value("[a == b for a, b in zip(before, surroundings())]") == [True] * 14
    assert shell.run("await asyncio.sleep(0, result=5)").result == "5"
    cell = shell.run("async def run():\n    return trainer.train()\noutput = await run()")
    assert len(cell.displays()) == 1
    cell = shell.run(
        "while True: pass", interrupt_when=lambda cell: bool(cell.messages[1:]), fails=True
    )
    assert cell.error == "KeyboardInterrupt"


def test_sigterm_saves_a_checkpoint_and_the_kernel_stays(shell):
    pid = shell.value("os.getpid()")
    shell.run("trainer = trainer_of(tiny.model(), output_dir='preempted', max_steps=1_000_000)")
    sent = []

    def send(cell) -> bool:
        if cell.of("update_display_data") and not sent:
            sent.append(os.kill(pid, signal.SIGTERM))
        return False

    cell = shell.run("trainer.train()", watch=send, fails=True)
    assert cell.error == "Preempted"
    (message,) = (content["evalue"] for content in cell.of("error"))
    assert (
        message == "stopped by SIGTERM; a training is resumed by train(resume_from_checkpoint=True)"
    )
    step = shell.value("trainer.state.global_step")
    shell.run(f"trainer.args.max_steps = {step} + 2")
    shell.run("output = trainer.train(resume_from_checkpoint=True)")
    assert shell.value("output.global_step") == step + 2


def test_warnings_are_shown_once(shell):
    shell.run("""
bad = [{**row, "start_positions": 23, "end_positions": 99} for row in train_windows]
trainer = Trainer(tiny.model(), arguments(), train_dataset=bad)
""")
    first = shell.run("output = trainer.train()").stream("stderr")
    assert first.count("outside") == 1
    assert shell.run("output = trainer.train()").stream("stderr") == ""


# ---- what the last line of a cell shows ----------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "characters"),
    [
        ("tiny.model(num_hidden_layers=12)", 600),
        ("adapters", 600),
        ("trainer_of()", 200),
        ("train_windows", 300),
        ("examples", 300),
        ("trainer_of().evaluate()", 400),
        ("many", 100),
        ("many.features()", 100),
    ],
)
def test_values_are_shown_in_a_few_lines(shell, expression, characters):
    shell.run("""
from qa_flax.data.features import make_windows
lengths = {"max_seq_length": 24, "doc_stride": 3, "labels": False}
questions = [{**row, "id": f"{n}"} for n, row in enumerate(tiny.rows() * 500)]
many = make_windows(questions, tiny.tokenizer(), **lengths)
lora = LoraConfig(task_type="QUESTION_ANS", r=2, target_modules=["query", "value"])
adapters = get_peft_model(tiny.model(), lora)
""")
    result = shell.run(expression).result
    assert len(result) <= characters, result[:2000]
