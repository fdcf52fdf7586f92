"""Retention is the way out of a full disk, however little room there is and whatever took it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from random import Random
from typing import Any

import pytest

from kimberlite import Dropping, Log, NoSpace, Receipt
from kimberlite.crypto.vault import SLOT
from kimberlite.errors import Dropped
from kimberlite.log import checkpoint, reserve, retention
from kimberlite.log.names import CHECKPOINT, HASHES, PAST, PREPARE, RESERVE, VAULTS, prepared_name, segment_name
from kimberlite.log.opening import Opening
from kimberlite.log.reserve import KEPT, RESERVED
from kimberlite.storage.backend import BLOCK
from kimberlite.storage.memory import Disk
from tests.log.simulated import Machine, payloads, until
from tests.log.steps import Cut

SEGMENT = 64 * 1024
SIZE = 4 * SEGMENT


@pytest.fixture(autouse=True)
def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """One checkpoint after a start, and none that comes by itself behind it."""
    monkeypatch.setattr(checkpoint, "LEAST_INTERVAL", 1000.0)


def opening(machine: Machine, **options: Any) -> Opening:
    return machine.open(segment_bytes=SEGMENT, pack=0, scrub=0, **options)


def fill_up(machine: Machine) -> None:
    machine.disk.capacity = 1 << 40
    machine.disk.capacity -= machine.disk.free()


async def filled(machine: Machine) -> list[Receipt]:
    """A log that was killed on a full disk, and whose checkpoint is far behind."""
    async with opening(machine) as db:
        receipts = [await db.append("gone", b"soon")]
        receipts += [await db.append("s", b"%d." % i * 100) for i in range(200)]
        fill_up(machine)
        with suppress(NoSpace):
            while True:
                receipts.append(await db.append("s", b"x" * 3000))
        assert db.upkeep is not None
        assert db.upkeep.retention._checkpointer.segment <= 4
        left, machine.disk.capacity = machine.image(), None
    machine.disk = left.disk
    fill_up(machine)
    return receipts


async def is_out(db: Log, machine: Machine, receipts: list[Receipt]) -> None:
    assert (await db.info())["bytes"] <= SIZE + SEGMENT
    first = (await anext(db.read("s"))).offset
    assert first > 100
    with pytest.raises(Dropped):
        await db.get(receipts[0].first_position)
    kept = [receipt for receipt in receipts if receipt.stream == "s" and receipt.first_offset >= first]
    assert len(await payloads(db.read("s"))) == len(kept)
    await db.append("new", b"there is room")


async def test_all_that_may_go_goes(either: Machine) -> None:
    receipts = await filled(either)
    async with opening(either) as db:
        would = await db.retain(size=SIZE, dry_run=True)
        gone = await db.retain(size=SIZE)
        assert (gone.segments, gone.first) == (would.segments, would.first)
        assert gone.segments > 10
        assert len(either.disk.files()[RESERVE]) == RESERVED
        await is_out(db, either, receipts)
    for receipt in (receipts[0], receipts[50], receipts[-1]):
        assert either.verify(receipt).notes == []


async def test_it_goes_at_once_if_the_options_say_so(either: Machine) -> None:
    receipts = await filled(either)
    async with opening(either, retain_size=SIZE) as db:

        async def small() -> bool:
            return bool((await db.info())["bytes"] <= SIZE + SEGMENT)

        await until(small)
        await is_out(db, either, receipts)


async def test_a_checkpoint_that_has_no_room_lets_something_go(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "LEAST_INTERVAL", 0.002)
    async with opening(machine, retain_size=SIZE) as db:
        assert db.upkeep is not None
        looks = []
        monkeypatch.setattr(db.upkeep.retention._checkpointer, "on_full", lambda: looks.append(1))
        await db.append("s", b"x")
        machine.fault = lambda verb, name, *_: OSError(28, "full", name) if name.startswith("prepare/check") else None
        for i in range(100):
            await db.append("s", b"%d" % i)
        await asyncio.sleep(0.02)
        assert looks
        machine.fault = None


@pytest.mark.parametrize("times", [1, 30])
async def test_an_erasure_leaves_room_for_it(encrypted: Machine, times: int) -> None:
    async with opening(encrypted) as db:
        for i in range(times):
            await db.append(f"gone/{i}", b"1234")
    receipts = await filled(encrypted)
    refused = 0
    for i in range(times):
        async with opening(encrypted) as db:
            try:
                await db.erase(f"gone/{i}", reason="full")
            except NoSpace:
                refused += 1
    assert refused < times
    assert len(encrypted.disk.files()[RESERVE]) >= KEPT
    async with opening(encrypted) as db:
        assert (await db.retain(size=SIZE)).segments > 10
        await is_out(db, encrypted, receipts)
    async with opening(encrypted) as db:
        assert len((await db.info())["erasures"]) == times - refused


@pytest.mark.parametrize("segment", [SEGMENT, 4 * SEGMENT])
async def test_starts_after_kills_take_no_room_from_it(either: Machine, segment: int) -> None:
    receipts = await filled(either)
    for _ in range(12):
        async with either.open(segment_bytes=segment, pack=0, scrub=0) as db:
            with suppress(NoSpace):
                while True:
                    receipts.append(await db.append("s", b"x" * 2000))
            capacity, either.disk.capacity = either.disk.capacity, None
            left = either.image()
        either.disk = left.disk
        either.disk.capacity = capacity
    async with opening(either) as db:
        await db.retain(size=SIZE)
        await is_out(db, either, receipts)


async def killed(machine: Machine) -> None:
    """At once after a start, on a disk that nobody makes larger or takes more of."""
    capacity, machine.disk.capacity = machine.disk.capacity, None
    left = machine.image()
    machine.disk = left.disk
    machine.disk.capacity = capacity


@pytest.mark.parametrize(
    ("rules", "left"), [({}, KEPT), ({"retain_age": 1e9}, KEPT // 2), ({"retain_size": 1 << 40}, KEPT // 2)]
)
async def test_however_often_it_is_killed_some_of_what_is_kept_is_for_retention(
    either: Machine, rules: dict[str, Any], left: int
) -> None:
    receipts = await filled(either)
    starts = 0
    notes: list[str] = []
    while not notes:
        starts += 1
        async with opening(either, **rules) as db:
            notes = (await db.info())["notes"]
            await killed(either)
    assert starts > 10
    assert notes == ["opened for reading only: No space left on device"]
    assert len(either.disk.files()[RESERVE]) >= left
    async with opening(either, **rules) as db:
        with pytest.raises(NoSpace, match="for `kimberlite retain` there is room kept"):
            await db.retain(size=SIZE)
    async with opening(either, retaining=True) as db:
        # The starts have filled segments, too.
        assert (await db.retain(size=2 * SIZE)).segments > 10
        first = (await anext(db.read("s"))).offset
        kept = [receipt for receipt in receipts if receipt.stream == "s" and receipt.first_offset >= first]
        assert len(await payloads(db.read("s"))) == len(kept)
    async with opening(either) as db:
        await db.append("s", b"as ever")


@pytest.mark.parametrize("segment", [SEGMENT, 16 * SEGMENT])
@pytest.mark.parametrize("streams", [100, 2000, 2180])
async def test_room_is_kept_for_what_is_said_of_every_stream(either: Machine, streams: int, segment: int) -> None:
    """The record that says what goes is larger than all that was kept for it once."""
    async with either.open(segment_bytes=segment, pack=0, scrub=0) as db:
        await many_streams(db, streams)
        for i in range(200):
            await db.append("s", b"%d." % i * 3000)
    fill_up(either)
    before = len(either.disk.files()[CHECKPOINT])
    assert len(either.disk.files()[RESERVE]) >= RESERVED + (before if streams > 1000 else 0)
    async with either.open(segment_bytes=segment, pack=0, scrub=0, retaining=True) as db:
        assert abs(db._native.retained_bound - before) < 32 * 1024
        assert (await db.retain(size=SIZE)).segments > 1
        await db.append("new", b"there is room")
    async with opening(either) as db:
        names = [name async for name in db.streams()]
        assert len(names) >= streams
    either.verify()


async def many_streams(db: Log, count: int) -> None:
    for start in range(0, count, 50):
        await asyncio.gather(*(db.append(f"{i:0200}", b"soon") for i in range(start, min(count, start + 50))))


async def many_producers(db: Log, count: int) -> None:
    for start in range(0, count, 50):
        those = range(start, start + 50)
        await asyncio.gather(*(db.append(f"p{i % 40}", b"soon", producer=(f"{i:016}", 0)) for i in those))


@pytest.mark.parametrize("many", [partial(many_streams, count=3000), partial(many_producers, count=4000)])
@pytest.mark.parametrize("ended", ["closed", "killed", "forgetful", "crowded"])
async def test_room_is_kept_however_little_is_known_of_them(
    either: Machine, many: Callable[[Log], Awaitable[None]], ended: str
) -> None:
    """Those that are new since a checkpoint, and all of them if it is lost."""
    async with opening(either) as db:
        await many(db)
        for i in range(200):
            await db.append("s", b"%d." % i * 300)
        left = either.image()
    if ended == "killed":
        either.disk = left.disk
    fill_up(either)
    if ended in ("forgetful", "crowded"):
        either.backend().unlink(CHECKPOINT)
        fill_up(either)
    if ended == "crowded":
        async with opening(either) as db:
            with pytest.raises(NoSpace):
                await asyncio.gather(*(db.append("s", bytes(3000)) for _ in range(1000)))
            capacity, left = either.disk.capacity, either.image()
            either.disk.capacity = None
        either.disk = left.disk
        either.disk.capacity = capacity
    async with opening(either, retaining=True) as db:
        assert (await db.retain(size=SIZE)).segments > 20
        await db.append("new", b"there is room")
    either.verify()


async def test_room_is_kept_as_soon_as_there_are_many(machine: Machine) -> None:
    async with opening(machine) as db:
        await many_streams(db, 2000)
        assert len(machine.disk.files()[CHECKPOINT]) < 50_000

        async def is_kept() -> bool:
            return len(machine.disk.files()[RESERVE]) > RESERVED + 2000 * 200

        await until(is_kept)


async def test_a_record_of_many_pieces_is_said_whole_or_not_at_all(
    either: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reserve, "wanted_besides", lambda *_: 0)
    async with opening(either) as db:
        await many_streams(db, 2000)
    fill_up(either)
    async with opening(either, retaining=True) as db:
        durable = db.durable_position
        for _ in range(2):
            with pytest.raises(NoSpace, match="no room for a record of"):
                await db.retain(size=SIZE)
        assert db.durable_position == durable
    either.disk.capacity = None
    async with opening(either) as db:
        assert (await db.retain(size=SIZE)).segments > 2


async def test_an_erased_key_waits_for_no_room(encrypted: Machine) -> None:
    """A writer that is killed behind the record of an erasure leaves the key, and a torn tail that has no room."""
    segment = 16 * SEGMENT
    async with encrypted.open(segment_bytes=segment, pack=0, scrub=0) as db:
        await db.append("gone", b"soon")
        await db.append("s", b"kept")
        before = {name: encrypted.disk.files()[name] for name in VAULTS}
        await db.erase("gone", reason="asked")
        tail = db._writer()[0].tail
        name, place = segment_name(tail.number), tail.place
        left = encrypted.image()
    for vault, data in before.items():
        left.write(vault, 0, data)
    left.write(name, place + BLOCK, Random(1).randbytes(600_000))
    for unneeded in [RESERVE, *(each for each in left.disk.files() if each.startswith(f"{PREPARE}/"))]:
        left.backend().unlink(unneeded)
    fill_up(left)
    async with left.open(segment_bytes=segment, pack=0, scrub=0) as db:
        assert (await db.info())["notes"] == ["opened for reading only: No space left on device"]
    for vault, data in before.items():
        assert len(slots_in(data) - slots_in(left.disk.files()[vault])) == 1


@pytest.mark.parametrize("old", [0, 1])
@pytest.mark.parametrize("many", [False, True])
async def test_an_erased_key_goes_from_an_old_copy_that_was_put_back(encrypted: Machine, old: int, many: bool) -> None:
    """Beside one that has keys which are newer: neither is what both are together, and there is no room for that."""
    async with opening(encrypted) as db:
        for i in range(0, 1500 if many else 0, 50):
            await db.append_many({f"s/{i + j}": [b"1234"] for j in range(50)})
        await db.append("gone", b"soon")
        before = [encrypted.disk.files()[name] for name in VAULTS]
        await db.erase("gone", reason="asked")
        held = [encrypted.disk.files()[name] for name in VAULTS]
        await db.append("later", b"x")
    [slot] = slots_in(before[0]) - slots_in(held[0])
    encrypted.write(VAULTS[old], 0, before[old])
    encrypted.backend().unlink(RESERVE)
    fill_up(encrypted)
    async with opening(encrypted) as db:
        assert await payloads(db.read("later")) == [b"x"]
    assert all(slot not in encrypted.disk.files()[name] for name in VAULTS)
    encrypted.disk.capacity = None
    async with opening(encrypted) as db:
        assert await payloads(db.read("later")) == [b"x"]
    copies = [encrypted.disk.files()[name] for name in VAULTS]
    assert copies[0] == copies[1]


async def test_a_torn_tail_is_set_aside_once(either: Machine) -> None:
    async with opening(either) as db:
        await db.append("s", b"kept")
        tail = db._writer()[0].tail
        name, place = segment_name(tail.number), tail.place
        left = either.image()
    left.write(name, place + BLOCK, Random(1).randbytes(30_000))
    for step in range(1, 60):
        cut = Cut(left.disk, step, Random(step), power=False)
        left.disk.on_step = cut
        async with opening(left) as db:
            left.disk.on_step = None
            assert await payloads(db.read("s")) == [b"kept"]
        if cut.left is None:
            break
        disk, left.disk.on_step = cut.left, None
        left = Machine(either.key)
        left.disk, left.now = disk, either.now + step
        assert sum(name.startswith("quarantine/") for name in left.disk.files()) <= 2
    assert step > 10


async def test_what_a_start_deletes_makes_room_for_what_it_keeps(either: Machine) -> None:
    """A torn tail that is larger than `reserve`, and the next segment's room that a killed writer had prepared."""
    segment = 16 * SEGMENT
    async with either.open(segment_bytes=segment, pack=0, scrub=0) as db:
        receipt = await db.append("s", b"kept")
        tail = db.upkeep and db._writer()[0].tail
        assert tail
        name, place = segment_name(tail.number), tail.place
        left = either.image()
    left.write(name, place + BLOCK, Random(1).randbytes(400_000))
    backend = left.backend()
    backend.mkdir(PREPARE)
    prepared = backend.open(prepared_name(1), "x")
    prepared.allocate(0, 500_000)
    prepared.close()
    fill_up(left)
    async with left.open(segment_bytes=segment, pack=0, scrub=0) as db:
        [note] = (await db.info())["notes"]
        assert "a torn tail" in note
        assert (await db.get(receipt.first_position)).payload == b"kept"
        assert len(left.disk.files()[RESERVE]) > 0


@pytest.mark.parametrize("power", [True, False], ids=["cut", "kill"])
@pytest.mark.parametrize("what", ["erase", "declare"])
async def test_a_vault_needs_no_room_to_be_the_same_again(encrypted: Machine, what: str, power: bool) -> None:
    """Its copies are larger than what is free, and a crash leaves them unlike."""
    async with opening(encrypted) as db:
        for i in range(0, 800, 50):
            await db.append_many({f"s/{i + j}": [b"1234"] for j in range(50)})
        for _ in range(200):
            await db.append("s", b"x" * 3000)
    fill_up(encrypted)
    start, whole, countdown, done = encrypted.disk.files(), encrypted.disk.capacity, 0, False
    while not done:
        countdown += 1
        machine = Machine(encrypted.key)
        machine.disk = Disk.from_files(start)
        machine.disk.capacity = whole
        async with opening(machine) as db:
            cut = Cut(machine.disk, countdown, Random(countdown), power)
            machine.disk.on_step = cut
            with suppress(NoSpace):
                await (db.erase("s/7", reason="asked") if what == "erase" else db.append("new", [b"x"]))
            machine.disk.on_step = None
            done = cut.left is None
        if done:
            break
        left = Machine(encrypted.key)
        left.disk = cut.taken()
        fill_up(left)
        async with opening(left) as db:
            info = await db.info()
            assert info["notes"] == []
            erased = bool(info["erasures"])
            assert (await db.retain(size=SIZE)).segments > 10
        copies = [left.disk.files()[name] for name in VAULTS]
        assert copies[0] == copies[1]
        if erased:
            assert slots_of(copies[0]) == slots_of(start[VAULTS[0]]) - 1
    assert countdown > 5


def slots_in(vault: bytes) -> set[bytes]:
    return {vault[place : place + SLOT] for place in range(BLOCK, len(vault), SLOT)}


def slots_of(vault: bytes) -> int:
    return sum(any(vault[place : place + SLOT]) for place in range(BLOCK, len(vault), SLOT))


async def test_hashes_that_are_gone_are_begun_again(either: Machine) -> None:
    await filled(either)
    for name in (HASHES, CHECKPOINT):
        either.backend().unlink(name)
    fill_up(either)
    async with opening(either) as db:
        assert (await db.info())["notes"] == []
        assert (await db.retain(size=SIZE)).segments > 10


async def test_what_has_no_room_even_to_begin_says_so(machine: Machine) -> None:
    await filled(machine)
    machine.fault = lambda verb, name, *_: OSError(28, "full", name) if verb == "allocate" else None
    async with opening(machine) as db:
        assert any("opened for reading only" in note for note in (await db.info())["notes"])
        for refused in (db.append("s", b"x"), db.retain(size=SIZE)):
            with pytest.raises(NoSpace, match="open for reading only"):
                await refused
        machine.fault = None


async def test_it_goes_without_what_is_kept_for_it(either: Machine) -> None:
    receipts = await filled(either)
    either.disk.capacity = None
    async with opening(either):
        pass
    files = either.disk.files()
    del files[RESERVE]
    either.disk = Disk.from_files(files)
    fill_up(either)
    async with opening(either) as db:
        assert (await db.retain(size=SIZE)).segments > 10
        await is_out(db, either, receipts)


async def test_what_went_gives_its_room_back_at_once(machine: Machine) -> None:
    """A start has the segments open that it replayed, until a checkpoint is taken."""
    await filled(machine)
    machine.fault = lambda verb, name, *_: (
        OSError(28, "full", name) if name.startswith("prepare/") and not name.endswith("seg") else None
    )
    async with opening(machine) as db:
        first = len(machine.backend().list("segments"))
        with suppress(NoSpace):
            await db.retain(size=SIZE)
        assert len(machine.backend().list("segments")) < first - 10
        gc.collect()
        assert not machine.disk._orphans
        machine.fault = None


async def test_what_cannot_go_is_said_to_wait(machine: Machine) -> None:
    await filled(machine)
    machine.fault = lambda verb, name, *_: (
        OSError(28, "full", name) if (name == HASHES and verb == "write") or name.startswith("prepare/check") else None
    )
    async with opening(machine) as db:
        with pytest.raises(NoSpace, match=r"segments, .* that may go are waiting for room"):
            await db.retain(size=SIZE)
    async with opening(machine, retain_size=SIZE) as db:
        assert db.upkeep is not None
        keeper = db.upkeep.retention

        async def waits() -> bool:
            return keeper.waits is not None

        await until(waits)
        machine.fault = None
        assert (await db.retain(size=SIZE)).segments > 10


@pytest.mark.parametrize("power", [True, False], ids=["cut", "kill"])
async def test_a_crash_at_any_step_leaves_a_way_out(either: Machine, power: bool) -> None:
    receipts = await filled(either)
    start, capacity = either.disk.files(), either.disk.capacity
    countdown, done = 0, False
    while not done:
        countdown += 7
        machine = Machine(either.key)
        machine.disk = Disk.from_files(start, capacity)
        cut = Cut(machine.disk, countdown, Random(countdown), power)
        async with opening(machine) as db:
            machine.disk.on_step = cut
            await db.retain(size=SIZE)
            machine.disk.on_step = None
        done = cut.left is None
        left = Machine(either.key)
        left.disk = machine.disk if done else cut.taken()
        left.disk.capacity = capacity
        for receipt in (receipts[-1], receipts[3]):
            left.verify(receipt)
        async with opening(left) as db:
            await db.retain(size=SIZE)
            await is_out(db, left, receipts)
        assert left.verify(receipts[3]).notes == []
        assert left.verify(receipts[-1]).notes == []


@pytest.mark.parametrize("gone", [(), (CHECKPOINT,)], ids=["checkpoint", "none"])
async def test_hashes_that_a_full_disk_left_where_they_were_are_not_lost(
    either: Machine, monkeypatch: pytest.MonkeyPatch, gone: tuple[str, ...]
) -> None:
    monkeypatch.setattr(checkpoint, "LEAST_INTERVAL", 0.002)
    async with opening(either) as db:
        receipts = [await db.append("s", b"%d" % i) for i in range(120)]
    old = (receipts[0], receipts[7], receipts[33])
    for upto in (30, 50):
        either.fault = lambda verb, name, *_: OSError(28, "full", name) if (verb, name) == ("write", PAST) else None
        async with opening(either) as db:
            assert (await db.retain(before=receipts[upto].first_position)).segments > 0
            assert db.upkeep is not None
            assert db.upkeep.findings.count == 0
        either.fault = None
        for name in gone:
            either.backend().unlink(name)
        for receipt in old:
            assert either.verify(receipt).notes == []
        async with opening(either, anchor=receipts[3]) as db:
            pass
    for upto in (70, 90):
        async with opening(either) as db:
            assert (await db.retain(before=receipts[upto].first_position)).segments > 0
            assert db.upkeep is not None
            assert db.upkeep.findings.count == 0
            first = (await db.info())["first_position"]
        files = either.disk.files()
        end = 32 * (2 * first - first.bit_count())
        assert not any(files[HASHES][4096 : 4096 + end])
        assert bytes(32) not in files[PAST][4096 : 4096 + end]
        for receipt in (*old, receipts[60]):
            assert either.verify(receipt).notes == []


@pytest.mark.parametrize("power", [True, False], ids=["cut", "kill"])
async def test_a_crash_while_they_are_moved_loses_none(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, power: bool
) -> None:
    monkeypatch.setattr(checkpoint, "LEAST_INTERVAL", 0.002)
    async with opening(machine) as db:
        receipts = [await db.append("s", b"%d" % i) for i in range(120)]
        await db.retain(before=receipts[30].first_position)
    machine.fault = lambda verb, name, *_: OSError(28, "full", name) if (verb, name) == ("write", PAST) else None
    async with opening(machine) as db:
        await db.retain(before=receipts[60].first_position)
    machine.fault = None
    start = machine.disk.files()
    countdown, done = 0, False
    while not done:
        countdown += 1
        other = Machine()
        other.disk = Disk.from_files(start)
        cut = Cut(other.disk, countdown, Random(countdown), power)
        async with opening(other) as db:
            other.disk.on_step = cut
            await db.retain(before=receipts[90].first_position)
            other.disk.on_step = None
        done = cut.left is None
        left = Machine()
        left.disk = other.disk if done else cut.taken()
        for upto in (95, 110):
            async with opening(left, anchor=receipts[3]) as db:
                await db.retain(before=receipts[upto].first_position)
                assert db.upkeep is not None
                assert db.upkeep.findings.count == 0
            for i in (0, 20, 40, 70, 119):
                assert left.verify(receipts[i]).notes == []


async def test_what_is_in_no_file_any_more_is_said(either: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "LEAST_INTERVAL", 0.002)
    async with opening(either) as db:
        receipts = [await db.append("s", b"%d" % i) for i in range(120)]
        await db.retain(before=receipts[40].first_position)
    either.backend().unlink(PAST)
    async with opening(either) as db:
        await db.retain(before=receipts[70].first_position)
        assert db.upkeep is not None
        [error] = db.upkeep.findings.found.values()
        assert "in no file any more" in str(error)
        await db.retain(before=receipts[90].first_position)
        assert db.upkeep.findings.count == 1
    [note] = either.verify(receipts[-1]).notes
    assert "past: hash" in note


async def test_nothing_to_drop_is_no_want_of_room(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "LOOK", 0.002)
    await filled(machine)
    async with opening(machine, retain_size=1 << 40) as db:
        position = (await db.info())["first_position"]
        assert await db.retain(before=0) == Dropping(0, 0, 0, position, None)
        await asyncio.sleep(0.01)
        assert db.upkeep is not None
        assert db.upkeep.retention.waits is None
