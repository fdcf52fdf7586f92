"""A server on loopback, and a client that is nothing but a socket and another implementation of msgpack."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgpack

import kimberlite
from kimberlite.api import open_with
from kimberlite.log.options import Options
from kimberlite.server.access import Access
from kimberlite.server.limits import Limits
from kimberlite.server.server import Server
from kimberlite.wire.messages import NOBODY, Kind


class Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        #: Bytes of the last message that came.
        self.length = 0

    def send(self, kind: int, id: int, body: Any) -> None:
        self.raw(kind, id, msgpack.packb(body))

    def raw(self, kind: int, id: int, body: bytes, length: int | None = None) -> None:
        self.writer.write(struct.pack("<III", len(body) if length is None else length, kind, id) + body)

    async def next(self) -> tuple[Kind, int, Any]:
        length, kind, id = struct.unpack("<III", await asyncio.wait_for(self.reader.readexactly(12), 20))
        body = await asyncio.wait_for(self.reader.readexactly(length), 20)
        self.length = 12 + length
        return Kind(kind), id, msgpack.unpackb(body)

    async def hello(self, **more: Any) -> Any:
        self.send(Kind.HELLO, 0, {"version": 1, **more})
        kind, _, body = await self.next()
        assert kind == Kind.WELCOME, body
        return body

    async def answers(self, count: int) -> dict[int, Any]:
        """Receipts and errors of so many appends, by their ids: `(ending, places)`, or the error's code."""
        found: dict[int, Any] = {}
        while len(found) < count:
            kind, id, body = await self.next()
            if kind == Kind.ERROR:
                assert id != NOBODY, body
                found[id] = body["code"]
            else:
                assert (kind, id) == (Kind.RECEIPTS, NOBODY)
                *ending, answers = body
                found |= {each: (ending, places) for each, places in answers}
        return found

    async def records(self, id: int) -> list[tuple[str, int, int, Any]]:
        """Stream, offset, position and record, until the end."""
        found: list[tuple[str, int, int, Any]] = []
        while True:
            kind, to, body = await self.next()
            assert to == id, body
            if kind == Kind.END:
                return found
            assert kind == Kind.RECORDS, body
            for stream, offset, position, _, records in body:
                found += [(stream, offset + i, position + i, record) for i, record in enumerate(records)]

    async def rest(self) -> list[tuple[Kind, int, Any]]:
        """All that comes until the connection ends in any way."""
        whole, found = b"", []
        with contextlib.suppress(ConnectionError):
            while piece := await asyncio.wait_for(self.reader.read(1 << 20), 20):
                whole += piece
        self.reader = asyncio.StreamReader()
        self.reader.feed_data(whole)
        self.reader.feed_eof()
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                found.append(await self.next())
        return found

    async def broken(self) -> str:
        """The code that the connection ends with; "" if it just ends."""
        code = ""
        try:
            while True:
                kind, id, body = await self.next()
                if kind == Kind.ERROR and id == NOBODY:
                    code = body["code"]
        except (asyncio.IncompleteReadError, ConnectionError):
            return code

    async def close(self) -> None:
        self.writer.close()
        # The server may have been first.
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


class Served:
    """A database, its server, and the way to it."""

    def __init__(self, log: kimberlite.Log, server: Server, port: int) -> None:
        self.log, self.server, self.port = log, server, port
        self._wires: list[Wire] = []

    async def connect(self) -> Wire:
        wire = Wire(*await asyncio.open_connection("127.0.0.1", self.port))
        self._wires.append(wire)
        return wire

    async def greeted(self, **more: Any) -> Wire:
        wire = await self.connect()
        await wire.hello(**more)
        return wire

    def ahead(self, receipt: kimberlite.Receipt) -> list[Any]:
        """One as sound, of a log that has gone on further than this one."""
        further = receipt._replace(tree_size=receipt.tree_size + 10, group=receipt.group + 10)
        mac = self.log._native.receipt_mac(further[:12])
        assert mac is not None
        return list(further._replace(mac=mac))

    async def close(self) -> None:
        for wire in self._wires:
            await wire.close()
        await self.server.drain(5)


@asynccontextmanager
async def served(
    path: Path,
    limits: Limits | None = None,
    *,
    every: Options | None = None,
    access: Access | None = None,
    **options: Any,
) -> AsyncIterator[Served]:
    """`every`: all of the log's options, beyond those that `open` takes."""
    opening = (
        kimberlite.open(path, **options)
        if every is None
        else open_with(path, every, key_file=None, backend="auto", on_replay=lambda: None)
    )
    async with opening as log:
        info = await log.info()
        about = {"database": info["database_id"], "origin": info["origin"]}
        server = Server(log, limits or Limits(), about=about, access=access)
        listening = socket.create_server(("127.0.0.1", 0))
        await server.listen(listening)
        serving = Served(log, server, listening.getsockname()[1])
        try:
            yield serving
        finally:
            await serving.close()


async def until(what: Any, seconds: float = 20) -> None:
    """Returns when it holds."""
    async with asyncio.timeout(seconds):
        while not what():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
