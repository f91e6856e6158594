"""`gs://` as a folder of this machine, behind the same fsspec calls as the real one."""

import os
import tempfile
from pathlib import Path

import fsspec
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem


class FakeGS(DirFileSystem):
    """Buckets are folders of `root`; folders are there when a file is, as in a bucket."""

    protocol = ("gs", "gcs")
    root = ""

    def __init__(self, *arguments, **settings):
        super().__init__(path=FakeGS.root, fs=LocalFileSystem(auto_mkdir=True))

    @classmethod
    def _strip_protocol(cls, path):
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        return path.partition("://")[2].rstrip("/") if "://" in path else path

    def mkdir(self, path, *arguments, **settings):
        """A bucket has no folders."""

    def makedirs(self, path, *arguments, **settings):
        """A bucket has no folders."""

    def rename(self, *arguments, **settings):
        raise AssertionError("a bucket renames nothing: it copies and deletes")

    mv = move = rename


def register(root: str | None = None) -> Path:
    """Have fsspec use it from now on; its root."""
    if not FakeGS.root:
        FakeGS.root = root or os.environ.get("QA_FLAX_FAKE_GS") or tempfile.mkdtemp()
        for name in FakeGS.protocol:
            fsspec.register_implementation(name, FakeGS, clobber=True)
    return Path(FakeGS.root)
