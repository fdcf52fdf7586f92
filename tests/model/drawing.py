"""Records and times as clients and machines may have them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from .records import Record

STREAMS = ("a", "b/c", "é✓", "x" * 255)

Tick = Callable[[], int]


def clock(rng: Random) -> Tick:
    """Time as some machines have it: it stands, jumps, and goes back."""
    now = rng.randrange(1 << 60)

    def tick() -> int:
        nonlocal now
        now = max(0, now + rng.choice((0, 1, 1_000, 10**9, 10**12, -(10**9))))
        return now

    return tick


def payload(rng: Random, largest: int) -> bytes:
    kind = rng.randrange(5)
    size = rng.randrange(largest) if rng.random() < 0.1 else rng.randrange(300)
    if kind == 0:
        return b""
    if kind == 1:
        return b'{"amount":%d,"currency":"CHF","note":"%s"}' % (rng.randrange(10**6), b"n" * (size // 2))
    return rng.randbytes(size) if kind < 4 else b"ab" * (size // 2)


def record(rng: Random, largest: int) -> Record:
    key = rng.choice((None, None, b"", b"k", rng.randbytes(20)))
    headers = rng.choice(((), (), (("h", b"v"), ("h", b"")), (("ü", rng.randbytes(9)), ("x", b""))))
    event_time = rng.choice((None, None, 0, -5, rng.randrange(-(1 << 63), 1 << 63)))
    return Record(payload(rng, largest), key, headers, event_time)


def records(rng: Random, largest: int) -> tuple[Record, ...]:
    count = rng.choice((1, 1, 2, 5, rng.randrange(1, 40)))
    return tuple(record(rng, largest // count) for _ in range(count))
