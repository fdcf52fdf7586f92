"""Records one at a time, appended in batches."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Final, Protocol, Self

from kimberlite.arguments import Records, Sync, checked_name
from kimberlite.errors import Closed, Invalid
from kimberlite.records import Receipt, Record

#: Records and bytes of a batch, at most.
BATCH_RECORDS: Final = 1000
BATCH_BYTES: Final = 256 * 1024
#: Batches on their way at a time.
IN_FLIGHT: Final = 8


class Appends(Protocol):
    """What `kimberlite.open` and `kimberlite.connect` give."""

    def append(self, stream: str, records: Records, *, sync: Sync | None = None) -> Awaitable[Receipt]: ...


class Producer:
    """`async with Producer(db, stream) as out: await out.send(record)`.

    * Records are appended in the order in which they were sent: at once while nothing is on its way, else with what
      gathers meanwhile. No timer makes them wait.
    * `send` waits while `buffer` records are neither durable nor refused.
    * An error of one batch ends it: when all that is on its way is answered, `send`, `flush` and the end of the block
      raise it. What was sent and is not known to be appended is in `unsent`, in its order.
    """

    def __init__(self, db: Appends, stream: str, *, buffer: int = 16_384, sync: Sync | None = None) -> None:
        if type(buffer) is not int or buffer < 1:
            raise Invalid("buffer is a number of records")
        self._db, self._stream, self._sync = db, checked_name(stream), sync
        self._buffer = buffer
        self._gathered: list[bytes | Record] = []
        self._size = 0
        #: What is on its way: its records, and the task that waits for their receipt.
        self._sent: list[tuple[list[bytes | Record], asyncio.Task[Receipt]]] = []
        #: Records that are neither durable nor refused.
        self._open = 0
        self._changed = asyncio.Event()
        self._error: BaseException | None = None
        self._closed = False
        #: The receipt of the last batch that is appended.
        self.receipt: Receipt | None = None

    async def send(self, record: bytes | Record) -> None:
        """Returns when there is room for it; not when it is durable, for which there is `flush`. What it raises for was
        not taken."""
        await self._check()
        while self._open >= self._buffer:
            await self._change()
        self._gathered.append(record)
        self._open += 1
        self._size += len(record.payload if isinstance(record, Record) else record)
        if not self._sent or self._is_full():
            self._pump()

    async def flush(self) -> Receipt | None:
        """Returns when all that was sent is durable, with the last receipt."""
        while self._open and self._error is None:
            self._pump()
            await self._change()
        await self._check()
        return self.receipt

    @property
    def unsent(self) -> list[bytes | Record]:
        """After an error: what is not known to be appended."""
        return [record for batch, _ in self._sent for record in batch] + self._gathered

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None or self._error is None:
                await self.flush()
        finally:
            self._closed = True

    def _is_full(self) -> bool:
        return len(self._gathered) >= BATCH_RECORDS or self._size >= BATCH_BYTES

    async def _check(self) -> None:
        if self._error is not None:
            # Or `unsent` would have what is appended a moment later.
            await asyncio.gather(*(task for _, task in self._sent), return_exceptions=True)
            raise self._error
        if self._closed:
            raise Closed("this producer has ended")

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()
        await self._check()

    def _pump(self) -> None:
        while self._gathered and self._error is None and len(self._sent) < IN_FLIGHT:
            batch, self._gathered, self._size = self._gathered, [], 0
            task = asyncio.ensure_future(self._append(batch))
            self._sent.append((batch, task))
            task.add_done_callback(self._answered)

    async def _append(self, batch: list[bytes | Record]) -> Receipt:
        return await self._db.append(self._stream, batch, sync=self._sync)

    def _answered(self, task: asyncio.Task[Receipt]) -> None:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            self._appended(task)
        elif self._error is None:
            # Only the first is raised.
            self._error = error
        self._changed.set()

    def _appended(self, task: asyncio.Task[Receipt]) -> None:
        """Lets a batch go, whatever became of those before it, and sends what has gathered."""
        at = next(at for at, (_, other) in enumerate(self._sent) if other is task)
        batch, _ = self._sent.pop(at)
        self._open -= len(batch)
        receipt = task.result()
        if self.receipt is None or receipt.last_offset > self.receipt.last_offset:
            self.receipt = receipt
        if not self._sent or self._is_full():
            self._pump()
