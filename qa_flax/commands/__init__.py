"""The subcommands of `qa-flax`, one module or package each; `cli.py` runs them.

A module or package in this folder is a subcommand if it defines

    SUMMARY             one line for `qa-flax --help`
    parser()            returns its `argparse.ArgumentParser`
    main(parsed)        does the work, given the parsed arguments; returns the exit status or None

To list the subcommands, `discover` imports every module in this folder, so their top-level imports
must be fast. Slow imports go inside `parser` and `main`, or into another module of the package.
"""

import pkgutil
from importlib import import_module
from types import ModuleType


def discover() -> dict[str, ModuleType]:
    """The subcommands' modules by name, sorted."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = {name: import_module(f"{__name__}.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "SUMMARY")}
