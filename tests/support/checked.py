"""The types, and the shapes of arrays, that the tests check wherever functions are called."""

from pathlib import Path

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int may stand for a float


def typechecker(function):
    """All functions, but inner ones with array types only: each is made, and checked, anew."""
    is_inner = "<locals>" in function.__qualname__
    if is_inner and not any(hasattr(a, "dim_str") for a in function.__annotations__.values()):
        return function
    return _checked(function)


def check_shapes(package: Path) -> None:
    """In every module of the package that has array types; others are the static checker's."""
    modules = [
        ".".join(file.relative_to(package.parent).with_suffix("").parts)
        for file in package.rglob("*.py")
        if "from jaxtyping import" in file.read_text()
    ]
    install_import_hook(modules, "checked.typechecker")
