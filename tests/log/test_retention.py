"""The oldest segments go, and what is left is what it was."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest

from kimberlite import Dropped, Duplicate, Log, Receipt, Unavailable
from kimberlite.crypto.master import create_master, load_master
from kimberlite.errors import Corrupt
from kimberlite.log import checkpoint, past
from kimberlite.log.names import CHECKPOINT, HASHES, PAST, PAST_BLOCK, VAULTS, segment_name, segment_number
from kimberlite.log.repair import enter, look
from kimberlite.log.salvage import Finder
from kimberlite.log.verify import verify_again
from kimberlite.storage.backend import BLOCK
from kimberlite.storage.memory import Disk, MemoryBackend
from tests.log.simulated import START, Machine, failing, payloads, until
from tests.log.steps import Cut
from tests.log.test_unreadable import unreadable

SEGMENT = 64 * 1024
COUNT = 60


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "LEAST_INTERVAL", 0.002)


def payload(i: int) -> bytes:
    return b"%d." % i * 50


async def filled(machine: Machine) -> list[Receipt]:
    async with machine.open(segment_bytes=SEGMENT) as db:
        await db.append("early", b"once")
        return [await db.append("s", payload(i), producer=("p", i)) for i in range(COUNT)]


def numbers(machine: Machine) -> list[int]:
    found = (segment_number(name.partition("/")[2]) for name in machine.disk.files() if name.startswith("segments/"))
    return sorted(number for number in found if number is not None)


async def kept(db: Log, receipts: list[Receipt], first: int) -> None:
    """What is there from this offset on, and that what is before it is gone."""
    assert await payloads(db.read("s")) == [payload(i) for i in range(first, len(receipts))]
    assert [record.offset async for record in db.read("s", reverse=True)] == list(range(first, len(receipts)))[::-1]
    assert [info.name for info in db.streams()] == ["early", "s"]
    for receipt in receipts:
        if receipt.first_offset >= first:
            assert (await db.get(receipt.first_position)).payload == payload(receipt.first_offset)
            continue
        with pytest.raises(Dropped) as caught:
            await db.get(receipt.first_position)
        assert caught.value.first is not None
        assert caught.value.first > receipt.first_position
    if first:
        with pytest.raises(Dropped) as caught:
            await payloads(db.read("s", start=first - 1))
        assert caught.value.first == first
        with pytest.raises(Dropped):
            await payloads(db.read("early", start=0))
        assert await payloads(db.read("early")) == []
        with pytest.raises(Dropped):
            await anext(db.tail("s", start=0))
        await bounded(db, first)


async def bounded(db: Log, first: int) -> None:
    """Where a read may start and end of which this is the first offset that is left."""
    position = (await db.info())["first_position"]
    bounds: list[dict[str, Any]] = [{"start": 0}, {"until": first - 1}, {"start": first - 1, "until": first + 5}]
    for asked in bounds:
        for reverse in (True, False):
            with pytest.raises(Dropped) as caught:
                await payloads(db.read("s", **asked, reverse=reverse))
            assert caught.value.first == first
    bounds = [{"start": position - 1}, {"until": position - 1}]
    for asked in bounds:
        with pytest.raises(Dropped) as caught:
            await payloads(db.read(**asked, limit=0))
        assert caught.value.first == position
    # Nothing is asked for, or only what is left.
    nothing: list[dict[str, Any]] = [{"start": 3, "until": 3}, {"start": 5, "until": 3}, {"until": first}]
    for asked in nothing:
        assert await payloads(db.read("s", **asked)) == []
    everything = await payloads(db.read("s"))
    assert await payloads(db.read("s", start=first)) == everything
    # A time is looked for among what is left.
    long_ago = datetime(1971, 1, 1, tzinfo=UTC)
    assert await payloads(db.read("s", start=long_ago)) == everything
    assert await payloads(db.read("s", until=long_ago)) == []


async def test_what_is_before_a_position_is_dropped_by_whole_segments(either: Machine) -> None:
    receipts = await filled(either)
    before = numbers(either)
    async with either.open(segment_bytes=SEGMENT) as db:
        root = (await db.info())["root"]
        assert root == receipts[-1].root.hex()
        await db.retain(before=receipts[30].first_position)
        first = (await anext(db.read("s"))).offset
        assert 10 < first <= 30
        await kept(db, receipts, first)
        info = await db.info()
        assert [each["rule"] for each in info["dropped"]] == [f"before position {receipts[30].first_position}"]
        assert info["first_position"] > 0
        # Of what is gone the producer is still known.
        assert (await db.append("s", payload(COUNT - 1), producer=("p", COUNT - 1))) == receipts[-1]
        receipts.append(await db.append("s", payload(COUNT), producer=("p", COUNT)))
        await db.append("early", b"twice")
        await db.retain(before=0)
    after = numbers(either)
    assert after[0] > before[0]
    assert either.verify(receipts[-1]).records == receipts[-1].tree_size + 1
    for gone in ([], [CHECKPOINT], [CHECKPOINT, HASHES]):
        for name in gone:
            if name in either.disk.files():
                either.backend().unlink(name)
        async with either.open(segment_bytes=SEGMENT, read_only=True) as reader:
            assert await payloads(reader.read("s")) == [payload(i) for i in range(first, COUNT + 1)]
        async with either.open(segment_bytes=SEGMENT) as db:
            assert await payloads(db.read("s")) == [payload(i) for i in range(first, COUNT + 1)]
            assert (await db.get(receipts[-1].first_position)).payload == payload(COUNT)
            assert await payloads(db.read("early")) == [b"twice"]
            assert (await db.append("s", payload(COUNT), producer=("p", COUNT))) == receipts[-1]


async def test_a_reader_beside_it_is_told_what_is_left(either: Machine) -> None:
    receipts = await filled(either)
    async with either.open(read_only=True, cache_bytes=0) as reader:
        tail = reader.tail("s", start=0)
        assert (await anext(tail)).payload == payload(0)
        async with either.open(segment_bytes=SEGMENT) as db:
            await db.retain(before=receipts[40].first_position)
            first = (await anext(db.read("s"))).offset
            await asyncio.sleep(0.01)
            await kept(reader, receipts, first)


@pytest.mark.parametrize("wrong", [False, True], ids=["sound", "wrong"])
@pytest.mark.parametrize("power", [True, False], ids=["cut", "kill"])
async def test_a_crash_at_any_step_drops_all_or_nothing(either: Machine, power: bool, wrong: bool) -> None:
    receipts = await filled(either)
    if wrong:
        # It is made again on the way.
        either.flip(HASHES, 4096 + 32 * 3)
    start = either.disk.files()
    countdown, done, seen = 0, False, set()
    while not done:
        countdown += 3 if wrong else 1
        machine = Machine(either.key)
        machine.disk = Disk.from_files(start)
        async with machine.open(segment_bytes=SEGMENT, backend=machine.backend(), pack=0) as db:
            cut = Cut(machine.disk, countdown, Random(countdown), power)
            machine.disk.on_step = cut
            await db.retain(before=receipts[30].first_position)
            machine.disk.on_step = None
            whole = (await anext(db.read("s"))).offset
        done = cut.left is None
        left = Machine(either.key)
        left.disk = machine.disk if done else cut.taken()
        left.verify(receipts[-1])
        async with left.open(segment_bytes=SEGMENT, read_only=True) as reader:
            assert (await payloads(reader.read("s")))[-20:] == [payload(i) for i in range(COUNT - 20, COUNT)]
        async with left.open(segment_bytes=SEGMENT, pack=0) as db:
            first = (await anext(db.read("s"))).offset
            assert first in (0, whole)
            seen.add(first)
            await kept(db, receipts, first)
        notes = left.verify(receipts[-1]).notes
        assert notes == [] or (wrong and first == 0 and notes[0].startswith("hashes: "))
    assert seen == {0, whole}


async def test_a_segment_that_nobody_dropped_is_missing(either: Machine) -> None:
    receipts = await filled(either)
    for number in (0, 1):
        either.backend().unlink(segment_name(number))
    for read_only in (True, False):
        with pytest.raises(Corrupt, match="segment 1 is missing"):
            await either.open(segment_bytes=SEGMENT, read_only=read_only)
    with pytest.raises(Corrupt, match="segment 1 is missing"):
        either.verify(receipts[-1])


async def test_more_than_was_dropped_must_not_be_gone(either: Machine) -> None:
    receipts = await filled(either)
    async with either.open(segment_bytes=SEGMENT) as db:
        await db.retain(before=receipts[30].first_position)
    first = numbers(either)[0]
    assert first > 0
    either.backend().unlink(segment_name(first))
    for gone in ([], [CHECKPOINT]):
        for name in gone:
            either.backend().unlink(name)
        with pytest.raises(Corrupt, match=f"segment {first} is missing"):
            await either.open(segment_bytes=SEGMENT)
        with pytest.raises(Corrupt, match=f"segment {first} is missing"):
            either.verify(receipts[-1])


async def test_who_comes_too_late_is_told_so(either: Machine) -> None:
    receipts = await filled(either)
    async with either.open(read_only=True) as reader:
        overtaken, behind = reader.tail("s", start=0), reader.tail("s", start=2 * COUNT)
        assert (await anext(overtaken)).payload == payload(0)
        before = reader._native
        async with either.open(segment_bytes=SEGMENT, checkpoint_records=1) as db:
            own = db.tail("s", start=0)
            assert (await anext(own)).payload == payload(0)
            for i in range(COUNT, 2 * COUNT):
                receipts.append(await db.append("s", payload(i)))
            await asyncio.sleep(0.02)
            await db.append("s", payload(2 * COUNT))
            await asyncio.sleep(0.02)
            await db.retain(before=receipts[-1].first_position)
            left = [record.offset async for record in db.read("s")]
            assert left[0] > COUNT
            waiting = asyncio.ensure_future(anext(reader.tail("t", start=0)))
            await asyncio.sleep(0)
            assert reader._native is before
            for read in (overtaken, own, reader.read("s", start=COUNT), reader.tail("s", start=COUNT)):
                with pytest.raises(Dropped) as caught:
                    await payloads(read)
                assert caught.value.first == left[0]
            assert reader._native is not before
            # It goes on with what is left, and with what comes.
            assert [record.offset async for record in reader.read("s")] == left
            assert (await anext(reader.tail("s", start=left[0]))).offset == left[0]
            assert (await anext(behind)).payload == payload(2 * COUNT)
            assert (await reader.info())["first_position"] == (await db.info())["first_position"]
            assert (await reader.get(receipts[-1].first_position)).offset == receipts[-1].first_offset
            assert await reader.retain(before=1 << 40, dry_run=True)
            await db.append("t", b"comes")
            assert (await asyncio.wait_for(waiting, 5)).payload == b"comes"
            with pytest.raises(Dropped):
                await reader.get(0)


def become(disk: Disk, files: dict[str, bytes]) -> None:
    """As another process makes it: what is open stays what it is."""
    writer, before = MemoryBackend(disk), disk.files()
    for there in before.keys() - files.keys():
        writer.unlink(there)
    for there, data in files.items():
        if data != before.get(there):
            file = writer.open(there, "w" if there in before else "x")
            file.truncate(len(data))
            file.write(0, data)


@pytest.mark.parametrize("behind", [True, False])
async def test_where_what_says_what_was_dropped_is_damaged_the_place_is_named(either: Machine, *, behind: bool) -> None:
    receipts = await filled(either)
    async with either.open(segment_bytes=SEGMENT, pack=0) as db:
        segment, place = numbers(either)[-1], either.end(numbers(either)[-1])
        await db.retain(before=receipts[40].first_position)
        for i in range(COUNT if behind else 0):
            await db.append("s", payload(COUNT + i))
    assert (numbers(either)[-1] > segment) == behind
    name = segment_name(segment)
    either.flip(name, place + 150)
    with pytest.raises(Corrupt, match=r"segments before \d+ were dropped") as caught:
        either.verify()
    assert (caught.value.file, caught.value.place) == (name, place)
    MemoryBackend(either.disk).unlink(CHECKPOINT)
    for read_only in (True, False):
        with pytest.raises(Corrupt, match=r"segments before \d+ were dropped") as caught:
            async with either.open(read_only=read_only):
                pass
        assert (caught.value.file, caught.value.place) == (name, place)
    assert caught.value.position == receipts[-1].last_position + 1
    # What is damaged elsewhere says nothing of a segment that is missing.
    either.flip(name, place + 150)
    MemoryBackend(either.disk).unlink(segment_name(numbers(either)[0]))
    with pytest.raises(Corrupt, match="is missing"):
        either.verify()


@pytest.mark.parametrize("bound", ["start", "until", "tail"])
async def test_a_reader_that_looks_for_a_time_is_overtaken(either: Machine, bound: str) -> None:
    async with either.open(segment_bytes=SEGMENT, pack=0) as db:
        for i in range(COUNT):
            either.wait(10**9)
            await db.append("s", payload(i))
    states = [either.disk.files()]
    for before in (15, 25, 40):
        async with either.open(segment_bytes=SEGMENT, pack=0) as db:
            await db.retain(before=before)
            first = (await anext(db.read("s"))).offset
        states.append(either.disk.files())
    late = Machine(either.key)
    late.disk = Disk.from_files(states.pop(0))
    time = datetime.fromtimestamp(START / 10**9 + 45.5, UTC)
    early = datetime.fromtimestamp(START / 10**9 + 2, UTC)

    def beneath(verb: str, name: str, _place: int, _length: int) -> None:
        if verb == "open" and name.startswith(("segments/", "index/")) and states and armed:
            become(late.disk, states.pop(0))

    armed, late.fault = False, beneath
    async with late.open(read_only=True) as reader:
        armed = True
        if bound == "tail":
            for _ in range(2):
                assert (await anext(reader.tail("s", start=time))).offset == 45
            assert (await anext(reader.tail("s", start=early))).offset == first
        elif bound == "start":
            assert [record.offset async for record in reader.read("s", start=early)] == list(range(first, COUNT))
            assert [record.offset async for record in reader.read("s", start=time)] == list(range(45, COUNT))
        else:
            assert [record.offset async for record in reader.read("s", until=time)] == list(range(first, 45))
    assert not states


async def test_verify_ends_however_often_something_is_dropped_beneath_it(machine: Machine) -> None:
    async with machine.open(segment_bytes=SEGMENT, pack=0) as db:
        receipts = [await db.append("s", payload(i)) for i in range(15 * COUNT)]
        states = []
        for i in range(30):
            await db.retain(before=receipts[10 * (i + 20)].first_position)
            states.append(machine.disk.files())
    late = Machine(machine.key)
    late.disk = Disk.from_files(states.pop(0))
    states.reverse()
    opened = 0

    def beneath(verb: str, name: str, _place: int, _length: int) -> None:
        nonlocal opened
        opened += (verb, name[:9]) == ("open", "segments/")
        if opened >= 12 and states:
            opened = 0
            become(late.disk, states.pop())

    late.fault = beneath
    report = verify_again(late.backend(), lambda: None, receipts[-1], None)
    assert report.records > receipts[-1].last_position
    assert len(states) > 10


async def test_verify_holds_hashes_that_leave_their_file_beneath_it_against_the_records(either: Machine) -> None:
    receipts = await filled(either)
    before = either.disk.files()
    async with either.open(segment_bytes=SEGMENT, pack=0) as db:
        # The one that it reads first.
        begun = db._native.ended(0)
        assert begun is not None
        await db.retain(before=begun[0])
    after = either.disk.files()
    assert not any(after[HASHES][BLOCK : BLOCK + 32])
    late = Machine(either.key)
    late.disk = Disk.from_files(before)
    read = False

    def beneath(verb: str, name: str, place: int, _length: int) -> None:
        nonlocal read
        if (verb, name) == ("read", HASHES) and place >= BLOCK and not read:
            read = True
            become(late.disk, after)

    late.fault = beneath
    report = verify_again(late.backend(), lambda: load_master(late.key), receipts[-1], None)
    assert read
    assert not any("wrong" in note for note in report.notes)
    # What is wrong there is said.
    late = Machine(either.key)
    late.disk, read = Disk.from_files(before), False
    after[PAST] = after[PAST][:-7] + b"changed"
    late.fault = beneath
    report = verify_again(late.backend(), lambda: load_master(late.key), None, None)
    assert any("is wrong: receipts of before position" in note for note in report.notes)


def whenever(machine: Machine, before: dict[str, bytes], after: dict[str, bytes]) -> Iterator[Machine]:
    """What is on its disk becomes something else at the first call of whoever uses it, at the second, and so on."""
    calls = at = 0

    def beneath(_verb: str, _name: str, _place: int, _length: int) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            become(late.disk, after)

    while calls >= at:
        calls, at = 0, at + 1
        late = Machine(machine.key)
        late.disk = Disk.from_files(before)
        late.fault = beneath
        yield late
    assert at > 50


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("anchored", [False, True])
async def test_verify_finds_the_past_sound_whenever_more_is_dropped_beneath_it(
    either: Machine, *, full: bool, anchored: bool
) -> None:
    receipts = await filled(either)

    def no_room(verb: str, name: str, _place: int, _length: int) -> OSError | None:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name) if (verb, name) == ("write", PAST) else None

    async with either.open(segment_bytes=SEGMENT, pack=0) as db:
        either.fault = no_room if full else None
        first = (await db.retain(before=receipts[COUNT // 3].first_position)).first
        either.fault, before = None, either.disk.files()
        begun = db._native.ended(db._native.dropped[0])
        assert begun is not None
        await db.retain(before=begun[0])
        after = either.disk.files()
    assert any(before[HASHES][BLOCK : BLOCK + 32]) == full
    assert not any(after[HASHES][BLOCK : BLOCK + 32])
    between = next(receipt for receipt in receipts if first <= receipt.first_position < begun[0])
    anchor = between if anchored else None
    for late in whenever(either, before, after):
        report = verify_again(late.backend(), lambda: load_master(either.key), anchor, None)
        assert [note for note in report.notes if "no watermark" not in note] == []


async def test_a_reader_holds_itself_against_a_receipt_whenever_more_is_dropped_beneath_it(either: Machine) -> None:
    receipts = await filled(either)
    async with either.open(segment_bytes=SEGMENT, pack=0) as db:
        first = (await db.retain(before=receipts[COUNT // 3].first_position)).first
        before, begun = either.disk.files(), db._native.ended(db._native.dropped[0])
        assert begun is not None
        await db.retain(before=begun[0])
        after = either.disk.files()
    between = next(receipt for receipt in receipts if first <= receipt.first_position < begun[0])
    for late in whenever(either, before, after):
        for anchor in (between, receipts[-1], receipts[0]):
            async with late.open(read_only=True, anchor=anchor) as db:
                assert (await db.info())["records"] > receipts[-1].last_position


async def test_verify_beside_an_erasure_says_nothing_of_a_copy_that_is_about_to_be_written(encrypted: Machine) -> None:
    async with encrypted.open() as db:
        await db.append("s", b"secret")
    before = encrypted.disk.files()
    async with encrypted.open() as db:
        await db.erase("s", reason="asked for")
    after = encrypted.disk.files()
    late = Machine(encrypted.key)
    late.disk = Disk.from_files(before | {VAULTS[0]: after[VAULTS[0]]})
    assert late.verify().notes == [f"{VAULTS[0]} differs from its twin, which is sound"]

    def beneath(verb: str, name: str, _place: int, _length: int) -> None:
        if (verb, name) == ("open", segment_name(0)):
            become(late.disk, after)

    late.fault = beneath
    assert not any("differs" in note for note in late.verify().notes)


async def test_verify_goes_on_with_the_key_that_a_rotation_beneath_it_wrapped_all_with(
    encrypted: Machine, tmp_path: Path
) -> None:
    receipts = await filled(encrypted)
    new = tmp_path / "new"
    create_master(new)
    late = encrypted.image()
    async with encrypted.open(segment_bytes=SEGMENT, pack=0) as db:
        await db.retain(before=receipts[40].first_position)
        await db.rotate(new)
    after = encrypted.disk.files()

    def beneath(verb: str, name: str, _place: int, _length: int) -> None:
        if (verb, name) == ("open", segment_name(1)) and late.key != new:
            become(late.disk, after)
            late.key = new
            raise FileNotFoundError(name)

    late.fault = beneath
    report = verify_again(late.backend(), lambda: load_master(late.key), receipts[-1], None)
    assert report.records > receipts[-1].last_position
    assert report.first_position > receipts[30].first_position


async def test_verify_begins_again_when_segments_are_dropped_beneath_it(either: Machine) -> None:
    receipts = await filled(either)
    before = either.disk.files()
    async with either.open(segment_bytes=SEGMENT, pack=0) as db:
        await db.retain(before=receipts[40].first_position)
    after = either.disk.files()
    late = Machine(either.key)
    late.disk = Disk.from_files(before)

    def beneath(verb: str, name: str, _place: int, _length: int) -> None:
        """The writer's work of a while is done between two looks."""
        if verb != "open" or name != segment_name(1) or late.disk.files().keys() != before.keys():
            return
        become(late.disk, after)
        raise FileNotFoundError(name)

    late.fault = beneath
    report = verify_again(late.backend(), lambda: load_master(late.key), receipts[-1], None)
    assert report.records > receipts[-1].last_position
    assert report.segments < len(before)


async def test_what_no_checkpoint_covers_yet_gets_one_first(either: Machine) -> None:
    async with either.open(segment_bytes=SEGMENT) as db:
        receipts = [await db.append("s", payload(i)) for i in range(COUNT)]
        active = numbers(either)[-1]
        assert active > 2
        await db.retain(before=receipts[-1].last_position + 1)
        assert numbers(either)[0] == active
        assert (await anext(db.read("s"))).payload == payload((await anext(db.read("s"))).offset)
    assert either.verify(receipts[-1]).notes == []


async def test_who_is_cancelled_abandons_only_the_wait(either: Machine) -> None:
    receipts = await filled(either)
    for turns in range(0, 60, 3):
        machine = either.image()
        async with machine.open(segment_bytes=SEGMENT, pack=0) as db:
            dropping = asyncio.create_task(db.retain(before=receipts[40].first_position))
            for _ in range(turns):
                await asyncio.sleep(0)
            dropping.cancel()
            await asyncio.gather(dropping, return_exceptions=True)
            # Less than what may be dropped by now.
            await db.retain(before=receipts[20].first_position)
        assert machine.verify(receipts[-1]).notes == []
        async with machine.open(segment_bytes=SEGMENT, pack=0) as db:
            await kept(db, receipts, (await anext(db.read("s"))).offset)


async def test_what_the_disk_refuses_to_unlink_goes_at_the_next_start(machine: Machine) -> None:
    receipts = await filled(machine)
    async with machine.open(segment_bytes=SEGMENT, pack=0) as db:
        machine.fault = failing("unlink", "segments/")
        with pytest.raises(Unavailable, match="not all"):
            await db.retain(before=receipts[40].first_position)
        machine.fault = None
        assert numbers(machine)[0] == 0
        # The place of its hashes waits for nothing.
        assert not past.is_left(machine.backend(), db._native.first)
        await kept(db, receipts, (await anext(db.read("s"))).offset)
    async with machine.open(segment_bytes=SEGMENT, pack=0):
        assert numbers(machine)[0] > 0
    machine.verify(receipts[-1])


@pytest.mark.parametrize("full", ["", PAST_BLOCK, PAST])
@pytest.mark.parametrize("wrong", [False, True])
async def test_what_a_crash_has_left_in_hashes_is_given_back_by_the_next_start(
    either: Machine, full: str, *, wrong: bool
) -> None:
    receipts = await filled(either)
    before = either.disk.files()[HASHES]
    async with either.open(segment_bytes=SEGMENT, pack=0) as db:
        await db.retain(before=receipts[40].first_position)
        first = db._native.first
    either.write(HASHES, 0, before)
    if wrong:
        either.flip(PAST, past.HASHES_HEADER + 100)
    if full:
        # By then it has been seen to, or never.
        fault = failing("write", f"prepare/{full}" if full == PAST_BLOCK else full, errno.ENOSPC)
        either.fault = fault
        async with either.open(segment_bytes=SEGMENT, pack=0, scrub=0) as db:
            await db.retain(before=0)
            assert past.is_left(either.backend(), first)
        either.fault = None
    async with either.open(segment_bytes=SEGMENT, pack=0, scrub=0) as db:

        async def is_given_back() -> bool:
            return not past.is_left(either.backend(), first)

        await until(is_given_back)
        await kept(db, receipts, (await anext(db.read("s"))).offset)
    assert either.verify(receipts[-1]).notes == []


async def test_what_is_left_is_packed_though_what_was_before_it_is_gone(either: Machine) -> None:
    receipts = []
    async with either.open(segment_bytes=SEGMENT, pack=0) as db:
        receipts = [await db.append("s", payload(i)) for i in range(2 * COUNT)]
        await db.retain(before=receipts[30].first_position)
    async with either.open(segment_bytes=SEGMENT) as db:

        async def packed() -> bool:
            return bool((await db.info())["bytes"] < 3 * SEGMENT)

        await until(packed)
        assert len(await payloads(db.read("s"))) > COUNT
    assert either.verify(receipts[-1]).notes == []


async def test_what_was_dropped_is_not_appended_again(either: Machine) -> None:
    receipts = await filled(either)
    async with either.open(segment_bytes=SEGMENT) as db:
        await db.retain(before=receipts[40].first_position)
        first = (await anext(db.read("s"))).offset
    for gone in ([], [CHECKPOINT]):
        for name in gone:
            either.backend().unlink(name)
        async with either.open(segment_bytes=SEGMENT) as db:
            for i in (0, first - 1):
                with pytest.raises(Duplicate):
                    await db.append("s", payload(i), producer=("p", i))
            assert await db.append("s", payload(first), producer=("p", first)) == receipts[first]


def spoiled(machine: Machine, number: int, how: str) -> None:
    name = segment_name(number)
    if how == "unreadable":
        machine.fault = unreadable(name, 0, BLOCK)
    elif how == "empty":
        machine.backend().open(name, "w").truncate(0)
    else:
        machine.flip(name, {"header": 50, "body": BLOCK + 300, "end": machine.end(number) - BLOCK + 20}[how])


@pytest.mark.parametrize("checkpoint", ["", "before", "after"])
@pytest.mark.parametrize("how", ["header", "body", "end", "empty", "unreadable"])
async def test_what_is_left_of_what_was_dropped_is_judged_by_nobody(either: Machine, how: str, checkpoint: str) -> None:
    receipts = await filled(either)
    before = either.disk.files()
    async with either.open(segment_bytes=SEGMENT, pack=0, scrub=0) as db:
        await db.retain(before=receipts[10].first_position)
        middle = numbers(either)[0]
        await db.retain(before=receipts[40].first_position)
        first, left = (await anext(db.read("s"))).offset, numbers(either)[0]
        found = either.image() if checkpoint == "before" else either
    if checkpoint == "":
        found.backend().unlink(CHECKPOINT)
    # The unlinks of all, or of those that went last, did not come.
    for begin, number in ((0, 0), (0, left - 1), (middle, middle), (left - 1, left - 1)):
        machine = found.image()
        for each in range(begin, left):
            machine.disk.create(segment_name(each))
            machine.write(segment_name(each), 0, before[segment_name(each)])
        spoiled(machine, number, how)
        async with machine.open(segment_bytes=SEGMENT, read_only=True) as reader:
            await kept(reader, receipts, first)
        assert machine.verify(receipts[-1]).first_position > 0
        with contextlib.closing(machine.backend()) as backend:
            master = load_master(machine.key)
            assert look(backend, *enter(backend, master, os.urandom), master, lambda: 1) is None
        finder = Finder(machine.backend(), load_master(machine.key))
        assert finder.dropped > receipts[first - 1].first_position
        finder.close()
        machine.kill()
        async with machine.open(segment_bytes=SEGMENT, pack=0, scrub=0) as db:
            await kept(db, receipts, first)
            assert numbers(machine)[0] == left
        machine.fault = None
        assert machine.verify(receipts[-1]).notes == []


async def test_what_no_record_says_was_dropped_is_damage(either: Machine) -> None:
    receipts = await filled(either)
    async with either.open(segment_bytes=SEGMENT, pack=0, scrub=0) as db:
        await db.retain(before=receipts[20].first_position)
    left = numbers(either)[0]
    for how in ("header", "empty"):
        machine = either.image()
        spoiled(machine, left, how)
        with pytest.raises(Corrupt, match=segment_name(left)):
            machine.verify()
        for read_only in (True, False):
            with pytest.raises(Corrupt, match=segment_name(left)):
                await machine.open(read_only=read_only)
