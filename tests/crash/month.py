"""What a log takes that got a record a second for a month: the clock is ours, the engine, its files and its syncs are real.

    python -m tests.crash.month --out results/month

Every record is a group of its own, which takes a block until its segment is packed. What the directory takes in the
end is counted by kind of file and held against the payload.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from kimberlite.crypto.master import create_master
from kimberlite.log.clock import Moment
from kimberlite.log.opening import Injected, open_log
from kimberlite.log.options import Options
from kimberlite.log.verify import verify_directory

BEGAN: Final = 1_700_000_000 * 10**9
SECOND: Final = 10**9
DAY: Final = 86_400
PAYLOAD: Final = 256
#: Times its payload that a log may take, and a segment: the one that is being written.
MOST: Final = 2.5
KINDS: Final = ("segments", "active segment", "hashes", "index", "others")


@dataclass
class Taken:
    """Bytes of a directory by kind of file: as its files are long, and as the disk has blocks for them."""

    records: int
    segment: int
    long: Counter[str]
    blocks: Counter[str]

    @property
    def most(self) -> float:
        return MOST * PAYLOAD * self.records + self.segment

    @property
    def total(self) -> int:
        return max(self.long.total(), self.blocks.total())

    @property
    def ratio(self) -> float:
        """Of what is not the one segment."""
        active = "active segment"
        return max(each.total() - each[active] for each in (self.long, self.blocks)) / (PAYLOAD * self.records)

    def lines(self) -> Iterator[str]:
        yield f"{self.records:,} records, {PAYLOAD * self.records:,} bytes of payload, segments of {self.segment:,}"
        for kind in KINDS:
            each = (f"{sizes[kind]:15,} {sizes[kind] / self.records:7.1f}" for sizes in (self.long, self.blocks))
            yield f"{kind:15} {' '.join(each)}"
        yield f"{'together':15} {self.long.total():15,} {'':7} {self.blocks.total():15,}"
        yield f"{self.ratio:.3f} x the payload without the active segment; {self.total:,} of {self.most:,.0f} bytes"


def taken(directory: Path, records: int, segment: int) -> Taken:
    """Without what a lock or a key beside it takes."""
    long, blocks = Counter[str](), Counter[str]()
    active = max((directory / "segments").iterdir())
    for path in directory.rglob("*"):
        kind = path.relative_to(directory).parts[0]
        kind = "active segment" if path == active else kind if kind in KINDS else "others"
        status = path.stat()
        blocks[kind] += 512 * status.st_blocks
        long[kind] += status.st_size if path.is_file() else 0
    return Taken(records, segment, long, blocks)


async def live(directory: Path, key: Path | None, records: int, options: Options, *, days: bool = False) -> None:
    """A life of a record a second."""
    now, boot = BEGAN, b"%016d" % 0
    opening = open_log(
        directory,
        create=True,
        read_only=False,
        key_file=key,
        backend="threads",
        origin=None,
        anchor=None,
        options=options,
        injected=Injected(clock=lambda: now, moment=lambda: Moment(now, boot, now - BEGAN)),
    )
    began = time.monotonic()
    async with opening as log:
        first = await log.append("readings", os.urandom(PAYLOAD))
        for i in range(1, records):
            now += SECOND
            receipt = await log.append("readings", os.urandom(PAYLOAD))
            # But for those that close segments.
            assert receipt.group >= first.group + i and receipt.timestamp == now
            if days and i % DAY == 0:
                print(f"day {i // DAY}, after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        await packed(directory, options)


async def packed(directory: Path, options: Options) -> None:
    """A month has time enough to pack what was closed in it."""
    deadline = time.monotonic() + 60
    while options.pack and time.monotonic() < deadline:
        *closed, _ = sorted((directory / "segments").iterdir())
        if all(path.stat().st_size < options.pack * options.segment_bytes for path in closed):
            return
        await asyncio.sleep(0.01)


def lived(directory: Path, records: int, options: Options, *, encrypted: bool, days: bool = False) -> Taken:
    """What it takes in the end, when all of it is sound."""
    key = directory / "key" if encrypted else None
    if key is not None:
        create_master(key)
    database = directory / "db"
    asyncio.run(live(database, key, records, options, days=days))
    report = verify_directory(database, key_file=key)
    assert report.notes == []
    # The declaration is a record, too.
    assert report.records == records + 1
    return taken(database, records, options.segment_bytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--days", type=float, default=30)
    parser.add_argument("--segment-bytes", type=int, default=Options().segment_bytes)
    parser.add_argument("--only", choices=("plain", "encrypted"))
    parser.add_argument("--directory", type=Path, default=Path.cwd(), help="where the databases are, for a while")
    parser.add_argument("--out", type=Path, help="a directory for the numbers")
    arguments = parser.parse_args()
    options, found = Options(segment_bytes=arguments.segment_bytes), {}
    for kind in (arguments.only,) if arguments.only else ("plain", "encrypted"):
        began = time.monotonic()
        with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="month-") as directory:
            records = int(arguments.days * DAY)
            found[kind] = lived(Path(directory), records, options, encrypted=kind == "encrypted", days=True)
        print(f"{kind}, {time.monotonic() - began:.0f} s, verified", *found[kind].lines(), sep="\n")
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "month.json").write_text(json.dumps({kind: asdict(each) for kind, each in found.items()}))
    sys.exit(any(each.total > each.most for each in found.values()))


if __name__ == "__main__":
    main()
