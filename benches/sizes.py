"""What a log costs when it is large: reads, appends, a start and memory, from a million records to a hundred million.

One log of small records grows; at each size it is closed, and a fresh process opens it, reads records anywhere and
appends. If it is as it should be, nothing of this grows with the log but its disk.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvloop

import kimberlite
from benches.table import Table, asked, machine, microseconds, publish, quantile

BATCH: Final = 1_000
#: Bytes of a record: so small that a hundred million fit on a disk and into a few minutes.
SIZE: Final = 16
CLIENTS: Final = 16
#: Reads and appends that are timed.
TIMED: Final = 5_000
#: Processes that look at each size; medians are told.
LOOKS: Final = 3
SIZES: Final = (1_000_000, 10_000_000, 100_000_000)


@dataclass(frozen=True, slots=True)
class Cost:
    records: int
    #: Seconds to open it, and bytes of memory when it is open and after the reads.
    opened_s: float
    opened_bytes: int
    read_bytes: int
    get_p50_ns: int
    get_p99_ns: int
    append_p50_ns: int
    append_p99_ns: int
    #: The same of each look.
    looks: list[dict[str, float]]
    #: Bytes of segments, and of their indexes and hashes, for a record.
    stored: float
    derived: float


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def grow(path: Path, records: int) -> None:
    batch = [os.urandom(SIZE) for _ in range(BATCH)]
    async with kimberlite.open(path) as db:

        async def client(name: str) -> None:
            while db.durable_position < records:
                await db.append(name, batch)

        await asyncio.gather(*(client(f"stream-{i}") for i in range(CLIENTS)))


async def look(path: Path) -> dict[str, float]:
    """In a process that has done nothing else."""
    begun, clock = time.perf_counter(), time.perf_counter_ns
    async with kimberlite.open(path) as db:
        found: dict[str, float] = {"opened_s": time.perf_counter() - begun, "opened_bytes": resident()}
        end, took = db.durable_position, []
        for position in (random.Random(1).randrange(CLIENTS, end) for _ in range(TIMED)):
            before = clock()
            await db.get(position)
            took.append(clock() - before)
        found |= {"get_p50_ns": quantile(took, 0.5), "get_p99_ns": quantile(took, 0.99), "read_bytes": resident()}
        took = []
        for turn in range(TIMED // 10):
            before = clock()
            await db.append(f"stream-{turn % CLIENTS}", [bytes(SIZE)])
            took.append(clock() - before)
        return found | {"append_p50_ns": quantile(took, 0.5), "append_p99_ns": quantile(took, 0.99)}


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def measure(path: Path, records: int) -> Cost:
    uvloop.run(grow(path, records))
    segments = size_of(path / "segments")
    derived = size_of(path / "index") + (path / "hashes").stat().st_size
    looking = [sys.executable, "-m", "benches.sizes", "--look", str(path)]
    looks = [json.loads(subprocess.run(looking, check=True, stdout=subprocess.PIPE).stdout) for _ in range(LOOKS)]
    found = {name: statistics.median(look[name] for look in looks) for name in looks[0]}
    return Cost(records=records, stored=segments / records, derived=derived / records, looks=looks, **found)


def table(found: list[Cost]) -> Table:
    rows = tuple(
        (
            f"{each.records:,}",
            f"{each.opened_s:.3f}",
            f"{each.opened_bytes / 1e6:.1f}",
            f"{each.read_bytes / 1e6:.1f}",
            microseconds(each.get_p50_ns),
            microseconds(each.get_p99_ns),
            microseconds(each.append_p50_ns),
            microseconds(each.append_p99_ns),
            f"{each.stored:.1f}",
            f"{each.derived:.1f}",
        )
        for each in found
    )
    headings = (
        "records",
        "open s",
        "MB open",
        "MB after reads",
        "get p50 µs",
        "get p99 µs",
        "append p50 µs",
        "append p99 µs",
        "segment bytes/record",
        "index and hash bytes/record",
    )
    return Table(f"What a log of {SIZE}-byte records costs as it grows", headings, rows)


def arguments() -> argparse.ArgumentParser:
    parser = asked("sizes", __doc__)
    parser.add_argument("--records", type=int, nargs="+", default=SIZES, help="sizes, in rising order")
    parser.add_argument("--look", type=Path, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    options = arguments().parse_args()
    if options.look:
        print(json.dumps(uvloop.run(look(options.look))))
        return
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory) as name:
        found = []
        for records in options.records:
            print(f"{records:,} records", file=sys.stderr, flush=True)
            found.append(measure(Path(name) / "db", records))
        where = machine(Path(name))
    publish(where, [table(found)], {"sizes": found}, options)


if __name__ == "__main__":
    main()
