"""The part of `Trainer` that writes the files of a run, and prints metrics (host)."""

import json
import logging
import os
from collections.abc import Sequence
from typing import Any

from qa_flax import storage
from qa_flax.distributed import processes
from qa_flax.models.save import save_tokenizer, write_manifest
from qa_flax.storage import AnyPath
from qa_flax.train import checkpoints
from qa_flax.train.base_card import (
    is_text,
    languages_of_dataset,
    read_base,
    read_front_matter,
)
from qa_flax.train.card_data import CardFacts, data_of_arguments, data_of_trainer
from qa_flax.train.learning_curves import FILE as CURVES_FILE
from qa_flax.train.learning_curves import has_curves, learning_curves
from qa_flax.train.model_card import model_card
from qa_flax.train.plan import output_dir as _output_dir
from qa_flax.train.progress import readable_metrics
from qa_flax.train.shared_attributes import SharedAttributes

logger = logging.getLogger(__name__)


class OutputFiles(SharedAttributes):
    """The part of `Trainer` for files; see there for the arguments. The main process writes."""

    _card_facts: CardFacts | None = None
    """What `qa-flax run` knows for the model card."""

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

    def create_model_card(
        self,
        language: str | Sequence[str] | None = None,
        license: str | None = None,
        tags: str | Sequence[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | Sequence[str] | None = None,
        dataset_tags: str | Sequence[str] | None = None,
        dataset: str | Sequence[str] | None = None,
        dataset_args: str | Sequence[str] | None = None,
    ) -> None:
        """Write the model card `README.md` into `args.output_dir`; only the main process writes.

        It makes no request. Tags of a card that is there are kept.

        Args:
            language: codes of the model's languages; None: those of the base model's card.
            license: the model's license; None: that of the base model's card.
            tags: tags in addition to `generated_from_trainer`, `qa_flax` and `jax`.
            model_name: the model's name; None: that of `output_dir`.
            finetuned_from: Hub id or folder of the base model; None: what the model was loaded
                from. The card does not show a folder, because nobody else could load it.
            tasks: identifiers of tasks; None: question-answering.
            dataset_tags: Hub ids of the data sets; None: that of `eval_dataset`, if it has one.
            dataset: names of the data sets, for readers; None: their ids.
            dataset_args: configurations of the data sets.

        Raises:
            OSError: the file cannot be written.
        """
        if not processes.is_main():
            return
        facts = self._card_facts or CardFacts()
        source = finetuned_from or getattr(self.model.config, "name_or_path", None)
        base = read_base(source, facts.revision, facts.cache_dir)
        if dataset_tags is None and dataset is None and dataset_args is None:
            data = facts.data if self._card_facts else data_of_trainer(self)
        else:
            data = data_of_arguments(dataset_tags, dataset, dataset_args)
        if language is None and facts.language is None and not base.language:
            languages = [code for part in data for code in languages_of_dataset(part.hub_id)]
            language = list(dict.fromkeys(languages)) or None
        file = _output_dir(self.args) / "README.md"
        present = read_front_matter(file).get("tags")
        present = [tag for tag in present if is_text(tag)] if isinstance(present, list) else []
        card = model_card(
            self.args,
            self.state,
            base,
            data,
            language=language or facts.language,
            license=license,
            tags=[*([tags] if isinstance(tags, str) else tags or ()), *present],
            model_name=model_name,
            tasks=tasks,
            is_adapter=self.model.lora is not None,
        )
        storage.write_text(file, str(card))

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
