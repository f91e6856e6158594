"""`import qa_flax` is lazy: public names are imported on first use, most without JAX or torch."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import transformers
from flax import nnx
from processes import WITHOUT_TORCH

import qa_flax
from qa_flax.train.old_names import OldNames

ROOT = Path(__file__).parents[1]

HOST_NAMES = [
    "EarlyStoppingCallback",
    "TrainingArguments",
    "augment_examples",
    "fold_examples",
    "learning_curves",
    "load_examples",
    "make_clozes",
    "postprocess_qa_predictions",
    "prepare_train_features",
    "prepare_validation_features",
    "split_examples",
    "squad_metric",
]


def run_in_new_process(program: str, *, torch: bool = False) -> str:
    """The output of a program in a new process, which must succeed.

    torch is hidden from it unless `torch` is True: transformers imports it where it is installed.
    """
    path = os.pathsep.join([str(ROOT), *([] if torch else [str(WITHOUT_TORCH)])])
    environment = os.environ | {"PYTHONPATH": path}
    process = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=ROOT,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_every_public_name_can_be_imported():
    assert set(qa_flax.__all__) <= set(dir(qa_flax))
    for name in qa_flax.__all__:
        assert getattr(qa_flax, name).__name__ == name
    names: dict = {}
    exec("from qa_flax import *", names)
    assert names.keys() >= set(qa_flax.__all__)


def test_an_unknown_name_is_an_attribute_error_with_a_suggestion():
    message = "module 'qa_flax' has no attribute 'Trainr'; did you mean 'Trainer'"
    with pytest.raises(AttributeError, match=message):
        _ = qa_flax.Trainr
    with pytest.raises(ImportError):
        from qa_flax import nothing_like_it  # noqa: F401
    assert not hasattr(qa_flax, "__wrapped__")


def test_importing_the_package_imports_no_large_library_and_configures_no_logger():
    program = (
        "import logging, sys\n"
        "import qa_flax\n"
        "heavy = {'jax', 'numpy', 'transformers', 'datasets'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
        "assert not logging.getLogger().handlers\n"
        "assert not logging.getLogger('qa_flax').handlers\n"
    )
    run_in_new_process(program)


HOST_PROGRAM = """
import sys
for name in ("jax", "flax", "optax", "orbax"):
    sys.modules[name] = None
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
import qa_flax
from qa_flax.train.old_names import OldNames
from qa_flax import NAMES
qa_flax.TrainingArguments(output_dir="out")
words = "[PAD] [UNK] [CLS] [SEP] who runs ann".split()
tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
    sep_token="[SEP]",
)
examples = qa_flax.load_examples([{
    "id": "1", "question": "who runs", "context": "ann runs",
    "answers": {"text": ["ann"], "answer_start": [0]},
}])
qa_flax.prepare_train_features(examples, tokenizer, max_seq_length=16, doc_stride=4)
features = qa_flax.prepare_validation_features(
    examples, tokenizer, max_seq_length=16, doc_stride=4
)
ids = features[0]["input_ids"]
logits = np.full((1, len(ids)), -5.0, np.float32)
logits[0, ids.index(words.index("ann"))] = 5.0
answers = qa_flax.postprocess_qa_predictions(examples, features, (logits, logits))
scores = qa_flax.squad_metric(
    [{"id": id_, "prediction_text": text} for id_, text in answers.items()],
    [{"id": row["id"], "answers": row["answers"]} for row in examples],
)
print(scores["exact_match"])
""".replace("NAMES", ", ".join(HOST_NAMES))


def test_preparing_data_and_scoring_answers_need_no_jax():
    assert run_in_new_process(HOST_PROGRAM).split()[-1] == "100.0"


IMPORTERS = """
import sys

class ReportImporter:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            frame = sys._getframe(1)
            while "importlib" in frame.f_code.co_filename:
                frame = frame.f_back
            print(frame.f_globals["__name__"])

sys.meta_path.insert(0, ReportImporter())
import qa_flax
from qa_flax.train.old_names import OldNames
for name in qa_flax.__all__:
    getattr(qa_flax, name)
"""


# Slow; the import contracts and every test process without torch cover most of it by default.
@pytest.mark.slow
@pytest.mark.parametrize("torch", [False, True])
def test_no_public_name_needs_torch_and_the_package_itself_never_imports_it(torch):
    """transformers, in contrast, always imports torch where it is installed."""
    importers = run_in_new_process(IMPORTERS, torch=torch).split()
    assert importers, "no module tried to import torch, so this tests nothing"
    assert not [name for name in importers if name.startswith("qa_flax")]


def test_renamed_names_still_work_and_warn(tmp_path):
    from qa_flax import distributed
    from qa_flax.answers import spans

    with pytest.warns(DeprecationWarning, match="use SearchSettings"):
        settings = spans.Settings(False, 20, 30)
    assert isinstance(settings, spans.SearchSettings)
    with pytest.warns(DeprecationWarning, match="use ProcessError"):
        assert distributed.HostError is distributed.ProcessError
    for module in (spans, distributed):
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            _ = module.nothing
    model = tiny.model()
    arguments = qa_flax.TrainingArguments(str(tmp_path), report_to="none")
    with pytest.warns(DeprecationWarning, match="use search_settings"):
        trainer = qa_flax.QuestionAnsweringTrainer(model, arguments, candidates=settings)
    assert trainer.search_settings is settings
    with pytest.warns(DeprecationWarning, match="use set_params"):
        model.take_over(nnx.state(tiny.model(seed=1), nnx.Param))
    kernels = [m.head.outputs.kernel[...] for m in (model, tiny.model(seed=1))]
    np.testing.assert_array_equal(*kernels)


def test_every_public_name_describes_its_arguments_and_has_an_example():
    theirs = {"EarlyStoppingCallback", "TaskType"}  # transformers' class, and PEFT's enum
    for name in set(qa_flax.__all__) - theirs:
        value = getattr(qa_flax, name)
        documents = [inspect.getdoc(value) or ""]
        if inspect.isclass(value):
            documents.append(inspect.getdoc(value.__init__) or "")
        assert ">>> " in documents[0], name
        text = "\n".join(documents)
        if issubclass_of(value, transformers.TrainingArguments):
            own = set(inspect.signature(value).parameters)
            own -= set(inspect.signature(transformers.TrainingArguments).parameters)
            arguments = own - set(OldNames.__dataclass_fields__)
        elif issubclass_of(value, qa_flax.AutoModelForQuestionAnswering):
            arguments = {"config", "dtype", "lora", "seed"}
            text += inspect.getdoc(qa_flax.AutoModelForQuestionAnswering.__init__) or ""
        else:
            arguments = set(inspect.signature(value).parameters)
        missing = {argument for argument in arguments if not re.search(rf"\b{argument}\b", text)}
        assert not missing, (name, missing)


def issubclass_of(value, kind):
    return inspect.isclass(value) and issubclass(value, kind)
