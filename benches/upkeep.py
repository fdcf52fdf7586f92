"""What upkeep costs whoever appends: the same load without it, and while segments are packed, scrubbed and dropped.

A log is filled with segments that are mostly padding. Every slice appends to a copy of it, with another kind of upkeep
at work from before its clock begins until after it ends; slices take turns in a shuffled order. What is dropped was
packed before, if anything is.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import shutil
import statistics
import struct
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import uvloop

import kimberlite
from benches.table import Table, asked, machine, microseconds, publish, quantile
from kimberlite import Log
from kimberlite.log import scrub
from kimberlite.log.options import MIB, Options
from kimberlite.log.upkeep import Upkeep

SIZE: Final = 256
#: Seconds before the clock begins: scrubbing does not begin at once.
WARM: Final = scrub.LATER + 0.3
#: MiB of mostly padding that are packed in a second by whoever has nothing else to do, generously.
PACKED: Final = 300
#: Seconds between two droppings.
EVERY: Final = 0.25
#: Of the rate without, that is left with all of it; and of the slowest of a hundred without, that it may take.
AIM_RATE: Final = 0.8
AIM_P99: Final = 1.5
NOTHING, EVERYTHING = "nothing", "all of it"
WORKS: Final = (NOTHING, "packing", "scrubbing", "dropping", EVERYTHING)


@dataclass(frozen=True, slots=True)
class Cell:
    clients: int
    batch: int

    def label(self) -> str:
        return f"{self.clients} × {self.batch} × {SIZE} B"


CELLS: Final = (Cell(1, 1), Cell(64, 1), Cell(1, 100), Cell(32, 100))


@dataclass(frozen=True, slots=True)
class Outcome:
    cell: Cell
    upkeep: str
    records_per_s: float
    p50_ns: float
    p99_ns: float
    #: While the clock ran: bytes that were read again, segments that were packed, segments that were dropped.
    scrubbed: float
    packed: float
    dropped: float
    #: Segments that were not packed yet when it ended: none if there was nothing more to do.
    left: float
    #: Records a second of the slowest round and of the fastest, and the 99th percentile of the best and of the worst.
    low: float
    high: float
    p99_low_ns: float
    p99_high_ns: float


async def fill(path: Path, segment: int, segments: int) -> list[int]:
    """The first position of each segment but the last."""
    records = [os.urandom(SIZE)] * 4096
    async with kimberlite.open(path, segment_bytes=segment, pack=0, scrub=0, depth=8) as db:
        while len(list((path / "segments").iterdir())) <= segments:
            await db.append("padding", records, sync="record")
    names = sorted((path / "segments").iterdir())[:segments]
    return [struct.unpack_from("<Q", name.read_bytes()[:56], 48)[0] for name in names]


def copied(path: Path, to: Path) -> None:
    """Closed segments are never written to: links will do."""
    last = max(path.joinpath("segments").iterdir())

    def copy(source: str, target: str) -> None:
        if Path(source).parent.name == "segments" and Path(source) != last:
            os.link(source, target)
        else:
            shutil.copy2(source, target)

    shutil.copytree(path, to, copy_function=copy)
    os.sync()


async def drop(db: Log, upkeep: Upkeep, firsts: Sequence[int], *, packed: bool) -> None:
    """One segment after another, behind whoever packs them."""
    number = 0
    while True:
        await asyncio.sleep(EVERY)
        number = upkeep.packer.packed - 1 if packed else number + 1
        if 0 < number < len(firsts):
            await db.retain(before=firsts[number])


async def append(path: Path, segment: int, firsts: Sequence[int], cell: Cell, work: str, seconds: float) -> Outcome:
    packs, scrubs, drops = (work in (kind, EVERYTHING) for kind in WORKS[1:4])
    defaults, took = Options(), list[int]()
    async with kimberlite.open(
        path,
        segment_bytes=segment,
        pack=defaults.pack if packs else 0,
        scrub=defaults.scrub if scrubs else 0,
    ) as db:
        upkeep = db.upkeep
        assert upkeep is not None
        records = [os.urandom(SIZE) for _ in range(cell.batch)]

        def done() -> tuple[int, int, int]:
            return upkeep.scrubber.read, upkeep.packer.packed, db._native.dropped[0]

        async def client(number: int, until: float) -> None:
            while (begun := time.perf_counter()) < until:
                await db.append(f"stream-{number}", records)
                took.append(int((time.perf_counter() - begun) * 1e9))

        async def run(seconds: float) -> float:
            begun = time.perf_counter()
            await asyncio.gather(*(client(number, begun + seconds) for number in range(cell.clients)))
            return time.perf_counter() - begun

        dropping = asyncio.create_task(drop(db, upkeep, firsts, packed=packs)) if drops else None
        await run(WARM)
        took.clear()
        before = done()
        elapsed = await run(seconds)
        scrubbed, packed, dropped = (now - then for now, then in zip(done(), before, strict=True))
        left = max(0, len(firsts) - upkeep.packer.packed)
        if dropping is not None:
            dropping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await dropping
        assert not upkeep.findings.found
    rate, p99 = len(took) * cell.batch / elapsed, quantile(took, 0.99)
    return Outcome(cell, work, rate, quantile(took, 0.5), p99, scrubbed, packed, dropped, left, rate, rate, p99, p99)


def measure(
    directory: Path, works: Sequence[str], seconds: float, rounds: int, segment: int, segments: int
) -> list[Outcome]:
    filled = directory / "filled"
    firsts = uvloop.run(fill(filled, segment, segments))
    turns = [(cell, work) for cell in CELLS for work in works]
    found: dict[tuple[Cell, str], list[Outcome]] = {turn: [] for turn in turns}
    for number in range(rounds):
        for cell, work in random.Random(number).sample(turns, len(turns)):
            path = directory / "db"
            copied(filled, path)
            found[cell, work].append(uvloop.run(append(path, segment, firsts, cell, work, seconds)))
            shutil.rmtree(path)
            print(f"round {number + 1}/{rounds}: {cell.label()}, {work}", flush=True)
    return [middle(each) for each in found.values()]


def middle(outcomes: Sequence[Outcome]) -> Outcome:
    """Medians over the rounds."""
    names = ("records_per_s", "p50_ns", "p99_ns", "scrubbed", "packed", "dropped", "left")
    medians = {name: statistics.median(getattr(each, name) for each in outcomes) for name in names}
    rates, slowest = [each.records_per_s for each in outcomes], [each.p99_ns for each in outcomes]
    return replace(
        outcomes[0],
        **medians,
        low=min(rates),
        high=max(rates),
        p99_low_ns=min(slowest),
        p99_high_ns=max(slowest),
    )


def table(found: Sequence[Outcome]) -> Table:
    without = {each.cell: each for each in found if each.upkeep == NOTHING}
    rows = []
    for each in found:
        beside = without[each.cell]
        rows.append(
            (
                f"{each.cell.label()}, {each.upkeep}",
                f"{each.records_per_s:,.0f}",
                f"{each.low:,.0f} to {each.high:,.0f}",
                f"{each.records_per_s / beside.records_per_s:.2f}",
                microseconds(each.p50_ns),
                microseconds(each.p99_ns),
                f"{microseconds(each.p99_low_ns)} to {microseconds(each.p99_high_ns)}",
                f"{each.p99_ns / beside.p99_ns:.2f}",
                f"{each.scrubbed / MIB:.1f}",
                f"{each.packed:.0f}",
                f"{each.left:.0f}",
                f"{each.dropped:.0f}",
            )
        )
    headings = (
        "clients × batch × size, upkeep",
        "records/s",
        "of the rounds",
        f"÷ without, aim ≥ {AIM_RATE:g}",
        "p50 µs",
        "p99 µs",
        "p99 of the rounds",
        f"÷ without, aim ≤ {AIM_P99:g}",
        "MiB scrubbed",
        "packed",
        "to be packed",
        "dropped",
    )
    return Table("Appends while segments are packed, scrubbed and dropped", headings, tuple(rows))


def arguments() -> argparse.ArgumentParser:
    parser = asked("upkeep", __doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each slice")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--each", action="store_true", help="every kind of upkeep by itself, besides")
    parser.add_argument("--segment-mib", type=int, default=64, metavar="MIB", help="of a segment")
    parser.add_argument(
        "--segments", type=int, metavar="COUNT", help="that there are to be packed, and enough if not said"
    )
    return parser


def main() -> None:
    options = arguments().parse_args()
    works = WORKS if options.each else (NOTHING, EVERYTHING)
    segment = options.segment_mib * MIB
    segments = options.segments or int(PACKED * (WARM + options.seconds)) // options.segment_mib + 1
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory) as name:
        found = measure(Path(name), works, options.seconds, options.rounds, segment, segments)
        where = machine(Path(name))
    publish(where, [table(found)], {"upkeep": found}, options)


if __name__ == "__main__":
    main()
