"""How fast the embedded engine appends, beside its aims, the raw disk and the embedded peers in the same run.

Every cell is a fresh database; the clock stops when the last receipt is there, and a receipt needs the leaves, the
tree and the indexes of its records. Cells are run in shuffled rounds; medians over rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import kimberlite
from benches import disk, limits, peers
from benches.table import Table, asked, machine, microseconds, publish, quantile
from kimberlite.crypto.master import create_master
from kimberlite.load.disk import best_writes, rate
from kimberlite.load.plan import events

Mode = Literal["plain", "encrypted", "json", "json+zstd"]

#: Records a second that are aimed at with 256 bytes a record, by clients, batches in flight of each, and batch.
AIMS: Final = {
    (1, 1, 100): 400_000,
    (1, 8, 100): 1_200_000,
    (32, 1, 100): 2_000_000,
    (64, 1, 1): 130_000,
    (64, 16, 1): 800_000,
}
#: The same without a sync, in batches of 100, encrypted or not.
AIM_WITHOUT_SYNC: Final = 4_000_000
#: Of the best raw write: how long a lone client's single record may take.
AIM_ALONE: Final = 1.3
#: Of the same work without it: the rate that encryption leaves.
AIM_ENCRYPTED: Final = 0.9


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind of work: so many clients, each with so many batches in flight."""

    clients: int = 1
    in_flight: int = 1
    batch: int = 100
    size: int = 256
    sync: Literal["record", "batch", "group", "os"] = "group"
    backend: Literal["auto", "threads", "uring"] = "auto"
    mode: Mode = "plain"
    depth: int = 4

    def label(self) -> str:
        shape = f"{self.clients} × {self.in_flight} × {self.batch} × {self.size} B"
        return f"{shape}, {self.sync}, {self.backend}, {self.mode}"


@dataclass(frozen=True, slots=True)
class Outcome:
    cell: Cell
    records_per_s: float
    p50_ns: int
    p99_ns: int
    #: Bytes of segments for each byte of payload.
    stored: float
    #: Records a second of the slowest round and of the fastest.
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Raw:
    """One such batch a sync, one at a time: records a second, and how long the best write takes."""

    batch: int
    size: int
    plain: float
    best: float
    best_p50_ns: int


@dataclass(frozen=True, slots=True)
class Hashes:
    """Records a second whose leaves and nodes all cores could hash; what is not synced has no other limit."""

    records_per_s: float


@dataclass(frozen=True, slots=True)
class Aim:
    cell: Cell
    words: str
    #: 1 is there, and more is better.
    reached: float


def payloads(cell: Cell) -> list[bytes]:
    """A batch: random bytes, or JSON events that compress as events do."""
    if cell.mode.startswith("json"):
        return events(cell.batch, cell.size)
    return [os.urandom(cell.size) for _ in range(cell.batch)]


async def append(cell: Cell, directory: Path, seconds: float) -> Outcome:
    path = Path(tempfile.mkdtemp(prefix="engine-", dir=directory))
    key_file = path / "key"
    try:
        if cell.mode == "encrypted":
            create_master(key_file)
        records = payloads(cell)
        took: list[int] = []
        async with kimberlite.open(
            path / "db",
            sync=cell.sync,
            backend=cell.backend,
            depth=cell.depth,
            compression=1 if cell.mode == "json+zstd" else None,
            key_file=key_file if cell.mode == "encrypted" else None,
        ) as db:

            async def client(number: int, until: float) -> None:
                while True:
                    begun = time.perf_counter_ns()
                    await db.append(f"stream-{number}", records)
                    took.append(time.perf_counter_ns() - begun)
                    if time.perf_counter() >= until:
                        return

            async def run(seconds: float) -> None:
                until = time.perf_counter() + seconds
                await asyncio.gather(*(client(i, until) for i in range(cell.clients) for _ in range(cell.in_flight)))

            await run(min(seconds, 0.3))
            warm = len(took)
            took.clear()
            begun = time.perf_counter()
            await run(seconds)
            elapsed = time.perf_counter() - begun
        # At the close, when what no client waited for is on the disk too.
        used = sum(file.stat().st_size for file in (path / "db" / "segments").iterdir())
        rate = len(took) * cell.batch / elapsed
        stored = (warm + len(took)) * cell.batch * cell.size
        return Outcome(cell, rate, quantile(took, 0.5), quantile(took, 0.99), used / stored, rate, rate)
    finally:
        shutil.rmtree(path)


def measure(cells: Sequence[Cell], directory: Path, seconds: float, rounds: int) -> list[Outcome]:
    found: dict[Cell, list[Outcome]] = {cell: [] for cell in cells}
    for number in range(rounds):
        for cell in random.Random(number).sample(list(cells), len(cells)):
            found[cell].append(asyncio.run(append(cell, directory, seconds)))
            print(f"round {number + 1}/{rounds}: {cell.label()}", flush=True)
    return [middle(outcomes) for outcomes in found.values()]


def middle(outcomes: Sequence[Outcome]) -> Outcome:
    return replace(
        sorted(outcomes, key=lambda outcome: outcome.records_per_s)[len(outcomes) // 2],
        p50_ns=int(statistics.median(outcome.p50_ns for outcome in outcomes)),
        p99_ns=int(statistics.median(outcome.p99_ns for outcome in outcomes)),
        low=min(outcome.records_per_s for outcome in outcomes),
        high=max(outcome.records_per_s for outcome in outcomes),
    )


def headline() -> list[Cell]:
    """The rows that an embedded log can be held to."""
    durable = [Cell(1, batch=1), *(Cell(*shape) for shape in AIMS)]
    return [
        *durable,
        *(replace(cell, mode="encrypted") for cell in durable),
        Cell(8),
        Cell(32, mode="json+zstd"),
        Cell(32, sync="os"),
        Cell(32, sync="os", mode="encrypted"),
    ]


def matrix() -> Iterator[Cell]:
    """Batch × size × policy × backend × mode."""
    for batch, size, mode in itertools.product(
        (1, 100, 1000), (64, 256, 1024, 4096), ("plain", "encrypted", "json+zstd")
    ):
        policies = ("record", "group", "os") if batch == 1 else ("batch", "group", "os")
        for sync, backend in itertools.product(policies, ("threads", "uring")):
            yield Cell(8, 1, batch, size, sync, backend, mode)  # type: ignore[arg-type]


def raw(directory: Path, batch: int, size: int, seconds: float) -> Raw:
    length = batch * size
    plain = disk.plain(directory, length, seconds)
    writes = best_writes(directory, length, seconds)
    return Raw(batch, size, plain * batch, rate(writes) * batch, quantile(writes, 0.5))


def aims(found: Sequence[Outcome], raws: Mapping[tuple[int, int], Raw]) -> dict[Cell, Aim]:
    """Of the cells that have one."""
    outcomes = {outcome.cell: outcome for outcome in found}
    reached = (aim(outcome, outcomes, raws[outcome.cell.batch, outcome.cell.size]) for outcome in found)
    return {each.cell: each for each in reached if each is not None}


def aim(outcome: Outcome, outcomes: Mapping[Cell, Outcome], raw: Raw) -> Aim | None:
    cell, figure = outcome.cell, outcome.records_per_s
    twin = outcomes.get(replace(cell, mode="plain"))
    wanted: float | None = None
    if cell.size == 256 and cell.sync == "os":
        wanted = AIM_WITHOUT_SYNC if cell.batch == 100 and cell.mode in ("plain", "encrypted") else None
    elif cell.size == 256 and cell.sync == "group":
        alone = (cell.clients, cell.in_flight, cell.batch) == (1, 1, 1)
        if alone and cell.mode == "plain":
            longest = AIM_ALONE * raw.best_p50_ns
            return Aim(cell, f"p50 ≤ {microseconds(longest)} µs", longest / outcome.p50_ns)
        wanted = AIMS.get((cell.clients, cell.in_flight, cell.batch))
        if twin is not None and (wanted or alone) and cell.mode != "plain":
            # Events that compress are held against random bytes.
            wanted = twin.records_per_s * (AIM_ENCRYPTED if cell.mode == "encrypted" else 1)
    return None if wanted is None else Aim(cell, f"≥ {wanted:,.0f}/s", figure / wanted)


def table(found: Sequence[Outcome], raws: Mapping[tuple[int, int], Raw]) -> Table:
    rows, reached = [], aims(found, raws)
    for outcome in found:
        cell = outcome.cell
        beside, aimed = raws[cell.batch, cell.size], reached.get(cell)
        rows.append(
            (
                cell.label(),
                f"{outcome.records_per_s:,.0f}",
                microseconds(outcome.p50_ns),
                microseconds(outcome.p99_ns),
                "" if aimed is None else aimed.words,
                "" if aimed is None else f"{aimed.reached:.2f}",
                f"{beside.plain:,.0f}",
                f"{beside.best:,.0f}",
                f"{outcome.records_per_s / beside.best:.2f}",
                f"{outcome.stored:.2f}",
            )
        )
    headings = (
        "clients × in flight × batch × size",
        "records/s",
        "p50 µs",
        "p99 µs",
        "aim",
        "reached",
        "raw plain/s",
        "raw best/s",
        "÷ best",
        "stored ÷ payload",
    )
    return Table("Appends, embedded; raw: one such batch a sync, one at a time", headings, tuple(rows))


def arguments() -> argparse.ArgumentParser:
    parser = asked("engine", __doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--matrix", action="store_true", help="batch × size × policy × backend × mode instead")
    parser.add_argument("--peers", action="store_true", help="SQLite, RocksDB and LMDB in the same run")
    return parser


def main() -> None:
    options = arguments().parse_args()
    cells = list(matrix()) if options.matrix else headline()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory) as name:
        directory = Path(name)
        shapes = dict.fromkeys((cell.batch, cell.size) for cell in cells)
        raws = {shape: raw(directory, *shape, min(options.seconds, 1.0)) for shape in shapes}
        found = measure(cells, directory, options.seconds, options.rounds)
        tables = [table(found, raws), limits.rate_table(limits.rates(min(options.seconds, 0.2)))]
        if options.peers:
            makers, missing = peers.available()
            for line in missing:
                print(line)
            work = peers.Work(batch=100, size=256, seconds=options.seconds)
            tables.append(peers.peer_table(peers.compare(directory, work, makers, options.rounds)))
        hashes = limits.hashed_records(min(options.seconds, 1.0))
        where = machine(directory)
    rows: dict[str, Sequence[object]] = {"append": found, "raw": list(raws.values()), "hashes": [Hashes(hashes)]}
    publish(where, tables, rows | {"aims": list(aims(found, raws).values())}, options)


if __name__ == "__main__":
    main()
