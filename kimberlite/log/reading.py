"""Iterators over records: of what is there, and of what comes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Final, Self

from kimberlite.errors import Unavailable
from kimberlite.records import Record

if TYPE_CHECKING:
    from kimberlite.log.log import Log

#: Bytes of opened runs behind one batch, and behind the first, which is made on the loop.
BATCH_BYTES: Final = 1 << 20
FIRST_BYTES: Final = 64 << 10
BATCH_RECORDS: Final = 8192
#: Records that a tail reads on the loop.
FEW: Final = 256
NO_END: Final = (1 << 63) - 1


@contextmanager
def reading_disk() -> Iterator[None]:
    """What the disk refuses to a reader is said as one of our errors; the handle goes on."""
    try:
        yield
    except OSError as error:
        raise Unavailable(f"the disk cannot be read: {error}") from error


class Records:
    """An async iterator of records, taken in batches; `batches()` gives these, for speed.

    A wait for more that is cancelled loses nothing, and tasks that share an iterator share its records out.
    """

    def __init__(self) -> None:
        self._batch: list[Record] = []
        self._next = 0
        self._closed = False
        #: Held by whoever gets the next batch.
        self._turn = asyncio.Lock()

    async def _more(self) -> list[Record]:
        """The next records; none at the end. Nothing has moved on if it is cancelled."""
        raise NotImplementedError

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Record:
        while self._next >= len(self._batch):
            async with self._turn:
                if self._next >= len(self._batch):
                    self._batch, self._next = await self._more(), 0
                    if not self._batch:
                        raise StopAsyncIteration
        record = self._batch[self._next]
        self._next += 1
        return record

    def batches(self) -> Batches:
        """The records as lists of up to some thousands."""
        return Batches(self)

    async def _take(self) -> list[Record]:
        async with self._turn:
            rest, self._batch, self._next = self._batch[self._next :], [], 0
            return rest or await self._more()

    async def aclose(self) -> None:
        self._closed = True
        self._batch = []


class Batches:
    """An async iterator of lists of records."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Record]:
        batch = await self._records._take()
        if not batch:
            raise StopAsyncIteration
        return batch

    async def aclose(self) -> None:
        await self._records.aclose()


class Reader(Records):
    """What is there when it begins."""

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
        super().__init__()
        self._log = log
        self._stream, self._start, self._until = stream, start, until
        self._left = NO_END if limit is None else limit
        self._reverse, self._system = reverse, system
        #: The stream's number and what is left to read, once it has begun.
        self._span: tuple[int | None, int, int] | None = None
        self._first = True

    async def _more(self) -> list[Record]:
        log = self._log
        log._check()
        if self._span is None:
            await log._refreshed()
            self._span = self._begin()
        number, start, end = self._span
        while start < end and self._left > 0 and not self._closed:
            log._check()
            limit = min(self._left, BATCH_RECORDS)
            read = partial(log._native.read, number, start, end, self._reverse, limit)
            with reading_disk():
                if self._first:
                    records, start, end = read(FIRST_BYTES, self._system)
                else:
                    records, start, end = await log._backend.run(partial(read, BATCH_BYTES, self._system))
            self._first = False
            self._span = number, start, end
            self._left -= len(records)
            if records:
                return records
        return []

    def _begin(self) -> tuple[int | None, int, int]:
        log, native = self._log, self._log._native
        number = None if self._stream is None else native.stream(self._stream)
        if self._stream is not None and number is None:
            return None, 0, 0
        length = native.durable if number is None else native.length(number)
        start = 0 if self._start is None else min(log._resolve(self._start, number), length)
        end = length if self._until is None else min(log._resolve(self._until, number), length)
        return number, start, end


class Tail(Records):
    """What is durable and what becomes so: it waits for records that are not there yet, and ends with the database."""

    def __init__(self, log: Log, stream: str | None, start: int | datetime | None, *, system: bool) -> None:
        super().__init__()
        self._log, self._stream, self._system = log, stream, system
        #: A place, or a time as long as there is no record of it or later: log time never goes back.
        self._at: int | datetime
        if start is not None:
            self._at = start
        elif stream is None:
            self._at = log._native.durable
        else:
            number = log._native.stream(stream)
            self._at = 0 if number is None else log._native.length(number)

    async def aclose(self) -> None:
        await super().aclose()
        # Whoever waits on it looks again.
        self._log._published()

    async def _more(self) -> list[Record]:
        native = self._log._native
        while not self._closed:
            self._log._check()
            number = None if self._stream is None else native.stream(self._stream)
            if self._stream is None or number is not None:
                start = self._log._resolve(self._at, number)
                end = native.durable if number is None else native.length(number)
                if start < end:
                    records, self._at = await self._read(number, start, end)
                    if records:
                        return records
                    continue
            await self._log._wait_for_change()
        return []

    async def _read(self, number: int | None, start: int, end: int) -> tuple[list[Record], int]:
        """What has just come is read on the loop; whoever has to catch up does not hold it up."""
        read = partial(self._log._native.read, number, start, end, False, BATCH_RECORDS)
        with reading_disk():
            if end - start <= FEW:
                records, left, _ = read(FIRST_BYTES, self._system)
            else:
                records, left, _ = await self._log._backend.run(partial(read, BATCH_BYTES, self._system))
        return records, left
