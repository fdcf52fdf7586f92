"""A connection to a daemon that is made again whenever it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import Any, Final

from kimberlite import _native
from kimberlite.client.appends import Appends, request_ids
from kimberlite.client.link import Link, connect
from kimberlite.client.reading import PAUSE, Incoming
from kimberlite.errors import Closed, FrameTooLarge, Invalid, KimberliteError, ProtocolError, RolledBack, Unavailable
from kimberlite.records import Receipt
from kimberlite.wire.messages import NOBODY, VERSION, Hello, Kind, unpack_error, welcome

#: Seconds between two attempts to connect: the first, and the most.
SOON: Final = 0.02
LATE: Final = 1.0
#: Seconds without a word from the server after which it is asked for one; after as many more it is given up.
QUIET: Final = 15.0
#: Connections in a row that end by what was sent over them, after which whoever waits is told.
MOST_FAULTS: Final = 3
#: What a server says to a client that it will not have, now or later.
FOR_GOOD: Final = (Invalid, RolledBack)


class Connection:
    """What is asked, and who waits for it, over all the links to one daemon.

    * There is a link, or one is being made, until `close`, or until the server will not have this client.
    * What waits for an answer when a link is lost is asked again by who waits; appends are sent again from here.
    * After `retry` seconds without a link, or `MOST_FAULTS` that end by what was sent over them, who waits is told.
    """

    def __init__(self, address: str, *, retry: float, anchor: Receipt | None) -> None:
        self._address, self._retry = address, retry
        self.loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._ids = request_ids()
        self.appends = Appends(self._ids)
        #: Who this is, and how many times it has tried to connect.
        self._name, self._attempts = os.urandom(16), 0
        self.link: Link | None = None
        #: Of the database, once it is known; another one is never written to.
        self._database: str | None = None
        #: The durable receipt with the highest group: a server that does not reach it is rolled back.
        self._anchor = anchor
        #: Positions below it are known to be durable; and the log's incarnation when this connected last.
        self.durable = self.incarnation = 0
        self._incoming: dict[int, Incoming] = {}
        #: Set while there is a link, or somebody must be told that there is none.
        self._changed = asyncio.Event()
        self._lost = asyncio.Event()
        #: Why there is no link; and why there will be none.
        self._why = f"{address} does not answer"
        self._refused: KimberliteError | None = None
        #: Links in a row that ended by what was sent over them, one way or the other.
        self._faults = 0
        #: Whether anything was answered over this link.
        self._useful = False
        #: Whether nothing new is asked; and whether nothing is answered either.
        self.closing = self.closed = False
        self._keeper = self.loop.create_task(self._keep())

    def check(self) -> None:
        if self.closing:
            raise Closed("the database is closed")
        if self.is_forked:
            raise Closed("the database belongs to the process that this one was forked from")
        if self.is_elsewhere:
            raise Invalid("the database belongs to another event loop")
        if self._refused is not None:
            raise self._refused

    @property
    def is_forked(self) -> bool:
        """Whether this is a copy of another process's."""
        return os.getpid() != self._pid

    @property
    def is_elsewhere(self) -> bool:
        """Whether another loop runs than that which it belongs to."""
        try:
            return asyncio.get_running_loop() is not self.loop
        except RuntimeError:
            return False

    async def close(self) -> None:
        self.closing = self.closed = True
        self._keeper.cancel()
        if self.link is not None:
            self.link.close()
        for incoming in list(self._incoming.values()):
            incoming.fail(Closed("the database is closed"))
        self._changed.set()
        with contextlib.suppress(asyncio.CancelledError):
            await self._keeper

    # ---- asking

    async def ready(self) -> None:
        """Returns when there is a link; Unavailable if there is none in time."""
        while self.link is None:
            if self.closed:
                raise Closed("the database is closed")
            if self._refused is not None:
                raise self._refused
            try:
                async with asyncio.timeout(self._retry):
                    await self._changed.wait()
            except TimeoutError:
                raise Unavailable(self._why) from None

    def ask(self, kind: Kind, body: bytes) -> Incoming | None:
        """Sends a request; what comes of it, or None if there is no link."""
        if self.link is None:
            return None
        incoming = Incoming(next(self._ids))
        self._incoming[incoming.id] = incoming
        self.tell(kind, incoming.id, body)
        return incoming

    def tell(self, kind: Kind, id: int, body: bytes) -> None:
        if self.link is not None:
            self.link.send(_native.encode_message(kind, id, body))

    def forget(self, incoming: Incoming) -> None:
        """Nothing more that comes of this is wanted."""
        if self._incoming.pop(incoming.id, None) is not None:
            self.tell(Kind.STOP, incoming.id, _native.pack(None))

    def answered(self, incoming: Incoming) -> None:
        """Nothing more comes of this."""
        self._incoming.pop(incoming.id, None)

    async def request(self, kind: Kind, body: bytes, take: Callable[[Incoming], Any]) -> Any:
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
                if self.closing:
                    raise
                await asyncio.sleep(PAUSE)
            finally:
                self.answered(incoming)

    # ---- links

    async def _keep(self) -> None:
        """Sees to a link as long as the handle is open."""
        delay, since = SOON, self.loop.time()
        while not self.closed:
            try:
                await self._connect()
                linked = self.loop.time()
                await self._watch()
                if not self._useful and self.loop.time() - linked < LATE:
                    raise Unavailable(f"{self._address} closes the connection before anything is answered")
                since = self.loop.time()
                if not self._faults:
                    delay = SOON
            except FOR_GOOD as error:
                self._refused = error
                self.appends.give_up(str(error))
                self._changed.set()
                return
            except KimberliteError as error:
                self._why = str(error)
                if self.loop.time() - since > self._retry:
                    since = self.loop.time()
                    self.appends.give_up(f"no connection for {self._retry:g} s: {error}")
            await asyncio.sleep(delay)
            delay = min(2 * delay, LATE)

    async def _watch(self) -> None:
        """Returns when the connection is lost, or nothing comes of it, not even an answer to a ping."""
        heard, pinged = 0, False
        while self.link is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(QUIET):
                    await self._lost.wait()
            if self.link is None:
                return
            if self.link.heard != heard:
                heard, pinged = self.link.heard, False
            elif pinged:
                self.link.lose(f"nothing was heard of it for {2 * QUIET:g} s")
            else:
                self.tell(Kind.PING, next(self._ids), _native.pack(None))
                pinged = True

    async def _connect(self) -> None:
        greeting: asyncio.Future[dict[str, Any]] = self.loop.create_future()
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
            elif link is self.link:
                if fault is not None:
                    self._faulty(fault)
                self._disconnected()

        try:
            async with asyncio.timeout(self._retry):
                link = await connect(self._address, received, lost)
        except TimeoutError:
            raise Unavailable(f"{self._address} does not answer") from None
        self._attempts += 1
        hello = Hello(VERSION, self._anchor, self._database, (self._name, self._attempts))
        link.send(_native.encode_message(Kind.HELLO, 0, hello.pack()))
        try:
            async with asyncio.timeout(self._retry):
                greeted = await greeting
        except TimeoutError:
            link.close()
            raise Unavailable(f"{self._address} does not answer") from None
        except BaseException:
            link.close()
            raise
        if link.closing:
            # Lost behind its welcome, before anybody heard of it.
            raise Unavailable(f"{self._address} closed the connection at once")
        self._useful = False
        self._database, self.incarnation = greeted["database"], greeted["incarnation"]
        self.durable = max(self.durable, greeted["position"])
        self.link = link
        self.appends.connected(link.send, greeted["sync"], greeted["group"])
        self._changed.set()

    def _disconnected(self) -> None:
        self.link = None
        self._changed = asyncio.Event()
        self.appends.disconnected()
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
        self.appends.give_up(f"{error.code}: {error}")
        incoming, self._incoming = self._incoming, {}
        for each in incoming.values():
            each.fail(error)

    def _acknowledged(self, receipt: Receipt | None) -> None:
        if receipt is not None:
            self.durable = max(self.durable, receipt.tree_size)
            if self._anchor is None or receipt.group > self._anchor.group:
                self._anchor = receipt

    def _received(self, kind: int, id: int, body: bytes) -> None:
        if kind == Kind.ERROR and id == NOBODY:
            # The connection ends with it; what was not answered is asked again.
            error = unpack_error(body)
            if isinstance(error, ProtocolError | FrameTooLarge):
                self._faulty(error)
            if self.link is not None:
                self.link.close()
            return
        if kind == Kind.RECEIPTS:
            self._acknowledged(self.appends.receipts(body))
        elif kind == Kind.ERROR and id in self.appends:
            if not self.appends.refused(id, unpack_error(body)) and self.link is not None:
                # The server cannot tell; the next one can.
                self.link.close()
        elif (incoming := self._incoming.get(id)) is not None:
            incoming.arrived(kind, body)
        else:
            return
        self._faults, self._useful = 0, True


class Gone(ConnectionError):
    """The connection was lost before this was answered."""
