"""What the parts reach, each beside its aim and what this machine does without us, all in one run.

The core's own work is timed by `native/core/examples/work.rs`, in one thread. Beside it stands what OpenSSL, the BLAKE3
package, a copy in memory and the raw disk do here in the same minutes: one message at a time, which several hashed side
by side may well outdo.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benches import engine, limits, reads
from benches.instructions import built, timed
from benches.table import Table, asked, machine, publish, quantile
from kimberlite.load.disk import best_writes

KIB, MIB = 1 << 10, 1 << 20
RECORD: Final = 256
BATCH: Final = 100
#: Turns of everything, over which medians are taken.
ROUNDS: Final = 3


@dataclass(frozen=True, slots=True)
class Target:
    work: str
    figure: float
    unit: str
    #: Of the rounds, which the figure is the median of.
    low: float
    high: float
    #: None where nothing is aimed at.
    aim: float | None
    beside: float | None
    meaning: str

    @property
    def less(self) -> bool:
        """Whether less is better."""
        return self.unit == "µs"


def rounds(program: Path, kind: str, seconds: float) -> tuple[list[float], list[float]]:
    """Nanoseconds of it, in the mean and at the 99th percentile, of each round."""
    found = [timed(program, kind, seconds / ROUNDS) for _ in range(ROUNDS)]
    means, slowest = zip(*found, strict=True)
    return list(means), list(slowest)


def target(
    work: str, found: Sequence[float], unit: str, aim: float | None, beside: float | None, meaning: str
) -> Target:
    """Of what its rounds found."""
    return Target(work, statistics.median(found), unit, min(found), max(found), aim, beside, meaning)


def parts(program: Path, seconds: float) -> Iterator[Target]:
    """In gigabytes a second, and the slowest of a hundred."""
    most = {(rate.work, rate.size): rate.gigabytes_per_second for rate in limits.rates(seconds)}
    blake3 = max(most["BLAKE3", MIB], most["BLAKE3, all cores", MIB])
    for work, kind, size, aim, beside, meaning in (
        ("SHA-256, a chain of 1 KiB", "sha256 chain 1 KiB", KIB, 0.5, most["SHA-256 (OpenSSL)", MIB], "OpenSSL, 1 MiB"),
        ("SHA-256, 64 × 1 KiB", "sha256 64 x 1 KiB", 64 * KIB, None, most["SHA-256 (OpenSSL)", MIB], "the same"),
        ("BLAKE3, 1 KiB", "blake3 1 KiB", KIB, 5.0, most["BLAKE3", KIB], "the package, 1 KiB"),
        ("BLAKE3, 1 MiB", "blake3 1 MiB", MIB, 15.0, blake3, "the package, 1 MiB, one core or all"),
        ("AES-256-GCM, 1 KiB", "aes 1 KiB", KIB, 2.0, most["AES-256-GCM (OpenSSL)", MIB], "OpenSSL, 1 MiB"),
        ("records to bytes", "encode", BATCH * RECORD, None, most["memory copy", MIB], "a copy of 1 MiB"),
    ):
        means, slowest = rounds(program, kind, seconds)
        yield target(work, [size / mean for mean in means], "GB/s", aim, beside, meaning)
        if kind in ("aes 1 KiB", "sha256 chain 1 KiB"):
            name, theirs = ("encrypt", "AES-256-GCM") if kind.startswith("aes") else ("hash", "SHA-256")
            theirs = f"{theirs} (OpenSSL)"
            beside = limits.slowest(theirs, KIB, seconds) / 1e3
            found = [each / 1e3 for each in slowest]
            yield target(f"{name} 1 KiB, p99", found, "µs", None, beside, f"{theirs} from Python, p99")


def whole(directory: Path, seconds: float, records: int) -> Iterator[Target]:
    """Appends and reads, embedded."""
    writes = best_writes(directory, BATCH * RECORD, seconds)
    synced, free = (engine.Cell(1, 1, BATCH), engine.Cell(32, 1, BATCH, sync="os"))
    found: dict[engine.Cell, list[engine.Outcome]] = {synced: [], free: []}
    for _ in range(ROUNDS):
        for each in engine.measure([synced, free], directory, seconds, 1):
            found[each.cell].append(each)
    rates = {cell: [each.records_per_s for each in rounds] for cell, rounds in found.items()}
    best = 1e9 * BATCH * len(writes) / sum(writes)
    aim = float(engine.AIMS[1, 1, BATCH])
    yield target("append 100, synced", rates[synced], "records/s", aim, best, "the best raw write")
    aim = float(engine.AIM_WITHOUT_SYNC)
    hashing = limits.hashed_records(seconds)
    yield target("append 100, not synced", rates[free], "records/s", aim, hashing, "its hashes, on all cores")
    slowest = [each.p99_ns / 1e3 for each in found[synced]]
    beside = quantile(writes, 0.99) / 1e3
    yield target("append 100, synced, p99", slowest, "µs", None, beside, "the best raw write's p99")
    path = directory / "read"
    asyncio.run(reads.fill(path, records, "plain", None))
    rounds = [asyncio.run(reads.gets(path, None, min(records, 20_000))) for _ in range(ROUNDS)]
    beside = quantile(reads.blocks_read(path, 5_000), 0.99) / 1e3
    for where, took in zip(("in the cache", "anywhere"), zip(*rounds, strict=True), strict=True):
        slowest = [quantile(each, 0.99) / 1e3 for each in took]
        yield target(
            f"read by position, {where}, p99", slowest, "µs", 20.0, beside, "pread of a block in the page cache, p99"
        )


def table(found: list[Target]) -> Table:
    rows = []
    for each in found:
        figure, low, high = (
            f"{value:,.0f}" if value >= 1_000 else f"{value:.3g}" for value in (each.figure, each.low, each.high)
        )
        bound = "≤" if each.less else "≥"
        rows.append(
            (
                each.work,
                figure,
                f"{low} to {high}",
                each.unit,
                "" if each.aim is None else f"{bound} {each.aim:,.1f}".removesuffix(".0"),
                "" if each.aim is None else f"{ratio(each, each.aim):.2f}",
                "" if each.beside is None else f"{each.beside:,.0f}" if each.beside >= 1e3 else f"{each.beside:.3g}",
                "" if each.beside is None else f"{ratio(each, each.beside):.2f}",
                each.meaning,
            )
        )
    headings = ("work", "figure", "of the rounds", "unit", "aim", "reached", "beside it", "of that", "which is")
    return Table("Targets", headings, tuple(rows))


def ratio(target: Target, to: float) -> float:
    """1 is there; more is better."""
    return to / target.figure if target.less else target.figure / to


def arguments() -> argparse.ArgumentParser:
    parser = asked("targets", __doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each")
    parser.add_argument("--records", type=int, default=1_000_000, help="of the log that is read")
    return parser


def main() -> None:
    options = arguments().parse_args()
    program = built()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory) as name:
        found = [*parts(program, options.seconds), *whole(Path(name), options.seconds, options.records)]
        where = machine(Path(name))
    publish(where, [table(found)], {"targets": found}, options)


if __name__ == "__main__":
    main()
