"""Keep two runs from writing into the same output folder (host).

A run that writes there holds a lock: the hidden file `.qa_flax.lock`, which names its process and
host, and which a thread renews every few seconds. Another run that finds it is refused, unless the
process has ended on this host, or the lock has not been renewed for 60 s: then it is taken over, so
that a machine that was preempted does not block its own restart.

Clocks of different hosts are never compared. The age of a lock is the difference of two times that
its file system has given: the lock's, and that of a file just written. Before a lock is taken from
another host, it is also watched for longer than a renewal takes.
"""

import contextlib
import errno
import json
import logging
import os
import platform
import secrets
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, cast

from fsspec.core import url_to_fs

from qa_flax import storage
from qa_flax.distributed import exchange, failure, processes
from qa_flax.storage import AnyPath

logger = logging.getLogger(__name__)

NAME = ".qa_flax.lock"
"""The name of the lock in the output folder."""

SECONDS_UNTIL_STALE = 60.0
"""A lock that has not been renewed for so long is taken over."""

_SECONDS_TO_RENEW = 5.0
_SECONDS_TO_WATCH = 7.0  # at least, before the lock of another host is taken over
_SECONDS_TO_SETTLE = 2.0  # in buckets, until both of two runs that take over a lock have written


class FolderLockedError(RuntimeError):
    """Another run writes into the output folder; the message names its process and host."""


@dataclass(frozen=True)
class _Owner:
    """The content of a lock: who holds it, and when it was renewed last."""

    token: str  # of this acquisition
    pid: int
    host: str
    machine: str  # equal only if process ids mean the same
    process_started: str | None  # distinguishes processes that get the same id one after the other
    since: str
    renewed: int  # seconds, by the owner's clock
    renewals: int

    @classmethod
    def new(cls) -> "_Owner":
        """This process, as the owner of a new lock."""
        return cls(
            token=secrets.token_hex(8),
            pid=os.getpid(),
            host=socket.gethostname(),
            machine=_machine(),
            process_started=_start_of(os.getpid()),
            since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            renewed=int(time.time()),
            renewals=0,
        )

    @classmethod
    def parse(cls, text: str) -> "_Owner | None":
        """The owner in the content of a lock, or None if it cannot be read."""
        try:
            owner = cls(**json.loads(text))
            return owner if isinstance(owner.pid, int) and owner.pid > 0 else None
        except (ValueError, TypeError):
            return None

    def text(self, renewals: int) -> str:
        """The content of the lock; every renewal has the same length."""
        values = asdict(self) | {"renewed": int(time.time()), "renewals": 10**9 + renewals}
        return json.dumps(values) + "\n"

    def is_here(self) -> bool:
        """Whether it runs, or ran, where its process id can be looked up."""
        return self.machine == _machine()

    def has_ended(self) -> bool:
        """Whether the run is known to have ended; one of this process may have been interrupted."""
        if not self.is_here():
            return False
        if self.pid == os.getpid() and self.process_started == _start_of(self.pid):
            return all(lock.token != self.token for lock in _held.values())
        return not _is_running(self.pid, self.process_started)

    def __str__(self) -> str:
        host = "".join(c if c.isprintable() else "?" for c in str(self.host))
        since = "".join(c if c.isprintable() else "?" for c in str(self.since))
        return f"process {self.pid} on host {host}, since {since}"


@cache
def _machine() -> str:
    """Identifies the running system and the name space of its process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return f"{platform.node()} {uuid.getnode()}"


def _start_of(pid: int) -> str | None:
    """When a process started, in ticks since the system did; None if unknown or if it has ended."""
    try:
        # The second field is the program's name in parentheses, which may hold spaces.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]  # a zombie has ended


def _is_running(pid: int, started: str | None) -> bool:
    if Path("/proc/self/stat").exists():
        return started is not None and _start_of(pid) == started
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


# ---- the file ------------------------------------------------------------------------------------


def _read(file: AnyPath) -> str | None:
    try:
        return file.read_text(errors="replace") if isinstance(file, Path) else file.read_text()
    except FileNotFoundError:
        return None


def _create(file: AnyPath, text: str) -> bool:
    """Create the lock; return False if it exists."""
    if not storage.is_remote(file):
        try:
            with file.open("x") as opened:
                opened.write(text)
        except FileExistsError:
            return False
        return True
    if _read(file) is not None:
        return False
    system, path = url_to_fs(str(file))
    try:
        system.pipe_file(path, text.encode(), mode="create")
    except FileExistsError:
        return False
    except (TypeError, NotImplementedError):  # a file system that cannot refuse to overwrite
        file.write_text(text)
        time.sleep(_SECONDS_TO_SETTLE)
        return _read(file) == text
    return True


def _renew(file: AnyPath, owner: _Owner, renewals: int) -> bool:
    """Renew the lock; return False if another run has taken it over."""
    text = owner.text(renewals)
    if storage.is_remote(file):
        present = _read(file)
        if present is not None and not _is_of(present, owner):
            return False
        file.write_text(text)
        return True
    try:
        # In place: if another run renames the file at this moment, its own stays as it is.
        with file.open("r+") as opened:
            if not _is_of(opened.read(), owner):
                return False
            opened.seek(0)
            opened.write(text)
    except FileNotFoundError:  # somebody has deleted it
        return _create(file, text)
    return True


def _is_of(text: str, owner: _Owner) -> bool:
    present = _Owner.parse(text)
    return present is not None and present.token == owner.token


def _delete_stale(file: AnyPath, text: str) -> None:
    """Delete a lock with this content; one that another run has just taken over stays."""
    if storage.is_remote(file):
        if _read(file) == text:
            file.unlink(missing_ok=True)
        return
    aside = file.with_name(f"{NAME}.{secrets.token_hex(8)}")
    try:
        file.rename(aside)  # of several runs that try it, one succeeds
    except FileNotFoundError:
        return
    if aside.read_text(errors="replace") != text:  # it was another run's new lock
        with contextlib.suppress(FileExistsError):
            os.link(aside, file)
    aside.unlink()


def _age(file: AnyPath) -> float:
    """Seconds since the lock was renewed, by the clock of its file system; 0 if unknown."""
    probe = file.with_name(f"{NAME}.{secrets.token_hex(8)}")
    try:
        probe.write_text("")
        ages = [_modified(probe) - _modified(file)]
    except (OSError, TypeError):
        ages = [0.0]
    with contextlib.suppress(OSError):
        probe.unlink(missing_ok=True)
    return max(0.0, *ages)


def _modified(file: AnyPath) -> float:
    status: Any = file.stat()
    return float(status.st_mtime if isinstance(file, Path) else status.mtime)


# ---- acquiring and holding -----------------------------------------------------------------------


def _acquire(folder: AnyPath) -> _Owner:
    """Create the lock, after another run's has gone stale if there is one.

    Raises:
        FolderLockedError: another run holds it.
    """
    file, owner = folder / NAME, _Owner.new()
    while not _create(file, owner.text(0)):
        if (text := _stale_content(file, folder)) is None:
            continue  # the other run has just ended
        _delete_stale(file, text)
        if storage.is_remote(file):
            created = _create(file, owner.text(0))
            time.sleep(_SECONDS_TO_SETTLE)
            if created and _is_of(_read(file) or "", owner):
                break
    return owner


def _stale_content(file: AnyPath, folder: AnyPath) -> str | None:
    """Wait until a lock is known to be stale, and return its content; None if it disappears.

    Raises:
        FolderLockedError: its run is alive.
    """
    if (text := _read(file)) is None:
        return None
    owner = _Owner.parse(text)
    if owner is not None and owner.has_ended():
        logger.warning("%s: taking over the lock of %s, which has ended.", folder, owner)
        return text
    age = _age(file)
    if owner is not None and owner.is_here() and age < SECONDS_UNTIL_STALE:
        raise FolderLockedError(_refusal(folder, owner))
    seconds = max(_SECONDS_TO_WATCH, SECONDS_UNTIL_STALE - age)
    name = "a run that cannot be read from it" if owner is None else str(owner)
    logger.warning(
        "%s has the lock of %s. Waiting up to %.0f s to see whether it is renewed.",
        folder,
        name,
        seconds,
    )
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(min(0.25, seconds))
        if (present := _read(file)) is None:
            return None
        if present != text and (owner := _Owner.parse(present)) is not None:
            raise FolderLockedError(_refusal(folder, owner))
        text = present
    logger.warning(
        "%s: taking over the lock of %s, which was not renewed for %.0f s.",
        folder,
        name,
        age + seconds,
    )
    return text


def _refusal(folder: AnyPath, owner: _Owner) -> str:
    stop = f"stop it (kill {owner.pid})" if owner.is_here() else "stop it there"
    return (
        f"output_dir={folder}: another run is writing into this folder: {owner}. Wait until it has "
        f"ended, {stop}, or use another output_dir"
    )


class _Lock:
    """A lock that this process holds, and the thread that renews it."""

    def __init__(self, folder: AnyPath):
        self.folder, self.file = folder, folder / NAME
        self.thread_id, self.uses = threading.get_ident(), 0
        self._created = _create_folder(folder)
        try:
            self._owner = _acquire(folder)
        except BaseException:
            self._delete_created()
            raise
        self.is_lost = False
        self._is_released = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="qa_flax lock")
        self._thread.start()

    @property
    def token(self) -> str:
        """Identifies this acquisition."""
        return self._owner.token

    @property
    def is_held(self) -> bool:
        """Whether this very process has acquired it, and not the one it was forked from."""
        return self._owner.pid == os.getpid() and not self._is_released.is_set()

    def _keep(self) -> None:
        renewals = 0
        while not self._is_released.wait(_SECONDS_TO_RENEW) and not self.is_lost:
            renewals += 1
            try:
                self.is_lost = not _renew(self.file, self._owner, renewals)
            except OSError as error:  # tried again; after 60 s another run may take it over
                logger.info("The lock of %s could not be renewed: %s", self.folder, error)

    def release(self) -> None:
        """Delete the lock, and the folder if it was created for it and is empty."""
        self._is_released.set()
        if threading.get_ident() == self.thread_id:  # else the process exits because of a failure
            self._thread.join(_SECONDS_TO_RENEW)
        try:
            if _is_of(_read(self.file) or "", self._owner):
                self.file.unlink(missing_ok=True)
        except OSError as error:  # the file system may be what has ended the run
            logger.warning("The lock %s could not be deleted (%s).", self.file, error)
        self._delete_created()

    def _delete_created(self) -> None:
        for folder in self._created:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def _create_folder(folder: AnyPath) -> list[Path]:
    """Create a local folder; return those that did not exist, the innermost first."""
    if storage.is_remote(folder):
        return []
    local = cast(Path, folder)
    missing = [path for path in (local, *local.parents) if not path.exists()]
    local.mkdir(parents=True, exist_ok=True)
    return missing


# ---- for the callers -----------------------------------------------------------------------------

_held: dict[str, _Lock] = {}
_entering = threading.Lock()  # a lock is in `_held` before another thread sees its file


def _key(folder: AnyPath) -> str:
    return str(folder) if storage.is_remote(folder) else os.path.realpath(folder)


@failure.before_exit
def _release_all() -> None:
    for lock in list(_held.values()):
        if lock.is_held:
            lock.release()


@contextmanager
def locked(folder: AnyPath) -> Iterator[None]:
    """A context in which no other run writes into an output folder; it may be entered again in it.

    The main process holds the lock, but all processes must enter the context. A folder that does
    not exist is created, and deleted on exit if it is empty.

    Args:
        folder: the output folder, local or in a bucket.

    Raises:
        FolderLockedError: another run writes there; in every process.
        OSError: the lock cannot be written.
    """
    lock, error = None, None
    if processes.is_main():
        try:
            lock = _enter(folder)
        except (FolderLockedError, OSError) as raised:
            error = raised
    problem = None if error is None else [type(error) is FolderLockedError, str(error)]
    problem = exchange.broadcast_from_main("lock of the output folder", problem)
    if error is not None:
        raise error
    if problem is not None:
        raise FolderLockedError(problem[1]) if problem[0] else OSError(problem[1])
    try:
        yield
    finally:
        if lock is not None:
            _leave(lock)


def _enter(folder: AnyPath) -> _Lock:
    key = _key(folder)
    with _entering:
        lock = _held.get(key)
        if lock is None or not lock.is_held or lock.thread_id != threading.get_ident():
            try:
                lock = _Lock(folder)
            except OSError as error:
                reason = error.strerror or str(error)
                message = f"output_dir={folder}: cannot write into this folder ({reason})"
                raise OSError(error.errno, message) from error
            _held[key] = lock
        lock.uses += 1
        return lock


def _leave(lock: _Lock) -> None:
    lock.uses -= 1
    if not lock.uses:
        _held.pop(_key(lock.folder), None)
        lock.release()


def check_lock(folder: AnyPath) -> None:
    """Check that no other run has taken over the lock of a folder that this one holds.

    This happens to a process that was suspended for more than a minute.

    Raises:
        OSError: another run writes there now.
    """
    lock = _held.get(_key(folder))
    if lock is not None and lock.is_held and lock.is_lost:
        raise OSError(
            errno.EBUSY,
            f"output_dir={folder}: this run was suspended, or could not write there, for more than "
            f"{SECONDS_UNTIL_STALE:.0f} s, so another run has taken over the folder. This one "
            "writes nothing more",
        )
