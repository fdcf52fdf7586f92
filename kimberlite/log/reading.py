"""Iterators over records: of what is there, and of what comes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Final

from kimberlite.errors import Unavailable
from kimberlite.records import Record

if TYPE_CHECKING:
    from kimberlite.log.log import Log

#: Bytes of opened runs behind one batch, and behind the first, which is made on the loop.
BATCH_BYTES: Final = 1 << 20
FIRST_BYTES: Final = 64 << 10
BATCH_RECORDS: Final = 8192
NO_END: Final = (1 << 63) - 1


@contextmanager
def reading_disk() -> Iterator[None]:
    """What the disk refuses to a reader is said as one of our errors; the handle goes on."""
    try:
        yield
    except OSError as error:
        raise Unavailable(f"the disk cannot be read: {error}") from error


class Reader:
    """An async iterator of records; `batches()` gives the same as lists, for speed."""

    def __init__(
        self,
        log: Log,
        stream: str | None,
        start: int | datetime | None,
        until: int | datetime | None,
        limit: int | None,
        *,
        reverse: bool,
        system: bool,
    ) -> None:
        self._log = log
        self._stream, self._start, self._until = stream, start, until
        self._left = NO_END if limit is None else limit
        self._reverse, self._system = reverse, system
        self._batches: AsyncIterator[list[Record]] | None = None
        self._batch: list[Record] = []
        self._next = 0
        self._closed = False

    def __aiter__(self) -> Reader:
        return self

    async def __anext__(self) -> Record:
        while self._next >= len(self._batch):
            if self._batches is None:
                self._batches = self.batches()
            self._batch, self._next = await anext(self._batches), 0
        record = self._batch[self._next]
        self._next += 1
        return record

    async def aclose(self) -> None:
        self._closed = True
        self._batch = []

    async def batches(self) -> AsyncIterator[list[Record]]:
        """The records as lists of up to some thousands."""
        log = self._log
        log._check()
        await log._refreshed()
        native = log._native
        number = None if self._stream is None else native.stream(self._stream)
        if self._stream is not None and number is None:
            return
        length = native.durable if number is None else native.length(number)
        start = 0 if self._start is None else min(log._resolve(self._start, number), length)
        end = length if self._until is None else min(log._resolve(self._until, number), length)
        size, first = FIRST_BYTES, True
        while start < end and self._left > 0 and not self._closed:
            log._check()
            limit = min(self._left, BATCH_RECORDS)
            with reading_disk():
                if first:
                    found = native.read(number, start, end, self._reverse, limit, size, self._system)
                else:
                    low, high = start, end
                    found = await log._backend.run(
                        lambda low=low, high=high, limit=limit: native.read(  # type: ignore[misc]
                            number, low, high, self._reverse, limit, BATCH_BYTES, self._system
                        )
                    )
            records, start, end = found
            first = False
            self._left -= len(records)
            if records:
                yield records


class Tail:
    """A live async iterator: it waits for records that are not there yet, and ends with the database."""

    def __init__(self, log: Log, stream: str | None, start: int | datetime | None, *, system: bool) -> None:
        self._log, self._stream, self._system = log, stream, system
        self._at: int | None
        if start is not None:
            self._at = None
            self._start = start
        else:
            number = None if stream is None else log._native.stream(stream)
            if stream is None:
                self._at = log._native.durable
            else:
                self._at = 0 if number is None else log._native.length(number)
        self._batch: list[Record] = []
        self._next = 0
        self._closed = False

    def __aiter__(self) -> Tail:
        return self

    async def __anext__(self) -> Record:
        while self._next >= len(self._batch):
            if self._closed:
                raise StopAsyncIteration
            self._batch, self._next = await self._more(), 0
        record = self._batch[self._next]
        self._next += 1
        return record

    async def aclose(self) -> None:
        self._closed = True
        self._batch = []
        # Whoever waits on it looks again.
        self._log._published()

    async def batches(self) -> AsyncIterator[list[Record]]:
        """The records as they become durable, some thousands at a time."""
        while not self._closed:
            batch = await self._more()
            if batch:
                yield batch

    async def _more(self) -> list[Record]:
        native = self._log._native
        while not self._closed:
            self._log._check()
            number = None if self._stream is None else native.stream(self._stream)
            if self._stream is None or number is not None:
                if self._at is None:
                    self._at = self._log._resolve(self._start, number)
                end = native.durable if number is None else native.length(number)
                if self._at < end:
                    with reading_disk():
                        records, self._at, _ = native.read(
                            number, self._at, end, False, BATCH_RECORDS, BATCH_BYTES, self._system
                        )
                    if records:
                        return records
                    continue
            await self._log._wait_for_change()
        return []
