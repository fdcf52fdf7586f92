"""What is salvaged is a database, with offsets and times as they were."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from kimberlite import Dropped, Erased, Erasure, Invalid, Record, StreamInfo
from kimberlite.crypto.master import create_master, load_master
from kimberlite.crypto.vault import BLOCK as VAULT_HEADER
from kimberlite.crypto.vault import SLOT
from kimberlite.log.copying import Finished, copy
from kimberlite.log.names import CHECKPOINT, INDEX, VAULTS, segment_name
from kimberlite.log.opening import Injected, open_log
from kimberlite.log.options import LARGEST_BATCH_BYTES, Options
from kimberlite.log.salvage import NO_KEY, TOO_LARGE, Finder, named
from kimberlite.storage.backend import BLOCK
from kimberlite.storage.memory import Disk
from tests.log.erasing import places
from tests.log.simulated import Machine, until
from tests.log.test_recovery import made_up
from tests.log.test_repair import last_said, repaired
from tests.log.test_salvage import COUNT, SEGMENT, Found, filled, gone, truth
from tests.model import Batch, read_log
from tests.model import Record as ModelRecord
from tests.model.conftest import written
from tests.model.log import Sealed

GONE = 8
WHY = "asked for in ticket 4711"


async def salvaged(machine: Machine, segment_bytes: int = SEGMENT) -> tuple[Machine, Finder]:
    """Into a new database on another disk."""
    other, clock = Machine(machine.key), Finished()
    other.now = machine.now
    finder = Finder(machine.backend(), load_master(machine.key))
    async with other.open(segment_bytes=segment_bytes) as db:
        await copy(finder, db, clock)
    finder.close()
    return other, finder


async def read(machine: Machine) -> dict[tuple[str, int], Record]:
    async with machine.open(create=False, segment_bytes=SEGMENT) as db:
        return {(record.stream, record.offset): record async for record in db.read()}


def said(records: dict[tuple[str, int], Record]) -> Found:
    return {key: (record.timestamp, record.payload) for key, record in records.items()}


async def test_all_of_a_sound_one(either: Machine) -> None:
    await filled(either)
    expected, log = truth(either)
    new, finder = await salvaged(either)
    assert said(await read(new)) == expected
    assert new.verify().notes == []
    position, record = last_said(new)
    assert (record.salvaged, record.database, record.kept) == (True, log.identity.database, len(expected))
    assert (record.before, record.after, record.lost) == (0, 1, ())
    assert position == len(expected) + len(log.streams) - 1
    async with new.open(segment_bytes=SEGMENT) as db:
        receipt = await db.append("s", b"more")
        assert (receipt.first_offset, receipt.incarnation) == (len(expected) // 2, 1)
    # Once more, of what was made.
    again, finder = await salvaged(new)
    assert {k: v for k, v in said(await read(again)).items() if k in expected} == expected
    assert last_said(again)[1].after == 2
    assert finder.report.complete


async def test_offsets_that_are_missing_are_gaps(either: Machine) -> None:
    await filled(either)
    expected, log = truth(either)
    either.backend().unlink(segment_name(1))
    group = next(g for g in log.groups if g.segment == 3)
    either.write(segment_name(3), group.place, bytes(3 * BLOCK))
    new, finder = await salvaged(either)
    lost = {p for each in finder.report.missing for p in range(each.first, each.end)}
    kept = {(row.name, row.offset): row for row in log.rows if row.stream and row.position not in lost}
    found = await read(new)
    assert said(found) == {key: expected[key] for key in kept}
    assert 0 < len(found) < len(expected)
    assert new.verify().notes == []
    assert last_said(new)[1].lost == tuple((each.first, each.end) for each in finder.report.missing)
    async with new.open(segment_bytes=SEGMENT) as db:
        jump = next(jump for jump in finder.report.jumps if jump.stream == "s")
        assert (await anext(db.read("s", start=jump.first))).offset == jump.end
    # A gap of the damaged one is nothing that is missing again.
    _, finder = await salvaged(new)
    assert (finder.report.jumps, finder.report.complete) == ([], True)


async def test_of_very_many_ranges_the_report_has_all_and_the_log_enough(encrypted: Machine) -> None:
    async with encrypted.open(segment_bytes=SEGMENT, pack=0) as db:
        for i in range(600):
            await db.append("st"[i % 2], b"%d" % i)
    for name in VAULTS:
        encrypted.flip(name, VAULT_HEADER + 2 * SLOT + 100)
    new, finder = await salvaged(encrypted)
    lost = finder.report.lost()
    assert len(lost) >= 300
    _, record = last_said(new)
    assert (len(record.lost), record.coarse) == (256, True)
    assert all(any(start <= first and end <= stop for start, stop in record.lost) for first, end in lost)
    [said] = new.verify().repairs
    assert (said["lost"], said["exact"]) == ([list(each) for each in record.lost], False)
    # A rule that leaves room for little finds that room.
    async with new.open(segment_bytes=SEGMENT, pack=0, retain_size=4 * SEGMENT) as db:
        for _ in range(200):
            await db.append("t", b"more")

        async def at_rest() -> bool:
            return bool((await db.info())["bytes"] <= 5 * SEGMENT and (await db.info())["first_position"] > 300)

        await until(at_rest)
        assert (await db.info())["repairs"] == [said]


async def test_what_was_dropped_stays_dropped(either: Machine) -> None:
    await filled(either)
    async with either.open(segment_bytes=SEGMENT, pack=0) as db:
        await db.retain(before=100)
        first = (await db.info())["first_position"]
        expected = {(record.stream, record.offset): record async for record in db.read()}
    new, finder = await salvaged(either)
    assert said(await read(new)) == said(expected)
    assert [(each.first, each.end) for each in finder.report.missing] == [(0, first)]
    assert finder.report.jumps == []
    assert last_said(new)[1].lost == ()


async def test_what_was_erased_is_not_copied(encrypted: Machine) -> None:
    await filled(encrypted)
    expected, _ = truth(encrypted)
    async with encrypted.open(segment_bytes=SEGMENT, pack=0) as db:
        await db.erase("s", reason="on request")
    new, finder = await salvaged(encrypted)
    assert said(await read(new)) == {key: row for key, row in expected.items() if key[0] == "t"}
    assert (finder.report.complete, last_said(new)[1].lost) == (True, ())


async def erased(machine: Machine) -> Erasure:
    """Between what is before it and what is behind."""
    async with machine.open(segment_bytes=SEGMENT, pack=0) as db:
        machine.now += 10**9
        done = await db.erase("s", reason=WHY)
    await filled_behind(machine)
    return done


def group_at(machine: Machine, position: int) -> Sealed:
    log = read_log(machine.disk.files(), load_master(machine.key))
    return next(group for group in log.groups if group.position <= position < group.position + group.records)


async def filled_behind(machine: Machine) -> None:
    async with machine.open(segment_bytes=SEGMENT, pack=0) as db:
        for i in range(COUNT):
            machine.now += 1000
            await db.append("t", [b"behind %d" % i] * 4)


async def expect_erased(machine: Machine, when: int, length: int = 4 * COUNT, *, pending: bool = True) -> None:
    """All is as it was, but that nothing of it is there."""
    # In the vault the group's key, the receipts' and that of the other stream: before a start empties its slots again.
    assert [len(places(machine, number)) for number in (0, 1)] == [3, 3]
    async with machine.open(create=False, segment_bytes=SEGMENT) as db:
        [found] = (await db.info())["erasures"]
        assert {**found, "position": 0} == Erasure("s", when, WHY, 0, pending)._asdict()
        assert StreamInfo("s", length, True, True) in list(db.streams())
        for read in (db.read("s"), db.read("s", start=length + 1)):
            with pytest.raises(Erased, match=WHY):
                await anext(read)
        with pytest.raises(Erased):
            await db.append("s", b"late")
    assert machine.verify().notes == []
    log = read_log(machine.disk.files(), load_master(machine.key))
    assert [(one.timestamp, one.reason, one.pending) for one in log.erasures] == [(when, WHY, pending)]
    assert log.doubts == ()


@pytest.mark.parametrize("left", ["all", "records", "checkpoint"])
async def test_what_was_erased_stays_erased(encrypted: Machine, left: str) -> None:
    await filled(encrypted)
    done = await erased(encrypted)
    if left == "records":
        gone(encrypted, CHECKPOINT, INDEX)
    if left == "checkpoint":
        encrypted.backend().unlink(segment_name(group_at(encrypted, done.position).segment))
    new, finder = await salvaged(encrypted)
    await expect_erased(new, done.when)
    assert [each["stream"] for each in finder.report.erasures] == ["s"]
    assert finder.report.complete == (left != "checkpoint")
    again, finder = await salvaged(new)
    await expect_erased(again, done.when)
    assert (finder.report.complete, finder.report.jumps) == (True, [])


async def test_what_is_pending_there_is_pending_here_until_it_is_confirmed(encrypted: Machine, tmp_path: Path) -> None:
    await filled(encrypted)
    done = await erased(encrypted)
    new, _ = await salvaged(encrypted)
    create_master(tmp_path / "next")
    async with new.open(segment_bytes=SEGMENT) as db:
        with pytest.raises(Invalid, match="master key of then"):
            await db.confirm_erasure("s")
        await db.rotate(tmp_path / "next")
        assert not (await db.confirm_erasure("s")).pending
    new.key = tmp_path / "next"
    await expect_erased(new, done.when, pending=False)


@pytest.mark.parametrize("back", [False, True])
async def test_what_is_confirmed_stays_so(encrypted: Machine, tmp_path: Path, *, back: bool) -> None:
    await filled(encrypted)
    done = await erased(encrypted)
    create_master(tmp_path / "next")
    async with encrypted.open(segment_bytes=SEGMENT, pack=0) as db:
        await db.rotate(tmp_path / "next")
        encrypted.now += 10**9
        await db.confirm_erasure("s")
    encrypted.key = tmp_path / "next"
    confirmed = encrypted.now
    await filled_behind(encrypted)
    if back:
        # Only the retention record says it then.
        async with encrypted.open(segment_bytes=SEGMENT, pack=0) as db:
            await db.retain(before=(await db.info())["records"])
            assert (await db.info())["first_position"] > done.position
    new, _ = await salvaged(encrypted)
    await expect_erased(new, done.when, pending=False)
    said = read_log(new.disk.files(), load_master(new.key)).erasures[0].confirmed
    assert said[1] == confirmed


async def test_a_confirmation_alone_tells_that_it_was_erased(encrypted: Machine, tmp_path: Path) -> None:
    await filled(encrypted)
    done = await erased(encrypted)
    create_master(tmp_path / "next")
    async with encrypted.open(segment_bytes=SEGMENT, pack=0) as db:
        await db.rotate(tmp_path / "next")
        await db.confirm_erasure("s")
    encrypted.key = tmp_path / "next"
    group = group_at(encrypted, done.position)
    assert group.position == done.position
    gone(encrypted, CHECKPOINT)
    encrypted.write(segment_name(group.segment), group.place, bytes(BLOCK))
    new, _ = await salvaged(encrypted)
    async with new.open(segment_bytes=SEGMENT) as db:
        [found] = (await db.info())["erasures"]
        assert (found["stream"], found["reason"], found["pending"]) == ("s", "the reason is lost", False)
        with pytest.raises(Erased):
            await anext(db.read("s"))
    assert new.verify().notes == []


@pytest.mark.parametrize("named", [True, False])
async def test_a_stream_whose_key_is_lost_is_there_and_named(encrypted: Machine, *, named: bool) -> None:
    await filled(encrypted)
    _, log = truth(encrypted)
    for name in VAULTS:
        encrypted.flip(name, VAULT_HEADER + 2 * SLOT + 100)
    lost = "s"
    if not named:
        gone(encrypted, CHECKPOINT)
        encrypted.write(segment_name(0), log.groups[0].place, bytes(2 * BLOCK))
        lost = "unnamed/1"
    new, finder = await salvaged(encrypted)
    assert {stream for stream, _ in await read(new)} == {"t" if named else "unnamed/2"}
    [jump] = [each for each in finder.report.jumps if each.stream == lost]
    assert (jump.first, jump.end, jump.why) == (0, 4 * COUNT, NO_KEY)
    async with new.open(segment_bytes=SEGMENT) as db:
        assert StreamInfo(lost, 4 * COUNT, True, False) in list(db.streams())
        assert (await db.append(lost, b"more")).first_offset == 4 * COUNT


@pytest.mark.parametrize("left", [CHECKPOINT, INDEX, "nothing"])
async def test_offsets_that_were_acknowledged_are_not_given_again(either: Machine, left: str) -> None:
    await filled(either)
    async with either.open(segment_bytes=SEGMENT, pack=0) as db:
        await db.append("only there", b"x")
    segments = sorted(name for name in either.disk.files() if name.startswith("segments/"))
    expected, log = truth(either)
    end = len(log.rows)
    # One that is closed, and the last, which has no index.
    gone(either, *segments[-2:], *{CHECKPOINT, INDEX} - {left})
    new, finder = await salvaged(either)
    found, report = await read(new), finder.report
    assert said(found) == {key: expected[key] for key in found}
    lengths = {"s": 4 * COUNT, "t": 4 * COUNT, "only there": 1}
    position = max(row.position for row in log.rows if (row.name, row.offset) in found) + 1
    assert not report.complete
    if left == CHECKPOINT:
        assert [(each.first, each.end) for each in report.missing] == [(position, end)]
        assert {each.stream: each.end for each in report.jumps} == lengths
    else:
        # Of the group numbers the marks know, and of positions `hashes`.
        upto = end - end % 2
        assert [(each.first, each.end) for each in report.missing] == [(position, upto), (upto, upto)]
        assert "positions unknown" in report.missing[-1].why
    assert last_said(new)[1].lost == tuple(report.lost())
    async with new.open(segment_bytes=SEGMENT) as db:
        for stream, length in lengths.items():
            kept = sum(key[0] == stream for key in found)
            first = (await db.append(stream, b"more")).first_offset
            assert first == length if left == CHECKPOINT else kept <= first <= length
            assert first > kept or left == "nothing" or stream == "only there"
        if left == CHECKPOINT:
            with pytest.raises(Dropped):
                await anext(db.read("s", start=4 * COUNT - 1))


async def test_without_any_segment_it_is_known_what_there_was(either: Machine) -> None:
    await filled(either)
    end = len(truth(either)[1].rows)
    gone(either, "segments")
    _, finder = await salvaged(either)
    assert [(each.first, each.end) for each in finder.report.missing] == [(0, end)]
    gone(either, CHECKPOINT, INDEX)
    _, finder = await salvaged(either)
    assert [(each.first, each.end) for each in finder.report.missing] == [(0, end - end % 2), (end - end % 2,) * 2]
    gone(either, "hashes")
    _, finder = await salvaged(either)
    assert [(each.first, each.end) for each in finder.report.missing] == [(0, 0)]
    assert "groups 1 to " in finder.report.missing[0].why


async def broken(machine: Machine, position: int) -> None:
    """Damaged in the group of this position, and repaired."""
    group = group_at(machine, position)
    machine.flip(segment_name(group.segment), group.place + 20)
    loss = await repaired(machine)
    assert loss is not None


def said_of(repairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """But for where in a log it is said."""
    return [{**each, "position": 0} for each in repairs]


@pytest.mark.parametrize("left", ["all", "records", "retained"])
async def test_what_was_given_up_before_is_said_on(either: Machine, left: str) -> None:
    await filled(either)
    await broken(either, 200)
    await filled_behind(either)
    await broken(either, 260)
    expected = said_of(either.verify().repairs)
    assert [each["salvaged"] for each in expected] == [False, False]
    await filled_behind(either)
    if left == "retained":
        async with either.open(segment_bytes=SEGMENT, pack=0) as db:
            await db.retain(before=(await db.info())["records"])
            assert (await db.info())["first_position"] > 260
    if left == "records":
        gone(either, CHECKPOINT, INDEX)
    machine = either
    for _ in range(2):
        new, finder = await salvaged(machine)
        assert finder.report.complete
        assert said_of(finder.report.earlier) == expected
        repairs = new.verify().repairs
        assert said_of(repairs[:-1]) == expected
        assert (repairs[-1]["salvaged"], repairs[-1]["lost"]) == (True, [])
        assert repairs[-1]["database_id"] == truth(machine)[1].identity.database.hex()
        assert [position for position, _ in truth(new)[1].repairs] == [each["position"] for each in repairs]
        async with new.open(segment_bytes=SEGMENT, read_only=True) as db:
            assert (await db.info())["repairs"] == repairs
        assert new.verify().notes == []
        machine, expected = new, said_of(repairs)


async def test_where_only_the_checkpoint_is_left_it_says_what_was_dropped_with_its_record(either: Machine) -> None:
    await filled(either)
    await broken(either, 100)
    await filled_behind(either)
    async with either.open(segment_bytes=SEGMENT, pack=0) as db:
        await db.retain(before=(await db.info())["records"])
        assert (await db.info())["first_position"] > 100
    [repair] = said_of(either.verify().repairs)
    gone(either, "segments")
    _, finder = await salvaged(either)
    assert said_of(finder.report.earlier) == [repair]


async def test_a_record_of_what_was_given_up_that_is_lost_is_noted(either: Machine) -> None:
    await filled(either)
    await broken(either, 200)
    await filled_behind(either)
    [repair] = either.verify().repairs
    group = group_at(either, repair["position"])
    either.write(segment_name(group.segment), group.place, bytes(BLOCK))
    new, finder = await salvaged(either)
    [note] = finder.report.notes
    assert note.startswith(f"position {repair['position']}: what a repair or a salvage had given up was said there")
    assert (finder.report.earlier, len(new.verify().repairs)) == ([], 1)
    assert not finder.report.complete


async def test_a_clock_that_was_ahead_keeps_nobody_from_copying(machine: Machine) -> None:
    machine.now += 10**18
    await filled(machine, 0, 3)
    expected, _ = truth(machine)
    other, clock = Machine(), Finished()
    finder = Finder(machine.backend(), None)
    options = Options(segment_bytes=SEGMENT)
    opening = open_log(
        "simulated",
        create=True,
        read_only=False,
        key_file=None,
        backend=other.backend(),
        origin=None,
        anchor=None,
        options=options,
        injected=Injected(clock=clock),
    )
    async with opening as db:
        await copy(finder, db, clock)
    assert said(await read(other)) == expected


async def test_where_no_incarnation_is_left_it_is_copied_under_the_last(either: Machine) -> None:
    await filled(either, 0, 4)
    expected, _ = truth(either)
    new, _ = await salvaged(made_up(either, incarnation=2**32 - 1))
    assert said(await read(new)) == expected
    record = last_said(new)[1]
    assert (record.before, record.after) == (2**32 - 1, 2**32 - 1)
    async with new.open(segment_bytes=SEGMENT) as db:
        assert (await db.append("s", b"more")).incarnation == 2**32 - 1


async def test_a_stream_that_cannot_be_copied_costs_no_other() -> None:
    """By another writer of the format, whose records may be larger and whose names may be any."""
    batches = (
        ("bad\nname", b"1"),
        ("large", bytes(LARGEST_BATCH_BYTES)),
        ("large", b"2"),
        ("x" * 256, b"3"),
        ("s", b"4"),
    )
    files = written(
        [[Batch(name, (ModelRecord(payload),))] for name, payload in batches], tagged=False, segment_bytes=1 << 26
    )
    machine = Machine()
    machine.disk = Disk.from_files(files)
    new, finder = await salvaged(machine, segment_bytes=1 << 26)
    found = {key: record.payload for key, record in (await read(new)).items()}
    assert found == {("unnamed/1", 0): b"1", ("large", 1): b"2", ("unnamed/3", 0): b"3", ("s", 0): b"4"}
    [missing] = finder.report.missing
    assert (missing.first, missing.end, missing.why) == (3, 4, TOO_LARGE)
    assert not finder.report.complete
    assert last_said(new)[1].lost == ((3, 4),)
    assert new.verify().notes == []


def test_a_name_is_that_of_one_stream() -> None:
    assert named([(0, ""), (1, "a"), (2, "b"), (3, "a"), (4, None), (5, "b\0")]) == {1: "a", 2: "b"}


async def test_damage_at_random_is_copied_as_it_was_found(either: Machine) -> None:
    await filled(either)
    expected, _ = truth(either)
    for seed in range(6):
        rng, other = Random(seed), either.image()
        names = [name for name in other.disk.files() if name.startswith("segments/")]
        for _ in range(GONE):
            name = rng.choice(names)
            other.write(name, rng.randrange(len(other.disk.files()[name]) - 100), rng.randbytes(rng.choice((1, 100))))
        new, finder = await salvaged(other)
        found = await read(new)
        assert len(found) == finder.report.copied
        assert all(record.payload == expected[key][1] for key, record in found.items())
        assert new.verify().notes == []
