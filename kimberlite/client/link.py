"""One connection to a daemon: bytes to messages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from kimberlite import _native
from kimberlite.errors import KimberliteError, ProtocolError, Unavailable

Received = Callable[[int, int, bytes], None]
#: Is told why, and what was wrong with what came, if that was it.
Lost = Callable[["Link", str, KimberliteError | None], None]


class Link(asyncio.BufferedProtocol):
    """Gives every message as it arrives, and says once that it is lost, and whether by what was sent."""

    def __init__(self, received: Received, lost: Lost) -> None:
        self._received, self._lost = received, lost
        self._transport: asyncio.Transport
        self._inbox = _native.Inbox()
        self._writable = asyncio.Event()
        self._writable.set()
        #: Reads that had something.
        self.heard = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> _native.Inbox:
        return self._inbox

    def buffer_updated(self, nbytes: int) -> None:
        self.heard += 1
        try:
            for kind, id, body in self._inbox.take(nbytes):
                self._received(kind, id, body)
        except Exception as error:
            # Nothing that this connection says can be believed.
            fault = error if isinstance(error, KimberliteError) else ProtocolError(f"{type(error).__name__}: {error}")
            self.lose(f"{fault.code}: {fault}", fault)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()
        self._lost(self, str(exc or "the server closed the connection"), None)

    def send(self, message: bytes) -> None:
        # What is lost with the connection is sent again over the next one.
        if not self._transport.is_closing():
            self._transport.write(message)

    async def writable(self) -> None:
        """Returns when the server has taken enough of what it was sent."""
        await self._writable.wait()

    @property
    def closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self._transport.close()

    def lose(self, why: str, fault: KimberliteError | None = None) -> None:
        """Gives the connection up."""
        lost, self._lost = self._lost, lambda _link, _why, _fault: None
        lost(self, why, fault)
        self._transport.abort()


async def connect(address: str, received: Received, lost: Lost) -> Link:
    """A link to `host:port`, or to the path of a Unix socket."""
    loop = asyncio.get_running_loop()
    link = Link(received, lost)
    try:
        if address.startswith("/"):
            await loop.create_unix_connection(lambda: link, address)
        else:
            host, _, port = address.rpartition(":")
            await loop.create_connection(lambda: link, host.strip("[]"), int(port))
    except (OSError, UnicodeError) as error:
        raise Unavailable(f"{address}: {getattr(error, 'strerror', None) or error}") from error
    return link
