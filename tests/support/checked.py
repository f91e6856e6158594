"""Check argument types and array shapes at every call of a qa_flax function in the tests."""

from pathlib import Path

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

_check_types = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int may stand for a float


def typechecker(function):
    """Check all functions, except inner ones without array types, which are often redefined."""
    is_inner = "<locals>" in function.__qualname__
    if is_inner and not any(hasattr(a, "dim_str") for a in function.__annotations__.values()):
        return function
    return _check_types(function)


def check_shapes(package: Path) -> None:
    """Install the checks in every module that uses jaxtyping; pyright checks the others."""
    modules = [
        ".".join(file.relative_to(package.parent).with_suffix("").parts)
        for file in package.rglob("*.py")
        if "from jaxtyping import" in file.read_text()
    ]
    install_import_hook(modules, "checked.typechecker")
