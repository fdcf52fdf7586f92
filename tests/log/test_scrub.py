"""What a disk lost of closed segments is found while nobody reads it, and nothing else is disturbed."""

from __future__ import annotations

import asyncio
import errno
import struct
from collections.abc import AsyncIterable
from datetime import UTC, datetime
from itertools import pairwise
from random import Random

import pytest

from kimberlite import Corrupt, KimberliteError, Log, Receipt, Record, Unavailable
from kimberlite.log import checkpoint, packing, scrub
from kimberlite.log.names import CHECKPOINT, HASHES, PAST, index_name, segment_name
from kimberlite.log.scrub import Scrubber
from kimberlite.storage.backend import BLOCK
from tests.log import simulated
from tests.log.simulated import Machine, failing, payloads
from tests.log.test_unreadable import unreadable

SEGMENT = 64 * 1024
COUNT = 60
FAST = 1 << 40


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "LEAST_INTERVAL", 0.002)
    monkeypatch.setattr(packing, "REST", 0)
    monkeypatch.setattr(packing, "PIECE", 16 * 1024)
    monkeypatch.setattr(scrub, "LATER", 0.0)
    monkeypatch.setattr(scrub, "REST", 0)
    monkeypatch.setattr(scrub, "AGAIN", 0.01)
    monkeypatch.setattr(scrub, "PASS", 0.0)
    monkeypatch.setattr(scrub, "PIECE", 16 * 1024)


def payload(i: int) -> bytes:
    return b"%d." % i * 50


async def filled(machine: Machine, pack: float = 0) -> list[Receipt]:
    """Segments of groups of a record each, and one with a group that is longer than a piece."""
    async with machine.open(segment_bytes=SEGMENT, pack=0, scrub=0) as db:
        receipts = [await db.append("s", payload(i), producer=("p", i)) for i in range(COUNT)]
        await db.append_many({"t": [bytes(20_000), b"", b"x"], "u": [Random(1).randbytes(20_000)]})
        for i in range(COUNT // 2):
            await db.append("s", payload(COUNT + i))
    if pack:
        async with machine.open(segment_bytes=SEGMENT, pack=pack, scrub=0) as db:
            assert db.upkeep is not None
            packer = db.upkeep.packer
            await simulated.until(lambda: holds(packer._task is None))
            assert packer.packed > 3
    return receipts


async def holds(truth: bool) -> bool:
    return truth


def scrubber(db: Log) -> Scrubber:
    assert db.upkeep is not None
    return db.upkeep.scrubber


def found(db: Log) -> list[KimberliteError]:
    assert db.upkeep is not None
    return list(db.upkeep.findings.found.values())


async def passed(db: Log, machine: Machine) -> None:
    """Returns when a pass is over that began after this was called."""
    for _ in range(2):
        machine.now += 1
        await simulated.until(lambda: holds(scrubber(db).ended >= machine.now))


def closed(machine: Machine) -> range:
    return range(sum(name.startswith("segments/") for name in machine.disk.files()) - 1)


def groups(data: bytes) -> list[tuple[int, int, int]]:
    """Place, number and first position of each; and where the last one ends."""
    place, rows = BLOCK, []
    align = 8 if data[10] else BLOCK
    while place < len(data) and data[place : place + 8] == b"KIMBGRP1":
        length, number, position = struct.unpack_from("<I4xQQ", data, place + 8)
        rows.append((place, number, position))
        place += -(-length // align) * align
    return [*rows, (place, 0, 0)]


@pytest.mark.parametrize("pack", [0, 1.0], ids=["padded", "packed"])
async def test_any_byte_that_changes_in_a_closed_segment_is_found_with_its_place(either: Machine, pack: float) -> None:
    receipts = await filled(either, pack)
    async with either.open(segment_bytes=SEGMENT, pack=0, scrub=FAST) as db:
        await passed(db, either)
        assert found(db) == []
        for number in closed(either):
            name = segment_name(number)
            data = either.disk.files()[name]
            rows = groups(data)
            assert len(rows) > 3
            random = Random(number)
            flipped = [7, 100, 3000, BLOCK - 1, *(random.randrange(BLOCK, len(data)) for _ in range(6))]
            flipped += [place + random.randrange(104) for place, _, _ in rows[:-1:7]]
            for place in flipped:
                before = len(found(db))
                either.flip(name, place)
                await passed(db, either)
                either.flip(name, place)
                new = found(db)[before:]
                [(start, group, position)] = [
                    row for row, after in pairwise([(0, *rows[0][1:]), *rows]) if row[0] <= place < after[0]
                ]
                where = f"{name}, byte {start}, group {group}, position {position}: "
                assert [error for error in new if not str(error).startswith(where)] == []
                # By the same check another byte of the group may have been found before.
                assert any(str(error).startswith(where) for error in found(db))
        assert len(found(db)) > 20
        assert await payloads(db.read("s", limit=COUNT)) == [payload(i) for i in range(COUNT)]
        assert (await db.info())["notes"] == [str(error) for error in found(db)]
        for receipt in receipts:
            assert (await db.get(receipt.first_position)).payload == payload(receipt.first_offset)
    assert either.verify(receipts[-1]).notes == []


async def test_what_is_cut_off_or_put_behind_a_closed_segment_is_found(either: Machine) -> None:
    await filled(either)
    async with either.open(segment_bytes=SEGMENT, pack=0, scrub=FAST) as db:
        data = either.disk.files()[segment_name(1)]
        end = groups(data)[-1][0]
        file = either.backend().open(segment_name(1), "w")
        for length, extra in ((end - BLOCK, b""), (end, b"\0" * 5000), (end, b"\0" * 300 + b"x"), (0, b"")):
            file.truncate(length)
            if extra:
                file.write(length, extra)
            await passed(db, either)
            file.truncate(0)
            file.write(0, data)
        _, number, position = last = groups(data)[-2]
        wanted = [
            f"byte {last[0]}, group {number}, position {position}: ",
            f"byte {end + 300}: there are bytes behind the closing group",
            "byte 0, group ",
        ]
        for each in wanted:
            assert any(str(error).startswith(f"{segment_name(1)}, {each}") for error in found(db)), each
        # Zeros behind it are room that was not needed.
        assert not any(f"byte {end}" in str(error) for error in found(db))


async def test_a_segment_that_is_gone_is_missed(either: Machine) -> None:
    await filled(either)
    async with either.open(segment_bytes=SEGMENT, pack=0, scrub=FAST) as db:
        either.backend().unlink(segment_name(2))
        await passed(db, either)
        assert [str(error) for error in found(db)] == [f"{segment_name(2)}: it is missing"]


async def test_a_damaged_segment_keeps_nobody_from_the_others(either: Machine) -> None:
    receipts = await filled(either)
    for number in closed(either)[::2]:
        either.flip(segment_name(number), 2 * BLOCK + 300)
    async with either.open(segment_bytes=SEGMENT, pack=0, scrub=FAST) as db:
        await passed(db, either)
        wanted = sorted(segment_name(number) for number in closed(either)[::2])
        assert sorted(error.file for error in found(db) if isinstance(error, Corrupt)) == wanted
        await passed(db, either)
        assert len(found(db)) == len(wanted)
        damaged = 0
        for receipt in receipts:
            try:
                assert (await db.get(receipt.first_position)).payload == payload(receipt.first_offset)
            except Corrupt:
                damaged += 1
        assert 0 < damaged <= len(wanted)
        await db.append("s", b"and on")


async def upto_damage(records: AsyncIterable[Record]) -> list[int]:
    found = []
    try:
        async for record in records:
            found.append(record.offset)  # noqa: PERF401 (what came in front of the damage counts)
    except Corrupt:
        return found
    raise AssertionError("no damage was met")


async def test_what_is_sound_beside_the_damage_is_read_from_both_sides(either: Machine) -> None:
    await filled(either)
    either.flip(segment_name(2), 2 * BLOCK + 300)
    async with either.open(segment_bytes=SEGMENT, pack=0, scrub=0) as db:
        first = await upto_damage(db.read("s"))
        assert await upto_damage(db.tail("s", start=0)) == first
        behind = await upto_damage(db.read("s", reverse=True))
        damaged = range(len(first), behind[-1])
        assert first == list(range(damaged.start))
        assert behind == list(range(COUNT + COUNT // 2 - 1, damaged.stop - 1, -1))
        assert 0 < len(damaged) < 5
        assert len(await payloads(db.read("s", start=damaged.stop))) == len(behind)
        for offset in damaged:
            assert await upto_damage(db.read("s", start=offset, limit=1)) == []


def time_of(record: Record) -> datetime:
    return datetime.fromtimestamp(record.timestamp // 10**9, UTC)


async def test_what_is_sound_beside_segments_that_are_gone_is_read(either: Machine) -> None:
    async with either.open(segment_bytes=SEGMENT, pack=0, scrub=0) as db:
        for i in range(COUNT):
            await db.append("s", payload(i))
            either.wait(10**9)
        whole = [record async for record in db.read("s")]
    async with either.open(read_only=True) as reader, either.open(segment_bytes=SEGMENT, pack=0, scrub=0) as db:
        missing = [db._native.ended(number) for number in (0, 2)]
        assert missing[0] is not None
        assert missing[1] is not None
        for number in (1, 2):
            either.backend().unlink(segment_name(number))
            either.backend().unlink(index_name(number))
        front = [record for record in whole if record.position < missing[0][0]]
        back = [record for record in whole if record.position >= missing[1][0]]
        assert min(len(front), len(back)) > 2
        for handle in (reader, db):
            for start in (None, front[2].offset, time_of(front[0])):
                with pytest.raises(Corrupt, match=r"^segments/.*[12]\.seg.*it is missing$"):
                    await payloads(handle.read("s", start=start))
            with pytest.raises(Corrupt, match="it is missing"):
                await handle.get(missing[0][0])
            assert await payloads(handle.read("s", start=back[1].offset)) == [record.payload for record in back[1:]]
            late = time_of(back[-1])
            assert len(await payloads(handle.read("s", start=late))) > 0
            found = await upto_damage(handle.read("s", until=late, reverse=True))
            # What is still open is read.
            assert found[: len(back) - 1] == [record.offset for record in reversed(back[:-1])]
            assert await upto_damage(handle.read("s", start=time_of(front[0]))) == [r.offset for r in front]


async def test_a_wrong_hash_is_found_and_made_again(either: Machine) -> None:
    receipts = await filled(either)
    right = either.disk.files()[HASHES]
    async with either.open(segment_bytes=SEGMENT, pack=0, scrub=0) as db:
        first = db._native.segment_of(receipts[-1].first_position)
    # Those of a segment lie one behind the other; of the last segment none is read again.
    end = BLOCK + 64 * receipts[-1].first_position - 64
    assert first > 2
    for places in ([0], [100], [BLOCK], [BLOCK + 33, end - 32], list(range(BLOCK, end, 32))):
        machine = either.image()
        async with machine.open(segment_bytes=SEGMENT, pack=0, scrub=FAST) as db:
            # A start sees some of it by itself.
            for place in places:
                machine.flip(HASHES, place)
            await passed(db, machine)
            said = [error.place for error in found(db) if isinstance(error, Corrupt) and error.file == HASHES]
            assert len(said) == len(found(db))
            assert said
            # Of each segment the first is named.
            assert set(said) <= set(places)
            assert len(places) > 2 or set(said) == set(places)
            # But for the header, which is gone if a read has found something wrong, too.
            assert machine.disk.files()[HASHES][BLOCK:end] == right[BLOCK:end]
            for receipt in receipts:
                assert (await db.get(receipt.first_position)).payload == payload(receipt.first_offset)
        assert CHECKPOINT in machine.disk.files()
        async with machine.open(segment_bytes=SEGMENT, pack=0, scrub=FAST) as db:
            await passed(db, machine)
            assert found(db) == []
        assert machine.disk.files()[HASHES] == right
        assert machine.verify(receipts[-1]).notes == []


async def test_a_wrong_hash_beside_a_damaged_segment_keeps_no_start_from_going_on(either: Machine) -> None:
    receipts = await filled(either)
    right = either.disk.files()[HASHES]
    either.flip(segment_name(1), 2 * BLOCK + 300)
    last = receipts[-1].first_position
    for place in (0, BLOCK, BLOCK + 64 * (last // 2), BLOCK + 64 * last - 96):
        machine = either.image()
        for n in range(2):
            async with machine.open(segment_bytes=SEGMENT, pack=0, scrub=FAST) as db:
                if n == 0:
                    machine.flip(HASHES, place)
                await passed(db, machine)
                files = {error.file for error in found(db) if isinstance(error, Corrupt)}
                assert files == ({segment_name(1), HASHES} if n == 0 else {segment_name(1)})
                assert machine.disk.files()[HASHES][BLOCK : len(right)] == right[BLOCK:]
                assert (await db.get(receipts[-1].first_position)).offset == receipts[-1].first_offset


async def test_what_is_wrong_in_the_hashes_of_what_was_dropped_is_found(either: Machine) -> None:
    receipts = await filled(either)
    async with either.open(segment_bytes=SEGMENT, pack=0, scrub=0) as db:
        await db.retain(before=receipts[-1].first_position)
        end = BLOCK + 32 * (2 * db._native.first - db._native.first.bit_count())
    assert end > BLOCK + 2000
    # Where a hash lies, from which others follow, the place of one of those may be said.
    for place in (BLOCK, BLOCK + 33, BLOCK + 64, BLOCK + 1000, end - 1):
        machine = either.image()
        machine.flip(PAST, place)
        async with machine.open(segment_bytes=SEGMENT, pack=0, scrub=FAST) as db:
            await passed(db, machine)
            [error] = found(db)
            assert isinstance(error, Corrupt)
            assert error.file == PAST
            assert error.place is None or place - 32 < error.place < place + 256
            machine.flip(PAST, place)
            await passed(db, machine)
            assert len(found(db)) == 1
            await db.append("s", b"and on")
            # Nothing else hangs on it.
            assert not db._native.doubted
    machine = either.image()
    machine.backend().unlink(PAST)
    async with machine.open(segment_bytes=SEGMENT, pack=0, scrub=FAST) as db:
        await passed(db, machine)
        assert [str(error) for error in found(db)] == [f"{PAST}: it is missing"]
    # A full disk may have left a hole in it.
    either.write(PAST, BLOCK + 320, bytes(320))
    async with either.open(segment_bytes=SEGMENT, pack=0, scrub=FAST) as db:
        await passed(db, either)
        assert found(db) == []


@pytest.mark.parametrize("pack", [0, 1.0], ids=["padded", "packed"])
async def test_a_wrong_index_is_found_and_made_again(either: Machine, pack: float) -> None:
    receipts = await filled(either, pack)
    async with either.open(segment_bytes=SEGMENT, pack=0, scrub=FAST) as db:
        for number in closed(either):
            name = index_name(number)
            right = either.disk.files()[name]
            for place in [0, 20, 47, 80, *range(96, len(right), 61), len(right) - 1]:
                before = len(found(db))
                either.flip(name, place)
                await passed(db, either)
                assert either.disk.files()[name] == right
                [error] = found(db)[before:]
                assert str(error).startswith(f"{name}, byte {place}: it is not what the segment says")
                if len(found(db)) > 60:
                    return
            for data in (right[:-1], right + b"\0", b""):
                either.backend().unlink(name)
                either.backend().open(name, "x").write(0, data)
                await passed(db, either)
                assert either.disk.files()[name] == right
                place = min(len(data), len(right))
                assert any(str(error).startswith(f"{name}, byte {place}: it is not what") for error in found(db))
        assert await payloads(db.read("s", limit=COUNT)) == [payload(i) for i in range(COUNT)]
    either.verify(receipts[-1])


async def test_an_index_that_is_gone_or_of_the_file_before_is_made_again_and_no_damage(either: Machine) -> None:
    await filled(either)
    old = either.disk.files()[index_name(0)]
    async with either.open(segment_bytes=SEGMENT, pack=1.0, scrub=0) as db:
        assert db.upkeep is not None
        packer = db.upkeep.packer
        await simulated.until(lambda: holds(packer._task is None))
    right = [either.disk.files()[index_name(number)] for number in (0, 1)]
    either.backend().unlink(index_name(0))
    either.backend().open(index_name(0), "x").write(0, old)
    either.backend().unlink(index_name(1))
    async with either.open(segment_bytes=SEGMENT, pack=0, scrub=FAST) as db:
        await passed(db, either)
        assert found(db) == []
    assert [either.disk.files()[index_name(number)] for number in (0, 1)] == right


async def test_what_the_disk_cannot_read_is_said_and_the_rest_is_read(either: Machine) -> None:
    receipts = await filled(either)
    places = {segment_name(1): 3 * BLOCK, HASHES: BLOCK, index_name(0): 0, segment_name(0): 0}
    for name, place in places.items():
        machine = either.image()
        async with machine.open(segment_bytes=SEGMENT, pack=0, scrub=FAST) as db:
            machine.fault = unreadable(name, place, place + 1)
            await passed(db, machine)
            [error] = found(db)
            assert isinstance(error, Unavailable)
            assert str(error) == f"the disk cannot read {name}, byte {place}"
            machine.fault = None
            for receipt in receipts[20:]:
                assert (await db.get(receipt.first_position)).payload == payload(receipt.first_offset)
            await passed(db, machine)
            assert len(found(db)) == 1
        machine.verify(receipts[-1])


@pytest.mark.parametrize("verb", ["open", "size"])
async def test_what_the_system_refuses_for_a_while_is_tried_again(machine: Machine, verb: str) -> None:
    await filled(machine)
    async with machine.open(segment_bytes=SEGMENT, pack=0, scrub=FAST) as db:
        machine.fault = failing(verb, "segments/", errno.EMFILE)
        before = scrubber(db).ended
        await asyncio.sleep(0.05)
        assert scrubber(db).ended == before
        machine.fault = None
        await passed(db, machine)
        assert found(db) == []


async def test_who_stands_in_a_segments_place_is_said(machine: Machine) -> None:
    await filled(machine)
    async with machine.open(segment_bytes=SEGMENT, pack=0, scrub=FAST) as db:
        machine.fault = failing("open", segment_name(1), errno.ELOOP)
        await passed(db, machine)
        [error] = found(db)
        assert str(error).startswith(f"{segment_name(1)}: ")


async def test_nothing_is_found_while_segments_are_closed_packed_and_dropped(either: Machine) -> None:
    async with either.open(segment_bytes=SEGMENT, pack=1.0, scrub=FAST, checkpoint_records=1) as db:
        receipts = []
        for i in range(4 * COUNT):
            receipts.append(await db.append("s", payload(i)))
            if i % 40 == 39:
                await db.retain(before=receipts[-30].first_position)
            await asyncio.sleep(0.0005)
        assert db.upkeep is not None
        assert db.upkeep.packer.packed > 5
        assert db._native.first > 0
        await passed(db, either)
        assert found(db) == []
        assert (await anext(db.read("s", reverse=True))).payload == payload(4 * COUNT - 1)
    report = either.verify(receipts[-1])
    assert report.notes == []
    for name, data in either.disk.files().items():
        if name.startswith("index/"):
            segment = segment_name(int(name[6:26]))
            assert data[48:80] == either.disk.files()[segment][88:120]


async def test_a_segment_that_is_packed_or_dropped_beneath_it_is_looked_at_again(either: Machine) -> None:
    """At each turn of the loop once."""
    receipts = await filled(either)
    for turns in range(0, 120, 2):
        machine = either.image()
        packed = turns % 4 == 0
        async with machine.open(segment_bytes=SEGMENT, pack=1.0 if packed else 0, scrub=FAST) as db:
            for _ in range(turns):
                await asyncio.sleep(0)
            if not packed:
                await db.retain(before=receipts[40].first_position)
            await passed(db, machine)
            assert found(db) == []
        files = machine.disk.files()
        assert all(
            data[48:80] == files[segment_name(int(name[6:26]))][88:120]
            for name, data in files.items()
            if name.startswith("index/")
        )
        assert machine.verify(receipts[-1]).notes == []


async def test_what_was_erased_is_scrubbed_like_the_rest(encrypted: Machine) -> None:
    await filled(encrypted)
    async with encrypted.open(segment_bytes=SEGMENT, pack=0, scrub=FAST) as db:
        await db.erase("s", reason="asked to")
        await passed(db, encrypted)
        assert found(db) == []
        encrypted.flip(segment_name(1), 2 * BLOCK + 300)
        await passed(db, encrypted)
        assert len(found(db)) == 1
    encrypted.flip(segment_name(1), 2 * BLOCK + 300)
    async with encrypted.open(segment_bytes=SEGMENT, pack=0, scrub=FAST) as db:
        await passed(db, encrypted)
        assert found(db) == []


async def test_nothing_is_judged_while_a_segment_is_being_packed(either: Machine) -> None:
    await filled(either)
    async with either.open(segment_bytes=SEGMENT, pack=0, scrub=FAST) as db:
        assert db.upkeep is not None
        async with db.upkeep.packer.lock:
            # As packing does, between a new file and who is told of it.
            either.flip(segment_name(1), 100)
            await asyncio.sleep(0.1)
            assert found(db) == []
        await passed(db, either)
        assert len(found(db)) == 1


async def test_a_segment_that_is_dropped_is_read_no_further(machine: Machine) -> None:
    await filled(machine)
    async with machine.open(segment_bytes=SEGMENT, pack=0, scrub=256 * 1024) as db:
        # It has begun with some segment.
        await simulated.until(lambda: holds(scrubber(db).read > 3 * BLOCK))
        before = machine.disk.files().keys()
        await db.retain(before=db.durable_position)
        gone = before - machine.disk.files().keys()
        trace = machine.watch()
        await asyncio.sleep(0.2)
        assert [name for verb, name, _, _ in trace if verb == "read" and name in gone] == []
        assert found(db) == []


async def test_it_can_be_closed_at_any_moment(either: Machine) -> None:
    receipts = await filled(either)
    for turns in range(0, 60, 3):
        machine = either.image()
        async with machine.open(segment_bytes=SEGMENT, scrub=FAST):
            for _ in range(turns):
                await asyncio.sleep(0)
        machine.verify(receipts[-1])
    async with asyncio.timeout(5), either.open(segment_bytes=SEGMENT, scrub=1):
        await asyncio.sleep(0.01)


async def test_no_more_is_read_than_so_many_bytes_a_second(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    await filled(machine)
    rate = 512 * 1024
    sizes = {name: len(data) for name, data in machine.disk.files().items()}
    async with machine.open(segment_bytes=SEGMENT, pack=0, scrub=rate) as db:
        trace = machine.watch()
        loop = asyncio.get_running_loop()
        before = loop.time()
        while scrubber(db).read < 200_000:
            reads = [(sizes[name] - place, length) for verb, name, place, length in trace if verb == "read"]
            read = sum(min(left, length) for left, length in reads)
            # A piece and its hashes at once, and those before it.
            assert read <= rate * (loop.time() - before) + 64 * 1024
            await asyncio.sleep(0.001)
        # And no less, if nobody is in its way: as slow as this no machine is.
        assert loop.time() - before < 20
    monkeypatch.setattr(scrub, "REST", 50)
    async with machine.open(segment_bytes=SEGMENT, pack=0, scrub=FAST) as db:
        busy, run = 0.0, db._backend.run

        async def timed(call: object) -> object:
            nonlocal busy
            begun = loop.time()
            try:
                return await run(call)  # type: ignore[arg-type]
            finally:
                busy += loop.time() - begun

        monkeypatch.setattr(db._backend, "run", timed)
        before = loop.time()
        await simulated.until(lambda: holds(scrubber(db).read > 100_000))
        assert busy < (loop.time() - before) / 10


async def test_a_pass_begins_no_sooner_than_so_long_after_the_one_before(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(machine)
    monkeypatch.setattr(scrub, "PASS", 3600.0)
    async with machine.open(segment_bytes=SEGMENT, pack=0, scrub=FAST) as db:
        await simulated.until(lambda: holds(scrubber(db).passed == len(closed(machine))))
        assert scrubber(db).left == 0
        read = scrubber(db).read
        files = machine.disk.files()
        # Each file once, and of `hashes` its header for each segment.
        assert read <= sum(len(data) for data in files.values()) + BLOCK * len(closed(machine))
        await asyncio.sleep(0.05)
        assert scrubber(db).read == read


async def test_every_segment_has_its_turn_though_no_pass_is_ever_over(machine: Machine) -> None:
    await filled(machine)
    trace = machine.watch()
    seen: set[str] = set()

    async def read(db: Log) -> None:
        await simulated.until(lambda: holds(scrubber(db).read > 2 * BLOCK))

    for _ in range(200):
        async with machine.open(segment_bytes=SEGMENT, pack=0, scrub=16 * SEGMENT) as db:
            stopped = scrubber(db)
            await read(db)
        assert (stopped.passed, stopped.ended) == (0, 0)
        seen |= {name for verb, name, place, _ in trace if verb == "read" and place == BLOCK and name[:4] == "segm"}
        if len(seen) >= len(closed(machine)):
            return
    pytest.fail(f"only {seen}")


async def test_it_reads_nothing_if_it_is_not_to(machine: Machine) -> None:
    await filled(machine)
    machine.flip(segment_name(0), 2 * BLOCK + 300)
    async with machine.open(segment_bytes=SEGMENT, pack=0, scrub=0, checkpoint_records=1) as db:
        for i in range(COUNT):
            await db.append("s", payload(i))
        await asyncio.sleep(0.02)
        assert scrubber(db).read == 0
        assert found(db) == []
