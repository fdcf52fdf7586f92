"""Files that say that they are longer than any disk: nobody reads what is not in them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from kimberlite import sync
from kimberlite.log import checkpoint, scrub
from kimberlite.log.copying import salvage_directory
from kimberlite.log.names import CHECKPOINT, segment_name
from kimberlite.log.options import LARGEST_SEGMENT
from kimberlite.log.recovery import CHUNK
from kimberlite.log.repair import repair_directory
from kimberlite.log.verify import verify_directory
from kimberlite.storage.backend import BLOCK
from tests.log.simulated import Machine
from tests.log.test_scrub import SEGMENT, closed, filled, passed

COUNT = 60
HUGE = 4 << 40
#: More than is read at a time, and little enough for a simulated disk.
MUCH = 16 * CHUNK
#: Of a new segment.
SPARE = 64 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database of several segments, all but the last closed."""
    with sync.open(tmp_path / "db", segment_bytes=SEGMENT, pack=0, scrub=0) as db:
        for i in range(COUNT):
            db.append("s", b"%d." % i * 1000)
    return tmp_path / "db"


def segments(path: Path) -> list[Path]:
    return sorted((path / "segments").iterdir())


def grow(file: Path, size: int = HUGE) -> None:
    try:
        os.truncate(file, size)
    except OSError as error:
        pytest.skip(f"no file here is so long: {error}")


def blocks(path: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in path.rglob("*"))


def read(path: Path) -> int:
    with sync.open(path, read_only=True) as db:
        return sum(record.payload == b"%d." % record.offset * 1000 for record in db.read("s"))


@pytest.mark.parametrize("index", [0, -1], ids=["closed", "last"])
@pytest.mark.parametrize("covered", [True, False])
def test_a_segment_of_terabytes_is_opened_and_verified(path: Path, index: int, covered: bool) -> None:
    grow(segments(path)[index])
    if not covered:
        (path / CHECKPOINT).unlink()
    assert verify_directory(path).records == COUNT + 1
    assert read(path) == COUNT
    with sync.open(path, segment_bytes=SEGMENT, pack=0, scrub=0) as db:
        assert db.append("s", b"%d." % COUNT * 1000).first_offset == COUNT
    assert read(path) == COUNT + 1


def test_a_torn_tail_of_terabytes_goes_to_quarantine_as_it_is(path: Path) -> None:
    last = segments(path)[-1]
    grow(last)
    with last.open("r+b") as file:
        file.seek(HUGE)
        file.write(b"torn")
    before = blocks(path)
    with sync.open(path, segment_bytes=SEGMENT, pack=0, scrub=0) as db:
        assert db.append("s", b"%d." % COUNT * 1000).first_offset == COUNT
    [tail] = (path / "quarantine").iterdir()
    with tail.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        assert file.read() == b"torn"
    assert HUGE - (1 << 20) < tail.stat().st_size < HUGE
    assert blocks(path) < before + SPARE


def test_a_segment_of_terabytes_is_repaired(path: Path) -> None:
    first = segments(path)[0]
    grow(first)
    with first.open("r+b") as file:
        file.seek(4 * BLOCK + 300)
        file.write(b"damaged")
    before = blocks(path)
    loss = asyncio.run(repair_directory(path, lambda _loss: True))
    assert loss is not None
    assert loss.records > 0
    assert max(tail.stat().st_size for tail in (path / "quarantine").iterdir()) > HUGE - (1 << 20)
    assert blocks(path) < before + SPARE
    assert 0 < read(path) < COUNT


def test_of_a_segment_of_terabytes_what_one_can_have_is_salvaged(path: Path, tmp_path: Path) -> None:
    for file in segments(path):
        grow(file)
    report = asyncio.run(salvage_directory(path, tmp_path / "new"))
    assert (report.copied, report.complete, report.notes) == (COUNT, True, [])
    with segments(path)[0].open("r+b") as written:
        written.seek(HUGE - 10)
        written.write(b"elsewhere")
    report = asyncio.run(salvage_directory(path, tmp_path / "again"))
    assert (report.copied, report.complete) == (COUNT, True)
    assert report.notes == [f"{segment_name(0)}: no segment is so long: byte {LARGEST_SEGMENT} and on are left out"]
    assert read(tmp_path / "again") == COUNT


async def test_no_read_goes_into_a_hole(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "LEAST_INTERVAL", 0.002)
    for name in ("LATER", "REST", "PASS"):
        monkeypatch.setattr(scrub, name, 0)
    await filled(machine)
    ends = {segment_name(number): machine.end(number) for number in range(len(closed(machine)) + 1)}
    for name in ends:
        machine.backend().open(name, "w").truncate(MUCH)
    trace = machine.watch()
    for gone in (False, True):
        if gone:
            machine.backend().unlink(CHECKPOINT)
        machine.verify()
        async with machine.open(segment_bytes=SEGMENT, pack=0, scrub=1 << 40, read_only=not gone) as db:
            if gone:
                await passed(db, machine)
    reads = [(name, place, place + length) for verb, name, place, length in trace if verb == "read" and name in ends]
    assert {name for name, _, _ in reads} == ends.keys()
    # What is read at a time goes beyond.
    assert [each for each in reads if each[2] > ends[each[0]] + 2 * CHUNK] == []
