"""Every test runs on 8 simulated CPU cores, with no network and JAX at its strictest."""

import os
import tempfile
from pathlib import Path

# The tests compile thousands of small programs and run each a few times, so LLVM's optimising is
# left out; XLA's own is not. `XLA_FLAGS=--xla_backend_optimization_level=3` puts it back.
os.environ["XLA_FLAGS"] = " ".join(
    (
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        os.environ.get("XLA_FLAGS", ""),
    )
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

# Hundreds of trainers share a handful of steps: each is compiled once in a run of the tests, whose
# worker processes (`pytest -n`) share what they have compiled.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="qa_flax-compiled-")
    os.environ["QA_FLAX_TEST_COMPILED"] = _compiled.name
jax.config.update("jax_compilation_cache_dir", os.environ["QA_FLAX_TEST_COMPILED"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# Real questions and real weights that are not part of the repository.
SHARED = Path(os.environ.get("QA_FLAX_SHARED", Path(__file__).parents[2] / "shared"))


def shared_path(*parts: str) -> Path:
    """A file of the shared real data, or a skip that says what is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(parts)} below {SHARED} (set QA_FLAX_SHARED)")
    return path


def pytest_collection_modifyitems(config, items):
    if config.getoption("-m"):
        return
    skip = pytest.mark.skip(reason="slow: run with `pytest -m slow`")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="module", autouse=True)
def _forget_what_is_compiled():
    """After each file: the programs of all of them together would take 9 GB of each worker."""
    yield
    jax.clear_caches()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
