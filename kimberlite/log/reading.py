"""Iterators over records: of what is there, and of what comes."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sized
from functools import partial
from pathlib import PurePath
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from kimberlite import _native
from kimberlite.errors import Corrupt, Dropped, RolledBack, Unavailable
from kimberlite.iterators import Batched, Records
from kimberlite.log.names import REPAIR, segment_number
from kimberlite.records import Record, Time

if TYPE_CHECKING:
    from kimberlite.log.log import Log

#: Bytes of opened runs behind one batch, and behind the first, which is made on the loop.
BATCH_BYTES: Final = 1 << 20
FIRST_BYTES: Final = 64 << 10
BATCH_RECORDS: Final = 8192
#: Records that a tail reads on the loop.
FEW: Final = 256
NO_END: Final = _native.HIGHEST

B = TypeVar("B", bound=Sized)
T = TypeVar("T")
#: Of a stream's number, start, end, reverse, limit, size and whether system records count: what was read, and the start
#: and the end of what is left.
Read = Callable[[int | None, int, int, bool, int, int, bool], tuple[B, int, int]]
#: Calls something off the loop.
Run = Callable[[Callable[[], Any]], Awaitable[Any]]


class ReadingDisk:
    """What the disk refuses to a reader is said as one of our errors; the handle goes on."""

    def __enter__(self) -> None:
        return

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            raise Unavailable(f"the disk cannot be read: {error}") from error


#: It keeps nothing, so one is enough: a generator for each read would cost more than reading a record that is at hand.
reading_disk: Final = ReadingDisk()


class Anew(Exception):
    """A repair is over beneath a read, which has to see whether it has come to what was given up."""


async def looked_again(log: Log, run: Run, read: Callable[[], T], *, placed: bool = False) -> T:
    """What `read` gives. A reader whose segments were dropped beneath it hears so from another look, and after a repair
    by Anew if it has a place in the log; a segment that is missing all the same is damage."""
    while True:
        native, first = log._native, log._native.first
        try:
            found: T = await run(read)
        except (FileNotFoundError, Corrupt) as error:
            await log._refreshed()
            if placed and log._native.incarnation != native.incarnation:
                raise Anew from None
            if log._native is not native or native.first != first:
                continue
            if log._refresh is not None and log._backend.exists(REPAIR):
                raise Corrupt("a repair was begun, and is not over: it moves what this needs", file=REPAIR) from None
            if isinstance(error, Corrupt) or not lost(native, error):
                raise
        else:
            return found


def lost(native: _native.Log, error: FileNotFoundError) -> bool:
    """Whether nobody knew of this segment that it is missing."""
    number = segment_number(PurePath(error.filename or "").name)
    return number is not None and native.lose(number)


class Came(NamedTuple):
    """When somebody came to where they are: the log's incarnation, and the position behind the highest record that
    they have had, if any is known of."""

    incarnation: int
    reached: int | None = None


def came_with(came: Came, batch: Sized) -> Came:
    """The same behind these records. Of a message it is not known."""
    if not isinstance(batch, list):
        return came._replace(reached=None)
    highest: int = max(batch[0].position, batch[-1].position)
    return came._replace(reached=max(came.reached or 0, highest + 1))


async def check_kept(log: Log, run: Run, stream: str | None, place: int, came: Came) -> None:
    """RolledBack if a repair has given up since what was in front of this place of a stream, or of the log."""
    if log._native.incarnation <= came.incarnation:
        return
    with reading_disk:
        given_up = await looked_again(log, run, lambda: given_up_since(log._native, stream, place, came))
    if given_up is not None:
        raise RolledBack(f"a repair has given up {given_up}")


def given_up_since(native: _native.Log, stream: str | None, place: int, came: Came) -> str | None:
    """What of that was; None if nothing."""
    repairs = [kept for _, _, _, _, _, after, kept, _, _ in native.repairs() if after > came.incarnation]
    # Where a record of one is lost, nobody knows.
    kept = min(repairs) if len(repairs) >= native.incarnation - came.incarnation else 0
    reached = max(place, came.reached or 0) if stream is None else came.reached
    if reached is not None and reached > kept:
        return f"positions from {kept} on, and this had come to {reached}"
    if stream is None or (kept < native.first and reached is not None):
        return None
    number = native.stream(stream)
    if kept < native.first and place > 0:
        return f"positions from {kept} on, and nothing tells any more which of stream {stream!r} were among them"
    offset = 0 if number is None else native.offset_at(number, kept, False)
    return f"offsets of stream {stream!r} from {offset} on, and this had come to {place}" if place > offset else None


async def at_once(call: Callable[[], Any]) -> Any:
    """On the loop."""
    return call()


class Reading(Generic[B]):
    """What is there when it begins, in the form in which `read` gives it."""

    def __init__(
        self,
        log: Log,
        read: Read[B],
        stream: str | None,
        start: int | Time | None,
        until: int | Time | None,
        limit: int | None,
        *,
        reverse: bool,
        system: bool,
        run: Run,
        came: Came | None = None,
    ) -> None:
        self._log, self._read, self._run = log, read, run
        self._stream, self._start, self._until = stream, start, until
        self._left = NO_END if limit is None else limit
        self._reverse, self._system = reverse, system
        #: The stream's number and what is left to read, once it has begun; its end then, and when somebody came to
        #: where it starts, or it began.
        self._span: tuple[int | None, int, int] | None = None
        self._end = 0
        self._came = came
        self._first = True
        self.closed = False

    async def more(self) -> B | None:
        """The next records; None at the end. Nothing has moved on if it is cancelled."""
        log = self._log
        log._check()
        if self._span is None:
            await log._refreshed()
            self._span = await self._begin()
        while True:
            await self._go_on()
            try:
                return await self._next()
            except Anew:
                continue
            except Dropped:
                if isinstance(self._start, int) or not self._first:
                    raise
                # It was to begin with what is left, and that has changed since.
                self._span = await self._begin()

    async def _next(self) -> B | None:
        log = self._log
        assert self._span is not None, "it has begun"
        assert self._came is not None, "it has begun"
        number, start, end = self._span
        while start < end and self._left > 0 and not self.closed:
            log._check()
            limit = min(self._left, BATCH_RECORDS)
            near = log._native.at_hand(number, start, end, self._reverse) if self._first else None
            with reading_disk:
                if near is not None:
                    read = partial(self._read, number, *near, self._reverse, limit, FIRST_BYTES, self._system)
                    batch, *left = await looked_again(log, at_once, read, placed=True)
                    start, end = (start, left[1]) if self._reverse else (left[0], end)
                else:
                    read = partial(self._read, number, start, end, self._reverse, limit, BATCH_BYTES, self._system)
                    batch, start, end = await looked_again(log, self._run, read, placed=True)
            self._first = False
            self._span = number, start, end
            self._left -= len(batch)
            if len(batch):
                self._came = came_with(self._came, batch)
                return batch
        return None

    async def _go_on(self) -> None:
        """Where a repair has given up nothing that came of this, what is left to read is of the log as it is now."""
        if self._came is None or self._came.incarnation == self._log._native.incarnation:
            return
        assert self._span is not None, "it has begun"
        _, start, end = self._span
        if self._reverse:
            start = self._end if end < self._end else 0
        await self._check_kept(start)
        native = self._log._native
        number, length = None, native.durable
        if self._stream is not None:
            number = native.stream(self._stream)
            length = 0 if number is None else native.length(number)
        self._end = min(self._end, length)
        self._span = number, self._span[1], min(end, length)

    async def _check_kept(self, place: int) -> None:
        incarnation = self._log._native.incarnation
        if self._came is None:
            self._came = Came(incarnation)
        await check_kept(self._log, self._run, self._stream, place, self._came)
        self._came = self._came._replace(incarnation=incarnation)

    async def _begin(self) -> tuple[int | None, int, int]:
        while True:
            with contextlib.suppress(Anew):
                return await self._begun()

    async def _begun(self) -> tuple[int | None, int, int]:
        await self._check_kept(self._start if isinstance(self._start, int) and not self._reverse else 0)
        native = self._log._native
        number = None if self._stream is None else native.stream(self._stream)
        if self._stream is not None and number is None:
            return None, 0, 0
        if number is not None:
            native.check_erased(number)
        self._check_bounds(number)
        length = native.durable if number is None else native.length(number)
        first = native.first if number is None else native.first_offset(number)
        start = first if self._start is None else min(await self._place(self._start, number), length)
        end = length if self._until is None else min(await self._place(self._until, number, until=True), length)
        self._end = end
        return number, start, end

    def _check_bounds(self, number: int | None) -> None:
        """What is asked for by its number is there. A time is looked for among what is."""
        start, until = (min(at, NO_END) if isinstance(at, int) else None for at in (self._start, self._until))
        if start is None or until is None or start < until:
            self._log._native.check_bounds(number, start, until)

    async def _place(self, bound: int | Time, number: int | None, *, until: bool = False) -> int:
        if isinstance(bound, int):
            return bound
        # Indexes may have to be read for a time.
        with reading_disk:
            resolve = partial(self._log._resolve, bound, number, until=until)
            return await looked_again(self._log, self._run, resolve, placed=True)


class Following(Generic[B]):
    """What is durable and what becomes so: it waits for records that are not there yet, and ends with the database."""

    def __init__(
        self,
        log: Log,
        read: Read[B],
        stream: str | None,
        start: int | Time | None,
        *,
        system: bool,
        run: Run,
        came: Came | None = None,
    ) -> None:
        self._log, self._read, self._stream, self._system, self._run = log, read, stream, system, run
        self.closed = False
        self._came = Came(log._native.incarnation) if came is None else came
        #: Where it was told to start, until that is known not to be gone.
        self._told = start if isinstance(start, int) else None
        #: Whether a time was looked for among what is there; then it is among what comes.
        self._looked = False
        #: A place, or a time as long as there is no record of it or later: log time never goes back.
        self._at: int | Time
        if start is not None:
            self._at = start
        elif stream is None:
            self._at = log._native.durable
        else:
            number = log._native.stream(stream)
            self._at = 0 if number is None else log._native.length(number)

    @property
    def at(self) -> int | None:
        """The place it has come to; None if that is a time that is still to come."""
        return self._at if isinstance(self._at, int) else None

    async def more(self) -> B | None:
        """The next records; None once it is closed. Nothing has moved on if it is cancelled."""
        while not self.closed:
            self._log._check()
            native = self._log._native
            if self._came.incarnation != native.incarnation:
                if isinstance(self._at, int):
                    await check_kept(self._log, self._run, self._stream, self._at, self._came)
                self._came = self._came._replace(incarnation=native.incarnation)
                continue
            try:
                batch = await self._more(native)
            except Anew:
                continue
            except Corrupt as error:
                # Then it waits for the end of that.
                if error.file != REPAIR:
                    raise
                batch = None
            if batch is None:
                await self._log._wait_for_change()
            elif len(batch):
                return batch
        return None

    async def _more(self, native: _native.Log) -> B | None:
        """What is there; None if there is nothing yet."""
        number = None if self._stream is None else native.stream(self._stream)
        if self._stream is not None and number is None:
            return None
        if number is not None:
            native.check_erased(number)
        if self._told is not None:
            native.check_bounds(number, min(self._told, NO_END))
            self._told = None
        start = await self._place(number)
        end = native.durable if number is None else native.length(number)
        if start >= end:
            return None
        batch, self._at = await self._take(number, start, end)
        if len(batch):
            self._came = came_with(self._came, batch)
        return batch

    async def _place(self, number: int | None) -> int:
        if isinstance(self._at, int):
            return self._at
        with reading_disk:
            run, resolve = at_once if self._looked else self._run, partial(self._log._resolve, self._at, number)
            place = await looked_again(self._log, run, resolve, placed=True)
        self._looked = True
        return place

    async def _take(self, number: int | None, start: int, end: int) -> tuple[B, int]:
        """What has just come is read on the loop; whoever has to catch up does not hold it up."""
        near = self._log._native.at_hand(number, start, end, False) if end - start <= FEW else None
        with reading_disk:
            if near is not None:
                read = partial(self._read, number, *near, False, BATCH_RECORDS, FIRST_BYTES, self._system)
                batch, left, _ = await looked_again(self._log, at_once, read, placed=True)
            else:
                read = partial(self._read, number, start, end, False, BATCH_RECORDS, BATCH_BYTES, self._system)
                batch, left, _ = await looked_again(self._log, self._run, read, placed=True)
        return batch, left


class Runs(Batched[bytes]):
    """The bodies of a read's messages."""

    def __init__(self, reading: Reading[_native.Frame]) -> None:
        super().__init__()
        self._reading = reading

    async def _more(self) -> list[bytes]:
        frame = await self._reading.more()
        return [] if frame is None else [frame.data[_native.HEADER :]]

    async def aclose(self) -> None:
        await super().aclose()
        self._reading.closed = True


class Reader(Records):
    """What is there when it begins."""

    def __init__(self, reading: Reading[list[Record]]) -> None:
        super().__init__()
        self._reading = reading

    async def _more(self) -> list[Record]:
        return await self._reading.more() or []

    async def aclose(self) -> None:
        await super().aclose()
        self._reading.closed = True


class Tail(Records):
    """What is durable and what becomes so, until it or the database is closed."""

    def __init__(self, following: Following[list[Record]]) -> None:
        super().__init__()
        self._following = following

    async def _more(self) -> list[Record]:
        return await self._following.more() or []

    async def aclose(self) -> None:
        await super().aclose()
        self._following.closed = True
        # Whoever waits on it looks again.
        self._following._log._published()
