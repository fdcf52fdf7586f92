"""The same groups are the same bytes, whichever backend writes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from pathlib import Path
from random import Random

import pytest

from kimberlite import Log, Record
from kimberlite.crypto.master import create_master
from kimberlite.log.opening import Injected, open_log
from kimberlite.log.options import Options
from kimberlite.storage import Backend
from kimberlite.storage.memory import Disk, MemoryBackend

from .conftest import ON_DISK, open_or_skip

#: What is the log itself; the files that are derived from it follow.
KEPT = ("identity", "marks", "receipt.key", "vault.0", "vault.1", "segments/", "hashes", "index/")

Files = dict[str, bytes]


@pytest.fixture(params=["plain", "encrypted"])
def key(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    if request.param == "plain":
        return None
    create_master(tmp_path / "key")
    return tmp_path / "key"


async def append(db: Log, draw: Random, session: bytes) -> None:
    """One at a time, or all in one turn of the loop: so the groups are the same on a slow disk and on a fast one."""
    await db.append_many(dict.fromkeys("abc", b"there"))
    for number in range(40):
        records = [Record(draw.randbytes(draw.randrange(900)), b"k%d" % i, {"h": b"v"}, i) for i in range(20)]
        await db.append(draw.choice("abc"), records, producer=(session + b"%d" % number, 0) if number % 3 else None)
    for _ in range(5):
        await asyncio.gather(*(db.append(name, b"x" * draw.randrange(5000)) for name in "abcabc"))
    await db.append_many({"a": [b"1", b"2"], "new": b"3"}, producer=(session, 0))


async def write(backend: Callable[[], Backend], key: Path | None, seed: bytes = b"seed") -> None:
    """Two sessions: the second one goes on in the segment that the first one left."""
    draw, time = Random("identical"), count(1_000, 1_000)
    for session in (b"first", b"second"):
        opened = open_log(
            "identical",
            create=True,
            read_only=False,
            key_file=key,
            backend=backend(),
            origin=None,
            anchor=None,
            # A mark after a pause would depend on how long things take.
            options=Options(segment_bytes=192 * 1024, compression=1, idle=3600.0),
            injected=Injected(draw.randbytes, time.__next__, seed + session),
        )
        async with opened as db:
            await append(db, draw, session)


def kept(disk: Disk) -> Files:
    return {name: data for name, data in disk.files().items() if name.startswith(KEPT)}


async def simulated(key: Path | None, rng: Random | None = None) -> Files:
    disk = Disk()
    await write(lambda: MemoryBackend(disk, rng), key)
    return kept(disk)


@pytest.mark.parametrize("name", ON_DISK)
async def test_the_same_groups_are_the_same_bytes_on_every_backend(name: str, key: Path | None, tmp_path: Path) -> None:
    directory = tmp_path / "db"
    directory.mkdir(mode=0o700)
    await write(lambda: open_or_skip(name, directory), key)
    real, memory = kept(Disk.load(directory)), await simulated(key)
    assert sum(file.startswith("segments/") for file in real) > 2
    assert real.keys() == memory.keys()
    assert [file for file in real if real[file] != memory[file]] == []


async def test_the_order_in_which_writes_land_changes_no_byte(key: Path | None) -> None:
    in_order = await simulated(key)
    assert await simulated(key, Random(1)) == in_order
    assert await simulated(key, Random(2)) == in_order


async def test_another_seed_gives_other_segments(key: Path | None) -> None:
    one, other = Disk(), Disk()
    await write(lambda: MemoryBackend(one), key)
    await write(lambda: MemoryBackend(other), key, seed=b"another")
    changed = {file.partition("/")[0] for file, data in kept(one).items() if data != kept(other).get(file)}
    assert "segments" in changed
    assert changed.isdisjoint({"identity", "receipt.key"})
