"""The handle that `kimberlite.connect` gives."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Mapping
from datetime import datetime
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
    checked_several,
    checked_sync,
)
from kimberlite.client.appends import Appends, Part, request_ids
from kimberlite.client.link import Link, connect
from kimberlite.client.reading import CREDIT, PAUSE, Incoming, RemoteReader, RemoteTail
from kimberlite.errors import (
    Closed,
    FrameTooLarge,
    Invalid,
    KimberliteError,
    ProtocolError,
    Unavailable,
)
from kimberlite.records import Receipt, Record, StreamInfo
from kimberlite.wire.messages import NOBODY, VERSION, Hello, Kind, Reading, unpack_error, welcome

URL: Final = re.compile(r"kimberlite(?:://(?P<host>[^/]+:\d+)/?|\+unix:(?://)?(?P<path>/.+))")
#: Appends that wait for their receipts, and their bytes; more wait for room.
MOST_OPEN: Final = 1024
MOST_BYTES: Final = 64 << 20
#: Seconds between two attempts to connect: the first, and the most.
SOON: Final = 0.02
LATE: Final = 1.0
#: Seconds without a word from the server after which it is asked for one; after as many more it is given up.
QUIET: Final = 15.0
#: Connections in a row that end by what was sent over them, after which whoever waits is told.
MOST_FAULTS: Final = 3
#: What a server says to a client that it will not have, now or later.
FOR_GOOD: Final = (Invalid,)
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
        self._address = address_of(url)
        check_receipt(anchor)
        self._retry = retry
        self._loop = asyncio.get_running_loop()
        self._ids = request_ids()
        self._appends = Appends(self._ids)
        self._link: Link | None = None
        self._welcome: dict[str, Any] = {}
        #: Of the database, once it is known; another one is never written to.
        self._database: str | None = None
        #: The durable receipt with the highest group: a server that does not reach it is rolled back.
        self._anchor = anchor
        self._durable = 0
        self._incoming: dict[int, Incoming] = {}
        #: Set while there is a connection, or somebody must be told that there is none.
        self._changed = asyncio.Event()
        self._lost = asyncio.Event()
        #: Why there is no connection; and why there will be none.
        self._why = f"{self._address} does not answer"
        self._refused: KimberliteError | None = None
        #: Connections in a row that ended by what was sent over them, one way or the other.
        self._faults = 0
        self._turns: deque[asyncio.Future[None]] = deque()
        self._closing = self._closed = False
        #: Set when no append is open any more.
        self._quiet = asyncio.Event()
        self._keeper = self._loop.create_task(self._keep())

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
        self.check()
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
        self.check()
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
        self.check()

    def _let_in(self) -> None:
        if not len(self._appends):
            self._quiet.set()
        if self._turns and not self._turns[0].done() and (self._closed or not self._crowded):
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
        self.check()
        name = None if stream is None else checked_name(stream)
        bounds = checked_bound(start), checked_bound(until)
        asked = Reading(name, *bounds, checked_limit(limit), bool(reverse), bool(system), CREDIT)
        return RemoteReader(self, asked)

    async def get(self, position: int) -> Record:
        """The record at a position of the log."""
        return (await self.get_many([position]))[0]

    async def get_many(self, positions: Iterable[int]) -> list[Record]:
        """The records at these positions, in the order asked for."""
        self.check()
        if not isinstance(positions, Iterable):
            raise Invalid("positions are a sequence of integers")
        wanted = list(positions)
        if not all(type(position) is int and 0 <= position < 1 << 64 for position in wanted):
            raise Invalid("there is no record at a position that is no number from 0")
        found: list[Record] = []
        for start in range(0, len(wanted), MANY):
            body = _native.pack({"positions": wanted[start : start + MANY]})
            found += await self._ask(Kind.GET, body, gathered)
        return found

    def tail(
        self, stream: str | None = None, *, start: int | datetime | None = None, system: bool = False
    ) -> RemoteTail:
        """A live iterator: what is durable, from the end as of this call unless `start` says otherwise; as of the next
        connection if there is none now."""
        self.check()
        name = None if stream is None else checked_name(stream)
        return RemoteTail(self, Reading(name, checked_bound(start), None, None, False, bool(system), CREDIT))

    async def streams(self) -> AsyncIterator[StreamInfo]:
        """The streams that have records, in the order of their declarations."""
        self.check()
        start = 0
        while listed := await self._ask(Kind.STREAMS, _native.pack({"start": start}), result):
            for name, length, encrypted in listed:
                yield StreamInfo(name, length, encrypted)
            start += len(listed)

    async def info(self) -> dict[str, Any]:
        """What this database is and where it stands."""
        self.check()
        told: dict[str, Any] = await self._ask(Kind.INFO, _native.pack(None), result)
        return told

    async def verify(self, anchor: Receipt | None = None) -> dict[str, Any]:
        """What the daemon says of every byte of its log, checked now; an error says what is wrong and where."""
        self.check()
        check_receipt(anchor)
        body = _native.pack({"anchor": None if anchor is None else list(anchor)})
        report: dict[str, Any] = await self._ask(Kind.VERIFY, body, result)
        return report

    @property
    def durable_position(self) -> int:
        """Positions below this are durable and visible; there may be more that this client has not heard of."""
        return self._durable

    # ---- lifetime

    async def close(self) -> None:
        """Returns when what was accepted is answered. Twice is fine."""
        self._closing = True
        while len(self._appends) and not self._closed:
            self._quiet.clear()
            await self._quiet.wait()
        self._closed = True
        self._quiet.set()
        self._keeper.cancel()
        if self._link is not None:
            self._link.close()
        for incoming in list(self._incoming.values()):
            incoming.fail(Closed("the database is closed"))
        self._changed.set()
        self._let_in()
        with contextlib.suppress(asyncio.CancelledError):
            await self._keeper

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def check(self) -> None:
        if self._closing:
            raise Closed("the database is closed")
        if self._refused is not None:
            raise self._refused

    # ---- the connection

    async def ready(self) -> None:
        """Returns when there is a connection; Unavailable if there is none in time."""
        while self._link is None:
            if self._closed:
                raise Closed("the database is closed")
            if self._refused is not None:
                raise self._refused
            try:
                async with asyncio.timeout(self._retry):
                    await self._changed.wait()
            except TimeoutError:
                raise Unavailable(self._why) from None

    def ask(self, kind: Kind, body: bytes) -> Incoming | None:
        """Sends a request; what comes of it, or None if there is no connection."""
        if self._link is None:
            return None
        incoming = Incoming(next(self._ids))
        self._incoming[incoming.id] = incoming
        self.tell(kind, incoming.id, body)
        return incoming

    def tell(self, kind: Kind, id: int, body: bytes) -> None:
        if self._link is not None:
            self._link.send(_native.encode_message(kind, id, body))

    def forget(self, incoming: Incoming) -> None:
        """Nothing more that comes of this is wanted."""
        if self._incoming.pop(incoming.id, None) is not None:
            self.tell(Kind.STOP, incoming.id, _native.pack(None))

    async def _ask(self, kind: Kind, body: bytes, take: Callable[[Incoming], Any]) -> Any:
        """The answer to a request that may be asked again."""
        while True:
            await self.ready()
            incoming = self.ask(kind, body)
            if incoming is None:
                continue
            try:
                return await take(incoming)
            except ConnectionError:
                continue
            except Closed:
                # The server is stopping; the next one answers.
                if self._closing:
                    raise
                await asyncio.sleep(PAUSE)
            finally:
                self._incoming.pop(incoming.id, None)

    async def _keep(self) -> None:
        """Keeps a connection as long as the handle is open."""
        delay, since = SOON, self._loop.time()
        while not self._closed:
            try:
                await self._connect()
                await self._watch()
                since = self._loop.time()
                if not self._faults:
                    delay = SOON
            except FOR_GOOD as error:
                self._refused = error
                self._appends.give_up(str(error))
                self._changed.set()
                return
            except KimberliteError as error:
                self._why = str(error)
                if self._loop.time() - since > self._retry:
                    since = self._loop.time()
                    self._appends.give_up(f"no connection for {self._retry:g} s: {error}")
            await asyncio.sleep(delay)
            delay = min(2 * delay, LATE)

    async def _watch(self) -> None:
        """Returns when the connection is lost, or nothing comes of it, not even an answer to a ping."""
        heard, pinged = 0, False
        while self._link is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(QUIET):
                    await self._lost.wait()
            if self._link is None:
                return
            if self._link.heard != heard:
                heard, pinged = self._link.heard, False
            elif pinged:
                self._link.lose(f"nothing was heard of it for {2 * QUIET:g} s")
            else:
                self.tell(Kind.PING, next(self._ids), _native.pack(None))
                pinged = True

    async def _connect(self) -> None:
        greeting: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._lost.clear()

        def received(kind: int, id: int, body: bytes) -> None:
            if greeting.done():
                self._received(kind, id, body)
            elif kind == Kind.WELCOME:
                greeting.set_result(welcome(body))
            else:
                greeting.set_exception(unpack_error(body))

        def lost(link: Link, why: str, fault: KimberliteError | None) -> None:
            if not greeting.done():
                greeting.set_exception(Unavailable(f"{self._address}: {why}"))
            elif link is self._link:
                if fault is not None:
                    self._faulty(fault)
                self._disconnected()

        link = await connect(self._address, received, lost)
        link.send(_native.encode_message(Kind.HELLO, 0, Hello(VERSION, self._anchor, self._database).pack()))
        try:
            async with asyncio.timeout(self._retry):
                self._welcome = await greeting
        except TimeoutError:
            link.close()
            raise Unavailable(f"{self._address} does not answer") from None
        except BaseException:
            link.close()
            raise
        if link.closing:
            # Lost behind its welcome, before anybody heard of it.
            raise Unavailable(f"{self._address} closed the connection at once")
        self._database = self._welcome["database"]
        self._durable = max(self._durable, self._welcome["position"])
        self._link = link
        self._appends.connected(link.send, self._welcome["sync"])
        self._changed.set()

    def _disconnected(self) -> None:
        self._link = None
        self._changed = asyncio.Event()
        self._appends.disconnected()
        incoming, self._incoming = self._incoming, {}
        for each in incoming.values():
            each.fail(Gone())
        self._lost.set()

    def _faulty(self, error: KimberliteError) -> None:
        """This connection ends by what was sent over it. After some of those whoever waits is told."""
        self._faults += 1
        if self._faults < MOST_FAULTS:
            return
        self._faults = 0
        self._appends.give_up(f"{error.code}: {error}")
        incoming, self._incoming = self._incoming, {}
        for each in incoming.values():
            each.fail(error)

    def _acknowledged(self, receipt: Receipt | None) -> None:
        if receipt is not None:
            self._durable = max(self._durable, receipt.tree_size)
            if self._anchor is None or receipt.group > self._anchor.group:
                self._anchor = receipt

    def _received(self, kind: int, id: int, body: bytes) -> None:
        if kind == Kind.ERROR and id == NOBODY:
            # The connection ends with it; what was not answered is asked again.
            error = unpack_error(body)
            if isinstance(error, ProtocolError | FrameTooLarge):
                self._faulty(error)
            if self._link is not None:
                self._link.close()
            return
        if kind == Kind.RECEIPTS:
            self._acknowledged(self._appends.receipts(body))
        elif kind == Kind.ERROR and id in self._appends:
            if not self._appends.refused(id, unpack_error(body)) and self._link is not None:
                # The server cannot tell; the next one can.
                self._link.close()
        elif (incoming := self._incoming.get(id)) is not None:
            incoming.arrived(kind, body)
        else:
            return
        self._faults = 0


class Gone(ConnectionError):
    """The connection was lost before this was answered."""


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
    found = URL.fullmatch(url) if isinstance(url, str) else None
    if found is None:
        raise Invalid(f"{url!r} is neither kimberlite://HOST:PORT nor kimberlite+unix:/PATH")
    where: str = found["host"] or found["path"]
    if found["host"] and int(where.rpartition(":")[2]) > 65535:
        raise Invalid(f"{url!r} has a port above 65535")
    return where


async def result(incoming: Incoming) -> Any:
    kind, body = await incoming.next()
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
