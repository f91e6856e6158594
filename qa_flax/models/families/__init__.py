"""Stage 4 of 7: the model families of this folder, by `model_type` (device, JAX)."""

import importlib
import pkgutil

from qa_flax.models.family import Family


def find_families() -> dict[str, Family]:
    """Import every file of this folder and return each `FAMILY` by its model type.

    Raises:
        ValueError: two files define a family with the same model type.
        AttributeError: a file defines no `FAMILY`.
    """
    families: dict[str, Family] = {}
    files: dict[str, str] = {}
    for file in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        exported = importlib.import_module(f"{__name__}.{file}").FAMILY
        for family in exported if isinstance(exported, tuple) else (exported,):
            name = family.model_type
            if name in families:
                raise ValueError(
                    f"model_type={name!r} is defined both in {files[name]}.py and in {file}.py; "
                    "remove one of the two definitions"
                )
            families[name], files[name] = family, file
    return families


FAMILIES = find_families()
