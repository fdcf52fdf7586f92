"""What is salvaged is a database, with offsets and times as they were."""

from __future__ import annotations

from random import Random

from kimberlite import Record
from kimberlite.crypto.master import load_master
from kimberlite.log.copying import Finished, copy
from kimberlite.log.names import segment_name
from kimberlite.log.opening import Injected, open_log
from kimberlite.log.options import LARGEST_BATCH_BYTES, Options
from kimberlite.log.salvage import TOO_LARGE, Finder, named
from kimberlite.storage.backend import BLOCK
from kimberlite.storage.memory import Disk
from tests.log.simulated import Machine
from tests.log.test_recovery import made_up
from tests.log.test_repair import last_said
from tests.log.test_salvage import SEGMENT, Found, filled, truth
from tests.model import Batch
from tests.model import Record as ModelRecord
from tests.model.conftest import written

GONE = 8


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
