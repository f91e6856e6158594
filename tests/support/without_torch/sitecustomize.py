"""Hide torch and peft from every import, as if they were not installed."""

from importlib.machinery import PathFinder

HIDDEN = {"torch", "peft"}
_find_spec = PathFinder.find_spec


def _find_visible(name, path=None, target=None):
    return None if name in HIDDEN else _find_spec(name, path, target)


PathFinder.find_spec = _find_visible
