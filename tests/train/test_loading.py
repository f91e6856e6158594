"""Data sets, collators, loaders and evaluation loops that a script brings to the trainer."""

import random

import datasets
import jax
import numpy as np
import pytest
import tiny
from flax import nnx
from tiny_trainers import WINDOW, arguments, compute_metrics, post_process
from transformers import DataCollatorWithPadding, TrainerCallback

from qa_flax import (
    QuestionAnsweringTrainer,
    Trainer,
    load_examples,
    prepare_train_features,
    prepare_validation_features,
)
from qa_flax.data.rows import stack_rows


@pytest.fixture(scope="module")
def windows():
    """Fifteen windows as a plain data set."""
    return prepare_train_features(tiny.examples(answerable=True), tiny.tokenizer(), **WINDOW)


def collate(rows):
    return stack_rows(rows)


class MapStyle:
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return {name: np.array(value) for name, value in self.data[index].items()}


class OwnLoader:
    """A script's loader, which knows nothing of this package."""

    def __init__(self, loader):
        self.loader = loader

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        return iter(self.loader)


def params(trainer):
    return jax.tree.leaves(nnx.split(trainer.model)[1])


def trained(tmp_path, dataset, collator=None, cls=Trainer, **changes):
    settings = {"max_steps": 3, "logging_steps": 1, "learning_rate": 1e-2}
    settings |= {"gradient_accumulation_steps": 2, "train_sampling_strategy": "sequential"}
    args = arguments(tmp_path, **(settings | changes))
    trainer = cls(tiny.model(), args, data_collator=collator, train_dataset=dataset)
    trainer.train()
    return trainer


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


# ---- training ------------------------------------------------------------------------------------


def test_every_kind_of_training_set_gives_the_same_updates(tmp_path, windows):
    """The batches are one, then one with padding rows, of 8 cores."""
    expected = trained(tmp_path, windows)
    stream = windows.to_iterable_dataset()
    for dataset, collator in (
        (list(windows), None),
        (MapStyle(windows), None),
        (stream, None),
        (windows, collate),
        (windows.with_transform(lambda batch: batch), DataCollatorWithPadding(tiny.tokenizer())),
    ):
        actual = trained(tmp_path, dataset, collator)
        assert losses(actual) == losses(expected)
        for one, other in zip(params(actual), params(expected), strict=True):
            np.testing.assert_array_equal(one[...], other[...])


def test_a_replaced_loader_gives_the_batches(tmp_path, windows):
    class Own(Trainer):
        def get_train_dataloader(self):
            return OwnLoader(super().get_train_dataloader())

    expected, actual = trained(tmp_path, windows), trained(tmp_path, windows, cls=Own)
    assert losses(actual) == losses(expected)
    assert actual.state.epoch == expected.state.epoch
    actual.get_train_dataloader = lambda: [collate(windows.to_list()[:4])]
    assert actual.train().global_step == 3


@pytest.mark.slow
def test_a_run_with_a_random_collator_is_resumed_bit_for_bit(tmp_path, windows):
    def masking(rows):
        batch = stack_rows(rows)
        batch["input_ids"][:, random.randrange(1, 20)] = np.random.randint(5, 99)  # noqa: NPY002
        return batch

    class StopAt(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop |= state.global_step == 2

    def trainer(folder, callbacks, data):
        settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "logging_steps": 1}
        return Trainer(
            tiny.model(),
            arguments(folder, **settings),
            data_collator=masking,
            train_dataset=data,
            callbacks=callbacks,
        )

    for name, data in (("rows", windows), ("stream", windows.to_iterable_dataset())):
        whole = trainer(tmp_path / f"{name}-whole", None, data)
        whole.train()
        trainer(tmp_path / name, [StopAt], data).train()
        random.seed(5)
        resumed = trainer(tmp_path / name, None, data)
        resumed.train(resume_from_checkpoint=True)
        assert losses(resumed) == losses(whole)
        assert len(set(losses(whole))) == 4


@pytest.mark.slow
def test_group_by_length_reads_the_lengths_of_rows(tmp_path, windows):
    short = windows.map(lambda row: {"input_ids": row["input_ids"][: sum(row["attention_mask"])]})
    short = short.remove_columns(["attention_mask", "token_type_ids"])
    settings = {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 1}
    seen = []

    def collate_and_note(rows):
        seen.extend(len(row["input_ids"]) for row in rows)
        return stack_rows(rows)

    dataset = MapStyle(short)
    trained(tmp_path, dataset, collate_and_note, max_steps=2, **settings)
    first = sorted(len(ids) for ids in short["input_ids"])
    assert sorted(seen) == first  # two updates are an epoch
    assert seen != first


@pytest.mark.slow
def test_own_losses_get_further_arrays_of_a_batch(tmp_path, windows):
    def weighted(rows):
        return stack_rows(rows) | {"weight": np.array([row["weight"] for row in rows], np.float32)}

    def loss(logits, batch):
        return batch["weight"] * 2.0 + 0.0 * logits.start.sum(axis=1)

    data = windows.add_column("weight", [1.5] * len(windows))
    args = arguments(tmp_path, max_steps=1, logging_steps=1, remove_unused_columns=False)
    kwargs = {"data_collator": weighted, "train_dataset": data}
    trainer = Trainer(tiny.model(), args, compute_loss_func=loss, **kwargs)
    trainer.train()
    assert losses(trainer) == [3.0]
    assert trainer.evaluate(windows.add_column("weight", [0.5] * len(windows)))["eval_loss"] == 1.0
    with pytest.raises(
        ValueError, match=r"weighted.* gives weight, which these models do not take"
    ):
        Trainer(tiny.model(), args, **kwargs).train()


def test_callbacks_get_a_loader_that_counts_batches(tmp_path, windows):
    seen = {}

    class Spy(TrainerCallback):
        def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
            seen["length"] = len(train_dataloader)
            seen["rows"] = sum(len(batch["input_ids"]) for batch in train_dataloader)
            seen["set"], seen["size"] = train_dataloader.dataset, train_dataloader.batch_size

    settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    args = arguments(tmp_path, max_steps=1, **settings)
    Trainer(tiny.model(), args, train_dataset=windows, callbacks=[Spy]).train()
    cores = jax.device_count()
    assert seen["length"] == -(-len(windows) // cores)
    assert (seen["rows"], seen["set"], seen["size"]) == (len(windows), windows, cores)


def test_a_stream_needs_max_steps_and_rows(tmp_path, windows):
    stream = windows.to_iterable_dataset()
    with pytest.raises(ValueError, match=r"is a stream .*set max_steps"):
        Trainer(tiny.model(), arguments(tmp_path), train_dataset=stream)
    args = arguments(tmp_path, max_steps=1, train_sampling_strategy="group_by_length")
    with pytest.raises(ValueError, match="needs the lengths of all rows"):
        Trainer(tiny.model(), args, train_dataset=stream)
    once = iter(list(windows)[:2])
    trainer = Trainer(tiny.model(), arguments(tmp_path, max_steps=2), train_dataset=once)
    with pytest.raises(ValueError, match="yields no batches in epoch 2"):
        trainer.train()


def test_a_data_set_dict_is_refused_with_its_splits(tmp_path, windows):
    data = datasets.DatasetDict(train=windows, validation=windows)
    with pytest.raises(ValueError, match=r"train_dataset is a DatasetDict .* train, validation"):
        Trainer(tiny.model(), arguments(tmp_path), train_dataset=data)
    with pytest.raises(ValueError, match=r"test_dataset is a DatasetDict .* train, validation"):
        Trainer(tiny.model(), arguments(tmp_path)).predict(data)
    with pytest.raises(ValueError, match=r"eval_dataset\['input_ids'\] is a list of lists"):
        Trainer(tiny.model(), arguments(tmp_path), eval_dataset={"input_ids": [[1]]})


def test_a_tokenizer_that_only_the_collator_has_is_saved(tmp_path, windows):
    collator = DataCollatorWithPadding(tiny.tokenizer())
    trainer = Trainer(tiny.model(), arguments(tmp_path), data_collator=collator)
    trainer.save_model(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.json").is_file()


# ---- evaluation ----------------------------------------------------------------------------------


def test_every_kind_of_evaluation_set_gives_the_same_logits(tmp_path, windows):
    trainer = Trainer(tiny.model(), arguments(tmp_path))
    expected = trainer.predict(windows)
    stream = windows.to_iterable_dataset()
    for dataset in (list(windows), MapStyle(windows), stream, windows.with_transform(lambda b: b)):
        actual = trainer.predict(dataset)
        for one, other in zip(actual.predictions, expected.predictions, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)
        for one, other in zip(actual.label_ids, expected.label_ids, strict=True):
            np.testing.assert_array_equal(one, other)
        assert actual.metrics["test_loss"] == pytest.approx(expected.metrics["test_loss"], abs=1e-6)


@pytest.mark.slow
def test_a_collator_changes_what_is_evaluated(tmp_path, windows):
    def masked(rows):
        batch = stack_rows(rows)
        return batch | {"input_ids": np.where(batch["attention_mask"] > 0, 4, 0)}

    trainer = Trainer(tiny.model(), arguments(tmp_path), data_collator=masked)
    replaced = windows.map(lambda row: {"input_ids": [4 * n for n in row["attention_mask"]]})
    expected = Trainer(tiny.model(), arguments(tmp_path)).predict(replaced)
    actual = trainer.predict(windows)
    np.testing.assert_allclose(actual.predictions[0], expected.predictions[0], atol=1e-6)
    transformed = windows.with_transform(lambda b: b | {"input_ids": replaced["input_ids"][:]})
    whole = arguments(tmp_path, per_device_eval_batch_size=64)
    actual = Trainer(tiny.model(), whole).predict(transformed)
    np.testing.assert_allclose(actual.predictions[0], expected.predictions[0], atol=1e-6)


def test_a_long_stream_is_read_in_parts_and_only_once(tmp_path, windows, monkeypatch):
    read = []

    def generate():
        for row in windows:
            read.append(1)
            yield row

    monkeypatch.setattr("qa_flax.data.loaders.CHUNK_ROWS", 6)
    stream = datasets.IterableDataset.from_generator(generate)
    args = arguments(tmp_path, per_device_eval_batch_size=1, include_for_metrics=["inputs", "loss"])
    given = []
    trainer = Trainer(tiny.model(), args, compute_metrics=lambda p: given.append(p) or {"one": 1})
    metrics = trainer.evaluate(stream)
    assert len(read) == len(windows)
    np.testing.assert_array_equal(given[0].inputs, windows["input_ids"])
    assert metrics["eval_loss"] == pytest.approx(float(np.mean(given[0].losses)), abs=1e-6)
    assert metrics["eval_loss"] == pytest.approx(trainer.evaluate(windows)["eval_loss"], abs=1e-6)


def test_replaced_loaders_and_loops_are_called(tmp_path, windows):
    called = []

    class Own(Trainer):
        def get_eval_dataloader(self, eval_dataset=None):
            called.append("eval")
            return OwnLoader(super().get_eval_dataloader(eval_dataset))

        def get_test_dataloader(self, test_dataset):
            called.append("test")
            return super().get_test_dataloader(test_dataset)

        def evaluation_loop(self, dataloader, description, **kwargs):
            called.append(description)
            output = super().evaluation_loop(dataloader, description, **kwargs)
            output.metrics["eval_mine"] = 7
            return output

    trainer = Own(tiny.model(), arguments(tmp_path), eval_dataset=windows)
    expected = Trainer(tiny.model(), arguments(tmp_path)).evaluate(windows)
    metrics = trainer.evaluate()
    assert metrics["eval_mine"] == 7
    assert metrics["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-6)
    trainer.predict(windows)
    assert called == ["eval", "Evaluation", "test", "Prediction"]


@pytest.mark.slow
def test_the_question_answering_trainer_calls_replaced_methods_too(tmp_path):
    examples = tiny.examples(answerable=True)
    windows = prepare_validation_features(examples, tiny.tokenizer(), **WINDOW)

    class Own(QuestionAnsweringTrainer):
        def evaluation_loop(self, *args, **kwargs):
            assert self.compute_metrics is None
            output = super().evaluation_loop(*args, **kwargs)
            starts, ends = output.predictions
            return output._replace(predictions=(starts[:, ::-1], ends))

    def evaluated(cls):
        trainer = cls(
            tiny.model(),
            arguments(tmp_path),
            eval_examples=examples,
            eval_dataset=windows,
            post_process_function=post_process,
            compute_metrics=compute_metrics,
        )
        return trainer.evaluate()["eval_f1"], trainer.predict(windows, examples).predictions

    assert evaluated(Own) != evaluated(QuestionAnsweringTrainer)


def test_a_prediction_loop_is_called_only_if_the_arguments_ask_for_it(tmp_path, windows):
    class Own(Trainer):
        def prediction_loop(self, dataloader, description, **kwargs):
            output = super().prediction_loop(dataloader, description, **kwargs)
            output.metrics["eval_mine"] = 7
            return output

    with pytest.raises(
        ValueError, match=r"Own.prediction_loop: use evaluation_loop, or set use_leg"
    ):
        Own(tiny.model(), arguments(tmp_path))
    args = arguments(tmp_path, use_legacy_prediction_loop=True)
    assert Own(tiny.model(), args, eval_dataset=windows).evaluate()["eval_mine"] == 7


def test_prediction_loss_only_returns_no_predictions(tmp_path, windows):
    trainer = Trainer(tiny.model(), arguments(tmp_path, prediction_loss_only=True))
    output = trainer.predict(windows)
    assert output.predictions is None
    assert output.label_ids is None
    loop = trainer.evaluation_loop(trainer.get_eval_dataloader(windows), "x", False)
    assert loop.num_samples == len(loop.predictions[0]) == len(windows)
    assert trainer.num_examples(trainer.get_eval_dataloader(windows)) == len(windows)


def test_shared_contexts_are_warned_of_once_for_each_evaluation_set(tmp_path, windows, caplog):
    other = prepare_validation_features(tiny.examples(), tiny.tokenizer(), **WINDOW)
    new = [row | {"context": "So " + row["context"], "answers": []} for row in tiny.rows()]
    new = prepare_validation_features(load_examples(new), tiny.tokenizer(), **WINDOW)
    args = arguments(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1)
    sets = {"new": new, "other": other}
    trainer = Trainer(tiny.model(), args, train_dataset=windows, eval_dataset=sets)
    trainer.train()
    trainer.evaluate()
    (line,) = [record.getMessage() for record in caplog.records if "contexts" in record.message]
    assert line.startswith("12 of 12 validation questions (ids q0, q1, q2, q3, q4, ...) are about")
    assert "(11 of them are themselves in the training set)" in line
    trainer.evaluate(windows)
    assert "are the training set" in caplog.records[-1].getMessage()
    count = len(caplog.records)
    trainer.evaluate(new)
    trainer.evaluate(windows)
    assert len(caplog.records) == count


@pytest.mark.slow
def test_a_script_may_return_pytorchs_data_loaders(tmp_path, windows):
    torch = pytest.importorskip("torch", reason="pip install '.[parity]'")

    class Own(Trainer):
        def get_train_dataloader(self):
            generator = torch.Generator().manual_seed(3)
            sampler = torch.utils.data.RandomSampler(self.train_dataset, generator=generator)
            return self.loader(self.train_dataset, self.args.train_batch_size, sampler)

        def get_eval_dataloader(self, eval_dataset=None):
            data = self.eval_dataset if eval_dataset is None else eval_dataset
            return self.loader(data, self.args.eval_batch_size)

        def loader(self, data, rows, sampler=None):
            columns = ["input_ids", "attention_mask", "start_positions", "end_positions"]
            data = data.select_columns(columns)
            return torch.utils.data.DataLoader(
                data, batch_size=rows, sampler=sampler, collate_fn=self.data_collator
            )

    args = arguments(tmp_path, num_train_epochs=2, logging_steps=1)
    trainer = Own(tiny.model(), args, train_dataset=windows, eval_dataset=windows)
    assert trainer.train().global_step == 6
    expected = Trainer(trainer.model, args).evaluate(windows)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-6)
