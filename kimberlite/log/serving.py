"""A log as the daemon drives it: appends that are encoded already, records as the wire has them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Final

from kimberlite import _native
from kimberlite.arguments import Rule, Sender, Sync, check_receipt, checked_name, checked_producer
from kimberlite.errors import Invalid, KimberliteError, LimitExceeded
from kimberlite.log.anchor import check_anchor, mac_of
from kimberlite.log.committer import Committer
from kimberlite.log.log import MANY, Log
from kimberlite.log.reading import BATCH_BYTES, Came, Following, Reading, Run, reading_disk
from kimberlite.log.upkeep import Upkeep
from kimberlite.records import Dropping, Erasure, Receipt, Time

Parts = list[tuple[str, _native.Batch, int | None]]
Frames = Reading[_native.Frame] | Following[_native.Frame]

#: Of a producer's batches the last so many are remembered by their receipts.
REMEMBERED: Final = 1024


class Serving:
    """What `kimberlite.server` needs of a log that is open for writing, and nothing else of it."""

    def __init__(self, log: Log, limits: _native.Limits) -> None:
        committer, _ = log._writer()
        self._log, self._limits = log, limits
        self.committer: Final[Committer] = committer

    def session(self, connection: _native._Connection) -> _native.Session:
        """For one client."""
        log, committer = self._log, self.committer
        return _native.Session(
            log._native, committer.pool, self._limits, log._options.sync, committer.entered, connection
        )

    async def prepare(self, parts: Parts) -> None:
        """Makes the streams that are missing, together with whoever else is waiting for one. Comes before `enter`."""
        log = self._log
        _, streams = log._writer()
        for stream, _, _ in parts:
            checked_name(stream)
        missing = [stream for stream, _, expect in parts if not expect and log._native.stream(stream) is None]
        if missing:
            await streams.create(missing)

    async def enter(
        self, parts: Parts, producer: Sender | None, sync: str | None, *, several: bool
    ) -> asyncio.Future[list[Receipt]]:
        """The receipts to come, when the append is in line: no later one overtakes it."""
        log = self._log
        policy = log._policy(sync)  # type: ignore[arg-type]
        batches = {stream: batch for stream, batch, _ in parts}
        if len(batches) != len(parts):
            raise Invalid("a stream is named twice")
        if producer is not None:
            checked_producer(producer[:2])
        expect = {stream: offset for stream, _, offset in parts}
        if policy == "record":
            return await self._enter_each(parts, producer, policy, several=several)
        answer = await log._enter(batches, expect, producer, policy, several=several)
        return answer if several else _listed(answer)

    def enter_import(
        self, stream: str, offset: int, time: int | None, batch: _native.Batch | None, gap: str | None
    ) -> Awaitable[asyncio.Future[Any]]:
        """The answer to come, when what is imported is in line."""
        return self._log._enter_import(checked_name(stream), offset, time, batch, gap)

    async def settle(self) -> None:
        """Returns when all that was answered is durable."""
        await self._log._settle()

    def repeated(
        self, parts: Parts, producer: Sender, sync: str | None, error: KimberliteError, *, several: bool
    ) -> asyncio.Future[list[Receipt]]:
        """The answer to an append that is refused: the error, unless it is in the log already."""
        if self._log._policy(sync) == "record":  # type: ignore[arg-type]
            raise error
        native, future = self._log._native, self._log._loop.create_future()
        numbered = [(stream, native.stream(stream), batch, expect) for stream, batch, expect in parts]
        known = [(stream, number, batch, expect) for stream, number, batch, expect in numbered if number is not None]
        if len(known) < len(parts) or self.committer.poisoned is not None:
            raise error
        self.committer.refuse([_native.Request(known, "group", producer, several, future, self._log._quantum)], error)
        return future if several else _listed(future)

    async def _enter_each(
        self, parts: Parts, producer: Sender | None, policy: Sync, *, several: bool
    ) -> asyncio.Future[list[Receipt]]:
        log = self._log
        if several:
            raise Invalid("append_many is one group; it cannot have a sync for every record")
        [(stream, batch, expect)] = parts
        if len(batch) == 1:
            return _listed(await log._enter({stream: batch}, {stream: expect}, producer, policy, several=False))
        if expect is not None:
            raise Invalid("sync='record' makes a batch of every record: expect needs one batch")
        if len(batch) > REMEMBERED:
            raise LimitExceeded(f"with sync='record' at most {REMEMBERED} records are sent at a time")
        return _listed(log._last_of(await log._enter_each(stream, batch.split(), producer)))

    def reading(
        self,
        id: int,
        stream: str | None,
        start: int | Time | None,
        until: int | Time | None,
        limit: int | None,
        *,
        reverse: bool,
        system: bool,
        run: Run,
        came: Came | None,
    ) -> Reading[_native.Frame]:
        """What is there, as messages to a client's request, who may have come to its start before a repair."""
        read, flags = partial(self._log._native.read_frame, id), {"reverse": reverse, "system": system}
        return self._log._reading(read, stream, start, until, limit, **flags, run=run, came=came)

    def following(
        self, id: int, stream: str | None, start: int | Time | None, *, system: bool, run: Run, came: Came | None
    ) -> Following[_native.Frame]:
        read = partial(self._log._native.read_frame, id)
        return self._log._following(read, stream, start, system=system, run=run, came=came)

    async def run(self, call: Callable[[], Any]) -> Any:
        """Off the loop."""
        return await self._log._backend.run(call)

    async def get(self, id: int, positions: list[int]) -> AsyncIterator[_native.Frame]:
        log = self._log
        log._check()
        for position in positions:
            log._check_position(position)
        start = 0
        while start < len(positions):
            piece = positions[start : start + MANY]
            with reading_disk:
                frame = await log._backend.run(partial(log._native.get_frame, id, piece, BATCH_BYTES))
            yield frame
            start += len(frame)
            log._check()

    def check_anchor(self, anchor: Receipt) -> None:
        """RolledBack if the log does not reach a sound receipt; Invalid if it is not one of this database."""
        check_receipt(anchor)
        native = self._log._native
        if mac_of(native, anchor) is None and not native.is_mac_of_lost_stream(anchor[:12], anchor.mac):
            # Whoever asks may have made it up.
            raise Invalid(f"the log has no stream {anchor.stream!r}, and the anchor's MAC is not one of this database")
        check_anchor(native, anchor, keyed=True)

    @property
    def meters(self) -> _native.Meters:
        return self._log._native.meters

    @property
    def passed(self) -> tuple[int, int]:
        """Bytes that have arrived of all clients, and that were sent to them."""
        return self._limits.passed

    @property
    def refused(self) -> dict[str, int]:
        """Errors that requests were answered with, by their code."""
        return self._limits.refused

    @property
    def inboxes(self) -> int:
        """Bytes that clients' messages take that have arrived in part."""
        return self._limits.grown

    @property
    def backend(self) -> str:
        return self._log._backend.name

    @property
    def backend_reason(self) -> str:
        return self._log._backend.reason

    def state(self) -> dict[str, int]:
        """Where everything stands."""
        committer, native = self.committer, self._log._native
        tail = committer.tail
        prepared = tail.next
        return {
            "queue": len(committer.pool),
            "queue_bytes": committer.pool.bytes,
            "position": native.durable,
            "group": committer.durable,
            "segment": tail.number,
            "streams": native.stream_count,
            "prepared": int(prepared is not None),
            "prepared_bytes": tail.current.ready - tail.place + (prepared.ready if prepared is not None else 0),
        }

    @property
    def upkeep(self) -> Upkeep:
        upkeep = self._log.upkeep
        assert upkeep is not None, "whoever writes has it"
        return upkeep

    @property
    def first(self) -> int:
        """What is below it was dropped."""
        return self._log._native.first

    @property
    def pulse(self) -> tuple[int, ...] | None:
        """Something that changes as long as the committer gets on with what it has to do; None if it has nothing."""
        return self.committer.pulse

    @property
    def group(self) -> int:
        """The last one that is durable."""
        return self._log._native.durable_group()[0]

    @property
    def incarnation(self) -> int:
        """Of what is sealed."""
        return self._log._native.incarnation

    @property
    def position(self) -> int:
        """What is below it is durable."""
        return self._log.durable_position

    @property
    def sync(self) -> str:
        """Who waits for which sync, unless an append says otherwise."""
        return self._log.options.sync

    def streams(self, start: int, count: int) -> list[tuple[str, int, bool, bool]]:
        """So many of those that have records, from the so manieth on."""
        self._log._check()
        listed = self._log._native.streams(min(start, 1 << 63), count)
        return [(name, length, encrypted, erased) for name, encrypted, length, _, erased in listed]

    async def erase(self, stream: str, reason: str) -> Erasure:
        return await self._log.erase(stream, reason=reason)

    async def confirm_erasure(self, stream: str) -> Erasure:
        return await self._log.confirm_erasure(stream)

    async def rotate(self, key_file: str) -> str:
        return await self._log.rotate(key_file)

    def forbid(self, why: KimberliteError) -> None:
        """From here on nothing is appended: not even what waits for a group."""
        self.committer.forbid(why)

    async def retain(self, rule: Rule, *, dry_run: bool, confirm_clock: bool) -> Dropping:
        self._log._writer()
        return await self.upkeep.retention.drop(rule, dry_run=dry_run, confirm_clock=confirm_clock)

    async def info(self) -> dict[str, Any]:
        return await self._log.info()


def _listed(answer: Awaitable[Receipt]) -> asyncio.Future[list[Receipt]]:
    async def listed() -> list[Receipt]:
        return [await answer]

    return asyncio.ensure_future(listed())
