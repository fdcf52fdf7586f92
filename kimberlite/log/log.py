"""The handle that `kimberlite.open` gives."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

from kimberlite import _native
from kimberlite.arguments import (
    Producer,
    Records,
    Rule,
    Sender,
    Sync,
    checked_bound,
    checked_limit,
    checked_name,
    checked_offset,
    checked_producer,
    checked_reason,
    checked_rule,
    checked_several,
    checked_sync,
)
from kimberlite.crypto.master import checked_file, read_key_file
from kimberlite.errors import (
    Closed,
    Conflict,
    Corrupt,
    Invalid,
    KimberliteError,
    LimitExceeded,
    NoSpace,
    Unavailable,
    UnknownOutcome,
)
from kimberlite.importing import Import
from kimberlite.iterators import Batched, Listing
from kimberlite.log.committer import Committer, Part
from kimberlite.log.description import erasures
from kimberlite.log.erasure import Eraser
from kimberlite.log.options import Options
from kimberlite.log.reading import (
    B,
    Came,
    Following,
    Read,
    Reader,
    Reading,
    Run,
    Runs,
    Tail,
    looked_again,
    reading_disk,
)
from kimberlite.log.refusals import translate
from kimberlite.log.streams import Streams
from kimberlite.log.tasks import begin
from kimberlite.log.upkeep import Upkeep
from kimberlite.records import Dropping, Erasure, Receipt, Record, StreamInfo, Time
from kimberlite.storage.backend import Backend

#: Records of `get_many` in one go of a background thread.
MANY: Final = 1024

#: Seconds in which a writer that is at work has covered what it has written.
SETTLED: Final = 1.5

#: The last time that a timestamp can be.
LATEST: Final = (1 << 64) - 1


class Log:
    """A database: one ordered log of records in named streams.

    * What a reader sees is durable, and was acknowledged or could have been.
    * Appends from any number of tasks share groups; their order is the order in which they were called.
    * It belongs to one event loop and one process. `kimberlite.sync` is for threads.
    """

    def __init__(
        self,
        backend: Backend,
        native: _native.Log,
        committer: Committer | None,
        streams: Streams | None,
        options: Options,
        info: Callable[[], dict[str, Any]],
        close: Callable[[], Any],
        refresh: Callable[[], None] | None,
        quantum: int,
    ) -> None:
        self._backend = backend
        self._native = native
        self._committer = committer
        self._streams = streams
        self._options = options
        self._info = info
        self._close = close
        self._refresh = refresh
        self._quantum = quantum
        #: What a writer does for closed segments.
        self.upkeep: Upkeep | None = None
        #: What a rule would drop of what a reader has, if the clock is confirmed to be right or not.
        self.would_drop: Callable[[Rule, bool], Dropping] | None = None
        #: Sound groups behind what a reader has, the first and the last, that no watermark covers yet.
        self.uncovered: Callable[[], tuple[int, int] | None] | None = None
        #: Why a reader writes nothing.
        self.refusal: KimberliteError = Invalid("the database is open for reading only")
        self._pid = os.getpid()
        self._loop = asyncio.get_running_loop()
        self._closed: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    # ---- appending

    async def append(
        self,
        stream: str,
        records: Records,
        *,
        expect: int | None = None,
        producer: Producer | None = None,
        sync: Sync | None = None,
    ) -> Receipt:
        """Appends one batch to one stream, all of it or nothing.

        `expect` is the offset the first record must get, or CONFLICT. With `producer` (an id and a
        sequence that counts from 0 in this stream) a repeated call returns the first one's receipt.
        With sync="record" the records are appends of their own, in order: an error withdraws none of
        those before it, and says how many they are. Limits are looked at before any is appended.
        Cancelled while it waits for room in the pool or for its new stream, nothing is appended; after
        that only the wait is abandoned, and it is appended or not.
        """
        policy = self._policy(sync)
        if producer is None and expect is None and type(stream) is str and policy != "record":
            # What nearly every append is, without the detours of the others.
            committer, streams = self._writer()
            # Nobody may find that a stream is not there which somebody before them, who waits for room, is to make.
            new = committer.crowded and self._number(stream) is None
            if committer.crowded and not new:
                await committer.turn()
            future: asyncio.Future[Receipt] = self._loop.create_future()
            known = not new and stream not in streams.entering
            request = self._native.request(stream, records, policy, future) if known else None
            if request is not None:
                committer.enter(request)
                # The future's error leads to this frame and through the request back to it, and no collector sees that.
                del request
                return await future
        stream = checked_name(stream)
        batch = _native.encode(records)
        if policy == "record" and len(batch) > 1:
            return await self._append_each(stream, batch.split(), expect, producer)
        return (await self._append({stream: batch}, {stream: expect}, producer, policy))[0]

    async def append_many(
        self,
        batches: Mapping[str, Records],
        *,
        expect: Mapping[str, int] | None = None,
        producer: Producer | None = None,
        sync: Sync | None = None,
    ) -> dict[str, Receipt]:
        """Appends a batch to each of several streams: all of them or none, in one group.

        Cancelling does what it does to `append`.
        """
        policy = self._policy(sync)
        if policy == "record":
            raise Invalid("append_many is one group; it cannot have a sync for every record")
        parts = checked_several(batches, expect)
        encoded = {stream: batch for stream, batch, _ in parts}
        expected = {stream: offset for stream, _, offset in parts}
        receipts = await self._append(encoded, expected, producer, policy, several=True)
        return dict(zip(encoded, receipts, strict=True))

    async def _append(
        self,
        batches: Mapping[str, _native.Batch],
        expect: Mapping[str, int | None],
        producer: Producer | None,
        policy: Sync,
        *,
        several: bool = False,
    ) -> list[Receipt]:
        named = None if producer is None else checked_producer(producer)
        answer = await (await self._enter(batches, expect, named, policy, several=several))
        return answer if several else [answer]

    async def _enter(
        self,
        batches: Mapping[str, _native.Batch],
        expect: Mapping[str, int | None],
        producer: Sender | None,
        policy: Sync,
        *,
        several: bool,
    ) -> asyncio.Future[Any]:
        """The answer to come, a receipt or a list of them, when the append is in line: no later one overtakes it."""
        committer, streams = self._writer()
        missing = []
        for stream, offset in expect.items():
            checked_offset(offset)
            if self._native.stream(stream) is None:
                if offset and stream not in streams.entering:
                    raise Conflict(f"stream {stream!r} has 0 records", 0)
                missing.append(stream)
            elif stream in streams.entering:
                missing.append(stream)
        if missing:
            await streams.create(missing)
        parts: list[Part] = [
            (stream, streams.number(stream), batch, expect[stream]) for stream, batch in batches.items()
        ]
        return await committer.append(parts, policy, producer, several)

    async def _append_each(
        self, stream: str, singles: list[_native.Batch], expect: int | None, producer: Producer | None
    ) -> Receipt:
        """A batch and a sync for every record, in a row; the receipt is that of the last, for all."""
        if expect is not None or producer is not None:
            raise Invalid("sync='record' makes a batch of every record: expect and producer need one batch")
        return await self._last_of(await self._enter_each(stream, singles, None))

    async def _last_of(self, futures: list[asyncio.Future[Receipt]]) -> Receipt:
        receipts = every_receipt(await asyncio.gather(*futures, return_exceptions=True))
        first, last = receipts[0], receipts[-1]
        receipt = last._replace(first_offset=first.first_offset, first_position=first.first_position)
        mac = self._native.receipt_mac(receipt[:12])
        assert mac is not None, "the stream has records"
        return receipt._replace(mac=mac)

    async def _enter_each(
        self, stream: str, singles: list[_native.Batch], producer: Sender | None
    ) -> list[asyncio.Future[Receipt]]:
        """The answers to come, when all are in line; or none is, if one is beyond a limit. The producer's sequences are
        in a row."""
        committer, streams = self._writer()
        if self._native.stream(stream) is None or stream in streams.entering:
            await streams.create([stream])
        if committer.crowded:
            await committer.turn()
        number = streams.number(stream)
        futures: list[asyncio.Future[Receipt]] = [self._loop.create_future() for _ in singles]
        requests = [
            _native.Request(
                [(stream, number, single, None)],
                "record",
                None if producer is None else (producer[0], producer[1] + i, *producer[2:]),
                False,
                future,
                self._quantum,
            )
            for i, (single, future) in enumerate(zip(singles, futures, strict=True))
        ]
        if not all(committer.fits(request) for request in requests):
            raise LimitExceeded("one of the records does not fit in a segment")
        for request in requests:
            committer.enter(request)
        return futures

    def _number(self, stream: object) -> int | None:
        """The number of a stream that is there."""
        try:
            return self._native.stream(stream) if isinstance(stream, str) else None
        except UnicodeEncodeError:
            return None

    def _policy(self, sync: Sync | None) -> Sync:
        policy = sync if sync is not None else self._options.sync
        checked_sync(policy)
        return policy

    # ---- reading

    def read(
        self,
        stream: str | None = None,
        *,
        start: int | datetime | None = None,
        until: int | datetime | None = None,
        limit: int | None = None,
        reverse: bool = False,
        system: bool = False,
    ) -> Reader:
        """An async iterator of records, as they are when it starts.

        Integers are offsets with a stream and positions without, aware datetimes are times; `until` is
        exclusive; `reverse` starts at the end. A number that is below what is left is DROPPED; a time is looked for
        among that. An unknown stream reads as empty, one that was erased as ERASED; of the whole log its records are
        left out.
        """
        return Reader(self._reading(self._read, stream, start, until, limit, reverse=reverse, system=system))

    async def get(self, position: int) -> Record:
        """The record at a position of the log."""
        self._check()
        if self._refresh is not None:
            await self._refreshed()
        self._check_position(position)
        with reading_disk:
            try:
                return self._native.get(position)
            except Corrupt:
                if not self._native.doubted:
                    raise
            except FileNotFoundError:
                pass
        # So many hashes are wrong that to make them again would hold up the loop; or a segment is gone.
        return (await self.get_many([position]))[0]

    async def get_many(self, positions: Iterable[int]) -> list[Record]:
        """The records at these positions, in the order asked for."""
        self._check()
        await self._refreshed()
        if not isinstance(positions, Iterable):
            raise Invalid("positions are a sequence of integers")
        wanted = list(positions)
        for position in wanted:
            self._check_position(position)
        found: list[Record] = []
        for start in range(0, len(wanted), MANY):
            piece = wanted[start : start + MANY]
            with reading_disk:
                found += await looked_again(self, self._backend.run, partial(self._get_many, piece))
            self._check()
        return found

    def tail(self, stream: str | None = None, *, start: int | datetime | None = None, system: bool = False) -> Tail:
        """A live iterator: what is durable, from the end as of this call unless `start` says otherwise.

        `start` may be an offset, a position or a time that is to come: nothing before it is shown.
        """
        return Tail(self._following(self._read, stream, start, system=system))

    def streams(self) -> Listing[StreamInfo]:
        """The streams that have records, in the order of their declarations; to a reader, as of its last read.

        For `async for`, and, other than that of a client, also for `for`.
        """
        self._check()
        listed = self._native.streams()
        return Listing(StreamInfo(name, length, encrypted, erased) for name, encrypted, length, _, erased in listed)

    # Of a reader that begins anew the log is another from then on.

    def _read(self, *asked: Any) -> tuple[list[Record], int, int]:
        return self._native.read(*asked)

    def _read_frame(self, *asked: Any) -> tuple[_native.Frame, int, int]:
        return self._native.read_frame(0, *asked)

    def _get_many(self, positions: list[int]) -> list[Record]:
        return self._native.get_many(positions)

    async def info(self) -> dict[str, Any]:
        """What this database is and where it stands."""
        self._check()
        await self._refreshed()
        with reading_disk:
            said = self._info()
        said["erasures"] = await self._backend.run(partial(erasures, self._native))
        return said

    def _reading(
        self,
        read: Read[B],
        stream: str | None,
        start: int | datetime | Time | None,
        until: int | datetime | Time | None,
        limit: int | None,
        *,
        reverse: bool,
        system: bool,
        run: Run | None = None,
        came: Came | None = None,
    ) -> Reading[B]:
        self._check()
        name = None if stream is None else checked_name(stream)
        bounds, flags = (checked_bound(start), checked_bound(until)), {"reverse": bool(reverse), "system": bool(system)}
        limit = checked_limit(limit)
        return Reading(self, read, name, *bounds, limit, **flags, run=run or self._backend.run, came=came)

    def _following(
        self,
        read: Read[B],
        stream: str | None,
        start: int | datetime | Time | None,
        *,
        system: bool,
        run: Run | None = None,
        came: Came | None = None,
    ) -> Following[B]:
        self._check()
        name = None if stream is None else checked_name(stream)
        if self._refresh is not None and start is None:
            # Where the end is now cannot be asked later.
            with reading_disk:
                self._refresh()
        told, run = checked_bound(start), run or self._backend.run
        return Following(self, read, name, told, system=bool(system), run=run, came=came)

    # ---- moving

    def runs(
        self,
        stream: str | None = None,
        *,
        start: int | datetime | None = None,
        until: int | datetime | None = None,
    ) -> Batched[bytes]:
        """What `read` gives, as arrays of runs that `docs/protocol.md` draws: for whoever passes them on."""
        return Runs(self._reading(self._read_frame, stream, start, until, None, reverse=False, system=False))

    def importing(self, *, new_times: bool = False) -> Import:
        """Takes records of another log with their offsets and, unless they are to get `new_times`, their times."""
        self._writer()
        return Import(self._enter_import, self._settle, new_times=bool(new_times))

    async def _enter_import(
        self, stream: str, offset: int, time: int | None, batch: _native.Batch | None, gap: str | None
    ) -> asyncio.Future[Any]:
        committer, streams = self._writer()
        if self._native.stream(stream) is None or stream in streams.entering:
            await streams.create([stream])
        if committer.crowded:
            await committer.turn()
        future: asyncio.Future[Any] = self._loop.create_future()
        number = streams.number(stream)
        request = _native.Request.importing(stream, number, offset, time, batch, gap, future, self._quantum)
        if not committer.fits(request):
            raise LimitExceeded("this does not fit in a segment")
        committer.enter(request)
        return future

    async def _settle(self) -> None:
        """Returns when all that was answered is durable."""
        committer, _ = self._writer()
        await committer.quiet()

    # ---- keeping

    async def retain(
        self,
        *,
        before: int | None = None,
        age: timedelta | float | None = None,
        size: int | None = None,
        dry_run: bool = False,
        confirm_clock: bool = False,
    ) -> Dropping:
        """Drops the oldest closed segments: those that have nothing from the position `before` on, those whose newest
        record is older than `age`, and as many as the log is larger than `size` bytes.

        What goes is gone for good: reading it is DROPPED from here on. What is left stays provable. With `dry_run` it
        is only said what would go, which a reader can too: nothing is changed. Nothing goes for its age while the
        clock may have jumped; `confirm_clock` says that it is right.
        """
        self._check()
        if dry_run and self.would_drop is not None:
            asked = partial(self.would_drop, checked_rule(before, age, size), bool(confirm_clock))
            await self._refreshed()
            with reading_disk:
                return await looked_again(self, self._backend.run, asked)
        self._writer()
        rule = checked_rule(before, age, size)
        assert self.upkeep is not None, "whoever writes has it"
        retention = self.upkeep.retention
        return await retention.drop(rule, dry_run=bool(dry_run), confirm_clock=bool(confirm_clock))

    async def erase(self, stream: str, *, reason: str) -> Erasure:
        """Destroys the key of an encrypted stream: nobody can read its records any more, and none is appended to it.

        That they were there, how many and when stays provable; the reason is there for all to read. Copies of the vault
        made before open until the master key is destroyed (`rotate`): so long the erasure is pending. One that was
        made before, or was cut off, is finished.
        """
        eraser, name = self._eraser(), checked_name(stream)
        await eraser.erase(name, checked_reason(reason))
        return self._erasure(name)

    async def confirm_erasure(self, stream: str) -> Erasure:
        """Says in the log that the master key under which a stream was erased, and those before it, are destroyed: the
        erasure is not pending any more. Only after a `rotate`."""
        eraser, name = self._eraser(), checked_name(stream)
        await eraser.confirm(name)
        return self._erasure(name)

    async def rotate(self, key_file: str | os.PathLike[str] | None = None) -> str:
        """Wraps every key under the master key in this file, and gives its id: with the one before nothing opens from
        then on. Done again after it was cut off, it is finished. Refused is one that the keys were under when a stream
        was erased. Keys of streams that the log does not know are left out."""
        eraser = self._eraser()
        if key_file is None:
            raise Invalid("the file of the next master key is to be named")
        name = checked_file(key_file)
        return await eraser.rotate(lambda: read_key_file(name))

    def _eraser(self) -> Eraser:
        self._writer()
        assert self.upkeep is not None, "whoever writes has it"
        return self.upkeep.eraser

    def _erasure(self, stream: str) -> Erasure:
        number = self._native.stream(stream)
        assert number is not None, "it was just erased"
        [found] = self._native.erasures_of(number, 1) or []
        return Erasure(*found)

    # ---- lifetime

    async def close(self) -> None:
        """Finishes what was accepted, marks the log as clean, and lets the directory go. Twice is fine.

        Who is cancelled here waits on all the same: the loop may be about to end, and the close with it.
        """
        if os.getpid() != self._pid:
            # The log is its parent's, who goes on writing it.
            return
        elsewhere = self._loop if self._closed is None else self._closed.get_loop()
        ended = self._closed is not None and self._closed.done()
        if not ended and asyncio.get_running_loop() is not elsewhere:
            if not elsewhere.is_closed():
                raise Invalid("the database belongs to another event loop, which has to close it")
            # Its loop has taken whoever would have finished: what it has acknowledged is on the disk.
            self._closed = begin(self._abandon(), "kimberlite-close", lambda _error: None)
        if self._closed is None:
            self._closed = begin(self._finish(), "kimberlite-close", self._died)
            self._changed.set()
        cancelled: asyncio.CancelledError | None = None
        while not self._closed.done():
            try:
                await asyncio.wait([self._closed])
            except asyncio.CancelledError as error:
                cancelled = error
        outcome = self._closed.exception()
        if cancelled is not None:
            raise cancelled
        if isinstance(outcome, KimberliteError):
            raise outcome
        if outcome is not None:
            # It may not have come so far.
            with contextlib.suppress(OSError):
                self._backend.close()
            # The loop was told of an interrupt; whoever waits here, or closes once more, was not interrupted.
            raise UnknownOutcome(f"the close was ended by {type(outcome).__name__}") from outcome

    async def _abandon(self) -> None:
        try:
            self._backend.close()
        except OSError as error:
            raise translate(error, "at the close of a loop that is gone") from error
        finally:
            self._let_go()

    async def _finish(self) -> None:
        try:
            await self._close()
        finally:
            self._let_go()

    def _died(self, error: BaseException) -> None:
        # An interrupt may have come before the first step.
        if self._committer is not None:
            self._committer.poison(error)
            self._let_go()

    def _let_go(self) -> None:
        """Whoever keeps the handle keeps no file open."""
        self._native.close()
        self._committer = self._streams = self._refresh = self.upkeep = self.would_drop = self.uncovered = None
        self._close = self._info = gone

    async def __aenter__(self) -> Log:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def options(self) -> Options:
        """How it was opened."""
        return self._options

    @property
    def durable_position(self) -> int:
        """Positions below this are durable and visible."""
        return self._native.durable

    def _check(self) -> None:
        if self._closed is not None:
            raise Closed("the database is closed")
        if os.getpid() != self._pid:
            raise Closed("the database belongs to the process that this one was forked from")
        if self._committer is not None:
            self._committer.check()

    def _writer(self) -> tuple[Committer, Streams]:
        self._check()
        if self._committer is None or self._streams is None:
            raise self.refusal
        if asyncio.get_running_loop() is not self._loop:
            raise Invalid("the database belongs to another event loop")
        return self._committer, self._streams

    def _published(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _resolve(self, bound: Time, stream: int | None, *, until: bool = False) -> int:
        """A time as an offset of a stream, or as a position; `until` there, if it is where a read ends."""
        position = self._native.position_at(min(max(0, bound.ns), LATEST), until)
        return position if stream is None else self._native.offset_at(stream, position, until)

    def _check_position(self, position: int) -> None:
        if type(position) is not int or not 0 <= position < self._native.durable:
            raise Invalid(f"there is no record at position {position}: the log has {self._native.durable}")

    async def _refreshed(self) -> None:
        """Takes in what the writer beside a reader has made durable since."""
        if self._refresh is not None:
            with reading_disk:
                await self._backend.run(self._refresh)
            self._check()

    async def _behind(self) -> tuple[int, int] | None:
        """What `uncovered` says if nobody is at work beside a reader who would cover it."""
        group, until = self._native.sealed()[0], time.monotonic() + SETTLED
        while self.uncovered is not None and self._native.sealed()[0] == group:
            with reading_disk:
                found = await self._backend.run(self.uncovered)
            self._check()
            if found is None or time.monotonic() > until:
                return found
            await asyncio.sleep(0.05)
        return None

    async def _wait_for_change(self) -> None:
        """Returns when more may be durable, or the handle is closed."""
        self._check()
        if self._refresh is not None:
            await asyncio.sleep(0.05)
            await self._refreshed()
        else:
            await self._changed.wait()
        self._check()


def gone() -> Any:
    raise Closed("the database is closed")


def every_receipt(answers: list[Receipt | BaseException]) -> list[Receipt]:
    """The receipts of appends in a row; or the first error, with how many are appended before it."""
    for i, error in enumerate(answers):
        if i and isinstance(error, NoSpace | Unavailable | UnknownOutcome | Closed):
            before = f"this is record {i + 1} of {len(answers)}, and those before it are appended"
            raise type(error)(f"{error}; {before}") from error
        if isinstance(error, BaseException):
            raise error
    return [answer for answer in answers if isinstance(answer, Receipt)]
