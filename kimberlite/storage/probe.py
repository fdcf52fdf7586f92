"""Which engine a directory gets, and why."""

from __future__ import annotations

import errno
import os
import select
from typing import Literal

from kimberlite import _native
from kimberlite.storage import engines
from kimberlite.storage.backend import BLOCK
from kimberlite.storage.disk import DiskBackend, Engine
from kimberlite.storage.files import Directory, DiskFile, create_directory

Choice = Literal["auto", "threads", "uring"]

#: How long the trial write may take, in seconds: a disk may be busy or asleep, but not for ever.
_PATIENCE = 10.0


def open_backend(
    path: str | os.PathLike[str], name: Choice = "auto", *, read_only: bool = False, create: bool = False
) -> DiskBackend:
    """The backend for a directory; `create` makes it if it is not there.

    `auto` is io_uring if a durable direct write through it works in this very directory, and threads if not. Reading
    only writes nothing, so it tries nothing. OSError as `files` lists it, and as `engines.Uring` does if that is
    what is asked for.
    """
    if create and not read_only:
        create_directory(path)
    engine, reason = _choose(path, name, read_only)
    try:
        return DiskBackend(path, engine, reason, read_only=read_only)
    except OSError:
        engine.close()
        raise


def _choose(path: str | os.PathLike[str], name: Choice, read_only: bool) -> tuple[Engine, str]:
    if read_only:
        return engines.threads(), "Opened for reading only, so there is nothing to write with io_uring."
    if name == "threads":
        return engines.threads(), "The configuration asks for threads."
    if name == "uring":
        return engines.Uring(), "The configuration asks for io_uring."
    try:
        ring = engines.Uring()
    except OSError as problem:
        return engines.threads(), f"There is no io_uring here ({_why(problem)})."
    try:
        _try(ring, path)
    except OSError as problem:
        ring.close()
        return engines.threads(), f"A durable direct write through io_uring failed in this directory ({_why(problem)})."
    return ring, "A durable direct write through io_uring worked in this directory."


def _try(ring: engines.Uring, path: str | os.PathLike[str]) -> None:
    """One block, durably. The directory is not locked yet: a name in it would be in another writer's way."""
    directory = Directory(path, read_only=False)
    try:
        file = directory.open_nameless()
        try:
            _try_file(ring, file)
        finally:
            file.close()
    finally:
        directory.close_directory()


def _try_file(ring: engines.Uring, file: DiskFile) -> None:
    buffer = _native.Buffer(BLOCK)
    with memoryview(buffer) as view:
        view[:] = os.urandom(BLOCK)
    ring.submit(0, file.direct_fd, 0, buffer, True)
    poll = select.poll()
    poll.register(ring.fileno(), select.POLLIN)
    if not poll.poll(_PATIENCE * 1000):
        ring.abandon()
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    for _, problem in ring.reap():
        if problem is not None:
            raise problem
    if file.read(0, BLOCK) != bytes(buffer):
        raise OSError(errno.EIO, "it reads back as something else")


def _why(problem: OSError) -> str:
    name = errno.errorcode.get(problem.errno or 0, type(problem).__name__)
    return f"{name}: {problem.strerror}"
