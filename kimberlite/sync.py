"""The same database, blocking: `with kimberlite.sync.open(path) as db`.

The database lives on an event loop in a thread of its own; every method hands its call over and waits. So a
handle may be shared between threads, and their appends share groups as tasks' do.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Literal, Self, TypeVar

from kimberlite import api
from kimberlite.errors import Closed
from kimberlite.log.log import NEW, Log, Producer, Records
from kimberlite.log.options import MIB, Sync
from kimberlite.log.streams import StreamInfo
from kimberlite.records import Receipt, Record
from kimberlite.storage import Backend

T = TypeVar("T")

__all__ = ["NEW", "Database", "open"]


class Iteration(Iterator[Record]):
    """A blocking iterator over an asynchronous one, a batch at a time. `close` ends it."""

    def __init__(self, database: Database, batches: AsyncIterator[list[Record]]) -> None:
        self._database, self._batches = database, batches
        self._batch: list[Record] = []
        self._next = 0

    def __next__(self) -> Record:
        while self._next >= len(self._batch):
            self._batch = self._more()
            self._next = 0
        record = self._batch[self._next]
        self._next += 1
        return record

    def _more(self) -> list[Record]:
        try:
            return self._database._call(anext_of(self._batches))
        except StopAsyncIteration:
            raise StopIteration from None

    def batches(self) -> Iterator[list[Record]]:
        """The records as lists, for speed."""
        while True:
            try:
                yield self._more()
            except StopIteration:
                return

    def close(self) -> None:
        self._batch = []
        aclose = getattr(self._batches, "aclose", None)
        if aclose is not None:
            self._database._call(aclose())


async def anext_of(batches: AsyncIterator[list[Record]]) -> list[Record]:
    return await anext(batches)


class Database:
    """What `kimberlite.Log` does, for threads. See there for what the arguments mean."""

    def __init__(self, opening: Coroutine[Any, Any, Log]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kimberlite", daemon=True)
        self._thread.start()
        self._pid = os.getpid()
        self._lock = threading.Lock()
        try:
            self._log = self._call(opening)
        except BaseException:
            self._stop()
            raise

    def append(
        self,
        stream: str,
        records: Records,
        *,
        expect: int | None = None,
        producer: Producer | None = None,
        sync: Sync | None = None,
    ) -> Receipt:
        return self._call(self._log.append(stream, records, expect=expect, producer=producer, sync=sync))

    def append_many(
        self,
        batches: Mapping[str, Records],
        *,
        expect: Mapping[str, int] | None = None,
        producer: Producer | None = None,
        sync: Sync | None = None,
    ) -> dict[str, Receipt]:
        return self._call(self._log.append_many(batches, expect=expect, producer=producer, sync=sync))

    def read(
        self,
        stream: str | None = None,
        *,
        start: int | datetime | None = None,
        until: int | datetime | None = None,
        limit: int | None = None,
        reverse: bool = False,
        system: bool = False,
    ) -> Iteration:
        reader = self._log.read(stream, start=start, until=until, limit=limit, reverse=reverse, system=system)
        return Iteration(self, reader.batches())

    def tail(
        self, stream: str | None = None, *, start: int | datetime | None = None, system: bool = False
    ) -> Iteration:
        async def begin() -> AsyncIterator[list[Record]]:
            return self._log.tail(stream, start=start, system=system).batches()

        return Iteration(self, self._call(begin()))

    def get(self, position: int) -> Record:
        return self._call(self._log.get(position))

    def get_many(self, positions: Iterable[int]) -> list[Record]:
        return self._call(self._log.get_many(list(positions)))

    def streams(self) -> Iterator[StreamInfo]:
        async def listed() -> list[StreamInfo]:
            return list(self._log.streams())

        return iter(self._call(listed()))

    def info(self) -> dict[str, Any]:
        return self._call(self._log.info())

    @property
    def durable_position(self) -> int:
        """Positions below this are durable and visible."""
        return self._log.durable_position

    def close(self) -> None:
        """Finishes what was accepted and lets the directory go. Twice is fine."""
        with self._lock:
            if self._thread.is_alive():
                try:
                    self._call(self._log.close())
                finally:
                    self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if os.getpid() != self._pid or not self._thread.is_alive():
            coroutine.close()
            raise Closed("the database is closed, or belongs to the process this one was forked from")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def open(
    path: str | os.PathLike[str],
    *,
    create: bool = True,
    read_only: bool = False,
    key_file: str | os.PathLike[str] | None = None,
    sync: Sync = "group",
    backend: Literal["auto", "threads", "uring"] | Backend = "auto",
    segment_bytes: int = 256 * MIB,
    compression: int | None = None,
    depth: int = 4,
    max_delay: float = 0.0,
    origin: str | None = None,
    anchor: Receipt | None = None,
) -> Database:
    """`kimberlite.open`, blocking, for any number of threads."""
    opening = api.open(
        path,
        create=create,
        read_only=read_only,
        key_file=key_file,
        sync=sync,
        backend=backend,
        segment_bytes=segment_bytes,
        compression=compression,
        depth=depth,
        max_delay=max_delay,
        origin=origin,
        anchor=anchor,
    )

    async def opened() -> Log:
        return await opening

    return Database(opened())
