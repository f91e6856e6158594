"""Keep transformers from importing PyTorch, which no command but `convert` uses.

transformers imports PyTorch if it is installed, which takes longer than all other imports together.
"""

import sys
from typing import Any

_modules: dict[str, Any] = sys.modules


def hide_torch() -> None:
    """Let transformers, which must not have been imported, find no PyTorch until `show_torch`.

    Only for a process that runs a command: a script may need PyTorch in transformers later.
    """
    if "torch" not in _modules and "transformers" not in _modules:
        _modules["torch"] = None  # for Python's import: there is no such module


def show_torch() -> None:
    """After the imports: let others, such as a tracker, import PyTorch. transformers does not."""
    if _modules.get("torch", ...) is not None:
        return
    if "transformers" in _modules:
        from transformers.utils.import_utils import is_torch_available

        is_torch_available()  # transformers asks once
    del _modules["torch"]
