"""How long from exec to the first answers after a kill: a large log, many streams and producers, caches dropped.

A child fills a database and is killed while it appends. Then a fresh interpreter is timed from exec to one random old
record read and one durable append acknowledged; beside it, the same interpreter that only starts and stops.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import kimberlite
from benches.table import Table, asked, machine, publish


@dataclass(frozen=True, slots=True)
class Start:
    log: str
    median_s: float
    worst_s: float
    #: The same interpreter that only starts and stops.
    import_s: float
    #: Bytes on the disk.
    stored: int
    #: Whether the page cache was empty.
    dropped: bool


BATCH = 100
SIZE = 256
SHARED = 64


async def fill(path: Path, total: int, streams: int, producers: int) -> None:
    """Appends until killed; says `full` when the log is as large as wanted."""
    records = [os.urandom(SIZE) for _ in range(BATCH)]
    sequences = [0] * producers
    said = False
    async with kimberlite.open(path, sync="os") as db:
        turn = 0
        while True:
            appends = []
            for _ in range(SHARED):
                producer = turn % producers
                name = f"tenant-{turn % streams}"
                appends.append(
                    db.append(name, records, producer=(f"producer-{producer}", sequences[producer]), sync="group")
                    if turn % streams == producer
                    else db.append(name, records)
                )
                sequences[producer] += turn % streams == producer
                turn += 1
            await asyncio.gather(*appends)
            if not said and db.durable_position * SIZE >= total:
                print("full", flush=True)
                said = True


FIRST = """
import asyncio, sys, kimberlite
async def main():
    async with kimberlite.open(sys.argv[1]) as db:
        record = await db.get(int(sys.argv[2]))
        # A declaration is a record too.
        assert len(record.payload) == {size} or not record.stream, record
        receipt = await db.append("tenant-0", b"first after the crash")
        assert receipt.durable
        print("ready", flush=True)
        sys.stdin.read()
asyncio.run(main())
"""


def first_answers(path: Path, position: int) -> float:
    """Seconds from exec to one old record read and one append acknowledged; then it is killed again."""
    begun = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-c", FIRST.format(size=SIZE), str(path), str(position)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    line = child.stdout.readline()
    took = time.perf_counter() - begun
    child.kill()
    child.communicate()
    if line.strip() != "ready":
        raise SystemExit("the database did not open")
    return took


def import_only() -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import asyncio, kimberlite"], check=True)
    return time.perf_counter() - begun


def drop_caches() -> bool:
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def killed_under_load(path: Path, total: int, streams: int, producers: int) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "benches.startup", "--fill", str(path), str(total), str(streams), str(producers)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    if child.stdout.readline().strip() != "full":
        raise SystemExit("the log could not be filled")
    time.sleep(random.random())
    child.send_signal(signal.SIGKILL)
    child.communicate()


def table(found: Start) -> Table:
    row = (
        found.log,
        f"{found.median_s:.3f}",
        f"{found.worst_s:.3f}",
        f"{found.import_s:.3f}",
        f"{found.stored / (1 << 30):.2f}",
        "yes" if found.dropped else "no",
    )
    headings = ("log", "median s", "worst s", "only import s", "GiB on disk", "caches dropped")
    return Table("From exec to the first read and the first durable append", headings, (row,))


def arguments() -> argparse.ArgumentParser:
    parser = asked("startup", __doc__)
    parser.add_argument("--gib", type=float, default=10.0)
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--producers", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--fill", nargs=4, metavar=("PATH", "BYTES", "STREAMS", "PRODUCERS"), help=argparse.SUPPRESS)
    return parser


def main() -> None:
    options = arguments().parse_args()
    if options.fill:
        path, total, streams, producers = options.fill
        asyncio.run(fill(Path(path), int(total), int(streams), int(producers)))
        return
    directory = Path(tempfile.mkdtemp(prefix="startup-", dir=options.directory))
    try:
        path = directory / "db"
        total = int(options.gib * (1 << 30))
        killed_under_load(path, total, options.streams, options.producers)
        took, imports = [], []
        for _ in range(options.rounds):
            dropped = drop_caches()
            took.append(first_answers(path, random.randrange(1, total // SIZE) // 2))
            imports.append(import_only())
        used = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        log = f"{options.gib:g} GiB, {options.streams} streams, {options.producers} producers"
        found = Start(log, statistics.median(took), max(took), statistics.median(imports), used, dropped)
        rows = {"startup": [found]}
        publish(machine(directory), [table(found)], rows, options)
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
