"""How fast what was appended is read: single records, scans, `verify`, and a start that has to read everything.

One database a mode, on the disk, filled once. Beside each figure the limit that this machine sets it, measured in the
same run: reading as many bytes past the page cache, or hashing as much as the records' leaves and tree take.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import kimberlite
from benches.engine import Cell, Mode, payloads
from benches.limits import hashed_records
from benches.table import Table, asked, machine, microseconds, publish, quantile
from kimberlite.crypto.master import create_master, load_master
from kimberlite.log.verify import verify
from kimberlite.storage import open_backend

MODES: tuple[Mode, ...] = ("plain", "encrypted", "json+zstd")
DERIVED = ("hashes", "producers", "checkpoint")


@dataclass(frozen=True, slots=True)
class Figure:
    work: str
    mode: str
    value: float
    unit: str
    #: Of the rounds, which the value is the median of.
    low: float
    high: float
    limit: float
    meaning: str


async def fill(path: Path, records: int, mode: Mode, key: Path | None) -> None:
    batch = payloads(Cell(batch=100, mode=mode))
    async with kimberlite.open(path, key_file=key, compression=1 if mode == "json+zstd" else None) as db:

        async def client(name: str, batches: int) -> None:
            for _ in range(batches):
                await db.append(name, batch)

        await asyncio.gather(*(client(f"stream-{i}", records // 1600) for i in range(16)))


async def gets(path: Path, key: Path | None, count: int) -> tuple[list[int], list[int]]:
    """Nanoseconds of each read of a record whose run is in the cache, and of one anywhere in the log."""
    warm, cold = [], []
    clock = time.perf_counter_ns
    async with kimberlite.open(path, key_file=key) as db:
        end = db.durable_position
        hot = random.Random(1).sample(range(16, end), 8)
        for turn in range(count):
            position = hot[turn % len(hot)]
            begun = clock()
            await db.get(position)
            warm.append(clock() - begun)
        for position in (random.Random(2).randrange(16, end) for _ in range(count)):
            begun = clock()
            await db.get(position)
            cold.append(clock() - begun)
    return warm[count // 10 :], cold


async def scan(path: Path, key: Path | None, stream: str | None) -> float:
    async with kimberlite.open(path, key_file=key) as db:
        begun, count = time.perf_counter(), 0
        async for batch in db.read(stream).batches():
            count += len(batch)
        return count / (time.perf_counter() - begun)


async def recover(path: Path, key: Path | None) -> float:
    """Records a second of an open that has nothing but the segments."""
    for name in DERIVED:
        (path / name).unlink(missing_ok=True)
    shutil.rmtree(path / "index", ignore_errors=True)
    begun = time.perf_counter()
    async with kimberlite.open(path, key_file=key) as db:
        return db.durable_position / (time.perf_counter() - begun)


def check(path: Path, key: Path | None) -> float:
    begun = time.perf_counter()
    backend = open_backend(path, "auto", read_only=True, create=False)
    report = verify(backend, None if key is None else load_master(key))
    return report.records / (time.perf_counter() - begun)


def disk_limit(path: Path, records: int) -> float:
    """Records a second if their segments are only read, past the page cache, a mebibyte at a time."""
    files = sorted((path / "segments").iterdir())
    buffer = bytearray(1 << 20)
    begun, total = time.perf_counter(), 0
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        while got := os.readv(descriptor, [buffer]):
            total += got
        os.close(descriptor)
    assert total
    return records / (time.perf_counter() - begun)


def blocks_read(path: Path, count: int) -> list[int]:
    """Nanoseconds of each read of a block of its largest segment, which the kernel has in memory."""
    file = max((path / "segments").iterdir(), key=lambda file: file.stat().st_size)
    took, chance = [], random.Random(1)
    with file.open("rb", buffering=0) as opened:
        blocks = file.stat().st_size // 4096
        for place in (4096 * chance.randrange(blocks) for _ in range(count)):
            begun = time.perf_counter_ns()
            os.pread(opened.fileno(), 4096, place)
            took.append(time.perf_counter_ns() - begun)
    return took


def figure(work: str, mode: str, found: Sequence[float], unit: str, limit: float, meaning: str) -> Figure:
    """Of what its rounds found."""
    return Figure(work, mode, statistics.median(found), unit, min(found), max(found), limit, meaning)


def measure(directory: Path, mode: Mode, records: int, rounds: int, seconds: float) -> list[Figure]:
    path, key = directory / mode, None
    if mode == "encrypted":
        key = directory / f"{mode}.key"
        create_master(key)
    asyncio.run(fill(path, records, mode, key))
    count = min(records, 20_000)
    rounds_of_gets = [asyncio.run(gets(path, key, count)) for _ in range(rounds)]
    hashing, reading = hashed_records(seconds), disk_limit(path, records)
    blocks = blocks_read(path, count)
    found = []
    for where, took in zip(("in the cache", "anywhere"), zip(*rounds_of_gets, strict=True), strict=True):
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            quantiles, beside = [quantile(each, share) / 1000 for each in took], quantile(blocks, share) / 1000
            meaning = f"pread of a block in the page cache, {name}"
            found.append(figure(f"get, {where}, {name}", mode, quantiles, "µs", beside, meaning))
    rates: list[tuple[str, Callable[[], float], float, str]] = [
        ("scan of the log", lambda: asyncio.run(scan(path, key, None)), reading, "reading the files"),
        ("scan of a stream", lambda: asyncio.run(scan(path, key, "stream-3")), reading, "reading the files"),
        ("verify", lambda: check(path, key), hashing, "hashing on all cores"),
        ("recovery from segments", lambda: asyncio.run(recover(path, key)), hashing, "the same"),
    ]
    for work, run, limit, meaning in rates:
        found.append(figure(work, mode, [run() for _ in range(rounds)], "records/s", limit, meaning))
    return found


def table(found: list[Figure]) -> Table:
    rows = []
    for each in found:
        if each.unit == "µs":
            value, low, high, limit = (
                microseconds(value * 1000) for value in (each.value, each.low, each.high, each.limit)
            )
        else:
            value, low, high, limit = (f"{value:,.0f}" for value in (each.value, each.low, each.high, each.limit))
        ratio = f"{each.value / each.limit:.2f}"
        rows.append((f"{each.work}, {each.mode}", value, f"{low} to {high}", each.unit, limit, ratio, each.meaning))
    headings = ("work", "figure", "of the rounds", "unit", "beside it", "figure ÷ that", "which is")
    return Table("Reads of records of 256 bytes in batches of 100", headings, tuple(rows))


def arguments() -> argparse.ArgumentParser:
    parser = asked("reads", __doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each limit")
    return parser


def main() -> None:
    options = arguments().parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory) as name:
        directory = Path(name)
        found = [
            figure
            for mode in MODES
            for figure in measure(directory, mode, options.records, options.rounds, options.seconds)
        ]
        where = machine(directory)
    publish(where, [table(found)], {"reads": found}, options)


if __name__ == "__main__":
    main()
