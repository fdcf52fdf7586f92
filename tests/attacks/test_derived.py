"""Derived files made to fit: those of a fork and, by whoever has the receipt key, forged ones."""

from __future__ import annotations

import os
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import kimberlite.sync
from kimberlite import Conflict, Corrupt, Receipt, RolledBack
from kimberlite.crypto.master import create_master, load_master
from kimberlite.log.loading import load_identity, load_keys
from kimberlite.log.names import CHECKPOINT, HASHES, PRODUCERS, index_name, segment_name
from kimberlite.storage.backend import BLOCK
from tests.log.simulated import Machine, payloads
from tests.model.derived import with_mac

GROUPS = 30


@pytest.fixture(params=["plain", "encrypted"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    if request.param == "plain":
        return Machine()
    key = tmp_path / "key"
    create_master(key)
    return Machine(key)


def fork(machine: Machine) -> Machine:
    other = Machine(machine.key)
    other.disk = machine.disk.copy()
    return other


async def filled(machine: Machine, first: int = 0, upto: int = GROUPS) -> list[Receipt]:
    receipts = []
    async with machine.open(segment_bytes=64 * 1024) as db:
        for i in range(first, upto):
            machine.now += 1_000_000
            receipts.append(await db.append(f"s{i % 2}", b"%d" % i * 900, producer=("p", i // 2)))
    return receipts


def put(machine: Machine, name: str, data: bytes) -> None:
    machine.backend().open(name, "w").truncate(len(data))
    machine.write(name, 0, data)


def forge(machine: Machine, name: str, change: Callable[[bytearray], None]) -> None:
    """The file with a MAC as only whoever has the receipt key can make it."""
    backend = machine.backend()
    identity = load_identity(backend)
    assert identity is not None
    keys = load_keys(backend, identity, load_master(machine.key), os.urandom, read_only=True)
    data = bytearray(machine.disk.files()[name][:-32])
    change(data)
    put(machine, name, with_mac(bytes(data), keys.receipt))


async def is_as_it_was(machine: Machine, receipts: list[Receipt]) -> None:
    """In every order and by every way in; and it can be appended to."""
    wanted = [b"%d" % i * 900 for i in range(GROUPS)]
    for read_only in (True, False):
        async with machine.open(segment_bytes=64 * 1024, read_only=read_only) as db:
            for reverse in (True, False):
                step = -1 if reverse else 1
                for stream in (0, 1):
                    found = await payloads(db.read(f"s{stream}", reverse=reverse))
                    assert found == wanted[stream::2][::step]
                assert await payloads(db.read(reverse=reverse)) == wanted[::step]
            for receipt, payload in zip(receipts[::-1], wanted[::-1], strict=True):
                assert (await db.get(receipt.first_position)).payload == payload
                when = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=-(-receipt.timestamp // 1000))
                since = [each.payload async for each in db.read(receipt.stream, start=when)]
                assert since == wanted[receipt.first_offset * 2 + int(receipt.stream[1]) :: 2]
            if not read_only:
                again = await db.append("s1", b"7" * 900, producer=("p", 3))
                assert again == receipts[7]
                assert (await db.append("s0", b"more")).first_offset == GROUPS // 2
    machine.verify(receipts[-1])


# ---- of a fork


async def test_producers_of_a_fork_are_not_believed(either: Machine) -> None:
    async with either.open() as db:
        await db.append("s", b"base", producer=("before", 0))
    other = fork(either)
    async with other.open() as db:
        await db.append("s", b"to alice", producer=("p", 0))
    async with either.open() as db:
        receipt = await db.append("s", b"to bobby", producer=("p", 0))
    put(either, PRODUCERS, other.disk.files()[PRODUCERS])
    async with either.open() as db:
        with pytest.raises(Conflict, match="other records"):
            await db.append("s", b"to alice", producer=("p", 0))
        assert await db.append("s", b"to bobby", producer=("p", 0)) == receipt


async def test_a_record_of_a_fork_is_not_got_though_its_leaf_is_in_the_hashes(either: Machine) -> None:
    async with either.open() as db:
        await db.append("s", b"base")
    other = fork(either)
    for machine, payload in ((either, b"bob   100"), (other, b"alice 999")):
        async with machine.open() as db:
            receipt = await db.append("s", payload)
            await db.append("s", [b"filler"] * 40)
    position = receipt.first_position
    mine, theirs = either.disk.files(), other.disk.files()
    name = segment_name(0)
    place = next(
        at for at in range(BLOCK, 1 << 20, BLOCK) if mine[name][at : at + BLOCK] != theirs[name][at : at + BLOCK]
    )
    leaf = BLOCK + 32 * (2 * position - position.bit_count())
    either.write(name, place, theirs[name][place : place + BLOCK])
    either.write(HASHES, leaf, theirs[HASHES][leaf : leaf + 32])
    for read_only in (True, False):
        async with either.open(read_only=read_only) as db:
            with pytest.raises(Corrupt, match="hashes"):
                await db.get(position)
            assert (await db.get(position + 5)).payload == b"filler"


async def test_an_index_of_a_fork_is_not_believed(either: Machine) -> None:
    receipts = await filled(either, 0, 1)
    other = fork(either)
    async with other.open(segment_bytes=64 * 1024) as db:
        for i in range(40):
            await db.append("other", [b"x" * 300] * (1 + i % 3))
    receipts += await filled(either, 1)
    put(either, index_name(0), other.disk.files()[index_name(0)])
    await is_as_it_was(either, receipts)


# ---- with a MAC that is right


def number(place: int, value: int) -> Callable[[bytearray], None]:
    return lambda data: struct.pack_into("<Q", data, place, value % (1 << 64))


@pytest.mark.parametrize("place", [24, 32, 72, 88, 96, 136, 144, 152, 160])
@pytest.mark.parametrize("value", [1 << 62, -1, 1, 63, 4096])
async def test_a_checkpoint_that_says_something_else_is_not_believed(place: int, value: int) -> None:
    machine = Machine()
    receipts = await filled(machine)
    forge(machine, CHECKPOINT, number(place, value))
    if place == 24 and value > GROUPS + 10:
        # The group it was taken of is ahead of the log.
        with pytest.raises(RolledBack, match=f"checkpoint of group {value}"):
            await machine.open()
    else:
        await is_as_it_was(machine, receipts)


def longer(length: int) -> Callable[[bytearray], None]:
    """The first stream, which has this length, has another."""

    def change(data: bytearray) -> None:
        place = 232 + 32 * int.from_bytes(data[152:160], "little")
        assert int.from_bytes(data[place : place + 8], "little") == length
        struct.pack_into("<Q", data, place, 1000)

    return change


async def test_a_stream_that_ends_elsewhere_in_the_active_segment_makes_a_checkpoint_useless() -> None:
    machine = Machine()
    receipts = await filled(machine)
    forge(machine, CHECKPOINT, longer(GROUPS // 2))
    await is_as_it_was(machine, receipts)


@pytest.mark.parametrize("change", [longer(1), number(72, 1), number(144, 9), number(32, 3)])
async def test_a_checkpoint_that_says_something_else_is_noted_by_verify(change: Callable[[bytearray], None]) -> None:
    machine = Machine()
    async with machine.open() as db:
        await db.append("rare", b"x")
    await filled(machine)
    assert machine.verify().notes == []
    forge(machine, CHECKPOINT, change)
    [note] = machine.verify().notes
    assert note.startswith("checkpoint: it is not what the log was at group")


async def test_without_the_receipt_key_no_checkpoint_is_believed(tmp_path: Path) -> None:
    key = tmp_path / "key"
    create_master(key)
    machine = Machine(key)
    await filled(machine)
    data = bytearray(machine.disk.files()[CHECKPOINT][:-32])
    struct.pack_into("<Q", data, 32, 5)
    put(machine, CHECKPOINT, with_mac(bytes(data), bytes(32)))
    machine.key = None
    async with machine.open(read_only=True) as db:
        assert (await db.info())["records"] > GROUPS


@pytest.mark.parametrize("run", [0, 1, 2])
@pytest.mark.parametrize(
    ("field", "value"), [(0, 0), (0, 5), (4, 4200), (8, 0), (8, 1 << 31), (12, 0), (12, 1), (12, 77), (16, 0), (16, 9)]
)
async def test_an_index_whose_rows_lead_elsewhere_misleads_nobody(run: int, field: int, value: int) -> None:
    machine = Machine()
    receipts = await filled(machine)

    def change(data: bytearray) -> None:
        groups = int.from_bytes(data[80:84], "little")
        struct.pack_into("<I", data, 96 + 16 * groups + 24 * run + field, value)

    forge(machine, index_name(0), change)
    await is_as_it_was(machine, receipts)


@pytest.mark.parametrize(("field", "value"), [(0, 0), (0, 9), (4, 8192), (8, 0), (8, 1 << 62)])
async def test_an_index_whose_groups_are_elsewhere_misleads_nobody(field: int, value: int) -> None:
    machine = Machine()
    receipts = await filled(machine)
    forge(machine, index_name(0), lambda data: struct.pack_into("<I", data, 96 + 16 * 2 + field, value & 0xFFFF_FFFF))
    await is_as_it_was(machine, receipts)


def test_what_a_small_index_takes_of_memory_is_small(tmp_path: Path) -> None:
    fill = """
import sys, kimberlite.sync
with kimberlite.sync.open(sys.argv[1], segment_bytes=65536) as db:
    for i in range(30): db.append("s", b"x" * 3000)
"""
    read = """
import sys, kimberlite.sync
with kimberlite.sync.open(sys.argv[1], read_only=True) as db:
    assert len(list(db.read("s"))) == 30
"""
    most = 1800 << 20
    subprocess.run([sys.executable, "-c", fill, str(tmp_path / "db")], check=True, timeout=60)
    subprocess.run(
        [sys.executable, "-c", read, str(tmp_path / "db")],
        check=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (most, most)),
    )


def test_threads_that_meet_an_index_that_misleads_read_what_is_there(tmp_path: Path) -> None:
    path, other = tmp_path / "db", tmp_path / "other"
    with kimberlite.sync.open(path, segment_bytes=64 * 1024) as db:
        db.append("s", b"base")
    shutil.copytree(path, other)
    with kimberlite.sync.open(other, segment_bytes=64 * 1024) as db:
        for i in range(40):
            db.append("other", [b"x" * 300] * (1 + i % 3 * 3))
    with kimberlite.sync.open(path, segment_bytes=64 * 1024) as db:
        receipts = [db.append("s", b"%d" % i * 900) for i in range(60)]
    shutil.copy(other / index_name(0), path / index_name(0))
    with kimberlite.sync.open(path, read_only=True) as db, ThreadPoolExecutor(4) as threads:
        found = threads.map(lambda receipt: db.get(receipt.first_position).payload, receipts * 4)
        assert list(found) == [b"%d" % i * 900 for i in range(60)] * 4
