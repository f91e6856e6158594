"""Stage 4 of 7: the model families by `model_type`, found in this folder (device, JAX)."""

import importlib
import pkgutil

from qa_flax.models.family import Family


def find_families() -> dict[str, Family]:
    """Every `FAMILY` of this folder's files, by model type; `ValueError` if two have the same."""
    found: dict[str, Family] = {}
    files: dict[str, str] = {}
    for file in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        handed_over = importlib.import_module(f"{__name__}.{file}").FAMILY
        for family in handed_over if isinstance(handed_over, tuple) else (handed_over,):
            name = family.model_type
            if name in found:
                raise ValueError(
                    f"model_type={name!r} is both in {files[name]}.py and in {file}.py; "
                    "one file must have it"
                )
            found[name], files[name] = family, file
    return found


FAMILIES = find_families()
