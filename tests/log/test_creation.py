"""Making a database: whatever it is interrupted at, the next open finishes it."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from random import Random

import pytest

import kimberlite
from kimberlite import Invalid, KeyUnavailable, KimberliteError
from kimberlite.crypto.master import create_master
from kimberlite.log.creation import read_small, write_small
from kimberlite.log.names import IDENTITY, MARKS, RECEIPT_KEY, RESERVE, SEGMENTS, VAULTS
from kimberlite.log.reserve import KEPT, RESERVED
from kimberlite.storage.backend import BLOCK
from kimberlite.storage.memory import Disk, Fault, MemoryBackend
from tests.log.simulated import Machine, payloads


@pytest.fixture
def disk() -> Disk:
    disk = Disk()
    backend = MemoryBackend(disk)
    backend.mkdir("prepare")
    backend.mkdir("index")
    return disk


def test_a_small_file_is_replaced_by_temporary_sync_rename_and_sync_of_its_directory(disk: Disk) -> None:
    backend = MemoryBackend(disk)
    write_small(backend, "index/a", b"old")
    trace: list[tuple[str, str, int, int]] = []
    disk.trace = trace
    write_small(backend, "index/a", b"new")
    steps = [(verb, name) for verb, name, *_ in trace if verb != "exists"]
    assert steps == [
        ("open", "prepare/index-a"),
        ("write", "prepare/index-a"),
        ("sync", "prepare/index-a"),
        ("rename", "prepare/index-a -> index/a"),
        ("sync_directory", "index"),
    ]
    assert disk.files()["index/a"] == b"new"


def test_a_cut_leaves_the_old_small_file_or_the_new_one(disk: Disk) -> None:
    backend = MemoryBackend(disk)
    write_small(backend, "index/a", b"old" * 1_000)
    backend.sync_directory()
    seen = set()

    def cut() -> None:
        for seed in range(4):
            seen.add(disk.crash(Random(seed)).files()["index/a"])

    disk.on_step = cut
    write_small(backend, "index/a", b"new" * 1_000)
    cut()
    assert seen == {b"old" * 1_000, b"new" * 1_000}


def test_a_temporary_left_by_a_crash_is_no_hindrance(disk: Disk) -> None:
    backend = MemoryBackend(disk)
    disk.create("prepare/a")
    write_small(backend, "a", b"data")
    assert read_small(backend, "a") == b"data"
    assert read_small(backend, "a", 2) == b"da"
    assert read_small(backend, "missing") is None


async def test_a_new_database_has_what_the_format_names(either: Machine) -> None:
    async with either.open() as db:
        await db.append("s", b"x")
    files = either.disk.files()
    keys = set(VAULTS) if either.key else {RECEIPT_KEY}
    assert {IDENTITY, MARKS, RESERVE, *keys} <= files.keys()
    assert not ({*VAULTS, RECEIPT_KEY} - keys) & files.keys()
    assert len(files[MARKS]) == 2 * BLOCK
    assert len(files[RESERVE]) == 256 * 1024


async def test_a_writer_makes_the_reserve_again_and_a_reader_does_not(either: Machine) -> None:
    async with either.open() as db:
        await db.append("s", b"x")
    whole = either.disk.files()[RESERVE]
    either.backend().unlink(RESERVE)
    async with either.open(read_only=True):
        pass
    assert RESERVE not in either.disk.files()
    async with either.open() as db:
        assert (await db.append("s", b"y")).durable
    assert either.disk.files()[RESERVE] == whole


@pytest.mark.parametrize("room", [0, KEPT])
async def test_a_full_disk_has_less_of_a_reserve_until_there_is_room(machine: Machine, room: int) -> None:
    async with machine.open() as db:
        await db.append("s", b"x")
    machine.backend().unlink(RESERVE)

    def full(verb: str, name: str, place: int, length: int) -> OSError | None:
        return (
            OSError(errno.ENOSPC, "full") if (verb, name) == ("allocate", RESERVE) and place + length > room else None
        )

    machine.fault = full
    async with machine.open() as db:
        assert (await db.append("s", b"y")).durable
        assert (await db.info())["notes"] == []
    assert len(machine.disk.files()[RESERVE]) == room
    machine.fault = None
    async with machine.open():
        pass
    assert len(machine.disk.files()[RESERVE]) == RESERVED


async def test_the_identity_is_written_once(either: Machine) -> None:
    async with either.open():
        pass
    before = either.disk.files()[IDENTITY]
    for _ in range(2):
        async with either.open() as db:
            await db.append("s", b"x")
    assert either.disk.files()[IDENTITY] == before


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
async def test_a_creation_that_fails_anywhere_is_finished_by_the_next_open(either: Machine, number: int) -> None:
    for nth in range(1, 200):
        machine, left = Machine(either.key), nth

        def fault(verb: str, name: str, place: int, length: int) -> OSError | None:
            nonlocal left
            left -= verb not in ("exists", "list", "read", "size", "extent")
            return OSError(number, os.strerror(number), name) if left == 0 else None

        machine.fault = fault
        try:
            db = await machine.open()
        except KimberliteError:
            machine.fault = None
            async with machine.open() as db:
                assert (await db.append("s", b"x", expect=0)).durable
            assert machine.verify().records == 2
        else:
            machine.fault = None
            await db.close()
            if left > 0:
                break
    assert left > 0
    assert nth > 20


async def test_a_creation_that_is_cut_anywhere_is_finished_by_the_next_open(either: Machine) -> None:
    states: list[Disk] = []
    either.disk.on_step = lambda: states.append(either.disk.crash(Random(len(states))))
    async with either.open():
        either.disk.on_step = None
    assert len(states) > 20
    for state in states:
        machine = Machine(either.key)
        machine.disk = state
        async with machine.open() as db:
            assert (await db.append("s", b"x", expect=0)).durable
        assert machine.verify().records == 2


async def states_of_a_creation(machine: Machine) -> list[Disk]:
    """The disk after each step, as a process that is killed then leaves it, until there is a handle."""
    states: list[Disk] = []
    machine.disk.on_step = lambda: states.append(Disk.from_files(machine.disk.files()))
    async with machine.open():
        machine.disk.on_step = None
    return states


@pytest.mark.parametrize("keyed", [True, False])
async def test_until_there_is_a_segment_there_is_no_database_for_whoever_only_reads(
    either: Machine, keyed: bool, tmp_path: Path
) -> None:
    create_master(tmp_path / "another")
    key = either.key or tmp_path / "another" if keyed else None
    seen: set[str] = set()
    for state in await states_of_a_creation(either):
        files = state.files()
        if any(name.startswith(SEGMENTS) for name in files):
            continue
        seen |= files.keys()
        machine = Machine(key)
        machine.disk = state
        with pytest.raises(Invalid, match="there is no database here"):
            machine.verify()
        with pytest.raises(Invalid, match="there is no database here"):
            await machine.open(read_only=True)
        assert state.files() == files
    assert {IDENTITY, MARKS, VAULTS[1] if either.key else RECEIPT_KEY} <= seen


def ending(machine: Machine, calls: int, whole: Disk) -> Fault:
    """No fault: before so many calls to its disk the writer beside it has finished the database."""
    left = calls

    def fault(verb: str, name: str, place: int, length: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            machine.disk.tree = whole.copy().tree

    return fault


async def test_a_creation_that_ends_while_a_reader_looks_is_no_damage(either: Machine) -> None:
    states = await states_of_a_creation(either)
    async with either.open() as db:
        await db.append("s", b"x")
    outcomes: set[bytes] = set()
    for state in states[::3]:
        for calls in range(1, 30):
            machine = Machine(either.key)
            machine.disk = Disk.from_files(state.files())
            machine.fault = ending(machine, calls, either.disk)
            try:
                async with machine.open(read_only=True) as db:
                    outcomes.update(await payloads(db.read()))
            except Invalid as refused:
                outcomes.add(str(refused).encode())
    assert outcomes == {b"x", b"there is no database here"}


async def test_a_master_key_cannot_be_added_to_a_database_that_was_made_without(tmp_path: Path) -> None:
    plain = Machine()
    async with plain.open() as db:
        await db.append("s", b"x")
    create_master(tmp_path / "key")
    plain.key = tmp_path / "key"
    with pytest.raises(KeyUnavailable):
        await plain.open()
    plain.key = None
    async with plain.open() as db:
        assert await payloads(db.read()) == [b"x"]


async def test_two_databases_are_never_the_same(machine: Machine) -> None:
    other = Machine()
    ids = []
    for each in (machine, other):
        async with each.open() as db:
            ids.append((await db.info())["database_id"])
            await asyncio.sleep(0)
    assert ids[0] != ids[1]
    for name in (IDENTITY, RECEIPT_KEY):
        assert machine.disk.files()[name] != other.disk.files()[name]


@pytest.mark.parametrize("size", [5_000, RESERVED, 1 << 40])
async def test_a_reserve_without_blocks_gets_them(tmp_path: Path, size: int) -> None:
    """As a copy may be that leaves out what is only zeros."""
    async with kimberlite.open(tmp_path / "db"):
        pass
    reserve = tmp_path / "db" / RESERVE
    reserve.write_bytes(b"")
    os.truncate(reserve, size)
    assert reserve.stat().st_blocks == 0
    async with kimberlite.open(tmp_path / "db"):
        pass
    assert reserve.stat().st_size == RESERVED <= 512 * reserve.stat().st_blocks
