"""The engines, both native: threads that block in the kernel so that the loop does not, or io_uring without any."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from kimberlite import _native
from kimberlite.storage.disk import Finished

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: So many requests overlap; more wait. No thread is started before there is work for it.
WRITERS = 4

#: Requests in the kernel at once; more wait.
ENTRIES = 64


class Native:
    """An `Engine`."""

    def __init__(self, name: str, native: _native.Writer | _native.Ring) -> None:
        self.name = name
        self._native = native

    def fileno(self) -> int:
        return self._native.fileno()

    def submit(self, number: int, fd: int, place: int, buffer: Buffer, durable: bool) -> None:
        self._native.submit(number, fd, place, buffer, durable)

    def submit_sync(self, number: int, fd: int) -> None:
        self._native.submit_sync(number, fd)

    def reap(self) -> list[Finished]:
        return [
            (number, OSError(failed, os.strerror(failed)) if failed else None)
            for number, failed in self._native.completions()
        ]

    def finish(self) -> None:
        self._native.wait()

    def close(self) -> None:
        self._native.close()


class Uring(Native):
    """OSError where there is no io_uring: `ENOSYS`, `EPERM` or `EACCES` where the kernel or a container forbids it."""

    def __init__(self) -> None:
        self._ring = _native.Ring(ENTRIES)
        super().__init__("uring", self._ring)

    def abandon(self) -> None:
        """Closes without waiting for what the kernel does not finish."""
        self._ring.abandon()


def threads() -> Native:
    return Native("threads", _native.Writer(WRITERS))
