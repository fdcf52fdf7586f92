"""Logs that cross between the engine and the model; `python -m tests.model.crossing` makes them in number."""

from __future__ import annotations

import ast
from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random

import pytest

from kimberlite import Corrupt
from kimberlite.log.verify import verify
from kimberlite.storage.memory import Disk, MemoryBackend
from tests.model import Batch, Keys, Mode, Record, pack_segment, write_log
from tests.model.agreement import Master, agree, opened
from tests.model.conftest import identity_of, small_operations, written
from tests.model.crossing import MASTER, WAYS, cross
from tests.model.files import segment_name
from tests.model.groups import BLOCK

#: Each way.
LOGS = 150
PIECE = 50
#: They are about both.
CROSSING = {"agreement.py", "crossing.py"}


@pytest.fixture
def master(tmp_path: Path) -> Master:
    return Master.kept(tmp_path, MASTER)


@pytest.mark.parametrize("start", range(0, LOGS, PIECE))
@pytest.mark.parametrize("way", WAYS)
def test_engine_and_model_agree_on_every_record_and_hash(way: str, start: int) -> None:
    went, wrong = cross(way, range(start, start + PIECE))
    assert wrong == []
    assert went.total() == PIECE


def test_the_model_imports_nothing_of_the_engine() -> None:
    for path in Path(__file__).parent.glob("*.py"):
        if path.name.startswith("test_") or path.name in CROSSING:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level < 2
                names = [node.module or ""]
            assert not [name for name in names if name.split(".")[0] in ("kimberlite", "tests")], path


def left(groups: int) -> dict[str, bytes]:
    """A log of so many groups of one record, not closed; every longer one begins with the same bytes."""
    draw = Random(8)
    return write_log(
        identity_of(True),
        [[Batch("a", (Record(b"%d" % number * 6000),), Mode.ENCRYPTED)] for number in range(groups)],
        keys=Keys(draw.randbytes(32), draw.randbytes(32), MASTER),
        entropy=draw.randbytes,
        clock=count(1_000).__next__,
        clean=False,
    )


@pytest.mark.parametrize("lost", [0, 3, 7, 12])
async def test_a_group_of_the_model_that_was_torn_is_cut_off_and_the_rest_is_gone_on_with(
    lost: int, master: Master
) -> None:
    whole, files = left(6), left(5)
    name = segment_name(0)
    sector = len(files[name]) + 512 * lost
    files[name] = whole[name][:sector] + bytes(512) + whole[name][sector + 512 :]
    before = left(5)
    disk = Disk.from_files(files)
    async with await opened(disk, master) as db:
        await db.append("a", b"after")
    log = await agree(disk, master)
    assert [row.payload for row in log.rows if row.stream] == [b"%d" % n * 6000 for n in range(5)] + [b"after"]
    assert disk.files()[name][: len(before[name])] == before[name]
    [kept] = [data for name, data in disk.files().items() if name.startswith("quarantine/")]
    assert kept == files[name][len(before[name]) :].rstrip(b"\0")[: len(kept)]


async def test_a_difference_in_one_derived_byte_is_seen(master: Master) -> None:
    disk = Disk.from_files(left(3))
    async with await opened(disk, master) as db:
        await db.append("a", b"more", producer=(b"p", 0))
    await agree(disk, master)
    for name in ("checkpoint", "producers", "hashes"):
        files = disk.files()
        files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])
        with pytest.raises((AssertionError, ValueError)):
            await agree(Disk.from_files(files), master)


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_a_packed_segment_says_what_it_said_before(encrypted: bool) -> None:
    files = written(small_operations(Mode(encrypted)), tagged=encrypted, segment_bytes=3 * BLOCK)
    key = b"m" * 32 if encrypted else None
    before = verify(MemoryBackend(Disk.from_files(files)), key)
    files[segment_name(0)] = pack_segment(files[segment_name(0)], bytes(32), tagged=encrypted)
    after = verify(MemoryBackend(Disk.from_files(files)), key)
    assert replace(after, read=before.read) == before
    packed = files[segment_name(0)]
    for place in range(len(packed)):
        files[segment_name(0)] = packed[:place] + bytes([packed[place] ^ 1]) + packed[place + 1 :]
        with pytest.raises(Corrupt) as caught:
            verify(MemoryBackend(Disk.from_files(files)), key)
        assert caught.value.file == segment_name(0)
