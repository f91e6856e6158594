"""A fake `gs://` file system for fsspec whose buckets are local folders."""

import os
import tempfile
from pathlib import Path

import fsspec
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem


class FakeGS(DirFileSystem):
    """Buckets are folders in `root`. As in a bucket, a folder exists if a file in it does."""

    protocol = ("gs", "gcs")
    root = ""

    def __init__(self, *arguments, **settings):
        super().__init__(path=FakeGS.root, fs=LocalFileSystem(auto_mkdir=True))

    @classmethod
    def _strip_protocol(cls, path):
        if isinstance(path, list):
            return [cls._strip_protocol(item) for item in path]
        return path.partition("://")[2].rstrip("/") if "://" in path else path

    def mkdir(self, path, *arguments, **settings):
        """A bucket has no folders."""

    def makedirs(self, path, *arguments, **settings):
        """A bucket has no folders."""

    def rename(self, *arguments, **settings):
        raise AssertionError("a bucket cannot rename objects: copy and delete instead")

    mv = move = rename


def register(root: str | None = None) -> Path:
    """Register the file system with fsspec, once; returns its root."""
    if not FakeGS.root:
        FakeGS.root = root or os.environ.get("QA_FLAX_FAKE_GS") or tempfile.mkdtemp()
        for name in FakeGS.protocol:
            fsspec.register_implementation(name, FakeGS, clobber=True)
    return Path(FakeGS.root)
