"""Write golden/pipeline: answers of the question-answering pipeline of transformers 4.57.

    python -m venv VENV
    VENV/bin/pip install 'transformers==4.57.*' torch==2.13.0 numpy sentencepiece
    VENV/bin/python tests/golden/make_pipeline_golden.py [FAMILY ...] [xquad]

Run it by hand in a virtual environment of its own: transformers 5.3 removed the pipeline. With
QA_FLAX_SHARED it also answers a sample of XQuAD, of which only ids and numbers are written.

Each file has the answers, `[score, start, end]`, of calls by name (`tests/support/pipeline_cases`).
Calls are left out whose answers change when the span head changes by a millionth, which is as much
as the rounding of another library: their order is a matter of chance.

The tokenizers are trained where golden/pipeline/tokenizers does not have them. To train them anew
delete the folder, and make everything: training breaks ties differently in every process.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from tokenizers import normalizers, pre_tokenizers, processors

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "support"))
import reference_pipeline  # noqa: E402
import trained  # noqa: E402
from pipeline_cases import (  # noqa: E402
    CONTEXTS,
    LANGUAGES,
    QUESTIONS,
    tiny_calls,
    xquad_calls,
)
from pipeline_checkpoints import (  # noqa: E402
    FAMILY_TOKENIZERS,
    LONGEST,
    TOKENIZERS,
    write_family,
    write_mini_lm,
)

MADE_BY = f"torch {torch.__version__}, transformers {transformers.__version__}"
# Left out of the texts to train with, so that every tokenizer meets unknown characters.
TEXTS = [text for name, text in CONTEXTS.items() if name != "unknown tokens"] + QUESTIONS


def tokenizer(kind: str):
    """Train one of the kinds of tokenizers on the texts of the cases."""
    settings = {"texts": TEXTS, "model_max_length": LONGEST}
    if kind == "metaspace":
        return trained.metaspace(vocab_size=400, **settings)
    if kind == "metaspace_words":
        # Without white space in the offsets of words, as in XLM-R's own file.
        made = trained.metaspace(vocab_size=400, **settings)
        made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
        )
        return made
    if kind.startswith("byte_level"):
        return trained.byte_level(kind == "byte_level_prefix", vocab_size=400, **settings)
    made = trained.word_piece(vocab_size=400, **settings)
    if kind == "word_piece_cased":
        made.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    if kind == "word_piece_two_separators":
        ids = {name: made.convert_tokens_to_ids(name) for name in ("[SEP]", "[CLS]")}
        made.backend_tokenizer.post_processor = processors.RobertaProcessing(
            ("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"])
        )
        made.model_input_names = ["input_ids", "attention_mask"]
    return made


def make_tokenizers() -> None:
    for kind in sorted(set(FAMILY_TOKENIZERS.values())):
        if not (TOKENIZERS / kind).exists():
            tokenizer(kind).save_pretrained(TOKENIZERS / kind)


def make(folder: Path, calls: dict[str, dict]) -> dict[str, list]:
    """Answer the calls with a checkpoint, and leave out those whose order is a matter of chance."""
    pipeline = reference_pipeline.load(folder)
    first = {name: reference_pipeline.answers(pipeline, call) for name, call in calls.items()}
    generator = torch.Generator().manual_seed(0)
    for name, weight in pipeline.model.named_parameters():
        if "qa_outputs" in name:
            noise = torch.randn(weight.shape, generator=generator) * 1e-6
            weight.data *= 1 + noise
    again = {name: reference_pipeline.answers(pipeline, call) for name, call in calls.items()}
    kept = {name for name in calls if spans(first[name]) == spans(again[name])}
    print(f"{folder.name}: {len(kept)} of {len(calls)} calls, {MADE_BY}", flush=True)
    return {
        name: [[float(f"{a['score']:.7g}"), a["start"], a["end"]] for a in first[name]]
        for name in calls
        if name in kept
    }


def spans(answers: list[dict]) -> list[tuple]:
    return [(answer["start"], answer["end"]) for answer in answers if answer["score"]]


def write(name: str, answers: dict) -> None:
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in answers.items())
    path = HERE / "pipeline" / f"{name}.json"
    path.write_text(f"{{\n{lines}\n}}\n", "utf-8")


def main(names: list[str]) -> None:
    make_tokenizers()
    with tempfile.TemporaryDirectory() as working:
        for family in FAMILY_TOKENIZERS:
            if not names or family in names:
                folder = write_family(family, Path(working, family))
                write(family, make(folder, tiny_calls()))
        if not names or "xquad" in names:
            shared = Path(os.environ["QA_FLAX_SHARED"])
            folder = write_mini_lm(shared / "models/all-MiniLM-L6-v2", Path(working, "mini_lm"))
            for language in LANGUAGES:
                calls = xquad_calls(shared / f"data/xquad/xquad.{language}.json")
                write(f"xquad.{language}", make(folder, calls))


if __name__ == "__main__":
    main(sys.argv[1:])
