"""Judging where a log ends: what is replayed, what is torn and kept aside, and what is damage."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from kimberlite import Busy, Corrupt, Invalid, KimberliteError, Log, Misconfigured, RolledBack
from kimberlite.crypto.master import load_master
from kimberlite.log.loading import load_identity, load_keys, load_marks
from kimberlite.log.marks import encode_mark
from kimberlite.log.names import CHECKPOINT, IDENTITY, MARKS, segment_name
from kimberlite.log.repair import enter, look
from kimberlite.storage.backend import BLOCK
from tests.log.simulated import Machine, payloads, until
from tests.log.steps import Cut

FIRST = segment_name(0)


async def killed(machine: Machine, records: int = 3, *, marked: bool = True) -> Machine:
    """A database whose writer was killed after some appends of a block each, idle or not."""
    async with machine.open(idle=0.0005 if marked else 1) as db:
        for i in range(records):
            await db.append("s", b"%d" % i * 900)
        if marked:
            await marks_up_to_date(db)
        return machine.image()


async def marks_up_to_date(db: Log) -> None:
    committer = db._committer
    assert committer is not None

    async def marked() -> bool:
        return not committer._marking and committer._marked_at == committer.durable

    await until(marked)


async def kept(machine: Machine) -> tuple[list[bytes], list[str], int]:
    """What the next writer finds: records, notes, and how many segments there are then."""
    async with machine.open() as db:
        info = await db.info()
        return await payloads(db.read()), info["notes"], info["segments"]


def sent(records: int) -> list[bytes]:
    return [b"%d" % i * 900 for i in range(records)]


async def test_after_a_clean_close_the_log_goes_on_in_its_segment(either: Machine) -> None:
    async with either.open() as db:
        await db.append("s", b"x")
    assert await kept(either) == ([b"x"], [], 1)


@pytest.mark.parametrize("marked", [True, False])
async def test_after_a_kill_everything_acknowledged_is_there_and_a_new_segment_begins(
    either: Machine, marked: bool
) -> None:
    dead = await killed(either, marked=marked)
    assert await kept(dead) == (sent(3), [], 2)
    assert dead.verify().notes == []


async def test_a_kill_at_any_number_of_segments_is_recovered_from(either: Machine) -> None:
    async with either.open(segment_bytes=64 * 1024) as db:
        for i in range(60):
            await db.append("s", b"%d" % i * 900)
            if i % 15 == 14:
                dead = either.image()
                async with dead.open(segment_bytes=64 * 1024) as again:
                    assert await payloads(again.read()) == sent(i + 1)
                    assert (await again.append("s", b"more", expect=i + 1)).durable
                assert dead.verify().notes == []


async def test_a_torn_tail_is_kept_aside_byte_for_byte_and_named(either: Machine) -> None:
    dead = await killed(either)
    end, torn = dead.end(), b"half of a group " * 700
    dead.write(FIRST, end, torn)
    records, notes, segments = await kept(dead)
    assert (records, segments) == (sent(3), 2)
    [note] = notes
    [name] = [name for name in dead.disk.files() if name.startswith("quarantine/")]
    assert name in note
    assert f"byte {end}" in note
    assert dead.disk.files()[name] == torn
    assert len(dead.disk.files()[FIRST]) == end + BLOCK
    assert dead.verify().notes == []
    assert await kept(dead) == (sent(3), [], 2)


async def test_a_group_that_no_watermark_covers_is_a_torn_tail(either: Machine) -> None:
    dead = await killed(either, marked=False)
    dead.flip(FIRST, dead.end() - BLOCK + 200)
    records, notes, _ = await kept(dead)
    assert records == sent(2)
    assert len(notes) == 1
    assert dead.verify().notes == []


@pytest.mark.parametrize("group", [0, 1, 2])
async def test_a_group_below_the_watermark_is_damage_and_nothing_is_changed(either: Machine, group: int) -> None:
    dead = await killed(either)
    place = BLOCK * (1 + group)
    dead.flip(FIRST, place + 300)
    before = dead.disk.files()
    with pytest.raises(Corrupt) as damaged:
        await dead.open()
    assert dead.disk.files() == before
    error = damaged.value
    assert (error.file, error.place, error.group, error.position) == (
        FIRST,
        place,
        group + 1,
        0 if not group else group + 1,
    )
    assert all(part in str(error) for part in (FIRST, f"byte {place}", f"group {group + 1}"))
    for read_only in (True, False):
        with pytest.raises(Corrupt):
            await dead.open(read_only=read_only)
    with pytest.raises(Corrupt):
        dead.verify()


async def test_a_zeroed_or_swapped_group_below_the_watermark_is_damage(machine: Machine) -> None:
    for damage in ("zero", "swap", "repeat"):
        dead = await killed(Machine(), 5)
        image = dead.disk.files()[FIRST]
        two, three = image[2 * BLOCK : 3 * BLOCK], image[3 * BLOCK : 4 * BLOCK]
        changed = {"zero": bytes(2 * BLOCK), "swap": three + two, "repeat": two + two}[damage]
        dead.write(FIRST, 2 * BLOCK, changed)
        with pytest.raises(Corrupt):
            await dead.open()


async def rotated(machine: Machine) -> Machine:
    async with machine.open(segment_bytes=64 * 1024) as db:
        for i in range(60):
            await db.append("s", b"%d" % i * 900)
    return machine


Damage = Callable[[Machine], None]


def truncate(machine: Machine, name: str, length: int) -> None:
    machine.backend().open(name, "w").truncate(length)


def stranger(machine: Machine) -> None:
    machine.disk.create("segments/readme")


CLOSED_SEGMENTS: dict[str, tuple[Damage, type[KimberliteError], str]] = {
    "missing": (lambda m: m.backend().unlink(segment_name(1)), Corrupt, "segment 1 is missing"),
    "the first missing": (lambda m: m.backend().unlink(FIRST), Corrupt, "segment 0 is missing"),
    "short": (lambda m: truncate(m, segment_name(1), 3 * BLOCK), Corrupt, segment_name(1)),
    "header flipped": (lambda m: m.flip(segment_name(1), 20), Corrupt, segment_name(1)),
    "a stranger": (stranger, Misconfigured, "readme"),
}


@pytest.mark.parametrize(("damage", "kind", "words"), CLOSED_SEGMENTS.values(), ids=CLOSED_SEGMENTS)
@pytest.mark.parametrize("checkpoint", [True, False])
async def test_what_is_wrong_with_a_closed_segment_is_named(
    either: Machine, damage: Damage, kind: type[KimberliteError], words: str, checkpoint: bool
) -> None:
    await rotated(either)
    if not checkpoint:
        either.backend().unlink(CHECKPOINT)
    damage(either)
    with pytest.raises(kind) as refused:
        await either.open()
    assert words in str(refused.value) or (not checkpoint and isinstance(refused.value, Corrupt))
    with pytest.raises(kind):
        either.verify()


async def test_the_last_segment_cannot_go_missing_unnoticed(either: Machine) -> None:
    await rotated(either)
    last = max(name for name in either.disk.files() if name.startswith("segments/"))
    either.backend().unlink(last)
    for checkpoint in (True, False):
        if not checkpoint:
            either.backend().unlink(CHECKPOINT)
        for _ in range(2):
            with pytest.raises((Corrupt, RolledBack)):
                await either.open()
        with pytest.raises((Corrupt, RolledBack)):
            await either.open(read_only=True)
        with pytest.raises((Corrupt, RolledBack)):
            either.verify()


async def test_a_log_whose_segments_are_all_gone_is_not_taken_for_a_new_one(either: Machine) -> None:
    await rotated(either)
    for name in list(either.disk.files()):
        if name.startswith("segments/") or name == CHECKPOINT:
            either.backend().unlink(name)
    for read_only in (False, True):
        with pytest.raises(Corrupt, match="segment 0 is missing"):
            await either.open(read_only=read_only)
    with pytest.raises(Corrupt, match="segment 0 is missing"):
        either.verify()


async def test_one_damaged_mark_is_noted_and_two_are_refused(either: Machine) -> None:
    async with either.open() as db:
        await db.append("s", b"x")
    either.flip(MARKS, 30)
    records, notes, _ = await kept(either)
    assert (records, len(notes)) == ([b"x"], 1)
    assert "marks" in notes[0]
    either.flip(MARKS, 30)
    either.flip(MARKS, BLOCK + 30)
    with pytest.raises(Corrupt) as damaged:
        await either.open()
    assert damaged.value.file == MARKS


def made_up(machine: Machine, **numbers: Any) -> Machine:
    """With numbers in both marks that are not those of the log, and the checks made to fit."""
    other, identity = machine.image(), load_identity(machine.backend())
    assert identity is not None
    newest = load_marks(other.backend(), identity).newest._replace(**numbers)
    for counter in (newest.counter, newest.counter ^ 1):
        block = encode_mark(newest._replace(counter=counter), identity.database_id, identity.hash)
        other.write(MARKS, counter % 2 * BLOCK, block)
    return other


@pytest.mark.parametrize("name", ["counter", "group"])
async def test_marks_with_numbers_that_no_log_comes_to_are_refused_by_everybody(either: Machine, name: str) -> None:
    async with either.open() as db:
        await db.append("s", b"x")
    for number in (2**63, 2**64 - 3, 2**64 - 1):
        harmed = made_up(either, **{name: number})
        with pytest.raises(Corrupt) as damaged:
            harmed.verify()
        assert damaged.value.file is not None
        for read_only in (True, False):
            with pytest.raises(Corrupt):
                await harmed.open(read_only=read_only)


LARGEST = [{"counter": 2**63 - 1}, {"counter": 2**63 - 2}, {"counter": 2**62 - 1}, {"incarnation": 2**32 - 1}]


@pytest.mark.parametrize("numbers", LARGEST, ids=str)
async def test_marks_with_the_largest_numbers_can_be_followed_by_more(either: Machine, numbers: dict[str, int]) -> None:
    async with either.open() as db:
        await db.append("s", b"x")
    full = made_up(either, **numbers)
    assert full.verify().notes == []
    async with full.open() as db:
        for i in range(3):
            await db.append("s", b"%d" % i)
            await marks_up_to_date(db)
        assert await payloads(db.read()) == [b"x", b"0", b"1", b"2"]
        killed = full.image()
    forged = ["incarnations 1 to 4,294,967,295: nothing tells what was given up"] if "incarnation" in numbers else []
    for left in (killed, full):
        for i in range(3):
            assert [note.partition(" with")[0] for note in left.verify().notes] == forged
            async with left.open() as db:
                await db.append("t", b"%d" % i)
        assert await payloads_of(left, "t") == [b"0", b"1", b"2"]


async def payloads_of(machine: Machine, stream: str) -> list[bytes]:
    async with machine.open(read_only=True) as db:
        return await payloads(db.read(stream))


@pytest.mark.parametrize("power", [True, False], ids=["cut", "kill"])
@pytest.mark.parametrize("counter", [2**63 - 1, 2**63 - 2])
async def test_who_counts_marks_anew_can_be_stopped_at_any_step(machine: Machine, counter: int, power: bool) -> None:
    async with machine.open() as db:
        await db.append("s", b"x")
    full = made_up(machine, counter=counter)
    countdown, done = 0, False
    while not done:
        countdown += 1
        other = full.image()
        cut = Cut(other.disk, countdown, Random(countdown), power)
        other.disk.on_step = cut
        db = await other.open()
        await db.append("s", b"y", sync="batch")
        other.disk.on_step = None
        await db.close()
        done = cut.left is None
        left = Machine()
        left.disk = other.disk if done else cut.taken()
        async with left.open() as db:
            found = await payloads(db.read("s"))
            assert found in ([b"x"], [b"x", b"y"])
            await db.append("s", b"z")
        assert left.verify().notes == []
        assert await payloads_of(left, "s") == [*found, b"z"]
    assert countdown > 5


async def test_files_that_a_database_cannot_be_without_are_missed(machine: Machine) -> None:
    for name in (IDENTITY, MARKS):
        other = Machine()
        async with other.open() as db:
            await db.append("s", b"x")
        other.backend().unlink(name)
        with pytest.raises(Corrupt) as damaged:
            await other.open()
        assert damaged.value.file == name
    with pytest.raises(Invalid):
        machine.verify()


async def test_what_is_shown_of_keys_does_not_tell_them(either: Machine) -> None:
    async with either.open() as db:
        await db.append("s", b"x")
    backend = either.backend()
    identity = load_identity(backend)
    assert identity is not None
    keys = load_keys(backend, identity, load_master(either.key), os.urandom, read_only=True)
    for key in (keys.receipt, keys.group):
        assert key is None or repr(key) not in repr(keys)


async def test_a_header_that_a_crash_tore_is_an_empty_segment(either: Machine) -> None:
    dead = await killed(await rotated(either))
    last = max(name for name in dead.disk.files() if name.startswith("segments/"))
    number = int(last.removeprefix("segments/").removesuffix(".seg"))
    fresh = segment_name(number + 1)
    dead.disk.create(fresh)
    dead.write(fresh, 0, b"KIMB" + bytes(BLOCK))
    with pytest.raises(Corrupt):
        await dead.open()


async def test_a_torn_header_behind_a_closing_group_loses_nothing(either: Machine) -> None:
    async with either.open(segment_bytes=64 * 1024) as db:
        count, found = 0, None
        while found is None:
            await db.append("s", b"%d" % count * 900)
            count += 1
            if segment_name(1) in either.disk.files():
                found = either.image()
        await marks_up_to_date(db)
    found.write(segment_name(1), 0, bytes(len(found.disk.files()[segment_name(1)])))
    records, _, segments = await kept(found)
    assert records == sent(count)[: len(records)]
    assert len(records) >= count - 1
    assert segments == 2
    found.verify()


async def judged_alike(machine: Machine, wrong: tuple[type[KimberliteError], ...] | None) -> None:
    """A reader, `verify`, a repair and a writer, in this order."""
    master = load_master(machine.key)
    for who in ("reader", "verify", "repair", "writer"):
        with contextlib.nullcontext() if wrong is None or who == "repair" else pytest.raises(wrong):
            if who == "verify":
                machine.verify()
            elif who == "repair":
                with contextlib.closing(machine.backend()) as backend:
                    loss = look(backend, *enter(backend, master, os.urandom), master, lambda: machine.now)
                assert (loss is None) == (wrong is None)
            else:
                async with machine.open(segment_bytes=64 * 1024, read_only=who == "reader") as db:
                    await payloads(db.read("s"))


DAMAGED_BEGINNINGS: dict[str, Damage] = {
    "flipped": lambda m: m.flip(last_of(m), 60),
    "empty": lambda m: truncate(m, last_of(m), 0),
    "short": lambda m: truncate(m, last_of(m), 100),
    "zeros": lambda m: m.write(last_of(m), 0, bytes(BLOCK)),
}


def last_of(machine: Machine) -> str:
    return max(name for name in machine.disk.files() if name.startswith("segments/"))


@pytest.mark.parametrize("damage", DAMAGED_BEGINNINGS.values(), ids=DAMAGED_BEGINNINGS)
async def test_a_beginning_that_nobody_misses_is_made_anew_though_a_checkpoint_names_it(
    either: Machine, damage: Damage
) -> None:
    dead = await killed(either)
    async with dead.open():
        pass
    assert CHECKPOINT in dead.disk.files()
    assert dead.end(1) == BLOCK
    damage(dead)
    await judged_alike(dead, None)
    records, _, segments = await kept(dead)
    assert (records, segments) == (sent(3), 2)
    assert dead.verify().notes == []


@pytest.mark.parametrize("damage", DAMAGED_BEGINNINGS.values(), ids=DAMAGED_BEGINNINGS)
@pytest.mark.parametrize("marked", [True, False])
async def test_a_beginning_behind_which_records_were_is_damage_to_all(
    either: Machine, damage: Damage, marked: bool
) -> None:
    dead = await killed(either)
    old = dead.disk.files()[MARKS]
    async with dead.open() as db:
        await db.append("s", b"owed")
    assert dead.end(1) > BLOCK
    if not marked:
        # Then only the checkpoint says so.
        dead.write(MARKS, 0, old)
    damage(dead)
    left = dead.disk.files()
    await judged_alike(dead, (Corrupt, RolledBack))
    assert dead.disk.files() == left


@pytest.mark.parametrize("name", [FIRST, "marks"])
async def test_a_file_whose_write_is_still_on_its_way_is_busy(machine: Machine, name: str) -> None:
    async with machine.open() as db:
        await db.append("s", b"x")
    held = machine.backend().open(name, "w")
    held.lock()
    with pytest.raises(Busy, match="still being written"):
        await machine.open()
    held.close()
    assert await kept(machine) == ([b"x"], [], 1)


async def test_opening_again_and_again_without_a_close_adds_nothing_to_the_records(either: Machine) -> None:
    dead = await killed(either)
    for _ in range(4):
        async with dead.open():
            again = dead.image()
        dead = again
    records, notes, segments = await kept(dead)
    assert (records, notes) == (sent(3), [])
    assert segments == 6
    assert dead.verify().records == 4


async def test_a_producer_is_remembered_across_a_kill(either: Machine) -> None:
    async with either.open() as db:
        receipts = [await db.append("s", b"%d" % i, producer=("p", i)) for i in range(3)]
        many = await db.append_many({"s": b"x", "t": b"y"}, producer=("p", 0))
        dead = either.image()
    async with dead.open() as db:
        assert [await db.append("s", b"%d" % i, producer=("p", i)) for i in range(3)] == receipts
        assert await db.append_many({"s": b"x", "t": b"y"}, producer=("p", 0)) == many


async def test_a_mark_of_a_killed_writer_is_synced_before_another_is_written(either: Machine) -> None:
    machine = await killed(either)
    trace = machine.watch()
    for _ in range(2):
        async with machine.open():
            steps = [verb for verb, name, *_ in trace if name == MARKS and verb in ("write", "sync")]
        assert steps[:3] == ["sync", "write", "sync"]
        trace.clear()
