"""The folder in which JAX stores compiled programs."""

import os
import subprocess
import sys

import jax
import pytest

from qa_flax.device import compilation_cache
from qa_flax.device.compilation_cache import default_folder, use_compilation_cache

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_enable_compilation_cache",
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home without compiled programs, and JAX without a folder for them."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    use_compilation_cache.cache_clear()
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    use_compilation_cache.cache_clear()


def test_the_folder_is_the_user_s_own(home):
    folder = use_compilation_cache()
    assert folder == str(default_folder())
    assert jax.config.jax_compilation_cache_dir == folder
    assert os.stat(folder).st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_can_write_into_is_not_used(home, caplog, mode):
    folder = default_folder()
    folder.mkdir(parents=True)
    folder.chmod(mode)
    assert use_compilation_cache() is None
    assert jax.config.jax_compilation_cache_dir is None
    (message,) = caplog.messages
    assert f"others can write into {folder} (chmod 700" in message


def test_a_file_in_its_place_is_one_warning(home, caplog):
    default_folder().parent.mkdir()
    default_folder().write_text("")
    assert use_compilation_cache() is None
    assert use_compilation_cache() is None
    assert len(caplog.messages) == 1


def test_settings_of_the_user_take_precedence(home):
    jax.config.update("jax_compilation_cache_dir", str(home / "own"))
    assert use_compilation_cache() == str(home / "own")
    use_compilation_cache.cache_clear()
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", False)
    assert use_compilation_cache() is None
    assert list(home.iterdir()) == []


def test_another_processor_has_another_folder(home, monkeypatch):
    own = default_folder()
    monkeypatch.setattr(compilation_cache, "_processor", lambda: "another")
    assert default_folder() != own


JOB = """
import jax
from qa_flax.device.programs import Program
from qa_flax.device.parallel import over_cores, put
import numpy as np
events = []
jax.monitoring.register_event_listener(lambda name, **kw: events.append(name))
program = Program(over_cores(lambda x: (x @ x.T).sum(0), (0,), 0))
assert program(put(np.ones((1, 64, 64), np.float32))).sum() == 64**3
print("hits", events.count("/jax/compilation_cache/cache_hits"))
"""


def test_another_process_reads_what_the_first_has_compiled(tmp_path):
    """Also if a stored program is damaged: it is compiled again."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("JAX", "XLA"))}
    environment |= {
        "XDG_CACHE_HOME": str(tmp_path),
        "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def hits():
        job = [sys.executable, "-c", JOB]
        result = subprocess.run(job, env=environment, capture_output=True, text=True, check=True)
        return int(result.stdout.split("hits")[1])

    assert hits() == 0
    assert hits() > 0
    for path in tmp_path.glob("*/*/*-cache"):
        path.write_bytes(path.read_bytes()[:100])
    assert hits() == 0
