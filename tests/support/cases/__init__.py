"""Test cases of the families: a small config, its variations and the settings not supported.

`tests/support/loud.py` builds models from them for `tests/models/test_families.py`,
`tests/models/test_torch_parity.py` and others. Every file in this folder except `case.py` defines a
`CASE`. It belongs to the model type that the file is named after, or to the file's `MODEL_TYPES`.
"""

import importlib
import pkgutil

from cases.case import Case


def find_cases() -> dict[str, Case]:
    """Import every file of this folder and return each `CASE` by model type."""
    cases_by_type: dict[str, Case] = {}
    for file in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        if file != "case":
            module = importlib.import_module(f"{__name__}.{file}")
            for name in getattr(module, "MODEL_TYPES", (file.replace("_", "-"),)):
                if name in cases_by_type:
                    raise ValueError(f"model_type={name!r} has two cases, one in {file}.py")
                cases_by_type[name] = module.CASE
    return cases_by_type


CASES = find_cases()
LATER = frozenset(name for name, case in CASES.items() if case.later)
"""The model types of which only tests marked `every_family` run by default (`conftest.py`)."""
