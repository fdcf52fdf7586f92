"""A process with some of the clients."""

from __future__ import annotations

import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final

from kimberlite import _native
from kimberlite.errors import Invalid, KimberliteError, Unavailable
from kimberlite.load.plan import Plan
from kimberlite.wire.messages import VERSION, Hello, Kind, unpack_error, welcome

#: Seconds between two words on how far it is.
PROGRESS: Final = 0.2
#: Seconds for the server to say hello, and to answer what is open at the end.
GREETING: Final = 10.0
PATIENCE: Final = 60.0


@dataclass(frozen=True, slots=True)
class Count:
    requests: int = 0
    records: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.requests + other.requests, self.records + other.records)


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a while of load: appends, and reads. Times are encoded."""

    seconds: float
    counts: tuple[Count, Count]
    times: tuple[bytes, bytes]


def main(pipe: Connection, plan: Plan, clients: range) -> None:
    """Does what the pipe says, `(seconds, warm)` at a time; answers with counts and then with `Done`, or an error."""
    # Whoever started it is interrupted too, and ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        crowd = Crowd(plan, clients)
        pipe.send(None)
        while True:
            crowd.run(pipe, *pipe.recv())
    except EOFError:
        return
    except KimberliteError as error:
        said = error.code, str(error)
    except OSError as error:
        said = Unavailable.code, f"{plan.address}: {error.strerror or error}"
    except Exception as error:
        # What else comes of what a server says, or of what it was asked.
        said = Invalid.code, f"{type(error).__name__}: {error}"
    # Whoever started it may be gone.
    with suppress(BrokenPipeError):
        pipe.send(said)


class Crowd:
    """Clients that are connected and greeted."""

    def __init__(self, plan: Plan, clients: range) -> None:
        self._plan = plan
        writes = any(plan.appends(client) for client in clients)
        self._swarm = _native.Swarm(plan.batches() if writes else [])
        for client in clients:
            self._add(client)

    def _add(self, client: int) -> None:
        plan, swarm = self._plan, self._swarm
        with connected(plan.address) as link:
            end = greeted(link)["position"]
            link.setblocking(False)
            if plan.appends(client):
                swarm.append(link.fileno(), f"{plan.stream}/{client}", plan.sync, plan.depth)
                return
            if end < plan.batch:
                raise Invalid(f"there are {end} records, which are less than a batch of {plan.batch} to read")
            # Each begins somewhere else.
            start = client * end // plan.clients
            swarm.read(link.fileno(), start, end, plan.batch, plan.depth)

    def run(self, pipe: Connection, seconds: float, warm: bool) -> None:
        """Load for so long; warm, it is only to get things going, and does not count."""
        swarm = self._swarm
        swarm.pace(self._plan.interval)
        begun = time.perf_counter()
        while (left := begun + seconds - time.perf_counter()) > 0:
            self._drive(min(left, PROGRESS), asking=True)
            if not warm:
                pipe.send(counts(swarm))
        if self._drive(PATIENCE, asking=False):
            raise Unavailable(f"the server did not answer within {PATIENCE:g} s")
        took = time.perf_counter() - begun
        appended, read = swarm.times
        pipe.send(Done(took, counts(swarm), (appended.encode(), read.encode())))
        if warm:
            swarm.reset()

    def _drive(self, seconds: float, *, asking: bool) -> bool:
        is_open, refusal = self._swarm.run(seconds, asking)
        if refusal is not None:
            raise unpack_error(refusal)
        return is_open


def counts(swarm: _native.Swarm) -> tuple[Count, Count]:
    appended, read = swarm.counts
    return Count(*appended), Count(*read)


def connected(address: str) -> socket.socket:
    if address.startswith("/"):
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(GREETING)
        link.connect(address)
        return link
    host, _, port = address.rpartition(":")
    link = socket.create_connection((host.strip("[]"), int(port)), timeout=GREETING)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link


def greeted(link: socket.socket) -> dict[str, Any]:
    """What the server says of itself."""
    link.sendall(_native.encode_message(Kind.HELLO, 0, Hello(VERSION, None, None).pack()))
    inbox = _native.Inbox()
    while True:
        with memoryview(inbox) as room:
            count = link.recv_into(room)
        if count == 0:
            raise Unavailable("the server closed the connection")
        for kind, _, body in inbox.take(count):
            if kind != Kind.WELCOME:
                raise unpack_error(body)
            return welcome(body)
