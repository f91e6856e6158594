"""What stderr is: a terminal, a notebook, or a log (host).

A notebook runs its cells in a kernel, whose stderr is no terminal, yet shows a bar that is redrawn
in its line. A command that a cell starts with `!` has a terminal, but what moves the cursor to
another line does not work on it.
"""

import os
import sys


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook: Jupyter, Colab, Kaggle or VS Code."""
    # IPython is imported in every kernel before a cell runs, so it need not be imported here.
    get_shell = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = None if get_shell is None else get_shell()
    return getattr(shell, "kernel", None) is not None


def shows_bar() -> bool:
    """Whether stderr shows a progress bar that is redrawn in its line; a log would be filled."""
    return sys.stderr.isatty() or in_notebook()


def shows_nested_bars() -> bool:
    """Whether stderr shows several bars below each other, each redrawn in its line."""
    is_started_by_cell = "JPY_PARENT_PID" in os.environ  # set in every kernel and inherited
    return sys.stderr.isatty() and not is_started_by_cell
