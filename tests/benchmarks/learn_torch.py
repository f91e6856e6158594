"""The PyTorch part of `learn.py`: fine-tune with transformers' own Trainer, as run_qa.py does.

Uses only the installed `transformers` and torch (the `parity` extra), and the loops of
`tests/support/oracle.py` for windows, answers and scores. Nothing of `qa_flax` is imported.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import datasets
import oracle
import torch
import transformers


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--train_file", required=True)
    parser.add_argument("--validation_file", required=True)
    parser.add_argument("--max_train_samples", type=int, default=2000)
    parser.add_argument("--num_train_epochs", type=float, default=2)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--per_device_train_batch_size", type=int, default=16)
    parser.add_argument("--max_seq_length", type=int, default=384)
    parser.add_argument("--doc_stride", type=int, default=128)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output_dir", required=True)
    args = parser.parse_args()

    transformers.set_seed(args.seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model_name_or_path)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(args.model_name_or_path)
    train_rows = oracle.nested_to_rows(args.train_file)[: args.max_train_samples]
    rows = oracle.nested_to_rows(args.validation_file)
    # Without padding here, the data collator pads each batch only to its longest row.
    sizes = {"max_seq_length": args.max_seq_length, "doc_stride": args.doc_stride, "padding": False}
    train = oracle.prepare_plain(train_rows, tokenizer, labels=True, label_bug=True, **sizes)
    for column in ("offset_mapping", "example_id"):
        train.pop(column)
    windows = oracle.prepare_plain(rows, tokenizer, **sizes)
    inputs = {k: v for k, v in windows.items() if k not in ("offset_mapping", "example_id")}

    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=args.output_dir,
            num_train_epochs=args.num_train_epochs,
            learning_rate=args.learning_rate,
            per_device_train_batch_size=args.per_device_train_batch_size,
            seed=args.seed,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        ),
        train_dataset=datasets.Dataset.from_dict(train),
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
    )
    started = time.perf_counter()
    trained = trainer.train()
    train_seconds = time.perf_counter() - started
    started = time.perf_counter()
    logits = trainer.predict(datasets.Dataset.from_dict(inputs)).predictions
    predict_seconds = time.perf_counter() - started

    trainer.save_model()
    columns = list(windows)
    features = [
        dict(zip(columns, values, strict=True)) for values in zip(*windows.values(), strict=True)
    ]
    answers = oracle.postprocess_plain(rows, features, logits)
    result = {
        "stack": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "seed": args.seed,
        **oracle.squad_v1_plain(answers, rows),
        "train_loss": trained.training_loss,
        "train_windows": len(train["input_ids"]),
        "train_seconds": round(train_seconds, 1),
        "predict_seconds": round(predict_seconds, 1),
    }
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    (Path(args.output_dir) / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
