"""Passages that wait on disk until all texts have been read (host)."""

import marshal
import tempfile
from array import array
from collections.abc import Iterator

from qa_flax.data.passages import Passage

IN_MEMORY = 1 << 26
"""Bytes that are kept in memory; more are written to a temporary file."""
_SIZE = 8  # bytes of the number before each passage


class Spool:
    """Keeps passages in order, in little memory; a context that deletes them at its end."""

    def __init__(self):
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115
        self._count = 0

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self._count

    def add(self, passage: Passage) -> None:
        """Append a passage; not while others are read.

        Raises:
            OSError: the disk is full.
        """
        data = marshal.dumps([v.tobytes() if isinstance(v, array) else v for v in passage])
        self._file.write(len(data).to_bytes(_SIZE) + data)
        self._count += 1

    def __iter__(self) -> Iterator[Passage]:
        """Yield the passages from the first one on."""
        self._file.seek(0)
        for _ in range(self._count):
            size = int.from_bytes(self._file.read(_SIZE))
            *values, words, starts, ends = marshal.loads(self._file.read(size))
            yield Passage(*values, *(array("i", part) for part in (words, starts, ends)))
