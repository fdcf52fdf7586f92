"""What other clients feel of one that means harm, beside what they feel of a neighbour that only keeps a core busy.

A few clients append one record at a time at a rate that the daemon hardly notices. They are timed from when an append
was due, alone and attacked in turns. The time in which the daemon says that a message is none is at least the time
that its loop spent on it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import os
import socket
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from benches.daemon import Daemon
from benches.table import Table, asked, machine, publish
from kimberlite import _native
from kimberlite.load.plan import Plan
from kimberlite.load.run import Processes
from kimberlite.load.worker import connected, greeted
from kimberlite.wire.messages import Kind

CLIENTS: Final = 4
#: Appends a second of all of them; and how many of one may be open, so that one that is late does not hold up the next.
RATE: Final = 800
DEPTH: Final = 64
#: Seconds of load after a change before anything counts, or as many as count if these are fewer.
SETTLING: Final = 0.3
HEADER: Final = struct.Struct("<III")
MIB: Final = 1 << 20

#: Attacks until it is told to end: seconds that each answer took, if it gets any.
Attack = Callable[[str], Iterator[float | None]]


def message(kind: int, id: int, body: bytes) -> bytes:
    return HEADER.pack(len(body), kind, id) + body


def broken(body: bytes) -> Attack:
    """Messages that are none, over one connection after another."""

    def attack(address: str) -> Iterator[float | None]:
        while True:
            with connected(address) as link:
                greeted(link)
                whole = message(Kind.APPEND, 1, body)
                link.sendall(whole[:-1])
                begun = time.perf_counter()
                link.sendall(whole[-1:])
                until_closed(link)
                yield time.perf_counter() - begun

    return attack


def too_long(address: str) -> Iterator[float | None]:
    for length in itertools.cycle((0, (16 << 20) + 1, (1 << 32) - 1)):
        with connected(address) as link:
            greeted(link)
            begun = time.perf_counter()
            link.sendall(HEADER.pack(length, Kind.APPEND, 1))
            until_closed(link)
            yield time.perf_counter() - begun


def floods(address: str) -> Iterator[float | None]:
    """Requests without end, and no answer is ever read."""
    flood = b"".join(message(Kind.INFO, i, b"\xc0") for i in range(10_000))
    while True:
        with connected(address) as link:
            greeted(link)
            link.settimeout(0.05)
            with contextlib.suppress(OSError):
                while True:
                    try:
                        link.sendall(flood)
                    except TimeoutError:
                        yield None
            yield None


def never_reads(address: str) -> Iterator[float | None]:
    """A subscriber of everything, from the first record on."""
    while True:
        with connected(address) as link:
            greeted(link)
            link.sendall(message(Kind.TAIL, 1, _native.pack({"credit": 1 << 40, "start": 0})))
            for _ in range(20):
                time.sleep(0.05)
                yield None


def storms(address: str) -> Iterator[float | None]:
    while True:
        links = [connected(address) for _ in range(50)]
        for link in links:
            link.close()
        yield None


def speaks_http(address: str) -> Iterator[float | None]:
    while True:
        with connected(address) as link:
            begun = time.perf_counter()
            link.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            until_closed(link)
            yield time.perf_counter() - begun


def appends_largest(address: str) -> Iterator[float | None]:
    """No attack: one client whose records are as large as they may be, one after another."""
    body = _native.pack(["large", [os.urandom(15 * MIB)], None, None, None])
    with connected(address) as link:
        greeted(link)
        for id in itertools.count(1):
            link.sendall(message(Kind.APPEND, id % 1000, body))
            link.recv(MIB)
            yield None


def keeps_a_core_busy(_address: str) -> Iterator[float | None]:
    while True:
        until = time.perf_counter() + 0.01
        while time.perf_counter() < until:
            pass
        yield None


ATTACKS: Final[dict[str, Attack]] = {
    "a neighbour that keeps a core busy": keeps_a_core_busy,
    "lengths that no message has": too_long,
    "an array that claims 2**32 entries": broken(b"\xdd\xff\xff\xff\xff"),
    "8 MiB of empty maps": broken(b"\xdd\x00\x80\x00\x00" + b"\x80" * (8 * MIB)),
    "2,000 nested arrays": broken(b"\x91" * 2_000 + b"\xc0"),
    "trailing bytes": broken(b"\xc0\xc0"),
    "requests, and no answer is read": floods,
    "a subscriber that never reads": never_reads,
    "connections opened and closed": storms,
    "HTTP": speaks_http,
    "no harm meant: records of 15 MiB": appends_largest,
}


def until_closed(link: socket.socket) -> None:
    with contextlib.suppress(ConnectionError):
        while link.recv(65536):
            pass


def attack(name: str, address: str, pipe: Connection) -> None:
    """In a process of its own, until there is something in the pipe."""
    answers, times = [], 0
    for took in ATTACKS[name](address):
        times += 1
        if took is not None:
            answers.append(took)
        if pipe.poll():
            break
    pipe.send((times, answers))


@dataclass(frozen=True, slots=True)
class Felt:
    attack: str
    #: A second.
    attacks: float
    alone_p50_ms: float
    alone_p99_ms: float
    attacked_p50_ms: float
    attacked_p99_ms: float
    attacked_most_ms: float
    #: In which the attacker was answered; None where nothing is.
    answer_p50_ms: float | None
    answer_p99_ms: float | None
    #: That the daemon grew by, at most.
    mib: float


@contextmanager
def attacked(name: str, address: str, found: list[tuple[int, list[float]]]) -> Iterator[None]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=attack, args=(name, address, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield
        ours.send(None)
        found.append(ours.recv())
    finally:
        process.terminate()
        process.join()


def feel(name: str, daemon: Daemon, others: Processes, seconds: float, rounds: int) -> Felt:
    alone, under = _native.Histogram(), _native.Histogram()
    said: list[tuple[int, list[float]]] = []
    grown, settling = 0, min(SETTLING, seconds)
    for _ in range(rounds):
        others.run(settling, warm=True)
        alone = alone.plus(others.run(seconds).times)
        before = daemon.forget_peak()
        with attacked(name, daemon.address, said):
            # It takes a moment to start.
            others.run(min(1.0, 4 * seconds) + settling, warm=True)
            under = under.plus(others.run(seconds).times)
        grown = max(grown, daemon.peak - before)
    answers = sorted(answer for _, each in said for answer in each)
    return Felt(
        name,
        sum(times for times, _ in said) / (rounds * (seconds + settling)),
        alone.quantile(0.5) / 1e6,
        alone.quantile(0.99) / 1e6,
        under.quantile(0.5) / 1e6,
        under.quantile(0.99) / 1e6,
        under.quantile(1.0) / 1e6,
        1000 * statistics.median(answers) if answers else None,
        1000 * answers[len(answers) * 99 // 100] if answers else None,
        grown / MIB,
    )


def table(found: list[Felt]) -> Table:
    rows = tuple(
        (
            each.attack,
            f"{each.attacks:,.0f}",
            f"{each.alone_p50_ms:.2f}",
            f"{each.alone_p99_ms:.2f}",
            f"{each.attacked_p50_ms:.2f}",
            f"{each.attacked_p99_ms:.2f}",
            f"{each.attacked_p99_ms / each.alone_p99_ms:.2f}",
            f"{each.attacked_most_ms:.1f}",
            "" if each.answer_p50_ms is None else f"{each.answer_p50_ms:.2f}",
            "" if each.answer_p99_ms is None else f"{each.answer_p99_ms:.2f}",
            f"{each.mib:.0f}",
        )
        for each in found
    )
    headings = (
        "what one more client does",
        "a second",
        "others alone p50 ms",
        "p99 ms",
        "beside it p50 ms",
        "p99 ms",
        "p99 ÷ alone",
        "most ms",
        "answered in p50 ms",
        "p99 ms",
        "memory MiB",
    )
    return Table(f"{CLIENTS} clients, {RATE} durable appends a second, beside one more", headings, rows)


def arguments() -> argparse.ArgumentParser:
    parser = asked("hostile", __doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="alone, and beside it, in each round")
    parser.add_argument("--rounds", type=int, default=3)
    return parser


def main() -> None:
    options = arguments().parse_args()
    found = []
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory) as name:
        directory = Path(name)
        with Daemon(directory / "db") as daemon:
            plan = Plan("append", daemon.address, CLIENTS, 1, 256, depth=DEPTH, rate=RATE, processes=1)
            with Processes(plan) as others:
                others.run(1.0, warm=True)
                for each in ATTACKS:
                    print(each, file=sys.stderr, flush=True)
                    found.append(feel(each, daemon, others, options.seconds, options.rounds))
        where = machine(directory)
    publish(where, [table(found)], {"hostile": found}, options)


if __name__ == "__main__":
    main()
