"""Closed segments that are mostly padding get shorter, and nobody else notices."""

from __future__ import annotations

import asyncio
import errno
from random import Random

import pytest

from kimberlite import Log, Receipt
from kimberlite.log import checkpoint, packing
from kimberlite.log.names import index_name, segment_name
from kimberlite.storage.memory import Disk
from tests.log import simulated
from tests.log.simulated import Machine, failing, payloads
from tests.log.steps import Cut

SEGMENT = 64 * 1024
COUNT = 60


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "LEAST_INTERVAL", 0.002)
    monkeypatch.setattr(packing, "REST", 0)
    monkeypatch.setattr(packing, "AGAIN", 0.01)
    monkeypatch.setattr(packing, "PIECE", 16 * 1024)


def payload(i: int) -> bytes:
    return b"%d." % i * 50


async def filled(machine: Machine) -> list[Receipt]:
    """Segments of groups of a record each, none of them packed."""
    async with machine.open(segment_bytes=SEGMENT, pack=0) as db:
        return [await db.append("s", payload(i), producer=("p", i)) for i in range(COUNT)]


def lengths(machine: Machine) -> list[int]:
    return [len(data) for name, data in machine.disk.files().items() if name.startswith("segments/")]


async def until_packed(machine: Machine, segments: int) -> None:
    async def condition() -> bool:
        return all(length < SEGMENT / 2 for length in lengths(machine)[:segments])

    await simulated.until(condition)
    # The index is behind it.
    await asyncio.sleep(0.005)


async def same(db: Log, receipts: list[Receipt]) -> None:
    assert await payloads(db.read("s")) == [payload(i) for i in range(COUNT)]
    for i in (0, 7, COUNT - 1):
        assert (await db.get(receipts[i].first_position)).payload == payload(i)
        assert await db.append("s", payload(i), producer=("p", i)) == receipts[i]
    assert (await db.info())["root"] == receipts[-1].root.hex()


async def test_a_closed_segment_that_is_mostly_padding_is_packed(either: Machine) -> None:
    receipts = await filled(either)
    before = lengths(either)
    async with either.open(segment_bytes=SEGMENT) as db:
        await until_packed(either, len(before) - 1)
        await same(db, receipts)
        assert (await db.info())["notes"] == []
    after = lengths(either)
    closed = len(before) - 1
    assert sum(after[:closed]) < sum(before[:closed]) / 4
    assert either.verify(receipts[-1]).notes == []
    async with either.open(segment_bytes=SEGMENT, read_only=True) as reader:
        assert await payloads(reader.read("s")) == [payload(i) for i in range(COUNT)]
    async with either.open(segment_bytes=SEGMENT) as db:
        await same(db, receipts)
    for name in [name for name in either.disk.files() if name in ("checkpoint", "hashes") or name.startswith("index/")]:
        either.backend().unlink(name)
    async with either.open(segment_bytes=SEGMENT) as db:
        await same(db, receipts)


async def test_a_segment_is_packed_while_the_log_goes_on(either: Machine) -> None:
    async with either.open(segment_bytes=SEGMENT, checkpoint_records=1) as db:
        for i in range(COUNT):
            await db.append("s", payload(i))
            await asyncio.sleep(0.001)
        await until_packed(either, len(lengths(either)) - 2)
        assert await payloads(db.read("s")) == [payload(i) for i in range(COUNT)]
    assert either.verify().records > COUNT


async def test_what_a_log_closed_before_it_fell_silent_is_packed(
    either: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "LEAST_INTERVAL", 0.1)
    async with either.open(segment_bytes=SEGMENT) as db:
        for i in range(COUNT):
            await db.append("s", payload(i))
        assert len(lengths(either)) > 3
        await until_packed(either, len(lengths(either)) - 1)


async def test_a_segment_that_is_full_of_records_stays_as_it_is(machine: Machine) -> None:
    async with machine.open(segment_bytes=SEGMENT, checkpoint_records=1) as db:
        for _ in range(10):
            await db.append("s", bytes(24_000))
        await asyncio.sleep(0.05)
    assert all(length > SEGMENT * 0.8 for length in lengths(machine)[:-1])
    assert machine.verify().notes == []


async def test_what_is_damaged_is_found_and_not_packed(either: Machine) -> None:
    receipts = await filled(either)
    place = 2 * 4096 + 300
    either.flip(segment_name(1), place)
    damaged = either.disk.files()[segment_name(1)]
    async with either.open(segment_bytes=SEGMENT) as db:
        await until_packed(either, 1)
        await until_packed_but(either, 1)
        notes = (await db.info())["notes"]
        assert len(notes) == 1
        assert notes[0].startswith(f"{segment_name(1)}, byte {2 * 4096}, group ")
        assert (await db.get(receipts[0].first_position)).payload == payload(0)
        assert (await db.get(receipts[-1].first_position)).payload == payload(COUNT - 1)
    assert either.disk.files()[segment_name(1)] == damaged


async def until_packed_but(machine: Machine, one: int) -> None:
    async def condition() -> bool:
        others = [length for number, length in enumerate(lengths(machine)[:-1]) if number != one]
        return all(length < SEGMENT / 2 for length in others)

    await simulated.until(condition)


@pytest.mark.parametrize(("verb", "file"), [("write", "prepare/0"), ("open", "prepare/0"), ("rename", "prepare/0")])
async def test_what_the_disk_refuses_is_tried_again(machine: Machine, verb: str, file: str) -> None:
    receipts = await filled(machine)
    async with machine.open(segment_bytes=SEGMENT) as db:
        machine.fault = failing(verb, file, errno.ENOSPC)
        await asyncio.sleep(0.02)
        assert lengths(machine)[0] > SEGMENT / 2
        machine.fault = None
        await until_packed(machine, len(lengths(machine)) - 1)
        await same(db, receipts)
    assert machine.verify(receipts[-1]).notes == []


async def test_a_reader_beside_it_goes_on(either: Machine) -> None:
    receipts = await filled(either)
    async with either.open(read_only=True, cache_bytes=0) as reader:
        assert (await reader.get(receipts[3].first_position)).payload == payload(3)
        tail = reader.tail("s", start=0)
        assert (await anext(tail)).payload == payload(0)
        async with either.open(segment_bytes=SEGMENT) as db:
            await until_packed(either, len(lengths(either)) - 1)
            for i, receipt in enumerate(receipts):
                assert (await reader.get(receipt.first_position)).payload == payload(i)
            assert await payloads(reader.read("s")) == [payload(i) for i in range(COUNT)]
            await db.append("s", payload(COUNT))
        for i in range(1, COUNT + 1):
            assert (await asyncio.wait_for(anext(tail), 5)).payload == payload(i)


async def test_a_reader_finds_its_way_though_many_segments_were_packed_since(either: Machine) -> None:
    await filled(either)
    closed = len(lengths(either)) - 1
    assert closed > 3
    async with either.open(read_only=True, cache_bytes=0) as reader:
        async with either.open(segment_bytes=SEGMENT):
            await until_packed(either, closed)
        assert (await anext(reader.read("s"))).payload == payload(0)


async def test_several_reads_of_a_reader_meet_what_was_packed_since(either: Machine) -> None:
    await filled(either)
    closed = len(lengths(either)) - 1
    async with either.open(read_only=True, cache_bytes=0) as reader:
        async with either.open(segment_bytes=SEGMENT):
            await until_packed(either, closed)
        known: set[str] = set()

        def before(verb: str, name: str, place: int, _length: int) -> None:
            if verb == "read" and name.startswith("segments/") and place and name not in known:
                known.add(name)
                # Another one comes to it before.
                reader._native.get(max(0, (int(name[9:29]) + 1) * COUNT // (closed + 1) - 2))

        either.fault = before
        assert (await anext(reader.read("s"))).payload == payload(0)
        assert len(known) > 3


@pytest.mark.parametrize("power", [True, False], ids=["cut", "kill"])
async def test_a_crash_at_any_step_leaves_the_log_as_it_was(either: Machine, power: bool) -> None:
    receipts = await filled(either)
    start = either.disk.files()
    countdown, done = 0, False
    while not done:
        countdown += 1
        machine = Machine(either.key)
        machine.disk = Disk.from_files(start)
        cut = Cut(machine.disk, countdown, Random(countdown), power)
        async with machine.open(segment_bytes=SEGMENT, backend=machine.backend()) as db:
            machine.disk.on_step = cut
            await until_packed(machine, 2)
            machine.disk.on_step = None
            assert await payloads(db.read("s")) == [payload(i) for i in range(COUNT)]
        done = cut.left is None
        left = Machine(either.key)
        left.disk = cut.taken() if not done else machine.disk
        if not done:
            assert left.verify(receipts[-1]).root == receipts[-1].root
        async with left.open(segment_bytes=SEGMENT, pack=0) as db:
            await same(db, receipts)
        left.verify(receipts[-1])
    assert countdown > 20


async def test_an_index_of_the_file_before_is_made_again(either: Machine) -> None:
    receipts = await filled(either)
    old = either.disk.files()[index_name(0)]
    async with either.open(segment_bytes=SEGMENT):
        await until_packed(either, 3)
    either.write(index_name(0), 0, old)
    async with either.open(segment_bytes=SEGMENT) as db:
        await same(db, receipts)


async def test_a_record_that_stood_behind_where_the_file_ends_now_is_found(machine: Machine) -> None:
    # More segments than are open at a time: those that were read first are opened again, by their names.
    async with machine.open(segment_bytes=SEGMENT, pack=0) as db:
        receipts = [await db.append("s", payload(i)) for i in range(2_200)]
    segments = len(lengths(machine)) - 1
    assert segments > 140
    async with machine.open(read_only=True) as reader:
        for receipt in receipts[::10]:
            await reader.get(receipt.first_position)
        async with machine.open(segment_bytes=SEGMENT, checkpoint_records=1):
            await until_packed(machine, segments)
        for i, receipt in reversed(list(enumerate(receipts))):
            assert (await reader.get(receipt.first_position)).payload == payload(i)
