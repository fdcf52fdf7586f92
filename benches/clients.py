"""Client processes that keep batches in flight to a server of any kind and time its answers.

The requests are bytes made before the clock runs and the answers are only counted, so that what a client spends is a
small part of what is measured. Batches are those answered within the time that all processes share.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Protocol, cast

import uvloop

#: Different batches of a lane that are sent in turn.
BATCHES = 16
#: Seconds that a server may be silent before the run fails.
PATIENCE = 60.0


class Refused(RuntimeError):
    """The server answered with an error, or not in its protocol."""


@dataclass(frozen=True, slots=True)
class Load:
    clients: int
    #: Batches in flight of each client.
    depth: int
    #: Records.
    batch: int
    #: Bytes of a record.
    size: int
    #: Of measuring; the warm-up comes before.
    seconds: float
    processes: int = 2


class Answers(Protocol):
    """What a connection has heard; parts of an answer are kept for the next call."""

    def finished(self, data: bytes) -> int:
        """Requests that end with these bytes."""


class Dialect(Protocol):
    """What is said over a connection. It goes to other processes, so it is picklable."""

    def opening(self) -> bytes: ...
    def openings(self) -> int:
        """Requests in the opening."""

    def request(self, stream: int, records: Sequence[bytes]) -> bytes: ...
    def answers(self, batch: int) -> Answers: ...


@dataclass(frozen=True, slots=True)
class Lane:
    """One connection."""

    stream: int
    in_flight: int


@dataclass(frozen=True, slots=True)
class Tally:
    #: Batches since the first connection, warm-up included.
    acknowledged: int
    #: Nanoseconds of each batch that was answered while it counted.
    took: list[int]


@dataclass(frozen=True, slots=True)
class Clock:
    """Nanoseconds of the monotonic clock, which all processes share."""

    begin: int
    end: int


class Talk(asyncio.Protocol):
    """A lane at work: a request for each answer, until the clock's end."""

    def __init__(self, dialect: Dialect, lane: Lane, load: Load) -> None:
        loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._clock: Clock
        self.opened: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.acknowledged = 0
        self.took: list[int] = []
        self._dialect = dialect
        self._answers = dialect.answers(load.batch)
        self._in_flight = lane.in_flight
        self._ready = [
            dialect.request(lane.stream, [os.urandom(load.size) for _ in range(load.batch)]) for _ in range(BATCHES)
        ]
        self._turn = 0
        self._started: deque[int] = deque()
        self._opening = dialect.openings()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._opening:
            self._transport.write(self._dialect.opening())
        else:
            self.opened.set_result(None)

    def start(self, clock: Clock) -> None:
        self._clock = clock
        self._send(self._in_flight, time.monotonic_ns())

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        try:
            finished = self._answers.finished(data)
        except Refused as problem:
            self._end(problem)
            return
        if not self.opened.done():
            self._opening -= finished
            if not self._opening:
                self.opened.set_result(None)
        elif finished:
            self._count(finished, now)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(Refused("the server closed a connection"))

    def close(self) -> None:
        self._transport.abort()

    def _count(self, finished: int, now: int) -> None:
        self.acknowledged += finished
        begin, end = self._clock.begin, self._clock.end
        for _ in range(finished):
            started = self._started.popleft()
            if begin <= now < end:
                self.took.append(now - started)
        if now < end:
            self._send(finished, now)
        elif not self._started:
            self._end(None)

    def _send(self, requests: int, now: int) -> None:
        for _ in range(requests):
            self._started.append(now)
            self._transport.write(self._ready[self._turn % BATCHES])
            self._turn += 1

    def _end(self, problem: Exception | None) -> None:
        for future in (self.opened, self.ended):
            if not future.done():
                if problem is None:
                    future.set_result(None)
                else:
                    future.set_exception(problem)
                    # Looked at, or asyncio would complain of the one that nobody waits for.
                    future.exception()


async def talk(port: int, dialect: Dialect, lanes: Sequence[Lane], load: Load, pipe: Connection) -> Tally:
    loop = asyncio.get_running_loop()
    talks: list[Talk] = []
    try:
        async with asyncio.timeout(load.seconds + PATIENCE):
            for lane in lanes:
                _, one = await loop.create_connection(partial(Talk, dialect, lane, load), "127.0.0.1", port)
                talks.append(one)
                await one.opened
            pipe.send(None)
            clock: Clock = pipe.recv()
            for one in talks:
                one.start(clock)
            await asyncio.gather(*(one.ended for one in talks))
        return Tally(sum(one.acknowledged for one in talks), [took for one in talks for took in one.took])
    finally:
        for one in talks:
            one.close()


def work(port: int, dialect: Dialect, lanes: Sequence[Lane], load: Load, pipe: Connection) -> None:
    """A client process."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            pipe.send(runner.run(talk(port, dialect, lanes, load, pipe)))
    except Exception as problem:
        pipe.send(f"{type(problem).__name__}: {problem}")


def heard(pipe: Connection, seconds: float) -> object:
    if not pipe.poll(seconds):
        raise Refused("a client process is silent")
    try:
        found = pipe.recv()
    except EOFError:
        raise Refused("a client process died") from None
    if isinstance(found, str):
        raise Refused(found)
    return found


def drive(port: int, dialect: Dialect, lanes: Sequence[Lane], load: Load, warm: float) -> Tally:
    """All lanes at once, dealt out to the processes."""
    context = multiprocessing.get_context("spawn")
    processes, pipes = [], []
    try:
        for number in range(min(load.processes, len(lanes))):
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(port, dialect, lanes[number :: load.processes], load, theirs))
            process.start()
            theirs.close()
            processes.append(process)
            pipes.append(ours)
        for pipe in pipes:
            heard(pipe, PATIENCE)
        begin = time.monotonic_ns() + int(warm * 1e9)
        for pipe in pipes:
            pipe.send(Clock(begin, begin + int(load.seconds * 1e9)))
        tallies = [heard(pipe, load.seconds + warm + 2 * PATIENCE) for pipe in pipes]
    finally:
        for process in processes:
            process.kill()
            process.join()
            process.close()
        for pipe in pipes:
            pipe.close()
    found = [tally for tally in tallies if isinstance(tally, Tally)]
    return Tally(sum(each.acknowledged for each in found), [took for each in found for took in each.took])
