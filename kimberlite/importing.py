"""Records of another log, which keep their offsets and their times."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, Self

from kimberlite import _native
from kimberlite.arguments import Records, checked_name
from kimberlite.errors import Invalid, KimberliteError, LimitExceeded

#: Appends that are on their way at a time, and their bytes; more wait.
MOST_OPEN: Final = 512
MOST_BYTES: Final = 16 << 20
#: Of offsets and times.
HIGHEST: Final = _native.HIGHEST
#: Bytes of the reason of a gap.
LONGEST_REASON: Final = 255

#: Puts records into the line, or a gap: of a stream, an offset, a time, a batch and a reason. Its answer to come.
Enter = Callable[[str, int, int | None, _native.Batch | None, str | None], Awaitable[asyncio.Future[Any]]]


class Import:
    """`async with db.importing() as into: await into.add(stream, offset, time, records)`.

    * Records are appended in the order of the calls, with these offsets and, unless they get new ones, these times.
      What does not fit is refused: CONFLICT if the stream does not end there, INVALID if the log's time is later.
    * An offset beyond the stream's end needs a `gap` first.
    * A call returns when it is in line; durable is all that was before a `finish`, or the end of the block. The first
      error ends it, and says `of` what it was; what was added behind that may be appended or not, and is durable if so.
    * Nobody else may append meanwhile: the time of that would be later than those that are still to come.
    """

    def __init__(self, enter: Enter, settle: Callable[[], Awaitable[None]], *, new_times: bool) -> None:
        self._enter, self._settle, self._new_times = enter, settle, new_times
        #: What is not answered yet: its answer to come, its bytes, and what it is of.
        self._open: deque[tuple[asyncio.Future[Any], int, str]] = deque()
        self._bytes = 0
        self._time = 0
        self._error: BaseException | None = None

    async def add(
        self, stream: str, offset: int, time: int, records: Records | _native.Batch, *, of: str | None = None
    ) -> None:
        """The first record gets this offset, and all of them this time; they are one batch."""
        batch = records if isinstance(records, _native.Batch) else _native.encode(records)
        if len(batch) > _native.LARGEST_BATCH or batch.size > _native.LARGEST_BATCH_BYTES:
            raise LimitExceeded(f"{of or stream}: more records than a batch may have, or larger ones")
        await self._put(stream, offset, time, batch, None, of)

    async def gap(self, stream: str, offset: int, time: int, reason: str, *, of: str | None = None) -> None:
        """The stream goes on at this offset, and for this reason there is nothing before it."""
        if not isinstance(reason, str) or len(reason.encode("utf-8", "replace")) > LONGEST_REASON:
            raise Invalid(f"the reason of a gap is a str of at most {LONGEST_REASON} bytes")
        await self._put(stream, offset, time, None, reason, of)

    async def finish(self) -> None:
        """Returns when all that was added is durable."""
        while self._open:
            await self._oldest()
        self._check()
        await self._settle()

    async def _put(
        self, stream: str, offset: int, time: int, batch: _native.Batch | None, reason: str | None, of: str | None
    ) -> None:
        of = of or f"{stream!r}, offset {offset}"
        try:
            name = checked_name(stream)
        except Invalid as error:
            raise Invalid(f"{of}: {error}") from None
        if not (type(offset) is int and type(time) is int and 0 <= offset <= HIGHEST and 0 <= time <= HIGHEST):
            raise Invalid(f"{of}: an offset and a time are numbers from 0 to 2^63 - 1")
        if time < self._time and not self._new_times:
            raise Invalid(f"{of}: its time is before that of what was added before it")
        size = 0 if batch is None else batch.size
        while self._open and (len(self._open) >= MOST_OPEN or self._bytes + size > MOST_BYTES):
            await self._oldest()
        if self._open and self._open[-1][0].done():
            # Nothing may come behind what was refused.
            await self._failed()
        self._check()
        self._time = time
        try:
            future = await self._enter(name, offset, None if self._new_times else time, batch, reason)
        except KimberliteError as error:
            await self._end(error, of)
            raise
        self._open.append((future, size, of))
        self._bytes += size

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    async def _failed(self) -> None:
        """Raises the first error of those that are open, if there is any."""
        if self._open[-1][0].exception() is not None:
            while self._open:
                await self._oldest()

    async def _oldest(self) -> None:
        future, size, of = self._open.popleft()
        self._bytes -= size
        try:
            await future
        except KimberliteError as error:
            await self._end(error, of)
            raise

    async def _end(self, error: KimberliteError, of: str) -> None:
        error.args = (f"{of}: {error}",)
        self._error = error
        await self._abandon()

    async def _abandon(self) -> None:
        """Whatever becomes of what is open, nobody is told; what is in the log by now is durable then."""
        for future, _, _ in self._open:
            future.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._open.clear()
        with contextlib.suppress(KimberliteError):
            await self._settle()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            await self.finish()
        elif self._error is None:
            await self._abandon()
