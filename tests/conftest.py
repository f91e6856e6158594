"""Every test runs on 8 simulated CPU cores, with no network and JAX at its strictest."""

import gc
import importlib.util
import os
import tempfile
from pathlib import Path

from checked import check_shapes
from processes import COMPILED_FOR_ALL, compiler_flags

os.environ["XLA_FLAGS"] = f"{compiler_flags(8)} {os.environ.get('XLA_FLAGS', '')}"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

import numpy as np
import pytest

# Hundreds of trainers share a handful of steps, and models their operations: each is compiled once
# in a run of the tests, whose worker processes (`pytest -n`) share what they have compiled.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="qa_flax-compiled-")
    os.environ["QA_FLAX_TEST_COMPILED"] = _compiled.name

# Found without being imported: what is imported before is not checked.
check_shapes(Path(importlib.util.find_spec("qa_flax").origin).parent)

# jaxtyping's hook keeps what is imported from within qa_flax under names of its own, compiled anew:
# so the large libraries are imported before.
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
    # The process that only hands the tests to its workers needs none of it.
    if config.getoption("numprocesses", None) is not None:
        return
    import jax

    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_compilation_cache_dir", os.environ["QA_FLAX_TEST_COMPILED"])
    for name, value in COMPILED_FOR_ALL.items():
        jax.config.update(name.lower(), value)
    for name in LIBRARIES:
        importlib.import_module(name)


# Real questions and real weights that are not part of the repository.
SHARED = Path(os.environ.get("QA_FLAX_SHARED", Path(__file__).parents[2] / "shared"))


def shared_path(*parts: str) -> Path:
    """A file of the shared real data, or a skip that says what is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(parts)} below {SHARED} (set QA_FLAX_SHARED)")
    return path


def pytest_collection_finish(session):
    # What is imported stays, and what JAX traces goes by itself: the collector need not look at a
    # million objects again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


def pytest_collection_modifyitems(config, items):
    if config.getoption("-m"):
        return
    slow = [item for item in items if "slow" in item.keywords]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if "slow" not in item.keywords]


MOST_MEMORY = 6 << 30
PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module", autouse=True)
def _forget_what_is_compiled():
    """After a file, where they take much: all programs together would take 9 GB of each worker."""
    yield
    if int(Path("/proc/self/statm").read_text().split()[1]) * PAGE > MOST_MEMORY:
        import jax

        from qa_flax.device import programs

        programs.forget()
        jax.clear_caches()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
