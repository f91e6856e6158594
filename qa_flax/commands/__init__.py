"""The verbs of `qa-flax`: one module each, found by `cli.py`; what a person types comes in here.

A verb is a module or package in this folder that has

    SUMMARY             one line for `qa-flax --help`
    parser()            its `argparse.ArgumentParser`, built only when the verb is chosen
    main(parsed)        the work, given what the parser returns; returns the exit status, or None

To list the verbs all modules of the folder are imported, so they import nothing that takes time:
such imports stand in `parser` and `main`, or in a module of the verb's own package.
"""

import pkgutil
from importlib import import_module
from types import ModuleType


def found() -> dict[str, ModuleType]:
    """The verbs and their modules, sorted by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = {name: import_module(f"{__name__}.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "SUMMARY")}
