"""What is left of a damaged log, found again; `tests/crash/salvaging.py` tries damages at random."""

from __future__ import annotations

import asyncio

import pytest

from kimberlite import Receipt
from kimberlite.crypto.master import create_master, load_master
from kimberlite.errors import Corrupt, Invalid, KeyUnavailable
from kimberlite.log.names import CHECKPOINT, HASHES, IDENTITY, INDEX, MARKS, RECEIPT_KEY, SEGMENTS, VAULTS, segment_name
from kimberlite.log.opening import Injected
from kimberlite.log.options import Options
from kimberlite.log.repair import repair
from kimberlite.log.salvage import DOUBTFUL, ERASED, NO_KEY, Finder, Report
from kimberlite.storage.backend import BLOCK
from tests.log.simulated import Machine
from tests.model import Log, read_log
from tests.model.cursor import Cursor
from tests.model.groups import GROUP_HEADER
from tests.model.records import take_record

SEGMENT = 64 * 1024
COUNT = 40
#: Of a record, so that a group of ten takes some blocks.
SIZE = 1000


def payload(i: int, part: int = 0) -> bytes:
    return b"%d.%d." % (i, part) + bytes((i * 7 + part * 3 + k) % 251 for k in range(SIZE))


async def filled(machine: Machine, first: int = 0, count: int = COUNT) -> list[Receipt]:
    """Groups of records of two streams; the second is a run of its own."""
    receipts = []
    async with machine.open(segment_bytes=SEGMENT, pack=0) as db:
        for i in range(first, first + count):
            machine.now += 1000
            one, _ = await asyncio.gather(
                db.append("s", [payload(i, part) for part in range(4)]),
                db.append("t", [payload(i, part) for part in range(4, 8)]),
            )
            receipts.append(one)
    return receipts


Found = dict[tuple[str, int], tuple[int, bytes]]


def salvaged(machine: Machine) -> tuple[Found, Report]:
    """Time and payload by stream and offset."""
    finder = Finder(machine.backend(), load_master(machine.key))
    found: Found = {}
    for name, offset, when, batch in finder.records():
        cursor = Cursor(batch.stored, "what was salvaged")
        for i in range(len(batch)):
            assert (name, offset + i) not in found
            found[name, offset + i] = (when, take_record(cursor).payload)
        cursor.end()
    finder.close()
    return found, finder.report


def truth(machine: Machine) -> tuple[Found, Log]:
    files = {n: data for n, data in machine.disk.files().items() if not n.startswith(("prepare/", "reserve"))}
    log = read_log(files, load_master(machine.key))
    rows = [row for row in log.rows if row.stream > 0]
    return {(row.name, row.offset): (row.timestamp, row.payload) for row in rows}, log


def gone(machine: Machine, *names: str) -> None:
    for name in machine.disk.files():
        if name in names or name.partition("/")[0] in names:
            machine.backend().unlink(name)


async def test_all_of_a_sound_one(either: Machine) -> None:
    await filled(either)
    before = either.disk.files()
    expected, log = truth(either)
    found, report = salvaged(either)
    assert found == expected
    assert (report.complete, report.notes, report.jumps, report.times) == (True, [], [], [])
    assert (report.copied, report.streams) == (len(expected), 2)
    assert either.disk.files() == before
    assert report.last_group == log.groups[-1].number


@pytest.mark.parametrize("whole_block", [False, True])
async def test_runs_behind_a_lost_header_are_kept(either: Machine, whole_block: bool) -> None:
    await filled(either)
    expected, log = truth(either)
    group = next(g for g in log.groups if g.position > 100)
    name = segment_name(group.segment)
    either.write(name, group.place, b"\xaa" * (BLOCK if whole_block else GROUP_HEADER))
    closed = f"index/{group.segment:020}.idx" in either.disk.files()
    found, report = salvaged(either)
    lost = expected.keys() - found.keys()
    # The first of its runs begins in that block, the other one does not.
    assert {stream for stream, _ in lost} == ({"s"} if whole_block else set())
    assert len(lost) == (4 if whole_block else 0)
    assert closed
    assert found == {key: row for key, row in expected.items() if key not in lost}
    gone(either, INDEX, HASHES)
    found, report = salvaged(either)
    assert {key: row[1] for key, row in found.items()} == {
        key: row[1] for key, row in expected.items() if key not in lost
    }
    wrong = {key for key in found if found[key][0] != expected[key][0]}
    assert wrong
    [guessed] = [(each.first, each.end) for each in report.times[:1]]
    assert group.position <= guessed[0] < guessed[1] <= group.position + group.records
    assert report.times[0].not_after is not None


async def test_one_byte_of_a_header_is_mended(either: Machine) -> None:
    await filled(either)
    expected, log = truth(either)
    for place in range(GROUP_HEADER):
        other = either.image()
        gone(other, INDEX, HASHES, CHECKPOINT)
        for group in log.groups[5:7]:
            name = segment_name(group.segment)
            other.write(name, group.place + place, bytes([other.disk.files()[name][group.place + place] ^ 0x5A]))
        found, report = salvaged(other)
        assert (found, report.complete) == (expected, True)


@pytest.mark.parametrize("left", ["index", "chain"])
async def test_a_lost_header_of_a_segment_costs_nothing_that_is_whole(either: Machine, left: str) -> None:
    await filled(either)
    expected, log = truth(either)
    for number in (0, 2):
        either.write(segment_name(number), 0, bytes(BLOCK))
    if left == "chain":
        gone(either, INDEX, HASHES, CHECKPOINT)
    found, report = salvaged(either)
    assert found == expected
    assert report.complete
    # Without the salt and without the chain there are the leaves, and of encrypted ones that they open.
    group = next(g for g in log.groups if g.segment == 2 and g.records)
    either.flip(segment_name(2), group.place + GROUP_HEADER + 4 * SIZE + 700)
    found, report = salvaged(either)
    guessed = {log.rows[p].offset for each in report.times for p in range(each.first, each.end)}
    assert all(found[key][1] == expected[key][1] for key in found)
    assert {key for key in found if found[key] != expected[key]} == {
        key for key in found if left == "chain" and either.key and key[1] in guessed
    }
    lost = expected.keys() - found.keys()
    assert len(lost) == (4 if either.key else 1 if left == "index" else 8)


async def test_a_lost_trailer_costs_no_run_that_makes_its_leaves(either: Machine) -> None:
    await filled(either)
    expected, log = truth(either)
    group = next(g for g in log.groups if g.position > 50)
    files, name = either.disk.files(), segment_name(group.segment)
    length = int.from_bytes(files[name][group.place + 8 : group.place + 12], "little")
    either.write(name, group.place + length - 700, b"\xaa" * 700)
    found, _ = salvaged(either)
    lost = expected.keys() - found.keys()
    assert found.items() <= expected.items()
    # All of an encrypted run is one; of a plain one what is in front of the damage is kept.
    assert {stream for stream, _ in lost} == {"t"}
    assert len(lost) == (4 if either.key else 1)
    gone(either, HASHES)
    assert len(expected.keys() - salvaged(either)[0].keys()) == (4 if either.key else 8)


async def test_the_identity_is_not_needed(either: Machine) -> None:
    await filled(either)
    expected, _ = truth(either)
    gone(either, IDENTITY, MARKS)
    found, report = salvaged(either)
    assert found == expected
    assert "it is lost" in report.notes[0]
    either.write(segment_name(0), 0, bytes(BLOCK))
    found, _ = salvaged(either)
    assert found.items() <= expected.items()
    if either.key:
        # The vault names it too.
        assert found == expected


async def test_one_of_another_database_is_not_believed(machine: Machine) -> None:
    await filled(machine)
    expected, _ = truth(machine)
    other = Machine()
    await filled(other, 100)
    for name in (IDENTITY, segment_name(1)):
        machine.write(name, 0, other.disk.files()[name])
    found, report = salvaged(machine)
    assert found
    assert found.items() <= expected.items()
    assert any("another database" in note for note in report.notes)


async def test_names_of_files_mean_nothing(either: Machine) -> None:
    await filled(either)
    expected, _ = truth(either)
    files = either.disk.files()
    backend = either.backend()
    backend.rename(segment_name(0), "segments/aside")
    backend.rename(segment_name(1), segment_name(0))
    backend.rename("segments/aside", segment_name(1))
    backend.rename(IDENTITY, "producers")
    backend.rename(HASHES, IDENTITY)
    assert files[HASHES] == either.disk.files()[IDENTITY]
    found, report = salvaged(either)
    assert found == expected
    assert any("it is segment 1" in note for note in report.notes)


async def test_a_missing_segment_is_missing_and_nothing_else(either: Machine) -> None:
    await filled(either)
    expected, log = truth(either)
    either.backend().unlink(segment_name(1))
    found, report = salvaged(either)
    positions = [p for g in log.groups if g.segment == 1 for p in range(g.position, g.position + g.records)]
    kept = {(row.name, row.offset) for row in log.rows if row.stream and row.position not in positions}
    assert found == {key: expected[key] for key in kept}
    assert [(each.first, each.end) for each in report.missing] == [(positions[0], positions[-1] + 1)]
    assert {(jump.stream, jump.end - jump.first) for jump in report.jumps} == {
        (name, sum(log.rows[p].name == name for p in positions)) for name in ("s", "t")
    }


async def test_the_last_segment_is_missed_by_its_marks(either: Machine) -> None:
    await filled(either)
    number = max(int(name[-24:-4]) for name in either.disk.files() if name.startswith("segments/"))
    either.backend().unlink(segment_name(number))
    _, report = salvaged(either)
    assert not report.complete
    assert report.durable_group > report.last_group


async def test_of_a_fork_what_the_marks_lead_to(either: Machine) -> None:
    await filled(either, 0, 12)
    fork = either.image()
    await filled(either, 12, 20)
    await filled(fork, 100, 20)
    expected, log = truth(either)
    shared = log.groups[-1].segment
    names = [name for name in fork.disk.files() if name.startswith("segments/") and name in either.disk.files()]
    name = max(names)
    other = f"segments/{90:020}.seg"
    data = fork.disk.files()[name]
    file = either.backend().open(other, "x")
    file.write(0, data)
    assert shared >= 1
    found, _ = salvaged(either)
    assert found == expected
    gone(either, MARKS, CHECKPOINT, HASHES)
    found, report = salvaged(either)
    assert found.items() <= expected.items()
    assert any(each.why == DOUBTFUL for each in report.missing)


async def test_a_payload_that_looks_like_a_group_is_none(machine: Machine) -> None:
    """A group that somebody has put together of what a receipt says, in the payload of one that is damaged."""
    await filled(machine, 0, 3)
    async with machine.open(segment_bytes=SEGMENT, pack=0) as db:
        await db.append("s", b"x" * 100)
        files = machine.disk.files()
        name = max(name for name in files if name.startswith("segments/"))
        start = files[name].rindex(b"KIMBGRP1")
        length = int.from_bytes(files[name][start + 8 : start + 12], "little")
        real = files[name][start : start + length]
        # At a place where a group may be.
        await db.append("s", bytes(BLOCK - GROUP_HEADER - 88 - 4 - 5 - 21) + real + bytes(2 * BLOCK))
    expected, log = truth(machine)
    group = next(g for g in log.groups if g.position + g.records == len(log.rows) and g.records)
    name = segment_name(group.segment)
    assert machine.disk.files()[name][group.place + BLOCK : group.place + BLOCK + 8] == b"KIMBGRP1"
    for lost in (range(8), range(BLOCK)):
        other = machine.image()
        other.write(name, group.place, b"\xaa" * len(lost))
        for nothing in ([], [HASHES, INDEX, CHECKPOINT]):
            gone(other, *nothing)
            for header in (False, True):
                if header:
                    other.write(name, 0, bytes(BLOCK))
                found, _ = salvaged(other)
                assert all(found[key][1] == expected[key][1] for key in found)


async def test_without_its_key_a_record_is_only_whole(encrypted: Machine) -> None:
    await filled(encrypted)
    expected, _ = truth(encrypted)
    gone(encrypted, *VAULTS)
    found, report = salvaged(encrypted)
    assert found == {}
    assert report.records == len(expected)
    assert {each.why for each in report.missing} == {NO_KEY}


async def test_one_copy_of_the_vault_is_enough_and_the_right_key_is_needed(encrypted: Machine) -> None:
    await filled(encrypted)
    expected, _ = truth(encrypted)
    encrypted.write(VAULTS[1], 0, bytes(BLOCK))
    encrypted.write(VAULTS[0], 0, bytes(BLOCK))
    assert salvaged(encrypted)[0] == expected
    gone(encrypted, VAULTS[0])
    assert salvaged(encrypted)[0] == expected
    key, encrypted.key = encrypted.key, None
    with pytest.raises(KeyUnavailable, match="encrypted"):
        salvaged(encrypted)
    assert key is not None
    create_master(key.with_name("another"))
    encrypted.key = key.with_name("another")
    assert salvaged(encrypted)[0] == {}


async def test_what_was_erased_stays_erased_though_an_old_vault_has_its_key(encrypted: Machine) -> None:
    await filled(encrypted)
    expected, _ = truth(encrypted)
    vaults = {name: encrypted.disk.files()[name] for name in VAULTS}
    async with encrypted.open(segment_bytes=SEGMENT, pack=0) as db:
        await db.erase("s", reason="on request")
    for name, data in vaults.items():
        encrypted.write(name, 0, data)
    for gone_too in ([], [CHECKPOINT]):
        gone(encrypted, *gone_too)
        found, report = salvaged(encrypted)
        assert found == {key: row for key, row in expected.items() if key[0] == "t"}
        assert {each.why for each in report.missing} == {ERASED}
        assert report.complete


async def test_what_was_dropped_stays_gone_though_only_a_checkpoint_says_so(either: Machine) -> None:
    receipts = await filled(either)
    before, (_, log) = either.disk.files(), truth(either)
    async with either.open(segment_bytes=SEGMENT, pack=0) as db:
        await db.retain(before=receipts[20].first_position)
        first = db._native.first
    last = max(name for name in either.disk.files() if name.startswith(SEGMENTS))
    gone(either, last)
    for name, data in before.items():
        if name.startswith(SEGMENTS) and name not in either.disk.files() and name != last:
            either.disk.create(name)
            either.write(name, 0, data)
    found, report = salvaged(either)
    places = {(row.name, row.offset): row.position for row in log.rows}
    assert first > 100
    assert found
    assert min(places[key] for key in found) >= first
    assert (report.missing[0].first, report.missing[0].end) == (0, first)
    with pytest.raises(Corrupt, match=r"nothing in front|must not come back"):
        await repair(either.backend, load_master(either.key), lambda _loss: True, Options(), Injected())
    gone(either, CHECKPOINT)
    assert min(places[key] for key in salvaged(either)[0]) < 100


async def test_a_name_that_is_lost_is_made_up(either: Machine) -> None:
    await filled(either)
    expected, log = truth(either)
    gone(either, CHECKPOINT, HASHES, RECEIPT_KEY)
    group = log.groups[0]
    # What declares the first stream is the first run.
    either.flip(segment_name(group.segment), group.place + GROUP_HEADER + 95)
    found, _ = salvaged(either)
    names = {"s": "unnamed/1", "t": "t"}
    assert found == {(names[stream], n): row for (stream, n), row in expected.items()}


async def test_a_directory_with_nothing_in_it_is_none(machine: Machine) -> None:
    with pytest.raises(Invalid, match="nothing that is left"):
        salvaged(machine)


async def test_segments_are_found_wherever_they_are(either: Machine) -> None:
    await filled(either)
    expected, _ = truth(either)
    backend = either.backend()
    for name in ("deep", "deep/down", "other"):
        backend.mkdir(name)
    backend.rename(segment_name(0), "aside")
    backend.rename(segment_name(1), "deep/down/here")
    # Known by its name where its header is lost.
    backend.rename(segment_name(2), f"other/{2:020}.seg")
    either.write(f"other/{2:020}.seg", 0, bytes(BLOCK))
    found, report = salvaged(either)
    assert found == expected
    assert {"aside: it is segment 0", "deep/down/here: it is segment 1"} <= set(report.notes)


async def test_what_is_no_part_of_the_log_is_left_out(machine: Machine) -> None:
    await filled(machine)
    expected, _ = truth(machine)
    other = Machine()
    await filled(other, 100, 2 * COUNT)
    backend = machine.backend()
    for name in ("copy", "copy/segments", "copy/index", "copy/prepare", "prepare/below"):
        backend.mkdir(name)
    for name, data in other.disk.files().items():
        backend.open(f"copy/{name}", "x").write(0, data)
    data = machine.disk.files()[segment_name(1)]
    backend.open("prepare/below/copy", "x").write(0, data)
    found, report = salvaged(machine)
    assert found == expected
    assert report.notes == ["copy: it is a database by itself, and is left out"]
    # What a repair gave up stays given up.
    backend.rename(segment_name(1), f"quarantine/{1:020}-0-5.tail")
    found, report = salvaged(machine)
    assert 0 < len(found) < len(expected)


@pytest.mark.parametrize("lost", [[], [MARKS, CHECKPOINT], [MARKS, CHECKPOINT, HASHES, INDEX, IDENTITY]])
async def test_of_nothing_it_says_why(either: Machine, lost: list[str]) -> None:
    async with either.open():
        pass
    assert reasons(either) == []
    await filled(either)
    assert reasons(either) == []
    gone(either, *lost)
    zeroed = either.image()
    gone(either, SEGMENTS)
    if IDENTITY in lost and not either.key:
        with pytest.raises(Invalid, match="nothing that is left"):
            reasons(either)
    else:
        assert reasons(either)[0] == "no segment is left"
    if IDENTITY not in lost:
        for name, data in zeroed.disk.files().items():
            if name.startswith("segments/"):
                zeroed.write(name, 0, bytes(len(data)))
        assert any("its header is damaged" in why for why in reasons(zeroed))


def reasons(machine: Machine) -> list[str]:
    finder = Finder(machine.backend(), load_master(machine.key))
    why = finder.why_none()
    finder.close()
    return why
