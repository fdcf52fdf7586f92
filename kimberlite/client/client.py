"""The handle that `kimberlite.connect` gives."""

from __future__ import annotations

import asyncio
import os
import re
from collections import deque
from collections.abc import AsyncIterator, Generator, Iterable, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, Self

from kimberlite import _native
from kimberlite.arguments import (
    Producer,
    Records,
    Sync,
    check_receipt,
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
from kimberlite.client.appends import Part
from kimberlite.client.connection import Connection
from kimberlite.client.importing import Importing
from kimberlite.client.reading import CREDIT, Incoming, RemoteReader, RemoteTail
from kimberlite.errors import (
    Invalid,
    KimberliteError,
    ProtocolError,
)
from kimberlite.importing import Import
from kimberlite.iterators import Batched
from kimberlite.records import Dropping, Erasure, Receipt, Record, StreamInfo
from kimberlite.wire.messages import Kind, Parts, Reading, Retaining

URL: Final = re.compile(r"kimberlite(?:://(?P<host>[^/]+:\d+)/?|\+unix:(?://)?(?P<path>/.+))")
#: Appends that wait for their receipts, and their bytes; more wait for room.
MOST_OPEN: Final = 1024
MOST_BYTES: Final = 64 << 20
#: Positions asked for in one message.
MANY: Final = 10_000


class Client:
    """A database behind a daemon: what `kimberlite.Log` does, with the same arguments, results and errors.

    * It connects again by itself. An append is sent again until it is answered, and is appended once.
    * Reads and tails go on where they were.
    * After `retry` seconds without a connection whoever waits is told: Unavailable, or UnknownOutcome if an append may
      have been made. The handle goes on trying.
    * It belongs to one event loop. `kimberlite.sync.connect` is for threads.
    """

    def __init__(self, url: str, *, retry: float, anchor: Receipt | None) -> None:
        address = address_of(url)
        check_receipt(anchor)
        self._connection = Connection(address, retry=retry, anchor=anchor)
        self._appends = self._connection.appends
        self._loop = asyncio.get_running_loop()
        self._turns: deque[asyncio.Future[None]] = deque()
        #: Set when no append is open any more.
        self._quiet = asyncio.Event()

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
        """Appends one batch to one stream, all of it or nothing. See `kimberlite.Log.append`.

        Cancelled after it was sent, only the wait is abandoned, and it is appended or not.
        """
        self._connection.check()
        if sync is not None:
            checked_sync(sync)
        stream, batch = checked_name(stream), _native.encode(records)
        if sync == "record" and len(batch) > 1 and (expect is not None or producer is not None):
            raise Invalid("sync='record' makes a batch of every record: expect and producer need one batch")
        named = None if producer is None else checked_producer(producer)
        return (await self._append([(stream, batch, checked_offset(expect))], named, sync, several=False))[0]

    async def append_many(
        self,
        batches: Mapping[str, Records],
        *,
        expect: Mapping[str, int] | None = None,
        producer: Producer | None = None,
        sync: Sync | None = None,
    ) -> dict[str, Receipt]:
        """Appends a batch to each of several streams: all of them or none, in one group."""
        self._connection.check()
        if sync is not None:
            checked_sync(sync)
        if sync == "record":
            raise Invalid("append_many is one group; it cannot have a sync for every record")
        parts = checked_several(batches, expect)
        by = None if producer is None else checked_producer(producer)
        receipts = await self._append(parts, by, sync, several=True)
        return {stream: receipt for (stream, _, _), receipt in zip(parts, receipts, strict=True)}

    async def _append(
        self, parts: list[Part], producer: tuple[bytes, int] | None, sync: str | None, *, several: bool
    ) -> list[Receipt]:
        if self._turns or self._crowded:
            await self._turn()
        future: asyncio.Future[list[Receipt]] = self._loop.create_future()
        call = self._appends.begin(parts, producer, sync, partial(self._answered, future), several=several)
        try:
            return await future
        except asyncio.CancelledError:
            self._appends.drop(call)
            self._let_in()
            raise

    def _answered(self, future: asyncio.Future[list[Receipt]], answer: list[Receipt] | KimberliteError) -> None:
        if not future.done():
            if isinstance(answer, KimberliteError):
                future.set_exception(answer)
            else:
                future.set_result(answer)
        self._let_in()

    @property
    def _crowded(self) -> bool:
        return len(self._appends) >= MOST_OPEN or self._appends.weight >= MOST_BYTES

    async def _turn(self) -> None:
        """Waits for room among the open appends, behind whoever waits already."""
        turn = self._loop.create_future()
        self._turns.append(turn)
        try:
            await turn
        finally:
            self._turns.remove(turn)
            self._loop.call_soon(self._let_in)
        self._connection.check()

    def _let_in(self) -> None:
        if not len(self._appends):
            self._quiet.set()
        if self._turns and not self._turns[0].done() and (self._connection.closed or not self._crowded):
            self._turns[0].set_result(None)

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
    ) -> RemoteReader:
        """An async iterator of records, as they are when it starts. See `kimberlite.Log.read`."""
        self._connection.check()
        name = None if stream is None else checked_name(stream)
        bounds = checked_bound(start), checked_bound(until)
        asked = Reading(name, *bounds, checked_limit(limit), bool(reverse), bool(system), CREDIT)
        return RemoteReader(self._connection, asked)

    async def get(self, position: int) -> Record:
        """The record at a position of the log."""
        return (await self.get_many([position]))[0]

    async def get_many(self, positions: Iterable[int]) -> list[Record]:
        """The records at these positions, in the order asked for."""
        self._connection.check()
        if not isinstance(positions, Iterable):
            raise Invalid("positions are a sequence of integers")
        wanted = list(positions)
        if not all(type(position) is int and 0 <= position < 1 << 64 for position in wanted):
            raise Invalid("there is no record at a position that is no number from 0")
        found: list[Record] = []
        for start in range(0, len(wanted), MANY):
            body = _native.pack({"positions": wanted[start : start + MANY]})
            found += await self._connection.request(Kind.GET, body, gathered)
        return found

    def tail(
        self, stream: str | None = None, *, start: int | datetime | None = None, system: bool = False
    ) -> RemoteTail:
        """A live iterator: what is durable, from the end as of this call unless `start` says otherwise; as of the next
        connection if there is none now."""
        self._connection.check()
        name = None if stream is None else checked_name(stream)
        asked = Reading(name, checked_bound(start), None, None, False, bool(system), CREDIT)
        return RemoteTail(self._connection, asked)

    async def streams(self) -> AsyncIterator[StreamInfo]:
        """The streams that have records, in the order of their declarations."""
        self._connection.check()
        start = 0
        while listed := await self._connection.request(Kind.STREAMS, _native.pack({"start": start}), result):
            for name, length, encrypted, erased in listed:
                yield StreamInfo(name, length, encrypted, erased)
            start += len(listed)

    async def info(self) -> dict[str, Any]:
        """What this database is and where it stands."""
        self._connection.check()
        told: dict[str, Any] = await self._connection.request(Kind.INFO, _native.pack(None), joined)
        return told

    async def metrics(self) -> dict[str, Any]:
        """What the daemon counts, by the names under which `/metrics` shows it; a histogram as what
        `hdrhistogram` decodes."""
        self._connection.check()
        told: dict[str, Any] = await self._connection.request(Kind.METRICS, _native.pack(None), result)
        return told

    async def verify(self, anchor: Receipt | None = None) -> dict[str, Any]:
        """What the daemon says of every byte of its log, checked now; an error says what is wrong and where."""
        self._connection.check()
        check_receipt(anchor)
        body = _native.pack({"anchor": None if anchor is None else list(anchor)})
        report: dict[str, Any] = await self._connection.request(Kind.VERIFY, body, joined)
        return report

    async def retain(
        self,
        *,
        before: int | None = None,
        age: timedelta | float | None = None,
        size: int | None = None,
        dry_run: bool = False,
        confirm_clock: bool = False,
    ) -> Dropping:
        """Drops the oldest closed segments. See `kimberlite.Log.retain`."""
        self._connection.check()
        asked = Retaining(checked_rule(before, age, size), bool(dry_run), bool(confirm_clock))
        told: dict[str, Any] = await self._connection.request(Kind.RETAIN, asked.pack(), result)
        return Dropping(**told)

    async def erase(self, stream: str, *, reason: str) -> Erasure:
        """Destroys the key of an encrypted stream. See `kimberlite.Log.erase`."""
        return await self._erase(checked_name(stream), checked_reason(reason))

    async def confirm_erasure(self, stream: str) -> Erasure:
        """Says that the master keys which wrapped an erased stream's key are destroyed. See
        `kimberlite.Log.confirm_erasure`."""
        return await self._erase(checked_name(stream), None)

    async def _erase(self, stream: str, reason: str | None) -> Erasure:
        self._connection.check()
        body = _native.pack({"stream": stream, "reason": reason})
        told = await self._connection.request(Kind.ERASE, body, result)
        return Erasure(*told)

    async def rotate(self, key_file: str | os.PathLike[str] | None = None) -> str:
        """Wraps every key under the master key that the daemon's setting `next_key_file` names, and gives its id. A key
        does not travel, nor does its file's name."""
        self._connection.check()
        if key_file is not None:
            raise Invalid("a key does not travel: the daemon takes the one that its setting next_key_file names")
        key_id: str = await self._connection.request(Kind.ROTATE, _native.pack(None), result)
        return key_id

    @property
    def durable_position(self) -> int:
        """Positions below this are durable and visible; there may be more that this client has not heard of."""
        return self._connection.durable

    # ---- moving

    def runs(
        self,
        stream: str | None = None,
        *,
        start: int | datetime | None = None,
        until: int | datetime | None = None,
    ) -> Batched[bytes]:
        """What `read` gives, as arrays of runs that `docs/protocol.md` draws: for whoever passes them on."""
        return self.read(stream, start=start, until=until).runs()

    def importing(self, *, new_times: bool = False) -> Import:
        """Takes records of another log with their offsets and, unless they are to get `new_times`, their times. It does
        not outlive the connection."""
        self._connection.check()
        importing = Importing(self._connection)
        return Import(importing.enter, importing.settle, new_times=bool(new_times))

    # ---- lifetime

    async def ready(self) -> None:
        """Returns when there is a connection; Unavailable if there is none in time."""
        await self._connection.ready()

    async def close(self) -> None:
        """Returns when what was accepted is answered. Twice is fine."""
        connection = self._connection
        if connection.is_forked:
            # It is its parent's, who goes on with it.
            return
        if connection.is_elsewhere:
            if not connection.loop.is_closed():
                raise Invalid("the database belongs to another event loop, which has to close it")
            # Its loop has taken whoever would have answered.
            connection.closing = connection.closed = True
            return
        connection.closing = True
        while len(self._appends) and not connection.closed:
            self._quiet.clear()
            await self._quiet.wait()
        await connection.close()
        self._quiet.set()
        self._let_in()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Connecting:
    """What `kimberlite.connect` returns: awaited, or entered as a context."""

    def __init__(self, url: str, *, retry: float, anchor: Receipt | None) -> None:
        self._url, self._retry, self._anchor = url, retry, anchor
        self._client: Client | None = None

    def __await__(self) -> Generator[Any, None, Client]:
        return self._connected().__await__()

    async def _connected(self) -> Client:
        client = Client(self._url, retry=self._retry, anchor=self._anchor)
        try:
            await client.ready()
        except BaseException:
            await client.close()
            raise
        return client

    async def __aenter__(self) -> Client:
        self._client = await self._connected()
        return self._client

    async def __aexit__(self, *_: object) -> None:
        assert self._client is not None
        await self._client.close()


def address_of(url: object) -> str:
    found = URL.fullmatch(url) if isinstance(url, str) and "\0" not in url else None
    if found is None:
        raise Invalid(f"{url!r} is neither kimberlite://HOST:PORT nor kimberlite+unix:/PATH")
    where: str = found["host"] or found["path"]
    if found["host"] and int(where.rpartition(":")[2]) > 65535:
        raise Invalid(f"{url!r} has a port above 65535")
    return where


async def result(incoming: Incoming) -> Any:
    return result_of(*await incoming.next())


async def joined(incoming: Incoming) -> dict[str, Any]:
    """A result whose lists may have come in parts."""
    parts = Parts()
    while (message := await incoming.next())[0] == Kind.PART:
        parts.take(message[1])
    return parts.before(result_of(*message))


def result_of(kind: int, body: bytes) -> Any:
    if kind != Kind.RESULT:
        raise ProtocolError(f"a message of kind {kind} answers nothing that was asked")
    return _native.unpack(body)


async def gathered(incoming: Incoming) -> list[Record]:
    found: list[Record] = []
    while True:
        kind, body = await incoming.next()
        if kind == Kind.END:
            return found
        found += _native.decode_records(body, False)
