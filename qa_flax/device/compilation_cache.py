"""JAX's persistent compilation cache, by default in a folder of the user's own (host).

A compiled program is read from it when the same command runs again. Whoever could write into the
folder could run code as the user, so a folder that others can write into is not used.
"""

import hashlib
import logging
import os
import platform
from functools import cache
from pathlib import Path

import jax

logger = logging.getLogger(__name__)

MOST_BYTES = 4 << 30
"""The programs that were not used for the longest time are deleted when there are more bytes."""
SECONDS = 0.1
"""Programs that compile in less time are not stored: reading them is hardly faster."""


@cache
def use_compilation_cache() -> str | None:
    """Let JAX store compiled programs in `default_folder()`, unless a folder is set already.

    Only the first call has an effect. JAX's own settings take precedence: a folder in
    `JAX_COMPILATION_CACHE_DIR`, or `JAX_ENABLE_COMPILATION_CACHE=false`.

    Returns:
        The folder that is used; None: there is none.
    """
    config = jax.config
    folder: str | None = config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if folder or not config.jax_enable_compilation_cache:  # pyright: ignore[reportAttributeAccessIssue]
        return folder or None
    path = default_folder()
    if path is None:
        return None
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        problem = _problem(path)
    except OSError as error:  # such as a home that cannot be written
        problem = str(error)
    if problem is not None:
        logger.warning(
            "compiled programs are not stored, so they are compiled again in every run: %s. Set "
            "JAX_COMPILATION_CACHE_DIR to a folder that only you can write into, or "
            "JAX_ENABLE_COMPILATION_CACHE=false",
            problem,
        )
        return None
    config.update("jax_compilation_cache_dir", str(path))
    # JAX's defaults: no limit, and only what compiles for a second.
    if config.jax_compilation_cache_max_size == -1:  # pyright: ignore[reportAttributeAccessIssue]
        config.update("jax_compilation_cache_max_size", MOST_BYTES)
    if config.jax_persistent_cache_min_compile_time_secs == 1.0:  # pyright: ignore[reportAttributeAccessIssue]
        config.update("jax_persistent_cache_min_compile_time_secs", SECONDS)
    return str(path)


def default_folder() -> Path | None:
    """Return `~/.cache/qa_flax/compiled-...`; None: there is no home.

    The name ends with a hash of this machine's processor: several machines may share a home, and
    code for one processor may not run on another.
    """
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    processor = hashlib.sha256(_processor().encode()).hexdigest()[:12]
    return home / "qa_flax" / f"compiled-{processor}"


def _processor() -> str:
    """Describe the processor and what it can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:  # not Linux
        return platform.machine() + platform.processor()
    names = ("model name", "flags", "CPU part", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(names)}))


def _problem(folder: Path) -> str | None:
    """Return why a folder must not be used; None: it is the user's own."""
    status = folder.stat()
    if status.st_uid != os.getuid():
        return f"{folder} belongs to another user"
    if status.st_mode & 0o022:
        return f"others can write into {folder} (chmod 700 {folder} forbids it)"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"{folder} cannot be written"
    return None
