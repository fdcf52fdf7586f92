"""By what rules the oldest segments go, and when nothing goes for its age."""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import suppress
from datetime import timedelta
from functools import partial
from random import Random
from typing import Any

import pytest

from kimberlite import (
    Corrupt,
    Dropped,
    Dropping,
    Invalid,
    KimberliteError,
    Log,
    NoSpace,
    Receipt,
    RolledBack,
    Unavailable,
    _native,
)
from kimberlite.arguments import Rule
from kimberlite.log import checkpoint, past, retention
from kimberlite.log.clock import JUMP
from kimberlite.log.names import CHECKPOINT, CLOCK, HASHES, PAST, PAST_BLOCK, RESERVE, index_name, segment_name
from kimberlite.log.opening import Opening
from kimberlite.storage.backend import BLOCK
from kimberlite.storage.memory import Disk
from kimberlite.storage.memory.image import Write
from tests.crash.cuts import replace
from tests.log.simulated import Machine, failing, payloads, until

SEGMENT = 64 * 1024
COUNT = 60
HOUR = 3600 * 10**9
DAY = 24 * HOUR


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "LEAST_INTERVAL", 0.002)
    monkeypatch.setattr(retention, "LOOK", 0.002)


def opening(machine: Machine, **options: Any) -> Opening:
    return machine.open(segment_bytes=SEGMENT, pack=0, **options)


async def filled(machine: Machine, count: int = COUNT) -> list[Receipt]:
    """A record an hour."""
    receipts = []
    async with opening(machine) as db:
        for i in range(count):
            receipts.append(await db.append("s", b"%d" % i))
            machine.wait(HOUR)
    return receipts


def segments(machine: Machine) -> dict[str, int]:
    """Their sizes, in their order."""
    return {name: len(data) for name, data in sorted(machine.disk.files().items()) if name.startswith("segments/")}


async def first(db: Log) -> int:
    return (await anext(db.read("s"))).offset


async def test_what_is_older_goes(either: Machine) -> None:
    receipts = await filled(either)
    async with opening(either) as db:
        for hours in (COUNT + 1, 40, 20):
            oldest = either.now - hours * HOUR
            would = await db.retain(age=timedelta(hours=hours), dry_run=True)
            before = await first(db)
            assert await db.retain(age=hours * 3600) == would
            kept = await first(db)
            assert receipts[kept].first_position >= would.first
            assert all(receipt.timestamp < oldest for receipt in receipts[before:kept])
            assert (would.until is None) == (kept == before)
            # A segment has about twelve of them: of what is older no more is left.
            assert receipts[kept + 16].timestamp >= oldest
        assert kept > 20
        assert [each["rule"] for each in (await db.info())["dropped"]] == ["older than 40 h", "older than 20 h"]
    assert either.verify(receipts[-1]).dropped[0]["rule"] == "older than 40 h"


async def test_positions_that_were_named_one_after_the_other_are_one_rule(either: Machine) -> None:
    receipts = await filled(either)
    async with opening(either) as db:
        before = [receipts[i].first_position for i in (20, 35, 50)]
        times = []
        for position in before:
            times.append(either.now)
            assert (await db.retain(before=position)).segments > 0
            either.wait(HOUR)
        [drop] = (await db.info())["dropped"]
        assert (drop["from"], drop["first"], drop["last"]) == (0, times[0], times[-1])
        assert (drop["to"], drop["rule"]) == ((await db.info())["first_position"], f"before position {before[-1]}")
        # Another one, that names a position as well.
        assert (await db.retain(before=1, size=0)).segments > 0
        assert [each["rule"] for each in (await db.info())["dropped"]][1:] == ["before position 1 or beyond 0 bytes"]
    assert len(either.verify().dropped) == 2


@pytest.mark.parametrize(
    ("rule", "said", "covers"),
    [
        (Rule(before=7), "before position 7", True),
        (Rule(before=7), "before position 3", True),
        (Rule(before=7), "before position 8", False),
        (Rule(before=7), "before position 3 or older than 2 s", False),
        (Rule(before=7, age=2 * 10**9), "before position 3 or older than 2 s", True),
        (Rule(before=7, age=2 * 10**9), "before position 3", False),
        (Rule(age=2 * 10**9), "before position 3 or older than 2 s", False),
        (Rule(age=2 * 10**9), "older than 2 s", True),
        (Rule(size=5), "older than 2 s", False),
        (Rule(before=7), "several rules, the last of them: before position 3", False),
    ],
)
def test_a_rule_covers_one_of_its_kind(rule: Rule, said: str, *, covers: bool) -> None:
    assert rule.covers(said) == covers


async def test_the_oldest_go_of_more_than_so_many_bytes(either: Machine) -> None:
    await filled(either)
    async with opening(either) as db:
        size = (await db.info())["bytes"]
        nothing = await db.retain(size=size)
        assert nothing == Dropping(0, 0, 0, 0, None)
        would = await db.retain(size=size // 2, dry_run=True)
        assert await first(db) == 0
        before = segments(either)
        dropped = await db.retain(size=size // 2)
        assert dropped == would
        assert dropped.segments > 1
        after = segments(either)
        assert sum(size for name, size in before.items() if name not in after) == dropped.bytes
        *closed, _ = after.values()
        # Of the one that is written only what is in it counts.
        assert size // 2 - SEGMENT < sum(closed) + either.end(int(max(after)[9:29])) <= size // 2
        # The one that is written never goes.
        assert (await db.retain(size=0)).segments > 0
        assert await db.retain(size=0) == Dropping(0, 0, 0, (await db.info())["first_position"], None)
        assert (await db.append("s", b"more")).first_offset == COUNT


async def test_it_goes_unasked_when_the_options_say_so(either: Machine) -> None:
    await filled(either)
    async with opening(either, retain_age=30 * 3600.0) as db:

        async def reached(offset: int) -> bool:
            return await first(db) >= offset

        await until(lambda: reached(15))
        assert await first(db) <= 30
        either.wait(10 * HOUR)
        await until(lambda: reached(25))
        assert await first(db) <= 40
        assert {each["rule"] for each in (await db.info())["dropped"]} == {"older than 30 h"}
    async with opening(either, retain_size=2 * SEGMENT) as db:
        for i in range(2 * COUNT):
            await db.append("s", b"%d" % i)

        async def small() -> bool:
            return bool((await db.info())["bytes"] <= 3 * SEGMENT)

        await until(small)
        assert (await db.append("s", b"")).first_offset == 3 * COUNT


async def test_nothing_goes_for_its_age_while_the_clock_may_have_jumped(either: Machine) -> None:
    await filled(either)
    async with opening(either, retain_age=200 * 3600.0) as db:
        assert await first(db) == 0
        either.now += 20 * DAY
        with pytest.raises(Unavailable, match=r"20\.0 days ahead"):
            await db.retain(age=3600)
        with pytest.raises(Unavailable, match=r"20\.0 days ahead"):
            await db.retain(age=3600, dry_run=True)

        async def noted() -> bool:
            return any("the clock has jumped" in note for note in (await db.info())["notes"])

        await until(noted)
        await db.append("s", b"from the future")
        assert await first(db) == 0
        # Not even what another rule lets go: all of it, or it is said.
        with pytest.raises(Unavailable, match="Rules without an age go on"):
            await db.retain(age=3600, before=20, size=0)
        assert await first(db) == 0
        # A place is no matter of time.
        await db.retain(before=20)
        assert 0 < await first(db) < 20
    # It is still so when it starts again; and after the machine was off.
    for boot in (either.boot, b"another boot...."):
        either.boot = boot
        async with opening(either, retain_age=200 * 3600.0) as db:
            await until(partial(held, db))
            assert await first(db) < 20
    async with opening(either, retain_age=200 * 3600.0) as db:
        before = await db.info()
        would = await db.retain(confirm_clock=True, dry_run=True)
        assert would.segments > 2
        assert (await db.info())["first_position"] == before["first_position"]
        # What waited for it is told with what was asked for.
        assert await db.retain(confirm_clock=True) == would
        assert (await db.info())["first_position"] == would.first
        assert await first(db) >= 40
        assert await free(db)
    async with opening(either) as db:
        await db.retain(age=timedelta(days=1))


async def test_a_clock_that_jumps_before_the_first_close_is_held_to_have_jumped(
    either: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "LOOK", 60.0)
    async with opening(either) as db:
        await db.append("s", b"from before")
        await until(lambda: noted_in(either))
        left = either.image()
    left.now += 400 * DAY
    async with opening(left) as db:
        for _ in range(5):
            await db.append("s", bytes(SEGMENT // 2))
        after = left.image()
    for machine in (left, after):
        async with opening(machine) as db:
            with pytest.raises(Unavailable, match="the clock has jumped"):
                await db.retain(age=30 * 24 * 3600)


async def noted_in(machine: Machine) -> bool:
    return CLOCK in machine.disk.files()


async def test_a_clock_in_doubt_holds_up_no_rule_but_that_of_age(either: Machine) -> None:
    await filled(either)
    told: list[str | None] = []
    async with opening(either, retain_age=200 * 3600.0, retain_size=2 * SEGMENT) as db:
        assert db.upkeep is not None
        db.upkeep.retention.on_waits = told.append
        either.now += 20 * DAY
        await until(partial(held, db))

        async def small() -> bool:
            return bool((await db.info())["bytes"] <= 4 * SEGMENT)

        for i in range(3 * COUNT):
            await db.append("s", b"%d" % i)
        await until(small)
        kept = await first(db)
        assert kept > COUNT
        await asyncio.sleep(0.02)
        [why] = told
        assert why is not None
        assert "20.0 days ahead" in why
        assert db.upkeep.retention.waits == why
        await db.retain(confirm_clock=True)
        await until(partial(free, db))
        assert told == [why, None]
        rules = {each["rule"] for each in (await db.info())["dropped"]}
        assert f"beyond {2 * SEGMENT} bytes" in rules
    either.verify()


async def test_a_dry_run_confirms_no_clock_and_says_what_would_go_if_it_were_right(either: Machine) -> None:
    await filled(either)
    async with opening(either) as db:
        either.now += 20 * DAY
        noted = either.disk.files().get(CLOCK)
        would = await db.retain(age=3600, dry_run=True, confirm_clock=True)
        assert would.segments > 2
        async with opening(either, read_only=True) as reader:
            with pytest.raises(Unavailable, match=r"20\.0 days ahead"):
                await reader.retain(age=3600, dry_run=True)
            assert await reader.retain(age=3600, dry_run=True, confirm_clock=True) == would
        with pytest.raises(Unavailable, match=r"20\.0 days ahead"):
            await db.retain(age=3600)
        assert either.disk.files().get(CLOCK) == noted
        assert await db.retain(age=3600, confirm_clock=True) == would


@pytest.mark.parametrize("dry", [False, True])
async def test_whoever_confirms_the_clock_beside_another_is_told_what_went_for_it(
    either: Machine, *, dry: bool
) -> None:
    await filled(either)
    either.now += 400 * DAY
    async with opening(either, retain_age=30 * 24 * 3600.0) as db:
        one, other = await asyncio.gather(db.retain(confirm_clock=True), db.retain(confirm_clock=True, dry_run=dry))
        gone = (await db.info())["first_position"]
        assert gone > 0
        assert (one.segments > 0, one.first) == (True, gone)
        assert (other.segments, other.first) == (0, gone)
        assert (await db.info())["notes"] == []


async def test_a_confirmation_while_something_goes_says_where_what_is_left_begins(either: Machine) -> None:
    receipts = await filled(either, 300)
    size = sum(segments(either).values()) // 2
    async with opening(either, retain_size=size) as db:
        gone = await db.retain(before=receipts[-10].first_position, confirm_clock=True)
        assert gone.first == (await db.info())["first_position"] > receipts[200].first_position


async def test_what_cannot_go_though_the_clock_is_confirmed_is_said(either: Machine) -> None:
    await filled(either)
    either.now += 400 * DAY
    async with opening(either, retain_age=30 * 24 * 3600.0) as db:
        await asyncio.sleep(0.01)
        either.fault = failing("open", PAST, errno.EIO)
        with pytest.raises(Unavailable, match="not all that was to be dropped is gone yet"):
            await db.retain(confirm_clock=True)
        [note] = (await db.info())["notes"]
        assert "not all that was to be dropped is gone yet" in note
        either.fault = None
        # Unasked, if that looks first.
        gone = await db.retain(confirm_clock=True)
        assert gone.first == (await db.info())["first_position"] > 0


ONCE = [
    ("open", PAST),
    ("write", "prepare/"),
    ("rename", "prepare/clock"),
    ("list", "segments"),
    ("unlink", "segments/"),
    ("unlink", "index/"),
]


@pytest.mark.parametrize(("verb", "file"), ONCE)
async def test_what_is_refused_once_while_the_clock_is_confirmed_goes_and_is_counted(
    either: Machine, verb: str, file: str
) -> None:
    await filled(either)
    either.now += 400 * DAY
    refused = False

    def once(asked: str, name: str, _place: int, _length: int) -> OSError | None:
        nonlocal refused
        if refused or asked != verb or not name.startswith(file):
            return None
        refused = True
        return OSError(errno.EIO, os.strerror(errno.EIO), name)

    async with opening(either, retain_age=30 * 24 * 3600.0) as db:
        await asyncio.sleep(0.01)
        would = await db.retain(confirm_clock=True, dry_run=True)
        either.fault = once
        gone = await db.retain(confirm_clock=True)
        either.fault = None
        assert refused
        assert gone._replace(until=None) == would._replace(until=None)
        assert gone.first == (await db.info())["first_position"] > 0
    # And it is confirmed for good.
    async with opening(either, retain_age=30 * 24 * 3600.0) as db:
        await asyncio.sleep(0.01)
        assert (await db.info())["notes"] == []


async def test_a_confirmation_that_cannot_be_noted_is_said(either: Machine) -> None:
    await filled(either)
    either.now += 400 * DAY
    async with opening(either, retain_age=30 * 24 * 3600.0) as db:
        await asyncio.sleep(0.01)
        either.fault = failing("rename", "prepare/clock", errno.EIO)
        with pytest.raises(Unavailable, match=r"^[1-9]\d* segments went; that the clock is right is not noted"):
            await db.retain(confirm_clock=True)
        assert (await db.info())["first_position"] > 0
        before, either.fault = either.disk.files().get(CLOCK), None

        async def condition() -> bool:
            return either.disk.files().get(CLOCK) != before

        await until(condition)
    async with opening(either, retain_age=30 * 24 * 3600.0) as db:
        await asyncio.sleep(0.01)
        assert (await db.info())["notes"] == []


@pytest.mark.parametrize("by_itself", [True, False])
async def test_what_cannot_be_unlinked_is_tried_again_and_holds_up_nothing(
    either: Machine, by_itself: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "LOOK", 0.005 if by_itself else 60.0)
    receipts = await filled(either, 300)
    async with opening(either) as db:
        would = await db.retain(before=receipts[200].first_position, dry_run=True)
        assert would.segments > 2
        either.fault = failing("unlink", segment_name(0))
        for upto in (100, 100, 200):
            with pytest.raises(Unavailable, match=r"not all that was to be dropped is gone yet: .*0\.seg"):
                await db.retain(before=receipts[upto].first_position)
            there = list(segments(either))
            assert there[0] == segment_name(0)
            assert (await db.info())["first_position"] > receipts[upto - 60].first_position
        assert there[1] == segment_name(would.segments)

        async def said() -> bool:
            notes = (await db.info())["notes"]
            return bool(notes) and "not all that was to be dropped is gone yet" in notes[0]

        async def gone() -> bool:
            return segment_name(0) not in segments(either) and not (await db.info())["notes"]

        if by_itself:
            await until(said)
        either.fault = None
        if not by_itself:
            assert await db.retain(before=receipts[200].first_position) == would
        await until(gone)
        assert (await db.retain(before=receipts[200].first_position)).segments == 0
    either.verify(receipts[-1])


async def test_what_cannot_be_unlinked_keeps_no_start_from_going_on(either: Machine) -> None:
    receipts = await filled(either, 300)
    refused = failing("unlink", segment_name(0))
    async with opening(either) as db:
        either.fault = refused
        with pytest.raises(Unavailable, match="not all that was to be dropped is gone yet"):
            await db.retain(before=receipts[100].first_position)
    either.fault = None
    left = either.image()
    left.fault = refused
    async with opening(left) as db:

        async def said() -> bool:
            notes = (await db.info())["notes"]
            return bool(notes) and "not all that was to be dropped is gone yet" in notes[0]

        await until(said)
        receipt = await db.append("s", b"goes on")
        assert segment_name(0) in segments(left)
        left.fault = None

        async def gone() -> bool:
            return segment_name(0) not in segments(left) and not (await db.info())["notes"]

        await until(gone)
    left.verify(receipt)
    async with opening(either) as db:
        assert segment_name(0) not in segments(either)


async def test_a_reader_says_what_would_go_and_changes_nothing(either: Machine) -> None:
    receipts = await filled(either)
    rules: list[dict[str, Any]] = [
        {"before": receipts[30].first_position},
        {"age": 30 * 3600},
        {"size": 2 * SEGMENT},
        {"size": 3 * SEGMENT, "age": 50 * 3600},
        {"before": 0},
        {},
    ]
    left = either.disk.files()
    for rule in rules:
        machine = either.image()
        async with opening(machine, read_only=True) as reader:
            would = await reader.retain(**rule, dry_run=True)
            assert machine.disk.files() == left
            # Beside a writer too, and whatever that makes of the files.
            async with opening(machine) as db:
                assert await reader.retain(**rule, dry_run=True) == would
                assert await db.retain(**rule) == would
                assert (await reader.retain(**rule, dry_run=True)).first == would.first
    async with opening(either) as db:
        await db.append("s", b"more")
        killed = either.image()
    files = killed.disk.files()
    async with opening(killed, read_only=True) as reader:
        assert (await reader.retain(size=0, dry_run=True)).segments > 2
    assert killed.disk.files() == files


async def test_a_reader_counts_what_is_packed_meanwhile(either: Machine) -> None:
    receipts = await filled(either)
    before = receipts[30].first_position
    async with opening(either, read_only=True) as reader:
        would = await reader.retain(before=before, dry_run=True)
        async with either.open(segment_bytes=SEGMENT, pack=1.0) as db:
            assert db.upkeep is not None
            packer = db.upkeep.packer

            async def packed() -> bool:
                return packer.packed > 3

            await until(packed)
            again = await reader.retain(before=before, dry_run=True)
            assert again._replace(bytes=0) == would._replace(bytes=0)
            assert again.bytes < would.bytes / 2


async def held(db: Log) -> bool:
    return any("the clock has jumped" in note for note in (await db.info())["notes"])


async def free(db: Log) -> bool:
    return not await held(db)


async def test_a_clock_that_goes_back_and_comes_again_has_jumped(machine: Machine) -> None:
    await filled(machine)
    async with opening(machine) as db:
        machine.now -= 20 * DAY
        assert (await db.retain(age=3600)).segments == 0
        machine.now += 20 * DAY
        with pytest.raises(Unavailable, match=r"20\.0 days ahead"):
            await db.retain(age=3600)
        assert (await db.retain(age=3600, confirm_clock=True)).segments > 0


@pytest.mark.parametrize("noted", [True, False])
async def test_a_machine_that_was_off_for_more_than_a_day_asks(machine: Machine, noted: bool) -> None:
    await filled(machine)
    async with opening(machine, retain_age=1000 * 3600.0):
        machine.wait(300 * HOUR)
    assert CLOCK in machine.disk.files()
    if not noted:
        # Then the newest record is what is known.
        machine.backend().unlink(CLOCK)
    for off, ahead in ((JUMP // 2, False), (JUMP + HOUR, True)):
        then = machine.image()
        then.now, then.up, then.boot = then.now + off, 5, b"another boot...."
        async with opening(then) as db:
            if ahead or not noted:
                with pytest.raises(Unavailable, match="ahead"):
                    await db.retain(age=3600)
            else:
                assert (await db.retain(age=3600)).segments > 0


async def test_what_is_in_place_of_what_was_noted_is_not_believed(machine: Machine) -> None:
    await filled(machine)
    async with opening(machine, retain_age=1000 * 3600.0):
        machine.wait(300 * HOUR)
    length = len(machine.disk.files()[CLOCK])
    for place in range(0, length, 7):
        other = machine.image()
        other.flip(CLOCK, place)
        async with opening(other) as db:
            with pytest.raises(Unavailable, match="ahead"):
                await db.retain(age=3600)
    async with opening(machine) as db:
        assert (await db.retain(age=3600)).segments > 0


@pytest.mark.parametrize("few", range(12))
async def test_a_full_disk_lets_what_makes_room_be_said(machine: Machine, few: int) -> None:
    async with opening(machine) as db:
        receipts = [await db.append("s", b"%d" % i) for i in range(4 * COUNT)]
        await db.append("s", b"x" * 8000)
        assert RESERVE in machine.disk.files()
        machine.disk.capacity = 1 << 40
        machine.disk.capacity -= machine.disk.free()
        with pytest.raises(NoSpace):
            await asyncio.gather(*(db.append("s", b"x" * (100 * (i + few))) for i in range(100)))
        would = await db.retain(before=receipts[200].first_position, dry_run=True)
        assert would.segments > 1
        assert await db.retain(before=receipts[200].first_position) == would
        with pytest.raises(Dropped):
            await db.get(receipts[0].first_position)

        async def there_is_room() -> bool:
            # Who reads what was dropped keeps its blocks a moment longer.
            with suppress(NoSpace):
                await db.append("s", b"there is room")
                return True
            return False

        await until(there_is_room)
        machine.disk.capacity = None
        assert (await db.retain(before=receipts[-1].first_position)).segments > 0
        assert RESERVE in machine.disk.files()
    machine.verify(receipts[-1])


async def test_what_is_no_rule_is_invalid(machine: Machine) -> None:
    await filled(machine, 3)
    wrong: list[dict[str, Any]] = [{"before": -1}, {"before": "1"}, {"before": True}, {"age": -1}, {"age": "1d"}]
    wrong += [{"age": True}, {"age": float("nan")}, {"age": 1e300}, {"size": -1}, {"size": 1.5}, {"size": 1 << 63}]
    async with opening(machine) as db:
        for rule in wrong:
            with pytest.raises(Invalid):
                await db.retain(**rule)
        assert (await db.retain()).segments == 0
    async with opening(machine, read_only=True) as reader:
        with pytest.raises(Invalid, match="reading only"):
            await reader.retain(before=1)


async def test_a_reader_whose_files_are_gone_in_the_middle_is_told_where_to_go_on(either: Machine) -> None:
    async with opening(either) as db:
        receipts = [await db.append("s", bytes(20_000)) for _ in range(6 * COUNT)]
    async with opening(either, read_only=True, cache_bytes=0) as reader:
        reading = reader.read("s")
        assert (await anext(reading)).offset == 0
        tail = reader.tail("s", start=0)
        assert (await anext(tail)).offset == 0
        async with opening(either) as db:
            await db.retain(before=receipts[-20].first_position)
            kept = await first(db)
            await asyncio.sleep(0.01)
            for records in (reading, tail):
                with pytest.raises(Dropped) as caught:
                    await payloads(records)
                assert caught.value.first == kept
            with pytest.raises(Dropped):
                await reader.get(receipts[1].first_position)
            with pytest.raises(Dropped):
                await reader.get_many([receipts[1].first_position])
            assert len(await payloads(reader.read("s"))) == 6 * COUNT - kept


async def test_a_receipt_of_what_is_gone_is_held_against_the_log(either: Machine) -> None:
    receipts = await filled(either)
    for upto in (20, 40):
        async with opening(either) as db:
            await db.retain(before=receipts[upto].first_position)
    old = (receipts[0], receipts[7], receipts[30])
    wrong = either.forge(receipts[7], root=bytes(32))
    for gone in ([], [CHECKPOINT], [CHECKPOINT, HASHES]):
        for name in gone:
            if name in either.disk.files():
                either.backend().unlink(name)
        for receipt in old:
            assert either.verify(receipt).notes == []
            async with opening(either, anchor=receipt, read_only=True), opening(either, anchor=receipt):
                pass
        with pytest.raises(RolledBack, match="root"):
            either.verify(wrong)
        with pytest.raises(RolledBack, match="root"):
            await opening(either, anchor=wrong)
    # Nothing more than that hangs on it.
    either.flip(PAST, 4096 + 5 * 32)
    [note] = either.verify(receipts[-1]).notes
    assert "past: hash" in note
    either.backend().unlink(PAST)
    for receipt in (*old, receipts[-1]):
        [note] = either.verify(receipt).notes
        assert "past: it is missing" in note
        async with opening(either, anchor=receipt) as db:
            assert (await db.get(receipts[-1].first_position)).payload == b"59"
    async with opening(either) as db:
        await db.retain(before=receipts[50].first_position)
        assert (await db.get(receipts[-1].first_position)).payload == b"59"
    assert either.verify(receipts[45]).dropped[-1]["to"] > receipts[40].first_position


async def test_what_is_kept_of_the_past_is_not_kept_twice(machine: Machine) -> None:
    receipts = await filled(machine)
    async with opening(machine) as db:
        gone = (await db.retain(before=receipts[40].first_position)).first
        hashes, past = machine.disk.files()[HASHES], machine.disk.files()[PAST]
        end = 32 * (2 * gone - gone.bit_count())
        assert len(past) == 4096 + end
        assert not any(hashes[4096 : 4096 + end])
        assert any(past[4096:4128])
        assert (await db.get(receipts[-1].first_position)).payload == b"59"


@pytest.mark.parametrize("late", [False, True])
async def test_a_power_cut_takes_nothing_that_the_past_had_in_a_block_that_is_written_again(
    machine: Machine, *, late: bool
) -> None:
    receipts = await filled(machine, 120)
    before = machine.disk.files()[HASHES]
    async with opening(machine) as db:
        gone = (await db.retain(before=receipts[30].first_position)).first
    if late:
        # Some were moved, and of the others a crash has left nothing there yet.
        replace(machine.disk, HASHES, before[:4096] + bytes(640) + before[4736:])
        past = machine.disk.files()[PAST]
        replace(machine.disk, PAST, past[:4736] + bytes(len(past) - 4736))
    lefts: list[Disk] = []

    def cut() -> None:
        inode = machine.disk.tree.get(PAST)
        if writes := [change for change in inode.loose() if isinstance(change, Write)] if inode else []:
            left, rng = machine.disk.crash(Random(len(lefts))), Random(len(lefts))
            data = bytearray(left.files()[PAST])
            for write in writes:
                start, end = write.place // BLOCK * BLOCK, min(-(-write.end // BLOCK) * BLOCK, len(data))
                data[start:end] = rng.randbytes(max(0, end - start))
            replace(left, PAST, bytes(data))
            lefts.append(left)

    async with opening(machine) as db:
        machine.disk.on_step = cut
        again = await db.retain(before=receipts[70].first_position)
        machine.disk.on_step = None
    assert again.segments > 0
    assert PAST_BLOCK not in machine.disk.files()
    assert len(lefts) > 2
    for left in (*lefts, machine.disk):
        later = Machine(machine.key)
        later.disk, later.now = left, machine.now
        async with opening(later) as db:
            assert PAST_BLOCK not in left.files()
            assert left is machine.disk or (await db.info())["first_position"] == gone
            if not late:
                assert later.verify(receipts[7]).notes == []
            await db.retain(before=receipts[100].first_position)
        assert later.verify(receipts[7]).notes == []


@pytest.mark.parametrize("torn", [False, True])
async def test_what_a_crash_left_in_both_files_is_taken_from_the_one_that_is_right(
    machine: Machine, *, torn: bool
) -> None:
    receipts = await filled(machine, 120)
    lefts: list[Machine] = []
    async with opening(machine) as db:
        machine.disk.on_step = lambda: lefts.append(machine.image())
        await db.retain(before=receipts[50].first_position)
        machine.disk.on_step = None
    both = 0
    for left in lefts:
        files = left.disk.files()
        if segment_name(0) in files or left.verify().notes or not any(files[HASHES][4096:4128]):
            continue
        both += 1
        left.flip(HASHES, 4096 + 32 * 3 + 5)
        if torn:
            # Then neither is whole: nothing tells what is right, and that is said.
            past = files[PAST]
            replace(left.disk, PAST, past[:4352] + bytes(64) + past[4416:])
        assert (left.verify(receipts[7]).notes == []) != torn
        async with opening(left) as db:
            await db.retain(before=receipts[100].first_position)
            assert ((await db.info())["notes"] == []) != torn
        assert (left.verify(receipts[7]).notes == []) != torn
    assert both > 2


@pytest.mark.parametrize("times", [2, 3])
async def test_what_cannot_be_read_for_a_while_is_not_put_back_as_something_else(machine: Machine, times: int) -> None:
    receipts = await filled(machine, 120)
    async with opening(machine) as db:
        await db.retain(before=receipts[30].first_position)
    lefts: list[Machine] = []
    left = times

    def refused(verb: str, name: str, _place: int, _length: int) -> OSError | None:
        nonlocal left
        if (verb, name) != ("read", PAST) or left == 0:
            return None
        left -= 1
        return OSError(errno.EIO, os.strerror(errno.EIO), name)

    async with opening(machine) as db:
        machine.fault, machine.disk.on_step = refused, lambda: lefts.append(machine.image())
        await db.retain(before=receipts[100].first_position)
        machine.fault = machine.disk.on_step = None
    assert left < times
    for later in lefts:
        async with opening(later):
            pass
        assert later.verify(receipts[7]).notes == []


@pytest.mark.parametrize("kept", [b"", b"x" * 100, "other"])
async def test_what_is_in_place_of_a_block_of_the_past_is_not_put_back(machine: Machine, kept: bytes | str) -> None:
    receipts = await filled(machine)
    async with opening(machine) as db:
        await db.retain(before=receipts[40].first_position)
    if isinstance(kept, str):
        data = past.ASIDE.pack(past.MAGIC, bytes(16), BLOCK) + b"x" * 100
        kept = data + _native.blake3(data)[:8]
    replace(machine.disk, PAST_BLOCK, kept)
    async with opening(machine):
        assert PAST_BLOCK not in machine.disk.files()
    assert machine.verify(receipts[7]).notes == []


@pytest.mark.parametrize("unasked", [True, False])
async def test_hashes_that_are_wrong_hold_up_nothing_and_are_made_again(either: Machine, *, unasked: bool) -> None:
    receipts = await filled(either)
    upto = receipts[40].first_position
    whole = either.image()
    async with opening(whole) as db:
        gone = await db.retain(before=upto)
    right = whole.disk.files()[PAST]
    for places in ([3], [0], list(range(60)), []):
        if unasked and not places:
            continue
        machine = either.image()
        rule: dict[str, Any] = {"retain_size": gone.bytes} if unasked else {}
        for place in places:
            machine.flip(HASHES, 4096 + 32 * place)
        told: list[KimberliteError] = []
        async with opening(machine, scrub=0, **rule) as db:
            assert db.upkeep is not None
            findings = db.upkeep.findings
            findings.on_found = told.append
            if not places:
                machine.backend().unlink(HASHES)
            if unasked:

                async def reached() -> bool:
                    return db._native.first > 0

                await until(reached)
            else:
                assert await db.retain(before=upto) == gone
            assert told
            assert all(isinstance(error, Corrupt) and error.file == HASHES for error in told)
            assert list(findings.found.values()) == told
            await asyncio.sleep(0.01)
            assert db.upkeep.retention.waits is None
        if unasked:
            continue
        if places:
            assert machine.disk.files()[PAST] == right
            notes = machine.verify(receipts[0]).notes
            assert [note for note in notes if not note.startswith("hashes: a writer did not believe it")] == []
        async with opening(machine, anchor=receipts[-1], scrub=0) as db:
            assert await payloads(db.read("s")) == [b"%d" % i for i in range(await first(db), COUNT)]
            assert db.upkeep is not None
            assert db.upkeep.findings.count == 0
        # Made again by a start at the latest.
        assert [note for note in machine.verify(receipts[-1]).notes if not note.startswith("past")] == []


async def test_hashes_that_nothing_can_make_again_are_given_up_with_the_records(either: Machine) -> None:
    receipts = await filled(either)
    # The leaf of a record, and the record.
    either.flip(HASHES, 4096 + 32 * 3)
    either.flip(segment_name(0), 2 * 4096 + 200)
    async with opening(either, scrub=0) as db:
        assert (await db.retain(before=receipts[40].first_position)).segments > 2
        assert db.upkeep is not None
        said = [str(error) for error in db.upkeep.findings.found.values()]
        assert [what for what in said if what.startswith(segment_name(0))]
        assert any("may prove nothing" in what for what in said)
        kept = await first(db)
    for receipt in (receipts[7], receipts[-1]):
        [note] = either.verify(receipt).notes
        assert "past: hash" in note
    with pytest.raises(RolledBack, match="root"):
        either.verify(either.forge(receipts[7], root=bytes(32)))
    # What is left is as sound as ever, and so is what is dropped next.
    async with opening(either, scrub=0) as db:
        assert await payloads(db.read("s")) == [b"%d" % i for i in range(kept, COUNT)]
        await db.retain(before=receipts[50].first_position)
        assert db.upkeep is not None
        assert db.upkeep.findings.count == 0
    assert either.verify(receipts[45]).first_position > receipts[40].first_position


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("last", [True, False])
async def test_a_damaged_header_holds_up_nothing(either: Machine, *, last: bool, indexed: bool) -> None:
    async with opening(either) as db:
        receipts = [await db.append("st"[i % 7 == 0], b"%d" % i) for i in range(COUNT)]
    whole = either.image()
    async with opening(whole) as db:
        gone = await db.retain(before=receipts[40].first_position)
        said = db._native.first_offset(1), db._native.first_offset(2)
    names = list(segments(either))
    number = gone.segments - 1
    async with opening(either, scrub=0) as db:
        if not indexed:
            either.backend().unlink(index_name(number))
        # While it is open: a start looks at the last groups.
        either.flip(names[number], either.end(number) - BLOCK + 20 if last else 3 * BLOCK + 20)
        either.wait(HOUR)
        assert (await db.retain(age=0, dry_run=True)).segments == len(names) - 1
        assert await db.retain(before=receipts[40].first_position) == gone
        assert (db._native.first_offset(1), db._native.first_offset(2)) == said
        await db.append("s", b"more")
    for name in ([], [CHECKPOINT]):
        for each in name:
            either.backend().unlink(each)
        async with opening(either) as db:
            assert (await payloads(db.read("s")))[-1] == b"more"
        assert either.verify(receipts[-1]).first_position == gone.first


@pytest.mark.parametrize("by", ["size", "before", "age"])
@pytest.mark.parametrize("indexed", [True, False])
async def test_damage_on_both_sides_of_a_border_holds_up_nothing(either: Machine, *, by: str, indexed: bool) -> None:
    receipts = await filled(either, 120)
    size, names = segments(either), sorted(segments(either))
    async with opening(either) as db:
        ends = [db._native.ended(number) for number in range(3)]
        assert ends[2] is not None
        rules: dict[str, dict[str, Any]] = {
            "size": {"size": sum(list(size.values())[2:]) - 1},
            "before": {"before": ends[2][0]},
            "age": {"age": (either.now - ends[2][1]) / 10**9 - 1},
        }
        either.flip(names[1], size[names[1]] - BLOCK + 20)
        either.flip(names[2], BLOCK + 20)
        for number in () if indexed else (1, 2):
            replace(either.disk, index_name(number), None)
        would = await db.retain(**rules[by], dry_run=True)
        assert await db.retain(**rules[by]) == would
        assert would.first == ends[2][0]
        left = await first(db)
        assert receipts[left].first_position == would.first
    async with opening(either) as db:
        assert await payloads(db.read("s")) == [b"%d" % i for i in range(left, len(receipts))]
    assert either.verify(receipts[0]).notes == []


async def test_a_segment_that_is_gone_beneath_a_writer_holds_up_nothing_and_is_named(either: Machine) -> None:
    receipts = await filled(either, 120)
    names = sorted(segments(either))
    async with opening(either) as db:
        ended = db._native.ended(2)
        assert ended is not None
        replace(either.disk, names[1], None)
        would = await db.retain(before=ended[0], dry_run=True)
        assert (would.segments, would.first) == (3, ended[0])
        assert (await db.info())["notes"] == [f"{names[1]}: it is missing"]
        assert await db.retain(before=ended[0]) == would
        left = await first(db)
    assert either.verify(receipts[left]).notes == []


@pytest.mark.parametrize("start", [None, 0])
async def test_what_is_read_from_the_beginning_begins_with_what_is_left(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, start: int | None
) -> None:
    receipts = await filled(machine)
    async with opening(machine) as db:
        records = db.read("s", start=start)
        begin = records._reading._begin

        async def late() -> tuple[int | None, int, int]:
            """A dropping comes between the first step of a read and its second."""
            span = await begin()
            await db.retain(before=receipts[40].first_position)
            return span

        monkeypatch.setattr(records._reading, "_begin", late)
        if start is not None:
            with pytest.raises(Dropped):
                await payloads(records)
            return
        found = await payloads(records)
        assert found == [b"%d" % i for i in range(COUNT - len(found), COUNT)]
        assert 0 < len(found) < COUNT - 10


async def test_what_is_dropped_while_it_is_counted_is_nothing(machine: Machine) -> None:
    await filled(machine)
    async with opening(machine) as db:
        whole = (await db.info())["bytes"]

        def dropped(verb: str, name: str, _place: int, _length: int) -> None:
            if verb == "open" and name == segment_name(0):
                raise FileNotFoundError(name)

        machine.fault = dropped
        assert 0 < (await db.info())["bytes"] < whole
        machine.fault = None
