"""What can this disk do? Durable writes, by how the file was prepared and by how the write is asked for.

The candidates take turns in short rounds, so that a drift of the disk meets all of them, and what is reported is the
median over the rounds. The bytes written are random: a host may store zeros as nothing.
"""

from __future__ import annotations

import argparse
import os
import select
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from random import Random

from benches.table import Table, asked, byte_count, machine, microseconds, publish, quantile
from kimberlite import _native
from kimberlite.load.disk import (
    BEST,
    KIB,
    MIB,
    PLAIN,
    REGION,
    Call,
    best_writes,
    payload,
    plain_writes,
    prepare,
    rate,
    timed_writes,
)

SIZES = (4 * KIB, 28 * KIB, 256 * KIB, MIB)
FILES = ("growing", "fallocated", "zeroed")
DEPTHS = tuple(range(1, 9))
DEPTH_SIZES = (4 * KIB, 28 * KIB, MIB)
SUSTAINED_SIZES = (28 * KIB, MIB)
PREPARATIONS = ("zero, then write", "fallocate, then write", "overwrite old files")

#: Bytes of one file of the sustained run, and how many of them each candidate keeps.
SEGMENT = 256 * MIB
SEGMENTS = 4
#: A disk faster than this, in seconds a write, ends its round before the time is up.
FASTEST = 20e-6

CALLS = (
    PLAIN,
    Call("buffered, RWF_DSYNC", each=os.RWF_DSYNC),
    Call("O_DIRECT, RWF_DSYNC", flags=os.O_DIRECT, each=os.RWF_DSYNC),
    BEST,
    replace(BEST, name=f"{BEST.name}, 0.1 ms apart", pause=100_000),
    Call("O_DIRECT, fdatasync", flags=os.O_DIRECT, sync_after=True),
)


@dataclass(frozen=True, slots=True)
class Write:
    """One durable write at a time; `writes` in all rounds together."""

    size: int
    file: str
    call: str
    writes: int
    p50_ns: int
    p99_ns: int


@dataclass(frozen=True, slots=True)
class Depth:
    """`depth` writes with O_DIRECT and RWF_DSYNC in flight through io_uring, on zeroed blocks."""

    size: int
    depth: int
    mib_per_second: float
    p50_ns: int


@dataclass(frozen=True, slots=True)
class Sustained:
    """Whole files one after another, their preparation included in the rate and not in the quantiles."""

    size: int
    preparation: str
    files: int
    mib_per_second: float
    slowest_mib_per_second: float
    p50_ns: int
    p99_ns: int


def burst(directory: Path, seconds: float, rounds: int = 5, region: int = REGION) -> list[Write]:
    """Every file with every call and every size, for `seconds` each at most."""
    found: dict[tuple[int, str, Call], list[list[int]]] = {key: [] for key in product(SIZES, FILES, CALLS)}
    path = directory / "burst"
    for number in range(rounds):
        _progress(f"burst, round {number + 1} of {rounds}")
        for key in Random(number).sample(list(found), len(found)):
            size, file, call = key
            length = max(size, min(region, int(seconds / rounds / FASTEST) * size))
            prepare(path, file, length)
            found[key].append(timed_writes(path, call, size, length, seconds / rounds))
    path.unlink(missing_ok=True)
    return [
        Write(size, file, call.name, sum(map(len, samples)), _median(samples, 0.5), _median(samples, 0.99))
        for (size, file, call), samples in found.items()
    ]


def without_uring() -> str | None:
    """Why the depths cannot be measured here, if so."""
    try:
        _native.Ring(1).close()
    except OSError as problem:
        return f"the kernel gives no ring ({problem.strerror})"
    return None


def keep_in_flight(path: Path, size: int, depth: int, length: int, seconds: float) -> tuple[float, list[int]]:
    """Bytes a second and nanoseconds of each write. Goes round the file: its blocks stay what they were."""
    buffers = [payload(size) for _ in range(depth)]
    started = [0] * depth
    samples: list[int] = []
    ring = _native.Ring(depth)
    poll = select.poll()
    poll.register(ring.fileno(), select.POLLIN)
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    places = length // size
    submitted = 0

    def submit(slot: int) -> None:
        nonlocal submitted
        started[slot] = time.perf_counter_ns()
        ring.submit(slot, fd, submitted % places * size, buffers[slot], True)
        submitted += 1

    try:
        begin = time.perf_counter_ns()
        end = begin + int(seconds * 1e9)
        for slot in range(depth):
            submit(slot)
        while len(samples) < submitted:
            poll.poll()
            for slot, failed in ring.completions():
                now = time.perf_counter_ns()
                if failed:
                    raise OSError(failed, os.strerror(failed))
                samples.append(now - started[slot])
                if now < end:
                    submit(slot)
        return len(samples) * size / (time.perf_counter_ns() - begin) * 1e9, samples
    finally:
        ring.close()
        os.close(fd)


def depths(directory: Path, seconds: float, rounds: int = 5, region: int = REGION) -> list[Depth]:
    """Only where `without_uring` is None."""
    if missing := without_uring():
        raise RuntimeError(missing)
    found: dict[tuple[int, int], list[tuple[float, list[int]]]] = {key: [] for key in product(DEPTH_SIZES, DEPTHS)}
    path = directory / "depth"
    prepare(path, "zeroed", region)
    for number in range(rounds):
        _progress(f"depth, round {number + 1} of {rounds}")
        for key in Random(number).sample(list(found), len(found)):
            found[key].append(keep_in_flight(path, *key, region, seconds / rounds))
    path.unlink()
    return [
        Depth(
            size,
            depth,
            statistics.median(rate for rate, _ in runs) / MIB,
            _median([samples for _, samples in runs], 0.5),
        )
        for (size, depth), runs in found.items()
    ]


def sustained(directory: Path, seconds: float, segment: int = SEGMENT, segments: int = SEGMENTS) -> list[Sustained]:
    """Every preparation and size in turn, a file each, until `seconds` for each size are over."""
    found: dict[tuple[int, str], list[tuple[float, list[int]]]] = defaultdict(list)
    keys = list(product(SUSTAINED_SIZES, PREPARATIONS))
    for size, number in product(SUSTAINED_SIZES, range(segments)):
        prepare(directory / f"{size}-overwrite old files-{number}", "zeroed", segment)
    end = time.perf_counter() + seconds * len(SUSTAINED_SIZES)
    turn = 0
    while not turn or time.perf_counter() < end:
        _progress(f"sustained, round {turn + 1}")
        for size, preparation in keys:
            path = directory / f"{size}-{preparation}-{turn % segments}"
            begin = time.perf_counter()
            if preparation != "overwrite old files":
                prepare(path, "zeroed" if preparation == "zero, then write" else "fallocated", segment)
            samples = timed_writes(path, BEST, size, segment, 1e9)
            rate = len(samples) * size / (time.perf_counter() - begin) / MIB
            found[size, preparation].append((rate, samples))
        turn += 1
    return [
        Sustained(
            size,
            preparation,
            len(runs),
            statistics.median(rate for rate, _ in runs),
            min(rate for rate, _ in runs),
            _median([samples for _, samples in runs], 0.5),
            _median([samples for _, samples in runs], 0.99),
        )
        for (size, preparation), runs in found.items()
    ]


def plain(directory: Path, batch_bytes: int, seconds: float) -> float:
    """Batches a second, as anybody would write them."""
    return rate(plain_writes(directory, batch_bytes, seconds))


def best(directory: Path, batch_bytes: int, seconds: float, region: int = REGION) -> float:
    """Batches a second, as well as can be."""
    return rate(best_writes(directory, batch_bytes, seconds, region))


def _median(rounds: Sequence[Sequence[int]], part: float) -> int:
    return round(statistics.median(quantile(samples, part) for samples in rounds))


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def write_table(found: Sequence[Write]) -> Table:
    cells = {(each.size, each.file, each.call): each for each in found}
    rows = [
        (
            f"{file}: {call.name}",
            *(
                f"{microseconds(cell.p50_ns)} / {microseconds(cell.p99_ns)}"
                for cell in (cells[size, file, call.name] for size in SIZES)
            ),
        )
        for file, call in product(FILES, CALLS)
    ]
    return Table("One durable write, p50 / p99 in µs", ("file: call", *map(byte_count, SIZES)), tuple(rows))


def depth_table(found: Sequence[Depth]) -> Table:
    cells = {(each.size, each.depth): each for each in found}
    rows = [
        (
            str(depth),
            *(
                f"{cells[size, depth].mib_per_second:,.0f} / {microseconds(cells[size, depth].p50_ns)}"
                for size in DEPTH_SIZES
            ),
        )
        for depth in DEPTHS
    ]
    title = "Durable writes in flight (io_uring, O_DIRECT, RWF_DSYNC, zeroed), MiB/s / p50 in µs"
    return Table(title, ("in flight", *map(byte_count, DEPTH_SIZES)), tuple(rows))


def sustained_table(found: Sequence[Sustained], seconds: float) -> Table:
    rows = [
        (
            f"{byte_count(each.size)}: {each.preparation}",
            f"{each.mib_per_second:,.0f}",
            f"{each.slowest_mib_per_second:,.0f}",
            microseconds(each.p50_ns),
            microseconds(each.p99_ns),
            str(each.files),
        )
        for each in found
    ]
    headings = ("writes: preparation", "MiB/s", "slowest file", "p50 µs", "p99 µs", "files")
    return Table(f"Sustained for {seconds:,.0f} s a size, preparation included", headings, tuple(rows))


def arguments() -> argparse.ArgumentParser:
    parser = asked("disk", "What this disk can do.")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--seconds", type=float, default=2.0, help="of the burst, for each cell of its tables")
    parser.add_argument("--rounds", type=int, default=5, help="of the burst")
    mode.add_argument("--sustained", type=float, metavar="SECONDS", help="instead of the burst, for each size")
    return parser


def main() -> None:
    options = arguments().parse_args()
    where = machine(options.directory)
    needed = len(SUSTAINED_SIZES) * len(PREPARATIONS) * SEGMENTS * SEGMENT if options.sustained else 2 * REGION
    if shutil.disk_usage(options.directory).free < 2 * needed:
        sys.exit(f"{options.directory} wants {2 * needed // MIB} MiB free")
    tables: list[Table] = []
    rows: dict[str, Sequence[Write | Depth | Sustained]] = {}
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="bench-disk-") as name:
        if options.sustained:
            rows["sustained"] = run = sustained(Path(name), options.sustained)
            tables.append(sustained_table(run, options.sustained))
        else:
            rows["burst"] = writes = burst(Path(name), options.seconds, options.rounds)
            tables.append(write_table(writes))
            if missing := without_uring():
                _progress(f"no depths: {missing}")
            else:
                rows["depth"] = deep = depths(Path(name), options.seconds, options.rounds)
                tables.append(depth_table(deep))
    publish(where, tables, rows, options)


if __name__ == "__main__":
    main()
