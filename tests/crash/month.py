"""What a log takes that got a record a second for a month: the clock is ours, the engine and its files are real.

    python -m tests.crash.month --out results/month

Every record is a group of its own, which takes a block until its segment is packed. What the directory takes in the
end is counted by kind of file and held against the payload, and what a record takes by what it is.
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
from kimberlite.log.names import HASHES, index_name, segment_name
from kimberlite.log.opening import Injected, open_log
from kimberlite.log.options import Options
from kimberlite.log.repair import is_packed
from kimberlite.log.verify import verify_directory
from tests.model.cursor import up_to
from tests.model.groups import (
    BLOCK,
    GROUP_HEADER,
    PACKED_BLOCK,
    RUN_HEADER,
    decode_group,
    decode_run,
    decode_segment_header,
    encode_group,
)

BEGAN: Final = 1_700_000_000 * 10**9
SECOND: Final = 10**9
DAY: Final = 86_400
PAYLOAD: Final = 256
#: Times its payload that a log may take, beside the segment that is being written.
MOST: Final = {"plain": 2.5, "encrypted": 3.1}
#: Of a batch entry and a canonical record, without its payload; and records that speak for the others.
FIELDS: Final = 4 + 5 + 21
SAMPLE: Final = 1_000
GROWING: Final = ("segments", "hashes", "index")
KINDS: Final = (*GROWING, "active segment", "others")


@dataclass
class Taken:
    """Bytes of a directory by kind of file: as its files are long, and as the disk has blocks for them."""

    kind: str
    records: int
    segment: int
    long: Counter[str]
    blocks: Counter[str]
    #: Of a record that is packed.
    parts: dict[str, int]

    @property
    def most(self) -> float:
        return MOST[self.kind] * PAYLOAD * self.records + self.segment

    @property
    def total(self) -> int:
        return max(self.long.total(), self.blocks.total())

    @property
    def ratio(self) -> float:
        """Of what grows with the log."""
        return max(sum(each[kind] for kind in GROWING) for each in (self.long, self.blocks)) / (PAYLOAD * self.records)

    @property
    def fits(self) -> bool:
        return self.total <= self.most

    def lines(self) -> Iterator[str]:
        yield f"{self.records:,} records, {PAYLOAD * self.records:,} bytes of payload, segments of {self.segment:,}"
        for kind in KINDS:
            each = (f"{sizes[kind]:15,} {sizes[kind] / self.records:7.1f}" for sizes in (self.long, self.blocks))
            yield f"{kind:15} {' '.join(each)}"
        yield f"{'together':15} {self.long.total():15,} {'':7} {self.blocks.total():15,}"
        yield from (f"{bytes_:7} {part}" for part, bytes_ in self.parts.items())
        yield f"{self.ratio:.3f} x the payload in {', '.join(GROWING)}"
        yield f"{self.total / self.most:.1%} of {self.most:,.0f}"


def parts(directory: Path, records: int, *, tagged: bool) -> dict[str, int]:
    """What a record takes that is packed in segment 1, and of what follows from it."""
    path, found = directory / segment_name(1), Counter[str]()
    data = path.read_bytes() if path.exists() else b""
    if not is_packed(data):
        return {}
    header = decode_segment_header(data[:BLOCK], path.name)
    assert header.packed is not None
    groups, place = header.packed.last_group - header.first_group, BLOCK
    for _ in range(min(groups, SAMPLE)):
        group, tag = decode_group(data, place, header.salt, tagged=tagged, where=f"byte {place}")
        [run] = group.runs
        opened = decode_run(run, f"byte {place}")
        length = len(encode_group(group, place, header.salt, tag))
        place += up_to(length, PACKED_BLOCK)
        found["payload"] += PAYLOAD
        found["fields of the record and its batch"] += FIELDS
        found["seal: lengths, zeros up to 128, tag"] += len(opened.text) - PAYLOAD - FIELDS
        found["commitment"] += 32 * len(opened.commitments)
        found["header of the run"] += RUN_HEADER
        found["header of the group"] += GROUP_HEADER
        found["check of the run, chain, tag"] += length - GROUP_HEADER - len(run)
        found["zeros up to a multiple of 8"] += up_to(length, PACKED_BLOCK) - length
    each = {part: round(size / min(groups, SAMPLE)) for part, size in found.items()}
    each["`hashes`: a leaf and a node"] = round(((directory / HASHES).stat().st_size - BLOCK) / records)
    each["`index/`"] = round((directory / index_name(1)).stat().st_size / groups)
    return each | {"together": sum(each.values())}


def taken(directory: Path, kind: str, records: int, segment: int) -> Taken:
    """The directory at rest."""
    long, blocks = Counter[str](), Counter[str]()
    active = max((directory / "segments").iterdir())
    for path in directory.rglob("*"):
        part = path.relative_to(directory).parts[0]
        part = "active segment" if path == active else part if part in KINDS else "others"
        status = path.stat()
        blocks[part] += 512 * status.st_blocks
        long[part] += status.st_size if path.is_file() else 0
    return Taken(kind, records, segment, long, blocks, parts(directory, records, tagged=kind == "encrypted"))


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
            assert receipt.group >= first.group + i
            assert receipt.timestamp == now
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


def lived(directory: Path, records: int, options: Options, kind: str, *, days: bool = False) -> Taken:
    """What it takes in the end, when all of it is sound."""
    key = directory / "key" if kind == "encrypted" else None
    if key is not None:
        create_master(key)
    database = directory / "db"
    asyncio.run(live(database, key, records, options, days=days))
    report = verify_directory(database, key_file=key)
    assert report.notes == []
    # The declaration is a record, too.
    assert report.records == records + 1
    return taken(database, kind, records, options.segment_bytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--days", type=float, default=30)
    parser.add_argument("--segment-bytes", type=int, default=Options().segment_bytes)
    parser.add_argument("--only", choices=MOST)
    parser.add_argument(
        "--directory", type=Path, default=Path.cwd(), help="where they are for a while: a tmpfs is quicker"
    )
    parser.add_argument("--out", type=Path, help="a directory for the numbers")
    arguments = parser.parse_args()
    options, found = Options(segment_bytes=arguments.segment_bytes), {}
    for kind in (arguments.only,) if arguments.only else MOST:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="month-") as directory:
            records = int(arguments.days * DAY)
            found[kind] = lived(Path(directory), records, options, kind, days=True)
        print(f"{kind}, {time.monotonic() - began:.0f} s, verified", *found[kind].lines(), sep="\n")
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "month.json").write_text(json.dumps({kind: asdict(each) for kind, each in found.items()}))
    sys.exit(not all(each.fits for each in found.values()))


if __name__ == "__main__":
    main()
