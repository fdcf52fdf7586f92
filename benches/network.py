"""How fast clients over loopback append and read, beside the raw disk, and what a user would pick instead, in one run.

Every cell is a fresh database and a daemon of its own, driven natively from processes on the same cores; the clock
stops when the last answer is there. Cells are run in shuffled rounds, with the raw disk and other servers between
them; medians over rounds.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from base64 import b64decode, b64encode
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import astuple, fields, replace
from functools import reduce
from pathlib import Path
from typing import Final

import uvloop

import kimberlite.sync
from benches.answers import answering, carried
from benches.clients import Load
from benches.daemon import Daemon, settings
from benches.engine import AIMS
from benches.network_tables import (
    SIZE,
    Cell,
    Encoding,
    Outcome,
    Peer,
    Reading,
    append_table,
    encoding_table,
    peer_table,
    read_table,
)
from benches.offers import OFFERS, chosen, rivals_here
from benches.packages import Missing
from benches.rivals import Figures, Rival, settings_table
from benches.table import asked, machine, publish
from kimberlite import _native
from kimberlite.load.plan import Plan
from kimberlite.load.run import Disk, Processes

PROCESSES: Final = 2
#: Of a cell's seconds, those that the raw disk gets before it.
DISK_SHARE: Final = 0.5
#: And those that a server which only answers gets behind it.
SOCKETS_SHARE: Final = 0.3
#: Records that are read, and how many at a time; records a second that are aimed at.
READ: Final = 1_000_000
READ_BATCH: Final = 10_000
AIM_BATCHES: Final = 2_000_000
AIM_RECORDS: Final = 400_000


CELLS: Final = [Cell(1, 1, 1), *(Cell(*shape) for shape in AIMS)]


def cells(*, every_mode: bool) -> list[Cell]:
    if not every_mode:
        return CELLS
    return [*CELLS, *(replace(cell, mode="encrypted") for cell in CELLS), Cell(32, 1, 100, "json+zstd")]


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
                spent = daemon.cpu
                outcome = processes.run(seconds)
                spent = daemon.cpu - spent
        with answering() as address, Processes(replace(plan, address=address)) as processes:
            processes.run(min(seconds, 0.5), warm=True)
            answered = processes.run(seconds * SOCKETS_SHARE)
            sockets = cell.batch * answered.appends.requests / answered.seconds
        p50, p99, p999 = (outcome.times.quantile(share) / 1e6 for share in (0.5, 0.99, 0.999))
        plain, best = (1e9 * cell.batch / statistics.mean(writes) for writes in (disk.plain_batch, disk.best_batch))
        best_p50 = statistics.median(disk.best_batch) / 1e6
        cpu_us = 1e6 * spent / outcome.appends.records
        rate, times = outcome.records_per_s, b64encode(outcome.times.encode()).decode()
        return Outcome(cell, rate, p50, p99, p999, plain, best, best_p50, sockets, cpu_us, rate, rate, times)
    finally:
        shutil.rmtree(path)


def middle(outcomes: Sequence[Outcome]) -> Outcome:
    """The medians, each by itself; and what is of all rounds."""
    _cell, *numbers, _low, _high, _times = (field.name for field in fields(Outcome))
    medians = {name: statistics.median(getattr(outcome, name) for outcome in outcomes) for name in numbers}
    rates = [outcome.records_per_s for outcome in outcomes]
    times = reduce(_native.Histogram.plus, (_native.Histogram.decode(b64decode(each.times)) for each in outcomes))
    together = b64encode(times.encode()).decode()
    return replace(outcomes[0], low=min(rates), high=max(rates), times=together, **medians)


def encoding(found: Sequence[Outcome], rounds: int = 5, batches: int = 1_000) -> Encoding | None:
    """None where nobody appended such batches."""
    beside = [outcome.cpu_us for outcome in found if outcome.cell.batch == 100 and outcome.cell.mode == "plain"]
    if not beside:
        return None
    records = [os.urandom(SIZE) for _ in range(100)]
    took = []
    for _ in range(rounds):
        begun = time.process_time()
        for i in range(batches):
            _native.encode_append(i, [("stream", _native.encode(records), None)], False, (bytes(16), i), "group")
        took.append(time.process_time() - begun)
    return Encoding(1e6 * statistics.median(took) / batches / 100, min(beside))


def read(directory: Path, records: int, rounds: int) -> list[Reading]:
    path = Path(tempfile.mkdtemp(prefix="network-", dir=directory))
    batches, python, bytes_carried = [], [], []
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
                bytes_carried.append(carried(0.3))
    finally:
        shutil.rmtree(path)
    beside = statistics.median(bytes_carried) / SIZE
    return [
        Reading("as batches", statistics.median(batches), AIM_BATCHES, beside),
        Reading("as Python records", statistics.median(python), AIM_RECORDS, beside),
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


def middle_peer(cell: Cell, name: str, figures: Sequence[Figures]) -> Peer:
    values = zip(*(astuple(each) for each in figures), strict=True)
    return Peer(cell, name, Figures(*map(statistics.median, values)))


def arguments() -> argparse.ArgumentParser:
    parser = asked("network", __doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of load, for each cell of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--modes", action="store_true", help="encrypted, and JSON compressed, besides")
    parser.add_argument(
        "--peers",
        nargs="?",
        type=chosen,
        const=list(OFFERS),
        default=[],
        metavar="NAME,NAME",
        help=f"others at the same work, all or some of {', '.join(OFFERS)}",
    )
    parser.add_argument("--records", type=int, default=READ, help="that are read")
    return parser


def measure(
    directory: Path, wanted: Sequence[Cell], peers: Sequence[Rival], seconds: float, rounds: int
) -> tuple[list[Outcome], list[Peer]]:
    """Everybody at everything in turns. A peer that fails at a work is named, and the rest goes on."""
    ours: dict[Cell, list[Outcome]] = {cell: [] for cell in wanted}
    theirs: dict[tuple[Cell, str], list[Figures]] = defaultdict(list)
    turns: list[tuple[Cell, Rival | None]] = [(cell, None) for cell in wanted]
    turns += [(cell, peer) for cell in wanted for peer in peers if takes(peer, cell)]
    for number in range(rounds):
        for cell, peer in random.Random(number).sample(turns, len(turns)):
            name = "Kimberlite" if peer is None else peer.name
            print(f"round {number + 1}/{rounds}: {cell.label()}: {name}", file=sys.stderr, flush=True)
            if peer is None:
                ours[cell].append(append(cell, directory, seconds))
            else:
                load = Load(cell.clients, cell.depth, cell.batch, SIZE, seconds, PROCESSES)
                try:
                    theirs[cell, name].append(peer.run(load))
                except (Missing, RuntimeError, OSError) as problem:
                    print(f"{cell.label()}: {name} failed: {problem}", file=sys.stderr, flush=True)
    outcomes = [middle(each) for each in ours.values()]
    wanted_peers = [(cell, peer.name) for cell, peer in turns if peer is not None]
    return outcomes, [middle_peer(*each, theirs[each]) for each in wanted_peers if theirs[each]]


def takes(peer: Rival, cell: Cell) -> bool:
    return cell.mode == "plain" and not (peer.alone and cell.clients * cell.depth > 1)


def main() -> None:
    options = arguments().parse_args()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory)))
        peers, missing = rivals_here(options.peers, directory)
        print(*missing, sep="\n", end="\n" if missing else "", file=sys.stderr)
        outcomes, others = measure(directory, cells(every_mode=options.modes), peers, options.seconds, options.rounds)
        readings = read(directory, options.records, options.rounds)
        where = machine(directory)
    tables = [append_table(outcomes), read_table(readings)]
    encoded = encoding(outcomes)
    if encoded is not None:
        tables.append(encoding_table(encoded))
    if peers:
        plain = [outcome for outcome in outcomes if outcome.cell.mode == "plain"]
        tables += [peer_table(plain, others), settings_table(peers)]
    publish(
        where,
        tables,
        {"append": outcomes, "read": readings, "peers": others, "encoding": [] if encoded is None else [encoded]},
        options,
    )


if __name__ == "__main__":
    main()
