"""A limit of a file's size, which fails writes as a full disk does."""

import resource
from contextlib import contextmanager


@contextmanager
def file_size(limit: int):
    """A context in which no file of this process can have more than `limit` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
