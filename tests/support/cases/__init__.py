"""What each family is tested with: a small config, what changes it, and what it refuses.

`tests/support/loud.py` makes models of them, `tests/models/test_families.py` and
`tests/models/test_torch_parity.py` test them. Every file here but `case.py` has a `CASE`; it is for
the model type of the file's name, or for its `MODEL_TYPES`.
"""

import importlib
import pkgutil

from cases.case import Case


def find_cases() -> dict[str, Case]:
    """Every `CASE` of this folder's files, by model type."""
    found: dict[str, Case] = {}
    for file in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        if file != "case":
            module = importlib.import_module(f"{__name__}.{file}")
            for name in getattr(module, "MODEL_TYPES", (file.replace("_", "-"),)):
                if name in found:
                    raise ValueError(f"model_type={name!r} has two cases; one is in {file}.py")
                found[name] = module.CASE
    return found


CASES = find_cases()
