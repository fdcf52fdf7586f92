"""Files that follow from the segments: taken now and then, believed only when they fit, and never needed."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

import kimberlite
from kimberlite import Log, Receipt, RolledBack
from kimberlite.crypto.master import load_master
from kimberlite.log import checkpoint
from kimberlite.log.loading import load_identity, load_keys, new_log
from kimberlite.log.names import CHECKPOINT, HASHES, PRODUCERS, index_name, segment_name
from kimberlite.log.options import Options
from tests.log import simulated
from tests.log.simulated import Machine, failing, payloads

DERIVED = (HASHES, PRODUCERS, CHECKPOINT)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "LEAST_INTERVAL", 0.002)
    monkeypatch.setattr(checkpoint, "AGAIN", 0.004)


async def until(holds: Callable[[], bool]) -> None:
    async def condition() -> bool:
        return holds()

    await simulated.until(condition)


async def filled(machine: Machine) -> list[Receipt]:
    """Some segments of appends by a producer, closed cleanly."""
    async with machine.open(segment_bytes=64 * 1024) as db:
        return [await db.append("s", b"%d" % i * 900, producer=("p", i)) for i in range(60)]


def replace(machine: Machine, other: Machine) -> None:
    """The checkpoint of another disk is put in the place of this one's."""
    data = other.disk.files()[CHECKPOINT]
    machine.backend().open(CHECKPOINT, "w").truncate(len(data))
    machine.write(CHECKPOINT, 0, data)


async def same(machine: Machine, receipts: list[Receipt]) -> None:
    """A writer finds what was appended, remembers who did, and goes on."""
    async with machine.open(segment_bytes=64 * 1024) as db:
        assert await payloads(db.read("s")) == [b"%d" % i * 900 for i in range(60)]
        assert (await db.info())["root"] == receipts[-1].root.hex()
        assert await db.append("s", b"7" * 900, producer=("p", 7)) == receipts[7]
    machine.verify(receipts[30])


def named(machine: Machine) -> int:
    """The group that the checkpoint was taken of."""
    backend = machine.backend()
    identity = load_identity(backend)
    assert identity is not None
    keys = load_keys(backend, identity, load_master(machine.key), os.urandom, read_only=True)
    resume = new_log(identity, keys, Options(), None).resume(machine.disk.files()[CHECKPOINT])
    assert resume is not None
    return resume.group


async def replayed(machine: Machine) -> int:
    """Bytes of segments that the next open reads."""
    sizes = {name: len(data) for name, data in machine.disk.files().items()}
    trace = machine.watch()
    async with machine.open(segment_bytes=64 * 1024):
        reads = [(sizes.get(name, 0) - place, length) for verb, name, place, length in trace if verb == "read"]
    machine.disk.trace = None
    return sum(max(0, min(rest, length)) for rest, length in reads)


async def test_a_checkpoint_is_taken_after_so_many_records(machine: Machine) -> None:
    async with machine.open(checkpoint_records=20) as db:
        await db.append("s", [b"x"] * 10)
        await asyncio.sleep(0.02)
        await db.append("s", b"x")
        assert CHECKPOINT not in machine.disk.files()
        await db.append("s", [b"x"] * 10)
        await until(lambda: CHECKPOINT in machine.disk.files())
        before = machine.disk.files()[CHECKPOINT]
        await asyncio.sleep(0.01)
        await db.append("s", [b"x"] * 25)
        await until(lambda: machine.disk.files()[CHECKPOINT] != before)


async def test_a_checkpoint_is_taken_after_so_many_bytes(machine: Machine) -> None:
    async with machine.open(checkpoint_bytes=40_000) as db:
        await db.append("s", bytes(20_000))
        await asyncio.sleep(0.01)
        assert CHECKPOINT not in machine.disk.files()
        await db.append("s", bytes(30_000))
        await until(lambda: CHECKPOINT in machine.disk.files())


async def test_a_checkpoint_names_only_what_was_synced_before_it_was_put_in_place(either: Machine) -> None:
    async with either.open(checkpoint_records=5) as db:
        await db.append("s", b"x", producer=("p", 0))
        await asyncio.sleep(0.01)
        trace = either.watch()
        await db.append("s", [b"x"] * 9, producer=("p", 1))
        await until(lambda: any(verb == "rename" for verb, *_ in trace))
        await asyncio.sleep(0.01)
    steps = [(verb, name) for verb, name, *_ in trace]
    placed = steps.index(("rename", "prepare/checkpoint -> checkpoint"))
    for name in (HASHES, PRODUCERS, "prepare/checkpoint"):
        assert steps.index(("write", name)) < steps.index(("sync", name)) < placed
    durable = next(
        i for i, (verb, name) in enumerate(steps) if verb in ("durable", "synced") and name == segment_name(0)
    )
    assert durable < steps.index(("write", HASHES))
    assert steps[placed + 1] == ("sync_directory", "")


async def test_a_start_reads_only_what_is_behind_the_checkpoint(either: Machine) -> None:
    await filled(either)
    with_it = await replayed(either)
    either.backend().unlink(CHECKPOINT)
    without = await replayed(either)
    segments = len([name for name in either.disk.files() if name.startswith("segments/")])
    assert segments > 3
    assert with_it < without / 2


@pytest.mark.parametrize("gone", [*DERIVED, "index", "all"])
async def test_derived_files_may_be_deleted_and_are_made_again(either: Machine, gone: str) -> None:
    receipts = await filled(either)
    for name in list(either.disk.files()):
        derived = name in DERIVED or name.startswith("index/")
        if derived and (gone == "all" or name.startswith(gone)):
            either.backend().unlink(name)
    async with either.open(read_only=True) as reader:
        assert len(await payloads(reader.read("s"))) == 60
    await same(either, receipts)
    assert set(DERIVED) <= set(either.disk.files())


@pytest.mark.parametrize("name", [*DERIVED, index_name(0), index_name(2)])
@pytest.mark.parametrize("place", [0, 60, -1])
async def test_a_flipped_bit_in_a_derived_file_is_never_believed(either: Machine, name: str, place: int) -> None:
    receipts = await filled(either)
    either.flip(name, place % len(either.disk.files()[name]))
    await same(either, receipts)


async def test_a_record_is_read_whatever_a_bit_of_the_hashes_says(either: Machine) -> None:
    receipts = await filled(either)
    for place in range(4096, len(either.disk.files()[HASHES]), 32 * 7):
        either.flip(HASHES, place)
    for read_only in (True, False):
        async with either.open(segment_bytes=64 * 1024, read_only=read_only) as db:
            for i, receipt in enumerate(receipts):
                assert (await db.get(receipt.first_position)).payload == b"%d" % i * 900


async def test_hashes_of_another_database_are_made_again(either: Machine) -> None:
    receipts = await filled(either)
    other = Machine(either.key)
    await filled(other)
    either.write(HASHES, 0, other.disk.files()[HASHES])
    await same(either, receipts)


@pytest.mark.parametrize("name", [*DERIVED, index_name(0)])
async def test_a_derived_file_that_was_cut_is_made_again(either: Machine, name: str) -> None:
    receipts = await filled(either)
    either.backend().open(name, "w").truncate(len(either.disk.files()[name]) // 2)
    await same(either, receipts)


async def test_a_derived_file_that_cannot_be_written_costs_nobody_an_append(either: Machine) -> None:
    for name in (HASHES, PRODUCERS, "prepare/checkpoint", "prepare/index"):
        machine = Machine(either.key)
        async with machine.open(checkpoint_records=5, segment_bytes=64 * 1024) as db:
            machine.fault = failing("write", name)
            for i in range(30):
                assert (await db.append("s", b"%d" % i * 900, producer=("p", i))).durable
            await asyncio.sleep(0.005)
            assert len(await payloads(db.read("s"))) == 30
            machine.fault = None
            assert (await db.append("s", b"more")).durable
        machine.verify()
        async with machine.open(segment_bytes=64 * 1024) as db:
            assert len(await payloads(db.read("s"))) == 31


@pytest.mark.parametrize("name", [HASHES, PRODUCERS, "prepare/checkpoint", "prepare/index"])
async def test_checkpoints_come_again_when_the_disk_has_room_again(either: Machine, name: str) -> None:
    async with either.open(checkpoint_records=5, segment_bytes=64 * 1024) as db:
        receipts, found = [], None
        for i in range(60):
            if i == 6:
                found = either.disk.files()[CHECKPOINT]
            either.fault = failing("write", name, errno.ENOSPC) if 5 < i < 40 else None
            # Producers that cannot be appended to are written anew, and an index waits for its segment's end.
            if i == 40 and name in (HASHES, "prepare/checkpoint"):
                assert either.disk.files()[CHECKPOINT] == found
            receipts.append(await db.append("s", b"%d" % i * 900, producer=("p", i)))
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        receipts.append(await db.append("t", b"last"))
        await asyncio.sleep(0.01)
        left = either.image()
    assert left.disk.files()[CHECKPOINT] != found
    assert named(left) > 40
    async with left.open(segment_bytes=64 * 1024) as db:
        assert await payloads(db.read("s")) == [b"%d" % i * 900 for i in range(60)]
        for i in (0, 7, 30, 59):
            assert await db.append("s", b"%d" % i * 900, producer=("p", i)) == receipts[i]
    left.verify(receipts[-1])


async def test_a_checkpoint_ahead_of_the_log_is_a_rollback(either: Machine) -> None:
    await filled(either)
    behind = either.image()
    async with either.open(segment_bytes=64 * 1024) as db:
        await db.append("s", [bytes(900)] * 5)
    replace(behind, either)
    for _ in range(2):
        with pytest.raises(RolledBack):
            await behind.open(segment_bytes=64 * 1024)
        with pytest.raises(RolledBack):
            behind.verify()


async def test_a_checkpoint_of_another_database_is_ignored(machine: Machine) -> None:
    receipts = await filled(machine)
    other = Machine()
    await filled(other)
    replace(machine, other)
    await same(machine, receipts)


async def test_checkpoints_under_load_stay_out_of_the_way_of_order(either: Machine) -> None:
    async with either.open(checkpoint_records=20, segment_bytes=64 * 1024) as db:
        await appended(db, 300)
        dead = either.image()
    for machine in (either, dead):
        async with machine.open(segment_bytes=64 * 1024) as db:
            assert await payloads(db.read("s")) == [b"%d" % i * 200 for i in range(300)]
        machine.verify()


async def appended(db: Log, count: int) -> None:
    for start in range(0, count, 20):
        await asyncio.gather(*(db.append("s", b"%d" % i * 200) for i in range(start, start + 20)))
        await asyncio.sleep(0.001)


async def test_what_many_kills_left_is_not_replayed_at_every_start(either: Machine) -> None:
    machine = either
    for i in range(20):
        db = await machine.open()
        await db.append("s", b"%d" % i, producer=("p", i))
        left = machine.image()
        await db.close()
        machine = left
    names = machine.disk.files()
    assert len([name for name in names if name.startswith("segments/")]) >= 20
    assert CHECKPOINT in names
    assert len([name for name in names if name.startswith("index/")]) >= 12
    async with machine.open() as db:
        assert await payloads(db.read("s")) == [b"%d" % i for i in range(20)]
        assert (await db.append("s", b"3", producer=("p", 3))).first_offset == 3
    machine.verify()


async def test_hashes_that_are_wrong_are_made_again_for_whoever_asks_and_by_the_next_start(
    either: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipts = await filled(either)
    right = either.disk.files()[HASHES]
    # None of these is a peak: those a start looks at.
    either.write(HASHES, 4096 + 32 * 3, bytes(32 * 57))
    async with either.open(segment_bytes=64 * 1024) as db:
        for i in (0, 7, 30, 59):
            assert (await db.get(receipts[i].first_position)).offset == i
            assert await db.append("s", b"%d" % i * 900, producer=("p", i)) == receipts[i]
        assert either.disk.files()[HASHES] != right
        await db.append("s", b"more")
    # The file says that it is not believed any more: it is made from the segments. Who only checks says so, too.
    assert not any(either.disk.files()[HASHES][:4096])
    [note] = either.verify(receipts[-1]).notes
    assert note == "hashes: a writer did not believe it, and the next one that opens makes it again"
    async with either.open(segment_bytes=64 * 1024) as db:
        assert (await db.get(receipts[3].first_position)).offset == 3
    assert either.disk.files()[HASHES][: len(right)] == right
    assert either.verify(receipts[-1]).notes == []


async def test_more_wrong_hashes_than_a_loop_can_wait_for_are_made_again_beside_it(machine: Machine) -> None:
    async with machine.open() as db:
        receipts = [await db.append("s", [b"%d" % i] * 500) for i in range(40)]
    # All below the first peak, which is of 16,384 records.
    machine.write(HASHES, 4096, bytes(32 * (2 * 16_384 - 2)))
    async with machine.open() as db:
        with pytest.raises(kimberlite.Corrupt):
            db._native.get(receipts[0].first_position)
        assert (await db.get(receipts[0].first_position)).payload == b"0"


@pytest.mark.parametrize("place", [0, 8, 30, 4095])
async def test_a_file_of_hashes_whose_header_is_wrong_is_named_and_made_again(either: Machine, place: int) -> None:
    receipts = await filled(either)
    right = either.disk.files()[HASHES]
    either.flip(HASHES, place)
    assert either.verify().notes == ["hashes: its header is wrong; delete the file to have it made again"]
    await same(either, receipts)
    assert either.disk.files()[HASHES][: len(right)] == right


def spoil(machine: Machine, how: str) -> None:
    """Damage to the file of hashes."""
    size = len(machine.disk.files()[HASHES])
    if how == "gone":
        machine.backend().unlink(HASHES)
    elif how == "short":
        machine.backend().open(HASHES, "w").truncate(5000)
    else:
        machine.write(HASHES, {"header": 0, "peaks": size - 32 * 8}[how], b"x" * 32 * 8)


@pytest.mark.parametrize("how", ["gone", "short", "header", "peaks", "read"])
async def test_what_is_wrong_in_the_hashes_refuses_no_start_that_was_none_without_it(either: Machine, how: str) -> None:
    receipts = await filled(either)
    damaged = (segment_name(1), 2 * 4096 + 300)
    right = either.disk.files()[HASHES]
    either.flip(*damaged)
    if how == "read":
        # The leaf beside that of the third record.
        either.flip(HASHES, 4096 + 32 * 3)
        async with either.open(segment_bytes=64 * 1024, pack=0, scrub=0) as db:
            assert (await db.get(receipts[2].first_position)).offset == 2
        assert not any(either.disk.files()[HASHES][:4096])
    else:
        spoil(either, how)
    # What is beside the damage is proven by its hash alone.
    proven = receipts if how in ("header", "peaks", "read") else receipts[-20:]
    for n in range(2):
        left = either.disk.files()
        async with either.open(segment_bytes=64 * 1024, read_only=True) as reader:
            for receipt in proven[::19]:
                assert (await reader.get(receipt.first_position)).offset == receipt.first_offset
            with pytest.raises(kimberlite.Corrupt):
                await payloads(reader.read("s"))
        assert either.disk.files() == left
        async with either.open(segment_bytes=64 * 1024, pack=0, scrub=0) as db:
            notes = (await db.info())["notes"]
            assert any(note.startswith("hashes: it is not to be believed") and damaged[0] in note for note in notes)
            assert db.upkeep is not None
            [error] = db.upkeep.findings.found.values()
            assert isinstance(error, kimberlite.Corrupt)
            assert error.file == damaged[0]
            assert n > 0 or (await db.info())["root"] == receipts[-1].root.hex()
            assert await db.append("s", b"59" * 900, producer=("p", 59)) == receipts[59]
            assert (await db.append("s", b"%d" % n)).first_offset == 60 + n
            for receipt in proven[::19]:
                assert (await db.get(receipt.first_position)).offset == receipt.first_offset
    with pytest.raises(kimberlite.Corrupt, match=damaged[0]):
        either.verify()
    # Once the segments are sound again, so are the hashes.
    either.flip(*damaged)
    async with either.open(segment_bytes=64 * 1024, pack=0, scrub=0) as db:
        assert (await db.info())["notes"] == []
    assert either.disk.files()[HASHES][: len(right)] == right
    assert either.verify(receipts[-1]).notes == []


@pytest.mark.parametrize("how", ["gone", "short", "header", "peaks", "zeros"])
async def test_what_is_appended_behind_hashes_that_are_lost_is_proven(either: Machine, how: str) -> None:
    await filled(either)
    damaged = (segment_name(1), 2 * 4096 + 300)
    either.flip(*damaged)
    if how == "zeros":
        either.write(HASHES, 4096, bytes(len(either.disk.files()[HASHES]) - 4096))
    else:
        spoil(either, how)
    receipts: list[Receipt] = []
    # The tree passes a power of two, with and without what was appended at the start before.
    for n in range(3):
        async with either.open(segment_bytes=64 * 1024, pack=0, scrub=0) as db:
            more = range(40 * n, 40 * n + 40)
            receipts += [await db.append("new", b"%d" % i, producer=("q", i)) for i in more]
            for receipt in receipts:
                assert (await db.get(receipt.first_position)).offset == receipt.first_offset
            assert await db.append("new", b"5", producer=("q", 5)) == receipts[5]
            dead = either.image()
        async with either.open(segment_bytes=64 * 1024, read_only=True, anchor=receipts[3]) as reader:
            for receipt in receipts:
                assert (await reader.get(receipt.first_position)).offset == receipt.first_offset
        async with dead.open(segment_bytes=64 * 1024, pack=0, scrub=0) as db:
            for receipt in receipts:
                assert (await db.get(receipt.first_position)).offset == receipt.first_offset
    either.flip(*damaged)
    async with either.open(segment_bytes=64 * 1024, pack=0, scrub=0, anchor=receipts[-1]) as db:
        assert (await db.info())["notes"] == []
    assert either.verify(receipts[-1]).notes == []


async def test_what_a_start_does_without_hashes_it_does_not_do_without_the_rest(either: Machine) -> None:
    await filled(either)
    either.flip(segment_name(1), 2 * 4096 + 300)
    either.write(HASHES, 0, bytes(4096))
    for name in (CHECKPOINT, PRODUCERS):
        machine = either.image()
        machine.backend().unlink(name)
        left = machine.disk.files()
        with pytest.raises(kimberlite.Corrupt, match=segment_name(1)):
            await machine.open(segment_bytes=64 * 1024)
        assert machine.disk.files() == left
    # Behind the checkpoint nothing may be damaged.
    async with either.open(segment_bytes=64 * 1024, pack=0, scrub=0) as db:
        number = db._native.segment_of((await db.append("s", b"more")).first_position)
        await asyncio.sleep(0.02)
        dead = either.image()
    dead.flip(segment_name(number), dead.end(number) - 4096 + 110)
    with pytest.raises(kimberlite.Corrupt):
        await dead.open(segment_bytes=64 * 1024)


@pytest.mark.parametrize("backend", ["threads", "auto"])
async def test_damage_in_the_last_segment_is_begun_behind_where_the_checkpoint_is(
    tmp_path: Path, backend: Literal["threads", "auto"]
) -> None:
    """On a real disk, whose files are locked."""
    path = tmp_path / "db"
    async with kimberlite.open(path, backend=backend) as db:
        for i in range(40):
            await db.append("s", b"%d" % i * 900)
    for name, place in ((segment_name(0), 3 * 4096 + 300), (HASHES, 0)):
        with (path / name).open("r+b") as file:
            file.seek(place)
            file.write(b"damage")
    for n in range(2):
        async with kimberlite.open(path, backend=backend, read_only=True) as reader:
            assert (await anext(reader.read("s", reverse=True))).offset == 39 + n
        async with kimberlite.open(path, backend=backend) as db:
            assert (await db.append("s", b"more")).first_offset == 40 + n
            assert segment_name(0) in (await db.info())["notes"][0]
