"""What is imported, on its way to a daemon."""

from __future__ import annotations

import asyncio
from typing import Any

from kimberlite import _native
from kimberlite.client.connection import Connection
from kimberlite.client.link import Link
from kimberlite.client.reading import Incoming
from kimberlite.errors import Closed, ProtocolError, Unavailable, UnknownOutcome
from kimberlite.wire.messages import Kind


class Importing:
    """Over one link: what was on its way when that is lost may be imported, and nothing comes behind it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._link: Link | None = None

    async def enter(
        self, stream: str, offset: int, time: int | None, batch: _native.Batch | None, gap: str | None
    ) -> asyncio.Future[Any]:
        body = _native.encode_import(stream, offset, time, batch, gap)
        if self._link is None:
            await self._connection.ready()
            self._link = self._connection.link
        return asyncio.ensure_future(self._answer(self._ask(body)))

    async def settle(self) -> None:
        if self._link is not None:
            await self._answer(self._ask(_native.pack(None)))

    def _ask(self, body: bytes) -> Incoming:
        self._connection.check()
        incoming = self._connection.ask(Kind.IMPORT, body) if self._connection.link is self._link else None
        if incoming is None:
            raise Unavailable("the connection was lost: look what is imported, and go on from there")
        return incoming

    async def _answer(self, incoming: Incoming) -> None:
        try:
            kind, _ = await incoming.next()
        except (ConnectionError, Closed):
            raise UnknownOutcome("the connection was lost, and it may be imported: go on from what is there") from None
        finally:
            self._connection.answered(incoming)
        if kind != Kind.RESULT:
            raise ProtocolError(f"a message of kind {kind} answers nothing that was imported")
