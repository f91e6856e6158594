"""`hidden_dropout_prob` and the other dropout rates, by each family's own names (host)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qa_flax.models.family import DROPOUT_RATES
from qa_flax.models.load_arguments import no_such_dropout
from qa_flax.models.model import AutoModelForQuestionAnswering, family_of
from qa_flax.models.parameters import ChangedSetting


def dropout_settings(args: Any, model: AutoModelForQuestionAnswering) -> dict[str, float]:
    """The settings of the model's config that the arguments set, with their values.

    Raises:
        ValueError: the model's family has no dropout at that place.
    """
    family = family_of(model.config)
    settings: dict[str, float] = {}
    for rate in DROPOUT_RATES:
        if (value := getattr(args, rate, None)) is None:
            continue
        if not (names := family.own_names(rate)):
            raise ValueError(f"{rate}={value!r}: {no_such_dropout(family)}; leave {rate} out")
        settings |= dict.fromkeys(names, float(value))
    return settings


def set_dropout(model: AutoModelForQuestionAnswering, settings: Mapping[str, float]) -> None:
    """Change the model's config, and undo what earlier arguments have changed and these do not.

    A setting that a script has changed since keeps the script's value.
    """
    config = model.config
    changed = {
        setting.name: setting
        for setting in model.set_by_arguments.settings
        if getattr(config, setting.name) == setting.after
    }
    for name in changed.keys() - settings.keys():
        setattr(config, name, changed[name].before)
    record = []
    for name, value in settings.items():
        before = changed[name].before if name in changed else getattr(config, name)
        record.append(ChangedSetting(name, before, value))
        setattr(config, name, value)
    model.set_by_arguments = replace(model.set_by_arguments, settings=tuple(record))
