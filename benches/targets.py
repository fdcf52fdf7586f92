"""What the parts reach, each beside its aim and the limit that this machine sets it, all in one run.

The core's own work is timed by `native/core/examples/work.rs`, in one thread; limits are what OpenSSL, the BLAKE3
package, a copy in memory and the raw disk do here in the same minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
from collections.abc import Iterator
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
    #: None where nothing is aimed at.
    aim: float | None
    limit: float | None
    meaning: str

    @property
    def less(self) -> bool:
        """Whether less is better."""
        return self.unit == "µs"


def rounds(program: Path, kind: str, seconds: float) -> tuple[float, float]:
    """Nanoseconds of it, in the mean and at the 99th percentile."""
    found = [timed(program, kind, seconds / ROUNDS) for _ in range(ROUNDS)]
    mean, p99 = (statistics.median(each) for each in zip(*found, strict=True))
    return mean, p99


def parts(program: Path, seconds: float) -> Iterator[Target]:
    """In gigabytes a second, and the slowest of a hundred."""
    most = {(rate.work, rate.size): rate.gigabytes_per_second for rate in limits.rates(seconds)}
    for work, kind, size, aim, limit, meaning in (
        ("SHA-256, a chain of 1 KiB", "sha256 chain 1 KiB", KIB, 0.5, most["SHA-256 (OpenSSL)", MIB], "OpenSSL, 1 MiB"),
        ("SHA-256, 64 × 1 KiB", "sha256 64 x 1 KiB", 64 * KIB, None, most["SHA-256 (OpenSSL)", MIB], "the same"),
        ("BLAKE3, 1 KiB", "blake3 1 KiB", KIB, 5.0, most["BLAKE3", KIB], "the package, 1 KiB"),
        ("BLAKE3, 1 MiB", "blake3 1 MiB", MIB, 15.0, most["BLAKE3, all cores", MIB], "the package, all cores"),
        ("AES-256-GCM, 1 KiB", "aes 1 KiB", KIB, 2.0, most["AES-256-GCM (OpenSSL)", MIB], "OpenSSL, 1 MiB"),
        ("records to bytes", "encode", BATCH * RECORD, None, most["memory copy", KIB], "a copy of 1 KiB"),
    ):
        mean, p99 = rounds(program, kind, seconds)
        yield Target(work, size / mean, "GB/s", aim, limit, meaning)
        if kind in ("aes 1 KiB", "sha256 chain 1 KiB"):
            name = "encrypt 1 KiB" if kind.startswith("aes") else "hash 1 KiB"
            yield Target(f"{name}, p99", p99 / 1e3, "µs", None, mean / 1e3, "its mean")


def whole(directory: Path, seconds: float, records: int) -> Iterator[Target]:
    """Appends and reads, embedded."""
    writes = best_writes(directory, BATCH * RECORD, seconds)
    synced, free = (engine.Cell(1, 1, BATCH), engine.Cell(32, 1, BATCH, sync="os"))
    found = {each.cell: each for each in engine.measure([synced, free], directory, seconds, ROUNDS)}
    best = 1e9 * BATCH * len(writes) / sum(writes)
    aim = float(engine.AIMS[1, 1, BATCH])
    yield Target("append 100, synced", found[synced].records_per_s, "records/s", aim, best, "the best raw write")
    aim = float(engine.AIM_WITHOUT_SYNC)
    yield Target("append 100, not synced", found[free].records_per_s, "records/s", aim, None, "")
    slowest = quantile(writes, 0.99) / 1e3
    yield Target("append 100, synced, p99", found[synced].p99_ns / 1e3, "µs", None, slowest, "the best raw write's p99")
    path = directory / "read"
    asyncio.run(reads.fill(path, records, "plain", None))
    warm, cold = asyncio.run(reads.gets(path, None, min(records, 20_000)))
    yield Target("read by position, p99", quantile(warm, 0.99) / 1e3, "µs", 20.0, None, "in the cache")
    yield Target("read by position, p99", quantile(cold, 0.99) / 1e3, "µs", 20.0, None, "anywhere")


def table(found: list[Target]) -> Table:
    rows = []
    for each in found:
        digits = f"{each.figure:,.0f}" if each.unit == "records/s" else f"{each.figure:.3g}"
        bound = "≤" if each.less else "≥"
        rows.append(
            (
                each.work,
                digits,
                each.unit,
                "" if each.aim is None else f"{bound} {each.aim:,.1f}".removesuffix(".0"),
                "" if each.aim is None else f"{ratio(each, each.aim):.2f}",
                "" if each.limit is None else f"{each.limit:,.0f}" if each.limit > 1e4 else f"{each.limit:.3g}",
                "" if each.limit is None else f"{ratio(each, each.limit):.2f}",
                each.meaning,
            )
        )
    headings = ("work", "figure", "unit", "aim", "reached", "limit", "of it", "which is")
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
