"""How fast the embedded engine appends, beside the raw disk and the embedded peers in the same run.

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import kimberlite
from benches import disk, limits, peers
from benches.table import Table, machine, microseconds, quantile, show, write_json
from kimberlite.crypto.master import create_master

Mode = Literal["plain", "encrypted", "json", "json+zstd"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind of work: so many clients, each with one batch in flight."""

    clients: int = 1
    batch: int = 100
    size: int = 256
    sync: Literal["record", "batch", "group", "os"] = "group"
    backend: Literal["auto", "threads", "uring"] = "auto"
    mode: Mode = "plain"
    depth: int = 4

    def label(self) -> str:
        return f"{self.clients} × {self.batch} × {self.size} B, {self.sync}, {self.backend}, {self.mode}"


@dataclass(frozen=True, slots=True)
class Outcome:
    cell: Cell
    records_per_s: float
    p50_ns: int
    p99_ns: int
    #: Bytes of segments for each byte of payload.
    stored: float


def payloads(cell: Cell) -> list[bytes]:
    """A batch: random bytes, or JSON events that compress as events do."""
    if cell.mode.startswith("json"):
        events = (
            f'{{"id":{i},"type":"order.updated","customer":"c-{i % 97}","total":{i * 17 % 9973},"currency":"EUR",'
            f'"items":[{{"sku":"A-{i % 13}","quantity":{i % 5}}}],"status":"confirmed","source":"checkout"}}'
            for i in range(cell.batch)
        )
        return [event.encode().ljust(cell.size)[: cell.size] for event in events]
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
                while time.perf_counter() < until:
                    begun = time.perf_counter_ns()
                    await db.append(f"stream-{number}", records)
                    took.append(time.perf_counter_ns() - begun)

            await asyncio.gather(*(client(i, time.perf_counter() + 0.3) for i in range(cell.clients)))
            warm = len(took)
            took.clear()
            begun = time.perf_counter()
            await asyncio.gather(*(client(i, begun + seconds) for i in range(cell.clients)))
            elapsed = time.perf_counter() - begun
        # At the close, when what no client waited for is on the disk too.
        used = sum(file.stat().st_size for file in (path / "db" / "segments").iterdir())
        rate = len(took) * cell.batch / elapsed
        stored = (warm + len(took)) * cell.batch * cell.size
        return Outcome(cell, rate, quantile(took, 0.5), quantile(took, 0.99), used / stored)
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
    )


def headline() -> list[Cell]:
    """The rows that an embedded log can be held to."""
    return [
        Cell(1, 1),
        Cell(64, 1),
        Cell(1, 100),
        Cell(8, 100),
        Cell(32, 100),
        Cell(32, 100, mode="encrypted"),
        Cell(32, 100, mode="json+zstd"),
        Cell(8, 100, sync="os"),
        Cell(8, 100, sync="os", mode="encrypted"),
    ]


def matrix() -> Iterator[Cell]:
    """Batch × size × policy × backend × mode."""
    for batch, size, mode in itertools.product(
        (1, 100, 1000), (64, 256, 1024, 4096), ("plain", "encrypted", "json+zstd")
    ):
        policies = ("record", "group", "os") if batch == 1 else ("batch", "group", "os")
        for sync, backend in itertools.product(policies, ("threads", "uring")):
            yield Cell(8, batch, size, sync, backend, mode)  # type: ignore[arg-type]


def raw(directory: Path, cell: Cell, seconds: float) -> tuple[float, float]:
    """Records a second of the plain and of the best raw write of one such batch a sync."""
    length = cell.batch * cell.size
    aligned = -(-length // 4096) * 4096
    return disk.plain(directory, length, seconds) * cell.batch, disk.best(directory, aligned, seconds) * cell.batch


def table(found: Sequence[Outcome], raws: dict[tuple[int, int], tuple[float, float]]) -> Table:
    rows = []
    for outcome in found:
        cell = outcome.cell
        plain, best = raws[cell.batch, cell.size]
        rows.append(
            (
                cell.label(),
                f"{outcome.records_per_s:,.0f}",
                microseconds(outcome.p50_ns),
                microseconds(outcome.p99_ns),
                f"{plain:,.0f}",
                f"{best:,.0f}",
                f"{outcome.records_per_s / best:.2f}",
                f"{outcome.stored:.2f}",
            )
        )
    headings = (
        "clients × batch × size",
        "records/s",
        "p50 µs",
        "p99 µs",
        "raw plain/s",
        "raw best/s",
        "÷ best",
        "stored ÷ payload",
    )
    return Table("Appends, embedded; raw: one such batch a sync, one at a time", headings, tuple(rows))


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path())
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--matrix", action="store_true", help="batch × size × policy × backend × mode instead")
    parser.add_argument("--peers", action="store_true", help="SQLite, RocksDB and LMDB in the same run")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", action="store_true")
    return parser


def main() -> None:
    options = arguments().parse_args()
    cells = list(matrix()) if options.matrix else headline()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory) as name:
        directory = Path(name)
        raws = {
            (cell.batch, cell.size): raw(directory, cell, min(options.seconds, 1.0))
            for cell in {(c.batch, c.size): c for c in cells}.values()
        }
        found = measure(cells, directory, options.seconds, options.rounds)
        tables = [table(found, raws), limits.rate_table(limits.rates(min(options.seconds, 0.2)))]
        if options.peers:
            makers, missing = peers.available()
            for line in missing:
                print(line)
            work = peers.Work(batch=100, size=256, seconds=options.seconds)
            tables.append(peers.peer_table(peers.compare(directory, work, makers, options.rounds)))
        where = machine(directory)
    show(where, tables, markdown=options.markdown)
    if options.json:
        write_json(options.json, where, {"append": found})


if __name__ == "__main__":
    main()
