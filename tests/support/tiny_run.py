"""Call `qa-flax run` with arguments that fit a tiny checkpoint."""

from qa_flax.cli import main


def run(checkpoint, output_dir, *arguments):
    main(
        [
            "run",
            f"--model_name_or_path={checkpoint}",
            f"--output_dir={output_dir}",
            "--max_seq_length=64",
            "--doc_stride=16",
            "--per_device_train_batch_size=1",
            "--per_device_eval_batch_size=2",
            *map(str, arguments),
        ]
    )
