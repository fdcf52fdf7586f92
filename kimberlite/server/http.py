"""Metrics and health for whoever watches, over HTTP: one request a connection."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Final, cast

from kimberlite.server.metrics import CONTENT

if TYPE_CHECKING:
    from kimberlite.server.server import Server

#: Of a request, with all its headers.
LONGEST: Final = 8192
#: Seconds for it, and for taking the answer.
DEADLINE: Final = 5.0
#: At a time; of more the oldest makes room, which an honest one does by itself in an instant.
MOST: Final = 64

RECOVERING: Final = "it is recovering"
REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    503: "Service Unavailable",
}


class Probes:
    """Where metrics and health are asked for: before there is a server too, which says so."""

    def __init__(self) -> None:
        self.server: Server | None = None
        self._asking: dict[Http, None] = {}
        self._listeners: list[asyncio.Server] = []

    async def listen(self, where: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._listeners.append(await loop.create_server(lambda: Http(self, self._asking), sock=where))

    @property
    def refusing(self) -> str | None:
        """Why appends are not taken; None if they are."""
        return RECOVERING if self.server is None else self.server.refusing

    @property
    def damage(self) -> list[str]:
        """What was found while nobody asked; what is sound is served."""
        return (
            [] if self.server is None else [f"damage: {found}" for found in self.server.serving.upkeep.findings.found]
        )

    def close(self) -> None:
        for listener in self._listeners:
            listener.close()


class Http(asyncio.Protocol):
    """Answers one request and closes."""

    def __init__(self, probes: Probes, others: dict[Http, None]) -> None:
        self._probes, self._others = probes, others
        self._arrived = b""
        self._answered = False
        self._transport: asyncio.Transport
        self._deadline: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._deadline = asyncio.get_running_loop().call_later(DEADLINE, self._transport.abort)
        if len(self._others) == MOST:
            next(iter(self._others)).make_room()
        self._others[self] = None

    def make_room(self) -> None:
        del self._others[self]
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        self._others.pop(self, None)

    def data_received(self, data: bytes) -> None:
        if self._answered:
            return
        self._arrived += data
        if b"\r\n\r\n" in self._arrived or b"\n\n" in self._arrived:
            self._answer(*self._answer_to(self._arrived.split(b"\n", 1)[0].strip()))
        elif len(self._arrived) > LONGEST:
            self._answer(400, "text/plain", "the request is too long\n")

    def _answer_to(self, asked: bytes) -> tuple[int, str, str]:
        words = asked.split()
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return 400, "text/plain", "this is no request of HTTP/1.1\n"
        method, path, _ = words
        if method not in (b"GET", b"HEAD"):
            return 405, "text/plain", "only GET is answered\n"
        match path.split(b"?")[0]:
            case b"/metrics":
                server = self._probes.server
                if server is None:
                    return 503, "text/plain", f"{RECOVERING}\n"
                return 200, CONTENT, server.metrics.shown(server)
            case b"/healthz":
                return 200, "text/plain", "ok\n"
            case b"/readyz":
                why = self._probes.refusing
                lines = ["ready" if why is None else why, *self._probes.damage]
                return 200 if why is None else 503, "text/plain", "".join(f"{line}\n" for line in lines)
        return 404, "text/plain", "there are /metrics, /healthz and /readyz\n"

    def _answer(self, status: int, kind: str, text: str) -> None:
        self._answered = True
        body = text.encode()
        head = f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        whole = head.encode() + b"Connection: close\r\n\r\n"
        self._transport.write(whole if self._arrived.startswith(b"HEAD ") else whole + body)
        # A close with more to read would take the answer back.
        self._transport.write_eof()
