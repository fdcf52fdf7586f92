"""The backends that touch a real disk: a directory, and an engine that does the commit path's writes."""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol, cast

from kimberlite.storage.backend import Done, File, error
from kimberlite.storage.files import Directory, DiskFile

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: A request's number, and the error if it failed.
Finished = tuple[int, OSError | None]


class Engine(Protocol):
    """Does what was submitted, in any order, and finishes each number exactly once.

    It holds a buffer until `reap` has returned its number, and completes a short write with the identical bytes.
    """

    name: str

    def fileno(self) -> int:
        """An eventfd, readable while `reap` has something to return."""

    def submit(self, number: int, fd: int, place: int, buffer: Buffer, durable: bool) -> None: ...

    def submit_sync(self, number: int, fd: int) -> None: ...

    def reap(self) -> list[Finished]:
        """What has finished since the last call. It never blocks."""

    def finish(self) -> None:
        """Blocks until everything submitted has finished, so that `reap` returns it."""

    def close(self) -> None:
        """After `finish`."""


class DiskBackend(Directory):
    """A `Backend`. Its commit path belongs to one thread, that of the loop it is used on.

    A database may be used by one loop after another: the eventfd moves to the loop that submits.
    """

    def __init__(self, directory: str | os.PathLike[str], engine: Engine, reason: str, *, read_only: bool) -> None:
        super().__init__(directory, read_only=read_only)
        self.name = engine.name
        self.reason = reason
        self._engine = engine
        self._waiting: dict[int, tuple[DiskFile, Done]] = {}
        self._finished: deque[Finished] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next = 1
        #: Nothing more is submitted; and what was submitted has finished.
        self._closed = self._ended = False

    def submit(self, file: File, place: int, buffer: Buffer, durable: bool, done: Done) -> None:
        disk_file = cast(DiskFile, file)
        number = self._take(disk_file, done)
        try:
            self._engine.submit(number, disk_file.direct_fd, place, buffer, durable)
        except (BufferError, TypeError, ValueError):
            self._forget(number)
            raise

    def submit_sync(self, file: File, done: Done) -> None:
        disk_file = cast(DiskFile, file)
        self._engine.submit_sync(self._take(disk_file, done), disk_file.direct_fd)

    def close(self) -> None:
        """Whoever is interrupted here may call it again."""
        self._closed = True
        if not self._ended:
            self._engine.finish()
            try:
                if self._loop is None or not self._loop.is_closed():
                    self._settle(self._engine.reap())
                # Nobody is left of a loop that is closed; elsewhere nobody is left over.
                while self._waiting:
                    self._waiting.popitem()[1][0].release()
            finally:
                self._watch(None)
                self._engine.close()
                self._ended = True
        self.close_directory()

    def _take(self, file: DiskFile, done: Done) -> int:
        """The number of a new request, which keeps the file open until it has finished."""
        if self._closed:
            raise error(errno.EBADF, file.name)
        self._writable(file.name)
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._watch(loop)
        file.hold()
        number = self._next
        self._next += 1
        self._waiting[number] = file, done
        return number

    def _forget(self, number: int) -> None:
        file, _ = self._waiting.pop(number)
        file.release()

    def _watch(self, loop: asyncio.AbstractEventLoop | None) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._engine.fileno())
        self._loop = loop
        if loop is not None:
            loop.add_reader(self._engine.fileno(), self._ready)

    def _ready(self) -> None:
        self._settle(self._engine.reap())

    def _settle(self, finished: Iterable[Finished]) -> None:
        self._finished.extend(finished)
        try:
            while self._finished:
                number, problem = self._finished.popleft()
                file, done = self._waiting.pop(number)
                file.release()
                done(problem)
        finally:
            # Left over only if a `done` raised: the loop reports that one, and the others are told all the same.
            if self._finished and self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon(self._settle, ())
