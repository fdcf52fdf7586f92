"""Iterators over records that a daemon sends, and that go on over lost connections."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from kimberlite import _native
from kimberlite.errors import Closed
from kimberlite.iterators import Batched, Records
from kimberlite.records import Record
from kimberlite.wire.messages import HEADER, Kind, Reading, unpack_error

if TYPE_CHECKING:
    from kimberlite.client.connection import Connection

#: Bytes that may be on their way to an iterator.
CREDIT: Final = 4 << 20
#: Seconds before a server that is stopping is asked again: by then it is gone.
PAUSE: Final = 0.05


class Incoming:
    """What comes of one request, in its order."""

    def __init__(self, id: int) -> None:
        self.id = id
        self._messages: deque[tuple[int, bytes]] = deque()
        self._error: Exception | None = None
        self._more = asyncio.Event()

    def arrived(self, kind: int, body: bytes) -> None:
        self._messages.append((kind, body))
        self._more.set()

    def fail(self, error: Exception) -> None:
        """Nothing more comes."""
        self._error = error
        self._more.set()

    async def next(self) -> tuple[int, bytes]:
        """The next message; or what the server says instead."""
        while not self._messages:
            if self._error is not None:
                raise self._error
            self._more.clear()
            await self._more.wait()
        kind, body = self._messages.popleft()
        if kind == Kind.ERROR:
            raise unpack_error(body)
        return kind, body


class RemoteRecords(Records):
    """What a request for records gives; asked again, from where it was, when the connection was lost."""

    kind: Kind

    def __init__(self, connection: Connection, asked: Reading) -> None:
        super().__init__()
        self._connection, self._asked = connection, asked
        self._incoming: Incoming | None = None
        self._ended = False
        #: The log's when it came to where it is, if anything has come yet, and when it asked last; and the position
        #: behind the highest record that came.
        self._incarnation: int | None = None
        self._asked_in = 0
        self._reached: int | None = None

    def begin(self) -> None:
        """Asks, if there is a connection. A repair may have given up what has come before."""
        if self._incoming is not None:
            return
        self._asked_in = self._connection.incarnation
        asked = replace(self._asked, incarnation=self._incarnation, reached=self._reached)
        self._incoming = self._connection.ask(self.kind, asked.pack())

    async def _more(self) -> list[Record]:
        body = await self._body()
        if body is None:
            return []
        records = _native.decode_records(body, self._asked.reverse)
        last = records[-1]
        self._went_on(len(records), last.offset, last.position, max(records[0].position, last.position))
        return records

    def runs(self) -> Batched[bytes]:
        """The records as they are sent."""
        return RemoteRuns(self)

    async def run(self) -> list[bytes]:
        """The next message; nothing at the end."""
        body = await self._body()
        if body is None:
            return []
        _, records, offset, position = _native.pick_runs(body, None)
        self._went_on(records, offset, position, position)
        return [body]

    async def _body(self) -> bytes | None:
        """The next message of records; None at the end."""
        while not self._ended:
            self._connection.check()
            if self._incoming is None:
                await self._connection.ready()
                self.begin()
                continue
            try:
                kind, body = await self._incoming.next()
            except ConnectionError:
                self._incoming = None
                continue
            except Closed:
                # The server is stopping; the next one goes on.
                self._connection.check()
                self._incoming = None
                await asyncio.sleep(PAUSE)
                continue
            self._incarnation = self._asked_in
            if kind == Kind.RESULT:
                self._began(_native.unpack(body))
            elif kind == Kind.END:
                self._ended = True
            else:
                self._connection.tell(Kind.CREDIT, self._incoming.id, _native.pack(HEADER + len(body)))
                return body
        return None

    def _began(self, at: int | None) -> None:
        if at is not None:
            self._asked = replace(self._asked, start=at)

    def _went_on(self, records: int, offset: int, position: int, highest: int) -> None:
        at = position if self._asked.stream is None else offset
        left = None if self._asked.limit is None else self._asked.limit - records
        if self._asked.reverse:
            self._asked = replace(self._asked, until=at, limit=left)
        else:
            self._asked = replace(self._asked, start=at + 1, limit=left)
        self._reached = max(self._reached or 0, highest + 1)

    async def aclose(self) -> None:
        await super().aclose()
        self._ended = True
        if self._incoming is not None:
            self._connection.forget(self._incoming)
            self._incoming.arrived(Kind.END, b"")


class RemoteRuns(Batched[bytes]):
    """The messages of a request for records."""

    def __init__(self, records: RemoteRecords) -> None:
        super().__init__()
        self._records = records

    async def _more(self) -> list[bytes]:
        return await self._records.run()

    async def aclose(self) -> None:
        await super().aclose()
        await self._records.aclose()


class RemoteReader(RemoteRecords):
    """What is there when it begins."""

    kind = Kind.READ


class RemoteTail(RemoteRecords):
    """What is durable and what becomes so, until it or the database is closed."""

    kind = Kind.TAIL

    def __init__(self, connection: Connection, asked: Reading) -> None:
        super().__init__(connection, asked)
        # Where the end is now cannot be asked later.
        self.begin()
