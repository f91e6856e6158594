"""The part of `Trainer` that writes the files of a run, and prints metrics (host)."""

import json
import logging
import os
from typing import Any

from qa_flax import storage
from qa_flax.distributed import processes
from qa_flax.models.save import save_tokenizer, write_manifest
from qa_flax.storage import AnyPath
from qa_flax.train import checkpoints
from qa_flax.train.learning_curves import FILE as CURVES_FILE
from qa_flax.train.learning_curves import has_curves, learning_curves
from qa_flax.train.model_card import model_card
from qa_flax.train.plan import output_dir as _output_dir
from qa_flax.train.progress import readable_metrics
from qa_flax.train.shared_attributes import SharedAttributes

logger = logging.getLogger(__name__)


class OutputFiles(SharedAttributes):
    """The part of `Trainer` for files; see there for the arguments. The main process writes."""

    def save_model(self, output_dir: str | os.PathLike | None = None) -> None:
        """Save the model (or its LoRA adapters) and the tokenizer in the format of transformers.

        It may be called during training, in a callback: it saves the weights of the latest update.
        Only the main process writes; with `shard_params` every process must call it.

        Args:
            output_dir: the folder or bucket URL to write to; None: `args.output_dir`.
        """
        self._live.gather_shards()
        if not processes.is_main():
            return
        directory = _output_dir(self.args) if output_dir is None else output_dir
        with storage.output_folder(directory) as folder:
            self.model.save_pretrained(folder)
            write_manifest(folder)
            tokenizer = self.processing_class
            if tokenizer is None:  # as in transformers, that of a collator is saved, too
                tokenizer = getattr(self._collator, "tokenizer", None)
            if tokenizer is not None:
                save_tokenizer(tokenizer, folder)

    def save_state(self) -> None:
        """Write `trainer_state.json` into `args.output_dir`; only the main process writes.

        After a training it also writes `learning_curves.svg`, a picture of what was logged.
        """
        if not processes.is_main():
            return
        with storage.output_folder(_output_dir(self.args)) as folder:
            checkpoints.write_trainer_state(self.state, folder)
        if has_curves(self.state.log_history):
            self._save_curves()

    def _save_curves(self) -> None:
        curves = learning_curves(self.state, title=self.args.run_name)
        curves.save(_output_dir(self.args) / CURVES_FILE)

    def _save_curves_of_training(self) -> None:
        """Write the picture if training questions were evaluated, and files are written anyway.

        A training with transformers' arguments only leaves the files that it leaves there.
        """
        is_seen = processes.is_main() and has_curves(self.state.log_history, "train_")
        if is_seen and (self.args.save_strategy != "no" or _output_dir(self.args).exists()):
            try:
                self._save_curves()
            except OSError as error:  # the training is not lost for a picture
                logger.warning("%s could not be written: %s", CURVES_FILE, error)

    def save_metrics(self, split: str, metrics: dict[str, Any], combined: bool = True) -> None:
        """Write `<split>_results.json` into `args.output_dir`; only the main process writes.

        Args:
            split: such as `train`, `eval` or `predict`.
            metrics: values by name, which must be JSON values.
            combined: whether to merge them into `all_results.json` as well.
        """
        if not processes.is_main():
            return
        directory = _output_dir(self.args)
        _write_json(directory / f"{split}_results.json", metrics)
        if combined:
            path = directory / "all_results.json"
            previous = json.loads(path.read_text()) if path.exists() else {}
            _write_json(path, previous | metrics)

    def create_model_card(self, **kwargs: Any) -> None:
        """Write the model card `README.md` into `args.output_dir`; only the main process writes.

        Args:
            **kwargs: as in transformers, such as `language`, `tags` or `finetuned_from`.
        """
        if not processes.is_main():
            return
        card = model_card(self.args, self.state, **kwargs)
        storage.write_text(_output_dir(self.args) / "README.md", card)

    def is_local_process_zero(self) -> bool:
        """Whether this process is the main one of its machine; here, of the whole run."""
        return processes.is_main()

    def is_world_process_zero(self) -> bool:
        """Whether this process is the main one, which writes the files."""
        return processes.is_main()

    def log_metrics(self, split: str, metrics: dict[str, Any]) -> None:
        """Print the metrics, one a line, sorted by name; only the main process prints.

        Args:
            split: the heading, such as `train` or `eval`.
            metrics: values by name.
        """
        if not processes.is_main():
            return
        texts = {name: str(value) for name, value in self.metrics_format(metrics).items()}
        name_width, width = (
            max(map(len, texts), default=0),
            max(map(len, texts.values()), default=0),
        )
        print(f"***** {split} metrics *****")
        for name, text in sorted(texts.items()):
            print(f"  {name:<{name_width}} = {text:>{width}}")

    def metrics_format(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Return the metrics as `log_metrics` prints them: times as h:mm:ss, floats rounded."""
        return readable_metrics(metrics)


def _write_json(path: AnyPath, values: dict[str, Any]) -> None:
    storage.write_text(path, storage.json_text(values, indent=4, sort_keys=True))
