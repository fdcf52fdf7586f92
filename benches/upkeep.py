"""What upkeep costs whoever appends: the same load without it, and while segments are packed, scrubbed and dropped.

A log is filled with segments that are mostly padding. Every slice appends to a copy of it, with another kind of upkeep
at work from before its clock begins until after it ends; slices with and without take turns. What is dropped was packed
before, if anything is.
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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

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
PACKED: Final = 40
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
    #: Of what it is without upkeep in the same round: the median over the rounds, the least and the most.
    rate: float = 1.0
    rate_low: float = 1.0
    rate_high: float = 1.0
    p99: float = 1.0
    p99_low: float = 1.0
    p99_high: float = 1.0


async def fill(path: Path, segments: int, size: int) -> list[int]:
    """The first position of each segment but the last."""
    records = [os.urandom(SIZE)] * 4096
    async with kimberlite.open(path, segment_bytes=size, pack=0, scrub=0, depth=8) as db:
        while len(list((path / "segments").iterdir())) <= segments:
            await db.append("padding", records, sync="record")
    names = sorted((path / "segments").iterdir())[:segments]
    return [struct.unpack_from("<Q", first_bytes(name), 48)[0] for name in names]


def first_bytes(name: Path) -> bytes:
    with name.open("rb") as file:
        return file.read(56)


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


async def append(path: Path, firsts: Sequence[int], cell: Cell, work: str, seconds: float) -> Outcome:
    packs, scrubs, drops = (work in (kind, EVERYTHING) for kind in WORKS[1:4])
    defaults, took = Options(), list[int]()
    async with kimberlite.open(
        path,
        pack=defaults.pack if packs else 0,
        scrub=defaults.scrub if scrubs else 0,
    ) as db:
        upkeep = db.upkeep
        assert upkeep is not None
        records = [os.urandom(SIZE) for _ in range(cell.batch)]

        def counted() -> tuple[int, int, int]:
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
        before = counted()
        elapsed = await run(seconds)
        scrubbed, packed, dropped = (now - then for now, then in zip(counted(), before, strict=True))
        left = max(0, len(firsts) - upkeep.packer.packed)
        if dropping is not None:
            dropping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await dropping
        assert not upkeep.findings.found
    rate, p50, p99 = len(took) * cell.batch / elapsed, quantile(took, 0.5), quantile(took, 0.99)
    return Outcome(cell, work, rate, p50, p99, scrubbed, packed, dropped, left)


def measure(directory: Path, cells: Sequence[Cell], works: Sequence[str], options: argparse.Namespace) -> list[Outcome]:
    size, seconds, rounds = options.mib * MIB, options.seconds, options.rounds
    segments = options.segments or int(PACKED * MIB * (WARM + seconds)) // size + 2
    filled = directory / "filled"
    firsts = uvloop.run(fill(filled, segments, size))
    found: dict[tuple[Cell, str], list[Outcome]] = {(cell, work): [] for cell in cells for work in works}
    for number in range(rounds):
        shuffled = random.Random(number)
        for cell in shuffled.sample(cells, len(cells)):
            # One behind the other, so that what the machine does meanwhile happens to all of them.
            for work in shuffled.sample(works, len(works)):
                path = directory / "db"
                copied(filled, path)
                found[cell, work].append(uvloop.run(append(path, firsts, cell, work, seconds)))
                shutil.rmtree(path)
                print(f"round {number + 1}/{rounds}: {cell.label()}, {work}", flush=True)
    return [middle(each, found[cell, NOTHING]) for (cell, _), each in found.items()]


def middle(outcomes: Sequence[Outcome], without: Sequence[Outcome]) -> Outcome:
    """Medians over the rounds."""
    names = ("records_per_s", "p50_ns", "p99_ns", "scrubbed", "packed", "dropped", "left")
    medians: dict[str, Any] = {name: statistics.median(getattr(each, name) for each in outcomes) for name in names}
    pairs = list(zip(outcomes, without, strict=True))
    rates = [each.records_per_s / beside.records_per_s for each, beside in pairs]
    slowest = [each.p99_ns / beside.p99_ns for each, beside in pairs]
    return replace(
        outcomes[0],
        **medians,
        rate=statistics.median(rates),
        rate_low=min(rates),
        rate_high=max(rates),
        p99=statistics.median(slowest),
        p99_low=min(slowest),
        p99_high=max(slowest),
    )


def done(outcome: Mapping[str, Any]) -> str:
    """What was at work while the clock ran: a ratio says nothing of what was not."""
    works = {"packing": "packed", "scrubbing": "scrubbed", "dropping": "dropped"}
    return ", ".join(work for work, count in works.items() if outcome[count] > 0) or NOTHING


def table(found: Sequence[Outcome]) -> Table:
    rows = tuple(
        (
            f"{each.cell.label()}, {each.upkeep}",
            f"{each.records_per_s:,.0f}",
            f"{each.rate:.2f}",
            f"{each.rate_low:.2f} to {each.rate_high:.2f}",
            microseconds(each.p50_ns),
            microseconds(each.p99_ns),
            f"{each.p99:.2f}",
            f"{each.p99_low:.2f} to {each.p99_high:.2f}",
            f"{each.scrubbed / MIB:.1f}",
            f"{each.packed:.0f}",
            f"{each.left:.0f}",
            f"{each.dropped:.0f}",
            done(asdict(each)),
        )
        for each in found
    )
    headings = (
        "clients × batch × size, upkeep",
        "records/s",
        f"÷ without, aim ≥ {AIM_RATE:g}",
        "of the rounds",
        "p50 µs",
        "p99 µs",
        f"p99 ÷ without, aim ≤ {AIM_P99:g}",
        "of the rounds'",
        "MiB scrubbed",
        "packed",
        "to be packed",
        "dropped",
        "at work",
    )
    return Table("Appends while segments are packed, scrubbed and dropped", headings, rows)


def arguments() -> argparse.ArgumentParser:
    parser = asked("upkeep", __doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each slice")
    parser.add_argument("--rounds", type=int, default=5)
    clients = sorted({cell.clients for cell in CELLS})
    parser.add_argument("--clients", type=int, nargs="+", choices=clients, default=clients, help="these loads only")
    parser.add_argument(
        "--mib", type=int, default=16, help="of the segments that are packed and dropped; what is appended has its own"
    )
    parser.add_argument("--each", action="store_true", help="every kind of upkeep by itself, besides")
    parser.add_argument(
        "--segments", type=int, metavar="COUNT", help="that there are to be packed, and enough if not said"
    )
    return parser


def main() -> None:
    options = arguments().parse_args()
    cells = [cell for cell in CELLS if cell.clients in options.clients]
    works = WORKS if options.each else (NOTHING, EVERYTHING)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory) as name:
        found = measure(Path(name), cells, works, options)
        where = machine(Path(name))
    publish(where, [table(found)], {"upkeep": found}, options)


if __name__ == "__main__":
    main()
