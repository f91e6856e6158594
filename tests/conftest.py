"""Run every test on 8 simulated CPU cores, without network, with strict rank promotion in JAX."""

import gc
import importlib.util
import os
import signal
import tempfile
from pathlib import Path

from cases import LATER
from checked import check_shapes
from hub_stand_in import hub as hub  # a fixture
from processes import COMPILED_FOR_ALL, compiler_flags

os.environ["XLA_FLAGS"] = f"{compiler_flags(8)} {os.environ.get('XLA_FLAGS', '')}"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

import numpy as np
import pytest

# Many tests compile the same steps and operations. All of a test run, including the worker
# processes of `pytest -n`, share one compilation cache, so each is compiled once.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _compilation_cache = tempfile.TemporaryDirectory(prefix="qa_flax-compiled-")
    os.environ["QA_FLAX_TEST_COMPILED"] = _compilation_cache.name

# Locates the package without importing it: modules that are already imported are not checked.
check_shapes(Path(importlib.util.find_spec("qa_flax").origin).parent)

# Under jaxtyping's import hook, modules that qa_flax imports do not use Python's cached bytecode.
# The large libraries are therefore imported before.
LIBRARIES = (
    "datasets",
    "flax.nnx",
    "optax",
    "orbax.checkpoint",
    "transformers.integrations.integration_utils",
    "transformers.modelcard",
    "transformers.training_args",
)


def pytest_configure(config):
    # A shell ignores Ctrl-C in what a script starts in the background, and so would its tests.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # The controller of `pytest -n` runs no tests, so it needs no JAX.
    if config.getoption("numprocesses", None) is not None:
        return
    import jax

    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_compilation_cache_dir", os.environ["QA_FLAX_TEST_COMPILED"])
    for name, value in COMPILED_FOR_ALL.items():
        jax.config.update(name.lower(), value)
    for name in LIBRARIES:
        importlib.import_module(name)


# Public data sets and pretrained weights that are not part of the repository.
SHARED = Path(os.environ.get("QA_FLAX_SHARED", Path(__file__).parents[2] / "shared"))


def shared_path(*parts: str) -> Path:
    """A file of the shared data; skips the test if it is missing."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(parts)} below {SHARED} (set QA_FLAX_SHARED)")
    return path


def pytest_collection_finish(session):
    # Freeze the million objects that imports created, so that the garbage collector does not scan
    # them repeatedly.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


def pytest_itemcollected(item):
    """Mark the tests of later families slow, whichever parameter names the family."""
    params = item.callspec.params.values() if hasattr(item, "callspec") else ()
    is_later = any(isinstance(value, str) and value in LATER for value in params)
    if is_later and "every_family" not in item.keywords:
        item.add_marker("slow")


def pytest_collection_modifyitems(config, items):
    if config.getoption("-m"):
        return
    slow = [item for item in items if "slow" in item.keywords]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if "slow" not in item.keywords]


MEMORY_LIMIT = 6 << 30
PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module", autouse=True)
def _clear_compiled_programs():
    """After a test file, free compiled programs if the process is large; all would take 9 GB."""
    yield
    if int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_SIZE > MEMORY_LIMIT:
        import jax

        from qa_flax.device import programs

        programs.clear()
        jax.clear_caches()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
