"""The engine for everywhere: a few native threads that block in the kernel so that the loop does not."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from kimberlite import _native
from kimberlite.storage.disk import Finished

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: So many requests overlap; more wait. No thread is started before there is work for it.
WRITERS = 4


class Threads:
    name = "threads"

    def __init__(self) -> None:
        self._writer = _native.Writer(WRITERS)

    def fileno(self) -> int:
        return self._writer.fileno()

    def submit(self, number: int, fd: int, place: int, buffer: Buffer, durable: bool) -> None:
        self._writer.submit(number, fd, place, buffer, durable)

    def submit_sync(self, number: int, fd: int) -> None:
        self._writer.submit_sync(number, fd)

    def reap(self) -> list[Finished]:
        return [
            (number, OSError(failed, os.strerror(failed)) if failed else None)
            for number, failed in self._writer.completions()
        ]

    def finish(self) -> None:
        self._writer.wait()

    def close(self) -> None:
        self._writer.close()
