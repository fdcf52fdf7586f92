"""The daemon's listeners and clients, from the first to the last."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from kimberlite import _native
from kimberlite.errors import (
    Closed,
    Invalid,
    KeyUnavailable,
    KimberliteError,
    LimitExceeded,
    Misconfigured,
    RolledBack,
    UnknownOutcome,
)
from kimberlite.log.log import Log
from kimberlite.log.serving import Serving
from kimberlite.records import Receipt
from kimberlite.server.access import Access, Everything
from kimberlite.server.connection import Connection
from kimberlite.server.limits import Limits
from kimberlite.server.metrics import Metrics
from kimberlite.wire.messages import VERSION

LOG = logging.getLogger(__name__)

#: Seconds between two looks at who is late.
LOOK: Final = 0.25
#: Clients whose last connection is remembered.
RECOGNIZED: Final = 10_000


class Server:
    """Serves one log, which is opened and closed by whoever made it.

    * It listens until `drain`, which takes nothing more and returns when all that was accepted is answered.
    * A client's receipt that is sound and ahead of the log ends all appending: the log was rolled back. One of an
      earlier incarnation only ends that client's: somebody has repaired the log, and accepted the loss.
    """

    def __init__(
        self,
        log: Log,
        limits: Limits,
        *,
        about: dict[str, Any],
        access: Access | None = None,
        verify: Callable[[Receipt | None, threading.Event], dict[str, Any]] | None = None,
        next_key_file: str = "",
    ) -> None:
        self.limits = limits
        #: Where the next master key is, when somebody asks for it: no client names a file.
        self._next_key_file = next_key_file
        #: Checks every byte of the log, in a thread, as long as the event is set; None where nobody gave it.
        self._verify = verify
        self._verifying = asyncio.Lock()
        #: Set while somebody wants what is verified now.
        self._verified = threading.Event()
        self.access: Access = access or Everything()
        shared = _native.Limits(
            requests=limits.requests,
            bytes=limits.request_bytes,
            pool_bytes=log.options.pool_bytes,
            inbox_bytes=limits.inbox_bytes,
        )
        self.serving = Serving(log, shared)
        #: What clients are told of the database.
        self._about = about
        self.metrics = Metrics()
        self.connections: set[Connection] = set()
        #: The last connections of clients that said who they are, by their number; and those that are there.
        self._numbers: OrderedDict[bytes, int] = OrderedDict()
        self._clients: dict[bytes, Connection] = {}
        self._listeners: list[asyncio.Server] = []
        self._rolled_back: RolledBack | None = None
        #: Set when the log has failed: nothing is acknowledged any more.
        self.failed = asyncio.Event()
        self._draining = False
        self._looking: asyncio.TimerHandle | None = None

    # ---- from the first to the last

    async def listen(self, where: socket.socket) -> None:
        """From here on clients that connect to this socket, which is bound, are served."""
        loop = asyncio.get_running_loop()
        unix = where.family == socket.AF_UNIX
        create = loop.create_unix_server if unix else loop.create_server
        self._listeners.append(await create(lambda: Connection(self), sock=where, backlog=1024))
        if self._looking is None:
            self._look()

    async def drain(self, timeout: float) -> None:
        """Accepts nobody, takes nothing more, and returns when everybody is answered and gone, or after the timeout."""
        self._draining = True
        self._verified.clear()
        for listener in self._listeners:
            listener.close()
        for connection in list(self.connections):
            connection.finish()
        end = asyncio.get_running_loop().time() + timeout
        while self.connections and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.005)
            for connection in list(self.connections):
                connection.finish_if_idle()
        if self.connections:
            LOG.warning("%d clients did not take their answers", len(self.connections))
        for connection in list(self.connections):
            connection.abort()
        if self._looking is not None:
            self._looking.cancel()

    # ---- what connections say

    def joined(self, connection: Connection) -> None:
        self.connections.add(connection)
        self.metrics.connected += 1
        if len(self.connections) > self.limits.connections:
            connection.fail(LimitExceeded(f"the server has {self.limits.connections} clients already"))
        elif self._draining:
            connection.finish()

    def left(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if connection.client is not None and self._clients.get(connection.client) is connection:
            del self._clients[connection.client]
        self.metrics.closed[connection.why] += 1

    def recognized(self, client: bytes, number: int, connection: Connection) -> None:
        """A client has connected again, and sends again what was not answered: what is left of an earlier connection
        of its would come late. Closed if this is that itself."""
        if number <= self._numbers.get(client, -1):
            raise Closed("this client has connected again since")
        if (earlier := self._clients.get(client)) is not None:
            earlier.replace()
        connection.client = client
        self._clients[client], self._numbers[client] = connection, number
        self._numbers.move_to_end(client)
        while len(self._numbers) > RECOGNIZED + len(self._clients):
            oldest, number = self._numbers.popitem(last=False)
            if oldest in self._clients:
                self._numbers[oldest] = number

    def anchored(self, anchor: Receipt) -> None:
        """A client has shown the highest durable receipt that it was given."""
        try:
            self.serving.check_anchor(anchor)
        except RolledBack as error:
            if anchor.incarnation < self.serving.incarnation:
                # What it was given then was given up by whoever repaired the log: it is told so, and nobody else.
                raise RolledBack(f"a repair has given up what this receipt stands for: {error}") from None
            LOG.critical("a client has a receipt that the log does not reach: %s", error)
            self._rolled_back = RolledBack(f"nothing is appended any more: {error}")
            self.serving.forbid(self._rolled_back)
            for connection in self.connections:
                connection.session.forbid()

    async def verify(self, anchor: Receipt | None) -> dict[str, Any]:
        """What every byte of the log says; one such work at a time. Cancelled, it ends soon."""
        if self._verify is None:
            raise Invalid("this server has no way to verify")
        async with self._verifying:
            wanted = threading.Event()
            wanted.set()
            self._verified = wanted
            try:
                if self._draining:
                    raise Closed("the server is stopping")
                return await asyncio.to_thread(self._verify, anchor, wanted)
            finally:
                wanted.clear()

    async def rotate(self) -> str:
        """Wraps every key under the next master key; its id."""
        if not self._next_key_file:
            raise Invalid("the setting next_key_file says of no key that it is the next")
        self.check_writable()
        try:
            return await self.serving.rotate(self._next_key_file)
        except (KeyUnavailable, Misconfigured) as error:
            if self._next_key_file not in str(error):
                raise
            LOG.error("next_key_file: %s", error)
            what = "the file that the setting next_key_file names gives no key; the server's log says why"
            raise KeyUnavailable(what) from None

    def check_writable(self) -> None:
        if self._rolled_back is not None:
            raise RolledBack(str(self._rolled_back))

    @property
    def failure(self) -> KimberliteError | None:
        """What the log has failed of."""
        error = self.serving.committer.poisoned
        return error if error is None or isinstance(error, KimberliteError) else UnknownOutcome(str(error))

    @property
    def database(self) -> str:
        return str(self._about["database"])

    def welcome(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            **self._about,
            "position": self.serving.position,
            "group": self.serving.group,
            "incarnation": self.serving.incarnation,
            "sync": self.serving.sync,
            "requests": self.limits.requests,
        }

    @property
    def refusing(self) -> str | None:
        """Why appends are not taken; None if they are."""
        if self._draining:
            return "it is stopping"
        if self._rolled_back is not None:
            return str(self._rolled_back)
        return None if self.failure is None else str(self.failure)

    @property
    def clients(self) -> int:
        return len(self.connections)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self.failure is not None:
            self.failed.set()
        self.metrics.looked(self.serving, now)
        for connection in list(self.connections):
            connection.look(now)
        self._looking = loop.call_later(LOOK, self._look)
