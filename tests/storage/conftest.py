"""The backends, each on an empty directory. A new one joins by a line in `OPEN`."""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from kimberlite import _native
from kimberlite.storage import BLOCK, Backend, open_backend
from kimberlite.storage.memory import Disk, MemoryBackend

OPEN: dict[str, Callable[[Path], Backend]] = {
    "threads": partial(open_backend, name="threads"),
    "uring": partial(open_backend, name="uring"),
    "memory": lambda _: MemoryBackend(Disk()),
}
ON_DISK = ("threads", "uring")


def open_or_skip(name: str, path: Path) -> Backend:
    try:
        return OPEN[name](path)
    except OSError as problem:
        if name != "uring" or problem.errno not in (errno.ENOSYS, errno.EPERM, errno.EACCES):
            raise
        pytest.skip(f"no io_uring here: {problem}")


@pytest.fixture(params=list(OPEN))
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    backend = open_or_skip(request.param, tmp_path)
    yield backend
    backend.close()


@pytest.fixture
def uring(tmp_path: Path) -> Iterator[Backend]:
    backend = open_or_skip("uring", tmp_path)
    yield backend
    backend.close()


@pytest.fixture(params=ON_DISK)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    """One whose directory, `tmp_path`, others can see."""
    backend = open_or_skip(request.param, tmp_path)
    yield backend
    backend.close()


def pattern(blocks: int) -> _native.Buffer:
    buffer = _native.Buffer(blocks * BLOCK)
    with memoryview(buffer) as view:
        for number in range(blocks):
            view[number * BLOCK : (number + 1) * BLOCK] = bytes([number + 1]) * BLOCK
    return buffer


@contextmanager
def file_size_limit(limit: int) -> Iterator[Callable[[], None]]:
    """Writes end there: short where they cross it, EFBIG beyond. Calling what it gives lifts it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
