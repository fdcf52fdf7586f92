"""A damaged database can be written again, and the log says what that cost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from kimberlite import Corrupt, Dropped, Log, Receipt, Record, RolledBack, Unavailable
from kimberlite.crypto.master import create_master, load_master
from kimberlite.crypto.vault import SLOT
from kimberlite.errors import Busy, KeyUnavailable
from kimberlite.log import checkpoint, packing, reading
from kimberlite.log.creation import write_small
from kimberlite.log.loading import load_identity
from kimberlite.log.marks import MAGIC as MARK
from kimberlite.log.names import CHECKPOINT, IDENTITY, MARKS, PREPARE, REPAIR, VAULTS, segment_name
from kimberlite.log.opening import Injected
from kimberlite.log.options import Options
from kimberlite.log.repair import CHECK, LAYOUT, Loss, Plan, repair
from kimberlite.storage.backend import BLOCK
from kimberlite.storage.memory import Disk, MemoryBackend
from tests.log.simulated import Machine, failing, payloads, until
from tests.log.steps import Cut
from tests.log.test_recovery import made_up
from tests.model import Log as ModelLog
from tests.model import read_log
from tests.model.groups import GROUP_HEADER
from tests.model.records import Repaired, decode_system

SEGMENT = 64 * 1024
COUNT = 40


def payload(i: int) -> bytes:
    return b"%d." % i * 50


async def filled(machine: Machine, count: int = COUNT) -> list[Receipt]:
    async with machine.open(segment_bytes=SEGMENT, pack=0) as db:
        return [await db.append("s", payload(i), producer=("p", i)) for i in range(count)]


async def repaired(machine: Machine, *, agreed: bool = True) -> Loss | None:
    options, injected = Options(segment_bytes=SEGMENT, idle=0.0005, pack=0), Injected(clock=lambda: machine.now)
    return await repair(machine.backend, load_master(machine.key), lambda _loss: agreed, options, injected)


def place_of(machine: Machine, receipt: Receipt) -> tuple[str, int]:
    """Where a group is."""
    master = load_master(machine.key)
    files = {name: data for name, data in machine.disk.files().items() if not name.startswith(("prepare/", "reserve"))}
    group = next(group for group in read_log(files, master).groups if group.number == receipt.group)
    return segment_name(group.segment), group.place


async def kept(db: Log, receipts: list[Receipt], count: int) -> None:
    """The first so many, and what the log says of the others."""
    assert await payloads(db.read("s")) == [payload(i) for i in range(count)]
    for receipt in receipts[:count]:
        assert (await db.get(receipt.first_position)).payload == payload(receipt.first_offset)


def last_said(machine: Machine) -> tuple[int, Repaired]:
    """The record that a repair has left, and its position, as the model reads them."""
    master = load_master(machine.key)
    names = ("prepare/", "reserve", "quarantine/")
    files = {name: data for name, data in machine.disk.files().items() if not name.startswith(names)}
    rows = [row for row in read_log(files, master).rows if row.stream == 0 and row.payload[:2] == b"\7\0"]
    said = decode_system(rows[-1].opened, "what was repaired")
    assert isinstance(said, Repaired)
    return rows[-1].position, said


async def test_one_that_is_killed_before_it_has_begun_leaves_one_copy(either: Machine) -> None:
    receipts = await filled(either)
    name, place = place_of(either, receipts[20])
    either.flip(name, place + 20)
    left, step = either, 0
    while REPAIR not in left.disk.files():
        step += 1
        cut = Cut(left.disk, step, Random(step), power=False)
        left.disk.on_step = cut
        await repaired(left)
        assert cut.left is not None
        left = Machine(either.key)
        left.disk, left.now = cut.left, either.now + step
        assert sum(each.startswith(f"quarantine/{name[9:29]}-{place}-") for each in left.disk.files()) <= 1
    assert step > 5
    await repaired(left)
    assert left.verify().notes == []


async def test_a_lost_key_is_said_and_not_called_nothing(encrypted: Machine) -> None:
    await filled(encrypted)
    for vault in VAULTS:
        data = encrypted.disk.files()[vault]
        slots = [at for at in range(BLOCK, len(data), SLOT) if data[at] == 3]
        encrypted.flip(vault, slots[-1] + 90)
    with pytest.raises(KeyUnavailable, match="the key of 1 streams is missing"):
        await repaired(encrypted)


@pytest.mark.parametrize("agreed", [False, True])
async def test_nobody_writes_to_it_while_somebody_is_asked(either: Machine, agreed: bool) -> None:
    receipts = await filled(either)
    name, place = place_of(either, receipts[20])
    either.flip(name, place + 20)

    def agree(_loss: Loss) -> bool:
        either.flip(name, place + 20)
        with contextlib.closing(either.backend()) as backend, pytest.raises(BlockingIOError):
            backend.lock_directory()
        return agreed

    options, injected = Options(segment_bytes=SEGMENT, pack=0), Injected(clock=lambda: either.now)
    await repair(either.backend, load_master(either.key), agree, options, injected)
    async with either.open(segment_bytes=SEGMENT, create=False) as db:
        await kept(db, receipts, 20 if agreed else COUNT)
        await db.append("s", b"at once")


@pytest.mark.parametrize("index", [3, 20, 38, 39])
@pytest.mark.parametrize("what", ["header", "run", "padding"])
async def test_the_log_ends_before_the_damage(either: Machine, index: int, what: str) -> None:
    receipts = await filled(either)
    name, place = place_of(either, receipts[index])
    either.flip(name, place + {"header": 20, "run": GROUP_HEADER + 90, "padding": GROUP_HEADER + 3000}[what])
    before = either.disk.files()
    with pytest.raises(Corrupt):
        either.verify()
    loss = await repaired(either, agreed=False)
    assert either.disk.files() == before
    assert loss is not None
    assert (loss.plan.position, loss.plan.group) == (receipts[index].first_position, receipts[index - 1].group)
    # One byte of a header is mended, and nothing hangs on the padding.
    groups = receipts[-1].group - receipts[index].group + 1
    assert (loss.records, loss.groups) == (COUNT - index - (what == "run"), groups)
    await repaired(either)
    after = either.disk.files()
    assert REPAIR not in after
    segment = int(name[-24:-4])
    assert {n for n in before if n.startswith("segments/") and int(n[-24:-4]) > segment} <= {
        f"segments/{n[11:31]}.seg" for n in after if n.startswith("quarantine/")
    } | {n for n in after if n.startswith("segments/")}
    position, said = last_said(either)
    end = receipts[-1].last_position + 1
    assert said.lost == ((position, end),)
    assert (said.salvaged, said.before, said.after, said.kept) == (False, 0, 1, receipts[index].first_position)
    assert position == receipts[index].first_position
    assert either.verify(receipts[index - 1]).notes == []
    async with either.open(segment_bytes=SEGMENT, create=False) as db:
        await kept(db, receipts, index)
        receipt = await db.append("s", payload(index), producer=("p", index))
        assert (receipt.first_offset, receipt.incarnation) == (index, 1)
        await kept(db, [*receipts[:index], receipt], index + 1)
    assert either.verify(receipt).notes == []
    with pytest.raises(RolledBack):
        either.verify(receipts[-1])
    async with either.open(segment_bytes=SEGMENT) as db:
        assert (await db.append("s", b"more")).incarnation == 1
    assert await repaired(either) is None


async def test_what_is_sound_needs_no_repair(either: Machine) -> None:
    await filled(either)
    before = either.disk.files()
    assert await repaired(either) is None
    assert either.disk.files() == before


async def test_a_second_repair_raises_the_incarnation_again(machine: Machine) -> None:
    receipts = await filled(machine)
    for index, incarnation in ((30, 1), (10, 2)):
        name, place = place_of(machine, receipts[index])
        machine.flip(name, place)
        await repaired(machine)
        async with machine.open(segment_bytes=SEGMENT) as db:
            await kept(db, receipts, index)
            assert (await db.append("t", b"x")).incarnation == incarnation
    assert [each["incarnation"] for each in machine.verify().repairs] == [2, 1]
    assert last_said(machine)[1].after == 1


async def left_by(whole: Machine, power: bool) -> AsyncIterator[Machine]:
    """What a repair leaves that is cut off or killed at each of its steps, and at last the one that is over."""
    start, countdown, done = whole.disk.files(), 0, False
    while not done:
        countdown += 1
        machine, left = Machine(whole.key), Machine(whole.key)
        machine.disk = Disk.from_files(start)
        cut = Cut(machine.disk, countdown, Random(countdown), power)
        machine.disk.on_step = cut
        await repaired(machine)
        machine.disk.on_step = None
        done = cut.left is None
        left.disk = machine.disk if done else cut.taken()
        yield left


@pytest.mark.parametrize("power", [True, False], ids=["cut", "kill"])
async def test_what_a_record_said_that_is_given_up_is_said_again(either: Machine, power: bool) -> None:
    receipts = await filled(either)
    for index in (30, 20):
        name, place = place_of(either, receipts[index])
        either.flip(name, place + 30)
        if index == 30:
            await repaired(either)
    expected = either.image()
    await repaired(expected)
    repairs = expected.verify().repairs
    assert [each["kept"] for each in repairs] == [receipts[index].first_position for index in (20, 30)]
    async for left in left_by(either, power):
        await repaired(left)
        left.cut()
        async with left.open(create=False, read_only=True) as reader:
            assert (await reader.info())["repairs"] == repairs
            await kept(reader, receipts, 20)
        assert left.verify().repairs == repairs


async def test_that_a_record_of_it_was_lost_is_noted(either: Machine) -> None:
    receipts = await filled(either)
    for index in (30, 31):
        name, place = place_of(either, receipts[index])
        if index == 30:
            either.flip(name, place)
        else:
            for lost in (name, CHECKPOINT):
                either.backend().unlink(lost)
        await repaired(either)
        async with either.open(segment_bytes=SEGMENT, pack=0) as db:
            receipts[index:] = [await db.append("s", payload(i)) for i in range(index, COUNT)]
            info = await db.info()
    assert [each["incarnation"] for each in info["repairs"]] == [2]
    note = "incarnations 1: nothing tells what was given up with them"
    assert [each.partition(";")[0] for each in info["notes"]] == [note]
    assert [each.partition(";")[0] for each in either.verify().notes] == [note]


async def test_without_room_for_what_is_cut_off_nothing_is_changed(either: Machine) -> None:
    receipts = await filled(either)
    name, place = place_of(either, receipts[20])
    either.flip(name, place)
    before = either.disk.files()
    either.disk.capacity = 1 << 40
    either.disk.capacity += 3 * BLOCK - either.disk.free()
    with pytest.raises(OSError, match="No space"):
        await repaired(either)
    assert either.disk.files() == before
    async with either.open(read_only=True) as reader:
        await kept(reader, receipts, 20) if name == segment_name(0) else None
    either.disk.capacity += either.disk.files()[name].__len__()
    await repaired(either)
    assert [each["incarnation"] for each in either.verify().repairs] == [1]


async def test_without_room_what_was_set_aside_before_stays(either: Machine) -> None:
    receipts = await filled(either)
    name, place = place_of(either, receipts[20])
    either.flip(name, place + 20)
    backend, data = either.backend(), either.disk.files()[name][place:]
    with contextlib.closing(backend.open(f"quarantine/{name[9:29]}-{place}-77.tail", "x")) as copy:
        copy.write(0, data)
        copy.sync()
    backend.sync_directory("quarantine")
    before = either.disk.files()
    either.fault = lambda verb, name, *_: OSError(28, "full", name) if name.endswith("/repair") else None
    with pytest.raises(OSError, match="full"):
        await repaired(either)
    assert either.disk.files() == before
    either.fault = None
    await repaired(either)
    [left] = [each for each in either.disk.files() if each.startswith(f"quarantine/{name[9:29]}-{place}-")]
    assert either.disk.files()[left] == data
    assert either.verify().notes == []


async def test_marks_that_are_lost_are_made_again(either: Machine) -> None:
    receipts = await filled(either)
    for block in (0, BLOCK):
        either.write(MARKS, block + len(MARK), b"other bytes")
    with pytest.raises(Corrupt, match="neither watermark"):
        await either.open()
    await repaired(either)
    async with either.open(segment_bytes=SEGMENT) as db:
        await kept(db, receipts, COUNT)


async def test_where_no_incarnation_is_left_there_is_no_repair(either: Machine) -> None:
    receipts = await filled(either)
    full = made_up(either, incarnation=2**32 - 1)
    name, place = place_of(full, receipts[20])
    full.flip(name, place + GROUP_HEADER + 90)
    before = full.disk.files()
    with pytest.raises(Corrupt, match="no incarnation is above 4294967295") as caught:
        await repaired(full)
    assert caught.value.file == MARKS
    assert full.disk.files() == before


@pytest.mark.parametrize("counter", [2**63 - 1, 2**63 - 2, 2**62])
async def test_counters_that_were_made_up_are_gone_with_a_repair(either: Machine, counter: int) -> None:
    receipts = await filled(either)
    full = made_up(either, counter=counter)
    name, place = place_of(full, receipts[20])
    full.flip(name, place + GROUP_HEADER + 90)
    await repaired(full)
    for _ in range(3):
        assert full.verify().notes == []
        async with full.open(segment_bytes=SEGMENT) as db:
            await db.append("t", b"x")
    async with full.open(segment_bytes=SEGMENT) as db:
        await kept(db, receipts, 20)


async def test_a_segment_that_is_missing_ends_the_log(either: Machine) -> None:
    receipts = await filled(either)
    either.backend().unlink(segment_name(1))
    loss = await repaired(either)
    assert loss is not None
    assert loss.records > 0
    assert segment_name(2) in loss.files
    async with either.open(segment_bytes=SEGMENT) as db:
        count = len(await payloads(db.read("s")))
        assert 5 < count < COUNT
        await kept(db, receipts, count)


async def test_a_header_of_a_segment_ends_the_log_before_it(either: Machine) -> None:
    receipts = await filled(either)
    either.flip(segment_name(2), 100)
    await repaired(either)
    async with either.open(segment_bytes=SEGMENT) as db:
        await kept(db, receipts, len(await payloads(db.read("s"))))
    assert either.verify().notes == []


async def test_a_tail_that_a_checkpoint_has_seen_is_given_up(either: Machine) -> None:
    receipts = await filled(either)
    name, place = place_of(either, receipts[-3])
    backend = either.backend()
    file = backend.open(name, "w")
    file.truncate(place)
    file.sync()
    file.close()
    before = either.disk.files()[CHECKPOINT]
    marks = either.disk.files()[MARKS]
    assert before
    either.write(MARKS, 0, bytes(len(marks)))
    loss = await repaired(either)
    assert loss is not None
    assert "checkpoint" in loss.why
    async with either.open(segment_bytes=SEGMENT) as db:
        await kept(db, receipts, COUNT - 3)


async def test_a_last_segment_that_is_missing_is_said_with_its_positions(either: Machine) -> None:
    receipts = await filled(either)
    last = max(name for name in either.disk.files() if name.startswith("segments/"))
    either.backend().unlink(last)
    end = receipts[-1].last_position + 1
    loss = await repaired(either, agreed=False)
    assert loss is not None
    assert (loss.plan.end, loss.unknown) == (end, None)
    assert loss.groups == end - loss.plan.position > 0
    # Of nothing else that is left follows more than the number of the last group, and of the leaves nearly all.
    for name in either.disk.files():
        if name == CHECKPOINT or name.startswith("index/"):
            either.backend().unlink(name)
    loss = await repaired(either, agreed=False)
    assert loss is not None
    assert loss.plan.end in (end - 1, end)
    either.backend().unlink("hashes")
    loss = await repaired(either)
    assert loss is not None
    assert loss.plan.end == loss.plan.position
    assert loss.unknown is not None
    assert loss.unknown[1] - loss.unknown[0] + 1 == loss.groups > 0
    assert last_said(either)[1].lost == ((loss.plan.position, loss.plan.position),)


async def test_what_was_given_up_is_said_for_good(either: Machine) -> None:
    receipts = await filled(either)
    expected = []
    for _ in range(2):
        name, place = place_of(either, receipts[-5])
        either.flip(name, place)
        loss = await repaired(either)
        assert loss is not None
        plan = loss.plan
        expected.append(
            {
                "salvaged": False,
                "database_id": truth_of(either).identity.database.hex(),
                "when": plan.when,
                "position": plan.position,
                "incarnation": plan.after,
                "before": plan.before,
                "kept": plan.position,
                "lost": [[plan.position, plan.end]],
                "exact": True,
            }
        )
        assert either.verify().repairs == expected
        async with either.open(segment_bytes=SEGMENT, pack=0) as db:
            assert (await db.info())["repairs"] == expected
            receipts = [await db.append("s", payload(i)) for i in range(10)]
    for gone in ([], [CHECKPOINT]):
        for name in gone:
            either.backend().unlink(name)
        assert either.verify().notes == []
        for read_only in (True, False):
            async with either.open(segment_bytes=SEGMENT, pack=0, read_only=read_only) as db:
                assert (await db.info())["repairs"] == expected
    async with either.open(segment_bytes=SEGMENT, pack=0) as db:
        for _ in range(COUNT):
            await db.append("s", payload(0))
        await db.retain(before=(await db.info())["records"])
        info = await db.info()
        assert info["first_position"] > expected[-1]["position"]
        assert info["repairs"] == expected
    assert either.verify().repairs == expected
    assert [position for position, _ in truth_of(either).repairs] == [each["position"] for each in expected]
    for gone in ([], [CHECKPOINT]):
        for name in gone:
            either.backend().unlink(name)
        async with either.open(segment_bytes=SEGMENT) as db:
            assert (await db.info())["repairs"] == expected
        assert either.verify().notes == []


async def test_what_says_so_and_is_damaged_holds_up_no_retention(either: Machine) -> None:
    receipts = await filled(either)
    either.flip(*place_of(either, receipts[-5]))
    await repaired(either)
    position, _ = last_said(either)
    truth = truth_of(either)
    group = next(group for group in truth.groups if group.position <= position < group.tree_size)
    async with either.open(segment_bytes=SEGMENT, pack=0) as db:
        for i in range(COUNT):
            await db.append("s", payload(i))
    either.flip(segment_name(group.segment), group.place + GROUP_HEADER + 100)
    expected = dict.fromkeys(("salvaged", "database_id", "when", "incarnation", "before", "kept", "lost", "exact")) | {
        "position": position
    }
    async with either.open(segment_bytes=SEGMENT, pack=0, scrub=0) as db:
        assert (await db.info())["repairs"] == [expected]
        would = await db.retain(before=(await db.info())["records"], dry_run=True)
        assert await db.retain(before=(await db.info())["records"]) == would
        assert would.first > position
        assert db.upkeep is not None
        [found] = db.upkeep.findings.found.values()
        assert isinstance(found, Corrupt)
        assert (found.file, found.group) == (segment_name(group.segment), group.number)
        await db.append("s", b"more")
    for gone in ([], [CHECKPOINT]):
        for name in gone:
            either.backend().unlink(name)
        async with either.open(segment_bytes=SEGMENT, pack=0) as db:
            info = await db.info()
            assert info["repairs"] == [expected]
            [note] = info["notes"]
            assert f"position {position}: the record of what was given up there was damaged" in note
        report = either.verify()
        assert report.repairs == [expected]
        assert report.notes == [note]
        assert truth_of(either).repairs == ((position, b""),)
    # It is carried on.
    async with either.open(segment_bytes=SEGMENT, pack=0) as db:
        for i in range(COUNT):
            await db.append("s", payload(i))
        await db.retain(before=(await db.info())["records"])
    assert either.verify().repairs == [expected]


def truth_of(machine: Machine) -> ModelLog:
    names = ("prepare/", "reserve", "quarantine/")
    files = {name: data for name, data in machine.disk.files().items() if not name.startswith(names)}
    return read_log(files, load_master(machine.key))


async def test_a_packed_segment_is_cut_into_one_that_is_not(either: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "LEAST_INTERVAL", 0.002)
    monkeypatch.setattr(packing, "REST", 0)
    receipts = await filled(either)
    async with either.open(segment_bytes=SEGMENT, pack=1.0) as db:
        upkeep = db.upkeep
        assert upkeep is not None

        async def packed() -> bool:
            return upkeep.packer.packed >= 2

        await until(packed)
    name, place = place_of(either, receipts[20])
    assert place % BLOCK
    either.flip(name, place + 30)
    before = either.disk.files()
    either.disk.capacity = 1 << 40
    # For what is cut off, and not for what is kept.
    either.disk.capacity += len(before[name]) - place + 4 * BLOCK - either.disk.free()
    with pytest.raises(OSError, match="No space"):
        await repaired(either)
    assert either.disk.files() == before
    either.disk.capacity = None
    await repaired(either)
    assert either.verify(receipts[19]).notes == []
    async with either.open(segment_bytes=SEGMENT) as db:
        await kept(db, receipts, 20)
        await db.append("s", b"more")
    assert either.verify(receipts[19]).notes == []


async def test_nothing_in_front_of_the_damage_is_nothing_to_repair(either: Machine) -> None:
    await filled(either)
    either.flip(segment_name(0), 100)
    with pytest.raises(Corrupt, match="salvage"):
        await repaired(either)
    assert REPAIR not in either.disk.files()


@pytest.mark.parametrize("count", [1, 5])
async def test_neither_is_it_where_there_is_one_segment(either: Machine, count: int) -> None:
    await filled(either, count)
    MemoryBackend(either.disk).unlink(CHECKPOINT)
    either.flip(segment_name(0), BLOCK + 150)
    with pytest.raises(Corrupt, match="salvage"):
        await repaired(either)
    assert REPAIR not in either.disk.files()


async def test_neither_is_a_lost_identity_or_key(encrypted: Machine) -> None:
    await filled(encrypted)
    other = encrypted.image()
    other.flip(IDENTITY, 20)
    with pytest.raises(Corrupt, match="identity"):
        await repaired(other)
    encrypted.key = None
    with pytest.raises(KeyUnavailable):
        await repaired(encrypted)


async def test_an_erasure_is_not_given_up(encrypted: Machine) -> None:
    receipts = await filled(encrypted)
    async with encrypted.open(segment_bytes=SEGMENT, pack=0) as db:
        await db.append("other", b"x")
        await db.erase("s", reason="on request")
    name, place = place_of(encrypted, receipts[20])
    encrypted.flip(name, place)
    with pytest.raises(Corrupt, match="an erasure is behind"):
        await repaired(encrypted)
    assert REPAIR not in encrypted.disk.files()


async def test_a_key_that_is_lost_is_not_called_erased(encrypted: Machine) -> None:
    receipts = await filled(encrypted)
    name, place = place_of(encrypted, receipts[20])
    encrypted.flip(name, place)
    for vault in VAULTS:
        encrypted.flip(vault, BLOCK + 2 * SLOT + 100)
    with pytest.raises(KeyUnavailable, match=r"the key of 1 streams is missing, 's'.* put the vault back, or salvage"):
        await repaired(encrypted)
    assert REPAIR not in encrypted.disk.files()


async def test_a_writer_at_work_is_left_alone(machine: Machine) -> None:
    async with machine.open():
        with pytest.raises(Busy):
            await repaired(machine)


@pytest.mark.parametrize("more", [0, 10, COUNT])
async def test_a_reader_beside_it_begins_anew_and_says_what_was_given_up(
    either: Machine, more: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "FIRST_BYTES", 1)
    monkeypatch.setattr(reading, "BATCH_BYTES", 1)
    receipts = await filled(either)
    kept, position = 20, receipts[20].first_position
    async with either.open(read_only=True) as reader:
        behind, own, early = reader.tail("s"), reader.tail(), reader.tail("s", start=0)
        waiting = asyncio.ensure_future(anext(behind))
        forward, back = [reader.read("s"), reader.read()], [reader.read("s", reverse=True), reader.read(reverse=True)]
        halfway, down, end = (
            reader.read("s", until=10),
            reader.read("s", until=10, reverse=True),
            reader._native.durable,
        )
        for each in (*forward, *back, halfway, down, early):
            await anext(each)
        name, place = place_of(either, receipts[kept])
        either.flip(name, place)
        either.backend().unlink(CHECKPOINT)
        assert await repaired(either) is not None
        async with either.open(segment_bytes=SEGMENT, pack=0) as db:
            for i in range(more):
                await db.append("s", b"new %d" % i)
            wanted = await payloads(db.read("s"))
            with pytest.raises(RolledBack, match="from 20 on, and this had come to 40"):
                await asyncio.wait_for(waiting, 5)
            with pytest.raises(RolledBack, match=f"positions from {position} on"):
                await asyncio.wait_for(anext(own), 5)
            for each in back:
                with pytest.raises(RolledBack, match=f"positions from {position} on"):
                    await anext(each)
            # Up to where they would have ended.
            assert await payloads(forward[0]) == wanted[1:COUNT]
            assert await payloads(forward[1]) == [r.payload for r in await every(db.read()) if r.position < end][1:]
            assert await payloads(halfway) == [payload(i) for i in range(1, 10)]
            assert await payloads(down) == [payload(i) for i in reversed(range(9))]
            assert (await anext(early)).payload == payload(1)
            assert len((await reader.info())["repairs"]) == 1
            assert (
                await payloads(reader.read("s"))
                == wanted
                == [payload(i) for i in range(kept)] + [b"new %d" % i for i in range(more)]
            )
            # Who begins now is told nothing of what was before.
            assert (await anext(reader.tail("s", start=kept - 1))).payload == payload(kept - 1)
            tail = reader.tail("s")
            await db.append("s", b"comes")
            assert (await asyncio.wait_for(anext(tail), 5)).payload == b"comes"


@pytest.mark.parametrize("how", ["killed", "missing"])
@pytest.mark.parametrize("left", [[], [0], [0, 2], [1]])
async def test_what_retention_has_left_is_no_part_of_what_is_repaired(
    either: Machine, left: list[int], how: str
) -> None:
    receipts = await filled(either)
    async with either.open(segment_bytes=SEGMENT, pack=0) as db:
        for _ in range(200):
            await db.append("t", bytes(1_000))
        before, ended = either.disk.files(), db._native.ended(3)
        assert ended is not None
        await db.retain(before=ended[0])
        first = db._native.first
        receipts = [await db.append("t", bytes(1_000)) for _ in range(100)]
    name, place = place_of(either, receipts[60])
    for number in left:
        either.disk.create(segment_name(number))
        either.write(segment_name(number), 0, before[segment_name(number)])
    if how == "missing":
        either.backend().unlink(name)
    else:
        either.flip(name, place)
        either.fault = failing("unlink", REPAIR)
        with pytest.raises((OSError, Unavailable)):
            await repaired(either)
        either.fault = None
        assert either.backend().exists(REPAIR)
    assert await repaired(either) is not None
    async with either.open(segment_bytes=SEGMENT, pack=0) as db:
        [said] = (await db.info())["repairs"]
        assert db._native.first == first
        assert receipts[20].last_position < said["kept"] <= receipts[60].first_position
        assert len(await every(db.read())) > 50
    assert either.verify().first_position == first


@pytest.mark.parametrize("checkpoint", [False, True])
async def test_what_was_dropped_does_not_come_back_by_one(either: Machine, *, checkpoint: bool) -> None:
    async with either.open(segment_bytes=SEGMENT, pack=0) as db:
        receipts = [await db.append("s", payload(i) * 20) for i in range(200)]
    before = either.disk.files()
    async with either.open(segment_bytes=SEGMENT, pack=0) as db:
        later = [await db.append("s", payload(i) * 20) for i in range(40)]
        await db.retain(before=receipts[-1].first_position)
        assert db._native.first > 0
    either.flip(*place_of(either, later[5]))
    if not checkpoint:
        either.backend().unlink(CHECKPOINT)
    with pytest.raises(Corrupt, match="nothing in front of the damage can be kept"):
        await repaired(either)
    for name, data in before.items():
        if name.startswith("segments/") and name not in either.disk.files():
            either.disk.create(name)
            either.write(name, 0, data)
    files = either.disk.files()
    with pytest.raises(Corrupt, match="they must not come back"):
        await repaired(either)
    assert either.disk.files() == files


async def test_a_checkpoint_that_one_has_taken_is_what_the_log_was(
    either: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with either.open(segment_bytes=SEGMENT, pack=0) as db:
        for i in range(200):
            await db.append("s", payload(i) * 10)
    numbers = sorted(name for name in either.disk.files() if name.startswith("segments/"))
    either.backend().unlink(numbers[-3])
    with monkeypatch.context() as killed:
        # That of its end does not come any more.
        killed.setattr(checkpoint.Checkpointer, "write_last", lambda _self: None)
        assert await repaired(either) is not None
    assert either.backend().exists(CHECKPOINT)
    assert either.verify().notes == []
    assert await repaired(either) is None
    async with either.open(segment_bytes=SEGMENT, pack=0, read_only=True) as reader:
        assert len((await reader.info())["repairs"]) == 1
    async with either.open(segment_bytes=SEGMENT, pack=0) as db:
        await db.append("s", b"more")
    assert either.verify().notes == []


async def every(records: AsyncIterator[Record]) -> list[Record]:
    return [record async for record in records]


async def test_a_reader_is_told_also_where_retention_has_taken_the_offsets_since(
    either: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "FIRST_BYTES", 1)
    monkeypatch.setattr(reading, "BATCH_BYTES", 1)
    receipts = await filled(either)
    async with either.open(read_only=True) as reader:
        had, behind, early = reader.tail("s", start=0), reader.tail("s"), reader.tail("s", start=0)
        assert [(await anext(had)).offset for _ in range(COUNT)] == list(range(COUNT))
        assert [(await anext(early)).offset for _ in range(10)] == list(range(10))
        either.flip(*place_of(either, receipts[20]))
        either.backend().unlink(CHECKPOINT)
        assert await repaired(either) is not None
        async with either.open(segment_bytes=SEGMENT, pack=0) as db:
            last = [await db.append("s", bytes(5_000)) for _ in range(COUNT - 20)][-1]
            for _ in range(20):
                await db.append("t", bytes(5_000))
            await db.retain(before=db.durable_position)
            assert (await db.info())["first_position"] > last.last_position
            await db.append("s", b"comes")
        for each in (had, behind):
            with pytest.raises(RolledBack):
                await asyncio.wait_for(anext(each), 5)
        with pytest.raises(Dropped) as caught:
            await asyncio.wait_for(every(early), 5)
        assert caught.value.first == COUNT


async def test_a_tail_waits_for_what_a_repair_has_moved_and_a_read_says_so(
    either: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "FIRST_BYTES", 1)
    monkeypatch.setattr(reading, "BATCH_BYTES", 1)
    receipts = await filled(either)
    async with either.open(segment_bytes=SEGMENT, pack=0) as db:
        for _ in range(40):
            await db.append("t", bytes(5_000))
    before = sum(name.startswith("segments/") and name.endswith(".seg") for name in either.disk.files())
    async with either.open(read_only=True) as reader:
        tail, read = reader.tail("t", start=0), reader.read("t")
        either.flip(*place_of(either, receipts[20]))
        either.backend().unlink(CHECKPOINT)
        either.fault = failing("unlink", REPAIR)
        with pytest.raises((OSError, Unavailable)):
            await repaired(either)
        either.fault = None
        assert sum(name.startswith("segments/") and name.endswith(".seg") for name in either.disk.files()) < before
        waiting = asyncio.ensure_future(anext(tail))
        assert not (await asyncio.wait([waiting], timeout=0.2))[0]
        with pytest.raises(Corrupt, match="a repair was begun") as caught:
            await anext(read)
        assert caught.value.file == REPAIR
        assert await repaired(either) is not None
        async with either.open(segment_bytes=SEGMENT, pack=0) as db:
            await db.append("t", b"another")
        assert (await asyncio.wait_for(waiting, 5)).payload == b"another"


@pytest.mark.parametrize("more", [2, 10, 40])
async def test_what_takes_the_place_of_what_was_given_up_is_not_taken_for_it(
    either: Machine, monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    monkeypatch.setattr(reading, "FIRST_BYTES", 1)
    monkeypatch.setattr(reading, "BATCH_BYTES", 1)
    random = Random(7)
    async with either.open(segment_bytes=SEGMENT, pack=0) as db:
        receipts = [
            await db.append("ab"[i % 2], [b"old" + random.randbytes(3_000) for _ in range(5)]) for i in range(60)
        ]
    async with either.open(read_only=True) as reader:
        tail = reader.tail(start=0)
        had = [await anext(tail)]
        either.flip(*place_of(either, receipts[30]))
        either.backend().unlink(CHECKPOINT)
        assert await repaired(either) is not None
        async with either.open(segment_bytes=SEGMENT, pack=0) as db:
            for i in range(more):
                await db.append("ac"[i % 2], [b"new" + random.randbytes(3_000) for _ in range(5)])
            wanted = await every(db.read())
        had += [await asyncio.wait_for(anext(tail), 5) for _ in wanted[1:]]
        assert had == wanted


@pytest.mark.parametrize(("verb", "file"), [("truncate", "segments/"), ("unlink", REPAIR)])
async def test_a_reader_stays_what_it_was_until_a_repair_is_over(either: Machine, verb: str, file: str) -> None:
    receipts = await filled(either)
    async with either.open(read_only=True) as reader:
        behind, early = reader.tail("s"), reader.tail("s", start=20)
        waiting = [asyncio.ensure_future(anext(behind))]
        either.flip(*place_of(either, receipts[20]))
        either.backend().unlink(CHECKPOINT)
        either.fault = failing(verb, file)
        with pytest.raises((OSError, Unavailable)):
            await repaired(either)
        either.fault = None
        assert either.backend().exists(REPAIR)
        assert await payloads(reader.read("s", until=20)) == [payload(i) for i in range(20)]
        assert (await reader.info())["repairs"] == []
        assert not (await asyncio.wait(waiting, timeout=0.2))[0]
        assert await repaired(either) is not None
        with pytest.raises(RolledBack):
            await asyncio.wait_for(waiting[0], 5)
        waiting = [asyncio.ensure_future(anext(early))]
        async with either.open(segment_bytes=SEGMENT, pack=0) as db:
            await db.append("s", b"another")
        assert (await asyncio.wait_for(waiting[0], 5)).payload == b"another"
        assert len((await reader.info())["repairs"]) == 1


@pytest.mark.parametrize("file", ["segments/", "marks"])
async def test_a_reader_whose_disk_fails_after_it_begins_anew_later(either: Machine, file: str) -> None:
    receipts = await filled(either)
    async with either.open(read_only=True) as reader:
        tail = reader.tail("s")
        name, place = place_of(either, receipts[20])
        either.flip(name, place)
        either.backend().unlink(CHECKPOINT)
        assert await repaired(either) is not None
        either.fault = failing("open", file)
        for _ in range(3):
            with pytest.raises(Unavailable):
                await reader.info()
        either.fault = None
        assert len(await payloads(reader.read("s"))) == 20
        with pytest.raises(RolledBack):
            await asyncio.wait_for(anext(tail), 5)


async def test_a_reader_is_not_disturbed_by_writers_that_come_and_go(either: Machine) -> None:
    await filled(either, 5)
    async with either.open(read_only=True) as reader:
        native, tail = reader._native, reader.tail("s", start=0)
        for i in range(4):
            async with either.open(segment_bytes=SEGMENT, pack=0) as db:
                await db.append("s", payload(5 + i))
        assert [(await asyncio.wait_for(anext(tail), 5)).offset for _ in range(9)] == list(range(9))
        assert reader._native is native


@pytest.mark.parametrize("power", [True, False], ids=["cut", "kill"])
@pytest.mark.parametrize("form", ["padded", "packed"])
async def test_a_crash_at_any_step_leaves_it_refused_or_repaired(
    either: Machine, power: bool, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "LEAST_INTERVAL", 0.002)
    monkeypatch.setattr(packing, "REST", 0)
    receipts = await filled(either)
    if form == "packed":
        async with either.open(segment_bytes=SEGMENT, pack=1.0) as db:
            upkeep = db.upkeep
            assert upkeep is not None

            async def packed() -> bool:
                return upkeep.packer.packed >= 2

            await until(packed)
    index = 20
    name, place = place_of(either, receipts[index])
    either.flip(name, place + 30)
    # With it a start does not look there.
    either.backend().unlink(CHECKPOINT)
    refused = 0
    async for left in left_by(either, power):
        try:
            left.verify(receipts[index - 1])
        except Corrupt:
            refused += 1
            with pytest.raises(Corrupt):
                await left.open(segment_bytes=SEGMENT)
            with pytest.raises(Corrupt):
                await left.open(segment_bytes=SEGMENT, read_only=True)
            assert await repaired(left) is not None
        assert await repaired(left) is None
        left.cut()
        report = left.verify(receipts[index - 1])
        # Only a mark that was being written is damaged.
        assert (len(report.repairs), [note for note in report.notes if not note.startswith("marks: ")]) == (1, [])
        async with left.open(create=False, read_only=True) as reader:
            await kept(reader, receipts, index)
            assert (await reader.info())["repairs"] == report.repairs
        position, said = last_said(left)
        assert (position, said.kept) == (receipts[index].first_position, receipts[index].first_position)
        assert said.lost == ((position, receipts[-1].last_position + 1),)
        async with left.open(segment_bytes=SEGMENT, pack=0) as db:
            await kept(db, receipts, index)
            assert (await db.append("s", payload(index))).incarnation == said.after
        assert left.verify(receipts[index - 1]).notes == []
        assert REPAIR not in left.disk.files()
    assert refused > 20


async def damaged(machine: Machine, index: int = 20) -> Plan:
    """What a repair would do."""
    receipts = await filled(machine)
    name, place = place_of(machine, receipts[index])
    machine.flip(name, place + 30)
    loss = await repaired(machine, agreed=False)
    assert loss is not None
    return loss.plan


def forge(machine: Machine, plan: Plan) -> None:
    identity = load_identity(machine.backend())
    assert identity is not None
    machine.backend().mkdir(PREPARE)
    write_small(machine.backend(), REPAIR, plan.encode(identity))


async def refused(machine: Machine, match: str) -> None:
    """Before anything is moved, and before anybody is asked."""
    before = machine.disk.files()
    for agreed in (False, True):
        with pytest.raises(Corrupt, match=match) as caught:
            await repaired(machine, agreed=agreed)
        assert caught.value.file == REPAIR
        assert machine.disk.files() == before


@pytest.mark.parametrize(
    "change",
    [
        {"segment": 2**64 - 1},
        {"segment": 99},
        {"segment": 0},
        {"place": 2**63},
        {"place": 0},
        {"place": 2 * BLOCK},
        {"closed": 1},
        {"closed": 2**64 - 1},
        {"salt": bytes(32)},
        {"group": 2**64 - 1},
        {"group": 1},
        {"chain": bytes(32)},
        {"when": 2**64 - 1},
        {"before": 2**32 - 1},
        {"after": 0},
        {"after": 2**32 - 1},
        {"position": 2**64 - 1},
        {"position": 3},
        {"end": 0},
        {"end": 2**64 - 1},
        # A record of another kind, one that is cut short, and one that says that it has more.
        {"earlier": (b"\4\0" + bytes(45),)},
        {"earlier": (b"\7\0" + bytes(44),)},
        {"earlier": (b"\7\0" + bytes(44) + b"\1",)},
        {"earlier": (b"\7\0\2" + bytes(44),)},
    ],
    ids=str,
)
async def test_what_fits_no_log_here_changes_nothing(either: Machine, change: dict[str, Any]) -> None:
    plan = await damaged(either)
    forge(either, plan._replace(**change))
    await refused(either, "if nobody has begun one, delete it")
    forge(either, plan)
    assert await repaired(either) is not None
    assert len(either.verify().repairs) == 1


async def test_a_plan_that_is_damaged_changes_nothing(either: Machine) -> None:
    forge(either, await damaged(either))
    for place in range(LAYOUT.size + 4 + CHECK):
        either.flip(REPAIR, place)
        await refused(either, "it is damaged: salvage what is left")
        either.flip(REPAIR, place)
    assert await repaired(either) is not None


async def test_what_a_plan_gives_up_is_shown_also_if_it_was_made_up(either: Machine) -> None:
    plan = await damaged(either, index=10)
    other = either.image()
    other.flip(segment_name(plan.segment), plan.place + 30)
    assert await repaired(other) is None
    forge(other, plan)
    loss = await repaired(other, agreed=False)
    assert loss is not None
    assert (loss.plan, loss.records) == (plan, COUNT - 10)
    assert loss.groups >= COUNT - 10
    assert loss.files != []


async def test_of_a_repair_that_is_over_no_other_can_be_made(either: Machine) -> None:
    plan = await damaged(either)
    await repaired(either)
    forge(either, plan._replace(when=plan.when + 1))
    await refused(either, "if nobody has begun one, delete it")
    forge(either, plan)
    assert await repaired(either) is not None
    assert len(either.verify().repairs) == 1
    assert await repaired(either) is None


async def test_nobody_opens_what_is_being_repaired(machine: Machine) -> None:
    receipts = await filled(machine)
    name, place = place_of(machine, receipts[20])
    machine.flip(name, place)
    left: list[Machine] = []

    def look() -> None:
        if REPAIR in machine.disk.files():
            left.append(machine.image())

    machine.disk.on_step = look
    await repaired(machine)
    machine.disk.on_step = None
    assert len(left) > 10
    for image in left:
        with pytest.raises(Corrupt, match="run it again"):
            await image.open(create=False)
        with pytest.raises(Corrupt, match="run it again"):
            image.verify()


async def test_keys_of_streams_that_are_given_up_are_named_until_a_rotation(encrypted: Machine, tmp_path: Path) -> None:
    receipts = await filled(encrypted)
    async with encrypted.open(segment_bytes=SEGMENT, pack=0) as db:
        for stream in ("t", "u"):
            await db.append(stream, b"x")
    name, place = place_of(encrypted, receipts[20])
    encrypted.flip(name, place)
    await repaired(encrypted)
    told = "2 of its keys are of streams that the log does not know"
    [note] = encrypted.verify().notes
    assert told in note
    create_master(tmp_path / "next")
    async with encrypted.open(segment_bytes=SEGMENT, read_only=True) as reader:
        assert told in str((await reader.info())["notes"])
    async with encrypted.open(segment_bytes=SEGMENT) as db:
        await db.append("t", b"another of that name")
        assert told in str((await db.info())["notes"])
        await db.rotate(tmp_path / "next")
        assert "keys" not in str((await db.info())["notes"])
    encrypted.key = tmp_path / "next"
    assert encrypted.verify().notes == []
    async with encrypted.open(segment_bytes=SEGMENT) as db:
        assert await payloads(db.read("t")) == [b"another of that name"]
        assert (await db.info())["notes"] == []
