"""How fast clients over loopback append and read, beside the raw disk, and what a user would pick instead, in one run.

Every cell is a fresh database and a daemon of its own, driven natively from processes on the same cores; the clock
stops when the last answer is there. Cells are run in shuffled rounds, with the raw disk and other servers between
them; medians over rounds.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Final, Literal

import uvloop

import kimberlite.sync
from benches.clients import Load
from benches.daemon import Daemon
from benches.engine import AIM_ALONE, AIM_ENCRYPTED, AIMS
from benches.rivals import Figures, Rival, rivals, settings_table
from benches.table import Table, machine, show, write_json
from kimberlite.crypto.master import create_master
from kimberlite.load.plan import Plan
from kimberlite.load.run import Disk, Processes

Mode = Literal["plain", "encrypted", "json+zstd"]

SIZE: Final = 256
PROCESSES: Final = 2
#: Of a cell's seconds, those that the raw disk gets before it.
DISK_SHARE: Final = 0.5
#: Records that are read, and how many at a time; records a second that are aimed at.
READ: Final = 1_000_000
READ_BATCH: Final = 10_000
AIM_BATCHES: Final = 2_000_000
AIM_RECORDS: Final = 400_000


@dataclass(frozen=True, slots=True)
class Cell:
    clients: int
    depth: int
    batch: int
    mode: Mode = "plain"

    def label(self) -> str:
        return f"{self.clients} × {self.depth} × {self.batch}, {self.mode}"

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.clients, self.depth, self.batch


@dataclass(frozen=True, slots=True)
class Outcome:
    cell: Cell
    records_per_s: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    #: One such batch a sync, one at a time, in the same minutes: records a second, and how long the best write takes.
    plain: float
    best: float
    best_p50_ms: float


CELLS: Final = [Cell(1, 1, 1), *(Cell(*shape) for shape in AIMS)]


def cells(*, every_mode: bool) -> list[Cell]:
    if not every_mode:
        return CELLS
    return [*CELLS, *(replace(cell, mode="encrypted") for cell in CELLS), Cell(32, 1, 100, "json+zstd")]


def settings(mode: Mode, path: Path) -> list[str]:
    if mode == "json+zstd":
        return ["log.compression=1"]
    if mode == "plain":
        return []
    create_master(path / "key")
    return [f"key_file={path / 'key'}"]


def append(cell: Cell, directory: Path, seconds: float) -> Outcome:
    path = Path(tempfile.mkdtemp(prefix="network-", dir=directory))
    try:
        disk = Disk(path)
        disk.measure(cell.batch * SIZE, seconds * DISK_SHARE)
        with Daemon(path / "db", *settings(cell.mode, path)) as daemon:
            plan = Plan(
                "append",
                daemon.address,
                cell.clients,
                cell.batch,
                SIZE,
                json=cell.mode == "json+zstd",
                depth=cell.depth,
                processes=min(PROCESSES, cell.clients),
            )
            with Processes(plan) as processes:
                processes.run(min(seconds, 0.5), warm=True)
                outcome = processes.run(seconds)
        p50, p99, p999 = (outcome.times.quantile(share) / 1e6 for share in (0.5, 0.99, 0.999))
        plain, best = (1e9 * cell.batch / statistics.mean(writes) for writes in (disk.plain_batch, disk.best_batch))
        best_p50 = statistics.median(disk.best_batch) / 1e6
        return Outcome(cell, outcome.records_per_s, p50, p99, p999, plain, best, best_p50)
    finally:
        shutil.rmtree(path)


def middle(outcomes: Sequence[Outcome]) -> Outcome:
    """The medians, each by itself."""
    numbers = zip(
        *((o.records_per_s, o.p50_ms, o.p99_ms, o.p999_ms, o.plain, o.best, o.best_p50_ms) for o in outcomes),
        strict=True,
    )
    return Outcome(outcomes[0].cell, *map(statistics.median, numbers))


@dataclass(frozen=True, slots=True)
class Aim:
    words: str
    #: Figure ÷ aim.
    reached: float


def aim(outcome: Outcome, found: Sequence[Outcome]) -> Aim | None:
    cell = outcome.cell
    twin = next((each for each in found if each.cell == replace(cell, mode="plain")), None)
    if cell.mode != "plain":
        if twin is None:
            return None
        wanted = twin.records_per_s * (AIM_ENCRYPTED if cell.mode == "encrypted" else 1)
    elif cell.shape == (1, 1, 1):
        longest = AIM_ALONE * outcome.best_p50_ms
        return Aim(f"p50 ≤ {longest:.3f} ms", longest / outcome.p50_ms)
    else:
        wanted = AIMS[cell.shape]
    return Aim(f"≥ {wanted:,.0f}", outcome.records_per_s / wanted)


def append_table(found: Sequence[Outcome]) -> Table:
    rows = []
    for each in found:
        wanted = aim(each, found)
        rows.append(
            (
                each.cell.label(),
                f"{each.records_per_s:,.0f}",
                f"{each.p50_ms:.3f}",
                f"{each.p99_ms:.3f}",
                f"{each.p999_ms:.3f}",
                "" if wanted is None else wanted.words,
                "" if wanted is None else f"{wanted.reached:.2f}",
                f"{each.plain:,.0f}",
                f"{each.best:,.0f}",
                f"{each.records_per_s / each.best:.2f}",
            )
        )
    headings = (
        "clients × in flight × batch",
        "records/s",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "aim",
        "reached",
        "raw plain/s",
        "raw best/s",
        "÷ best",
    )
    title = f"Appends of {SIZE}-byte records over loopback; raw: one such batch a sync, one at a time"
    return Table(title, headings, tuple(rows))


@dataclass(frozen=True, slots=True)
class Reading:
    """Records a second, from one end of the log to the other."""

    kind: str
    records_per_s: float
    aim: float


def read(directory: Path, records: int, rounds: int) -> list[Reading]:
    path = Path(tempfile.mkdtemp(prefix="network-", dir=directory))
    batches, python = [], []
    try:
        with Daemon(path / "db") as daemon:
            url = f"kimberlite://{daemon.address}"
            filled(url, records)
            plan = Plan("read", daemon.address, batch=min(READ_BATCH, records), depth=4)
            for _ in range(rounds):
                with Processes(plan) as processes:
                    processes.run(0.2, warm=True)
                    batches.append(processes.run(1.0).records_per_s)
                python.append(uvloop.run(read_all(url)))
    finally:
        shutil.rmtree(path)
    return [
        Reading("as batches", statistics.median(batches), AIM_BATCHES),
        Reading("as Python records", statistics.median(python), AIM_RECORDS),
    ]


def filled(url: str, records: int) -> None:
    with kimberlite.sync.connect(url) as db:
        batch = [bytes(SIZE - 8) + i.to_bytes(8, "little") for i in range(min(records, READ_BATCH))]
        for _ in range(0, records, len(batch)):
            db.append("read", batch)


async def read_all(url: str) -> float:
    async with kimberlite.connect(url) as db:
        begun, count = time.perf_counter(), 0
        async for _ in db.read("read"):
            count += 1
        return count / (time.perf_counter() - begun)


@dataclass(frozen=True, slots=True)
class Peer:
    """Another server at the work of a cell."""

    cell: Cell
    name: str
    figures: Figures


def peer_table(found: Sequence[Outcome], peers: Sequence[Peer]) -> Table:
    """Each work with ours first."""
    rows = []
    for ours in found:
        rows.append((f"{ours.cell.label()}: Kimberlite", *shown(ours), "", f"{ours.records_per_s / ours.plain:.2f}"))
        for peer in peers:
            if peer.cell == ours.cell:
                figures = peer.figures
                ratio = ours.records_per_s / figures.records_per_s
                words = f"{peer.cell.label()}: {peer.name}"
                rows.append((words, *shown(figures), f"{ratio:.2f}", f"{figures.records_per_s / ours.plain:.2f}"))
    headings = (
        "clients × in flight × batch: server",
        "records/s",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "ours ÷ it",
        "÷ raw plain",
    )
    return Table(f"Durable appends of {SIZE}-byte records over loopback, beside other servers", headings, tuple(rows))


def shown(figures: Outcome | Figures) -> tuple[str, ...]:
    times = (figures.p50_ms, figures.p99_ms, figures.p999_ms)
    return (f"{figures.records_per_s:,.0f}", *(f"{ms:.3f}" for ms in times))


def middle_peer(cell: Cell, name: str, figures: Sequence[Figures]) -> Peer:
    values = zip(*(astuple(each) for each in figures), strict=True)
    return Peer(cell, name, Figures(*map(statistics.median, values)))


def read_table(found: Sequence[Reading]) -> Table:
    rows = tuple(
        (each.kind, f"{each.records_per_s:,.0f}", f"≥ {each.aim:,.0f}", f"{each.records_per_s / each.aim:.2f}")
        for each in found
    )
    return Table("Reading in order over loopback, one client", ("", "records/s", "aim", "reached"), rows)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path())
    parser.add_argument("--seconds", type=float, default=3.0, help="of load, for each cell of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--modes", action="store_true", help="encrypted, and JSON compressed, besides")
    parser.add_argument("--peers", action="store_true", help="Redis Streams and PostgreSQL at the same work")
    parser.add_argument("--records", type=int, default=READ, help="that are read")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", action="store_true")
    return parser


def measure(
    directory: Path, wanted: Sequence[Cell], peers: Sequence[Rival], seconds: float, rounds: int
) -> tuple[list[Outcome], list[Peer]]:
    """Everybody at everything in turns."""
    ours: dict[Cell, list[Outcome]] = {cell: [] for cell in wanted}
    theirs: dict[tuple[Cell, str], list[Figures]] = defaultdict(list)
    turns: list[tuple[Cell, Rival | None]] = [(cell, None) for cell in wanted]
    turns += [(cell, peer) for cell in wanted for peer in peers if cell.mode == "plain"]
    for number in range(rounds):
        for cell, peer in random.Random(number).sample(turns, len(turns)):
            name = "Kimberlite" if peer is None else peer.name
            print(f"round {number + 1}/{rounds}: {cell.label()}: {name}", file=sys.stderr, flush=True)
            if peer is None:
                ours[cell].append(append(cell, directory, seconds))
            else:
                load = Load(cell.clients, cell.depth, cell.batch, SIZE, seconds, PROCESSES)
                theirs[cell, name].append(peer.run(load))
    outcomes = [middle(each) for each in ours.values()]
    return outcomes, [middle_peer(cell, peer.name, theirs[cell, peer.name]) for cell, peer in turns if peer is not None]


def main() -> None:
    options = arguments().parse_args()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory)))
        peers, missing = stack.enter_context(rivals(directory)) if options.peers else ([], [])
        print(*missing, sep="\n", end="\n" if missing else "", file=sys.stderr)
        outcomes, others = measure(directory, cells(every_mode=options.modes), peers, options.seconds, options.rounds)
        readings = read(directory, options.records, options.rounds)
        where = machine(directory)
    tables = [append_table(outcomes), read_table(readings)]
    if peers:
        plain = [outcome for outcome in outcomes if outcome.cell.mode == "plain"]
        tables += [peer_table(plain, others), settings_table(peers)]
    show(where, tables, markdown=options.markdown)
    if options.json:
        write_json(options.json, where, {"append": outcomes, "read": readings, "peers": others})


if __name__ == "__main__":
    main()
