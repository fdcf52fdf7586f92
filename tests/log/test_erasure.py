"""A stream whose key is destroyed is read by nobody, whatever happens meanwhile and is put back later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from random import Random

import pytest

from kimberlite import Closed, Erased, Erasure, Invalid, KeyUnavailable, Log, Receipt, Record, Unavailable
from kimberlite.crypto.master import load_master
from kimberlite.errors import NoSpace, UnknownOutcome
from kimberlite.log import checkpoint, description
from kimberlite.log.names import CHECKPOINT, HASHES, MARKS, PRODUCERS, VAULTS
from kimberlite.storage.memory import Disk
from tests.log.erasing import COUNT, SEGMENT, WHY, erased, filled, payload, places, positions, slots, whole
from tests.log.simulated import Machine, failing, payloads, until
from tests.log.steps import Cut
from tests.model import read_log


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "LEAST_INTERVAL", 0.002)


async def expect_erased(db: Log, receipts: list[Receipt], stream: str = "gone") -> None:
    """All of the stream is gone, and nothing else."""
    gone = [at for receipt in receipts if receipt.stream == stream for at in positions(receipt)]
    for position in gone:
        with pytest.raises(Erased, match=WHY) as caught:
            await db.get(position)
        assert (caught.value.reason, type(caught.value.when)) == (WHY, int)
    for read in (
        db.read(stream),
        db.read(stream, reverse=True),
        db.read(stream, start=10**6),
        db.tail(stream, start=0),
    ):
        with pytest.raises(Erased, match=WHY):
            await anext(read)
    with pytest.raises(Erased):
        await db.get_many([receipts[0].first_position, *gone])
    kept = sorted(at for receipt in receipts if receipt.stream != stream for at in positions(receipt))
    for reverse in (False, True):
        found = [record.position async for record in db.read(reverse=reverse) if record.position <= kept[-1]]
        assert found == (kept[::-1] if reverse else kept)
    assert [info.erased for info in db.streams()] == [info.name == stream for info in db.streams()]
    for receipt in receipts:
        if receipt.stream != stream:
            assert (await db.get(receipt.first_position)).stream == receipt.stream


async def test_very_many_are_listed_piece_by_piece(encrypted: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    async with encrypted.open(segment_bytes=SEGMENT) as db:
        for i in range(12):
            await db.append(f"s{i}", b"x")
        found = [await db.erase(f"s{i}", reason=f"{WHY} {i}") for i in (11, 2, 3, 5)]
        listed = sorted((each._asdict() for each in found), key=lambda each: int(each["stream"][1:]))
        for most in (1, 3, 4, 12, 13, 1_000):
            monkeypatch.setattr(description, "STREAMS", most)
            assert (await db.info())["erasures"] == listed
    assert encrypted.verify().erasures == listed


async def test_nobody_reads_it_and_everything_else_is_what_it_was(encrypted: Machine) -> None:
    receipts = await filled(encrypted)
    async with encrypted.open(segment_bytes=SEGMENT) as db:
        await payloads(db.read())
        root = (await db.info())["root"]
        found = await db.erase("gone", reason=WHY)
        assert found == Erasure("gone", encrypted.now, WHY, receipts[-1].tree_size, True)
        await expect_erased(db, receipts)
        with pytest.raises(Erased, match=WHY):
            await db.append("gone", b"late")
        with pytest.raises(Erased):
            await db.append("gone", payload("gone", COUNT - 1), producer=("p", COUNT - 1))
        with pytest.raises(Erased):
            await db.append_many({"kept": b"no", "gone": b"late"})
        assert await db.erase("gone", reason="another") == found
        again = [r for r in receipts if r.stream == "kept" and r.first_offset == 2 * COUNT - 2]
        assert [await db.append("kept", payload("kept", COUNT - 1), producer=("p", COUNT - 1))] == again
        receipts.append(await db.append("new", b"goes on"))
        info = await db.info()
        assert info["erasures"] == [found._asdict()]
        assert info["root"] != root
    assert encrypted.verify(receipts[-1]).erasures == [found._asdict()]
    assert encrypted.verify(receipts[-1]).notes == []
    for gone in ([], [CHECKPOINT], [HASHES]):
        for name in gone:
            encrypted.backend().unlink(name)
        async with encrypted.open(segment_bytes=SEGMENT, read_only=True) as reader:
            await expect_erased(reader, receipts)
            assert (await reader.info())["erasures"] == [found._asdict()]
        async with encrypted.open(segment_bytes=SEGMENT) as db:
            await expect_erased(db, receipts)
            with pytest.raises(Erased):
                await db.append("gone", b"late")
            assert await db.erase("gone", reason=WHY) == found
    log = read_log(encrypted.disk.files(), load_master(encrypted.key))
    assert [(erasure.reason, erasure.pending) for erasure in log.erasures] == [(WHY, True)]
    assert log.doubts == ()


async def test_whoever_has_no_key_knows_of_it_too(encrypted: Machine) -> None:
    receipts = await filled(encrypted)
    await erased(encrypted)
    encrypted.key = None
    assert [each["reason"] for each in encrypted.verify().erasures] == [WHY]
    async with encrypted.open(read_only=True) as reader:
        with pytest.raises(Erased, match=WHY):
            await anext(reader.read("gone"))
        with pytest.raises(KeyUnavailable):
            await anext(reader.read("kept"))
        with pytest.raises(Erased):
            await reader.get(next(receipt for receipt in receipts if receipt.stream == "gone").first_position)


async def test_its_slot_leaves_both_copies_of_the_vault_and_its_producers_their_file(encrypted: Machine) -> None:
    await filled(encrypted)
    before = [places(encrypted, copy) for copy in (0, 1)]
    assert streams_of_producers(encrypted) == {0, 1, 2, 3}
    async with encrypted.open(segment_bytes=SEGMENT) as db:
        await db.erase("gone", reason=WHY)
        for copy in (0, 1):
            assert len(places(encrypted, copy)) == len(before[copy]) - 1
        # Not only at the next close.
        assert streams_of_producers(encrypted) == {0, 1, 3}
        key = await db.append("new", b"another key")
        assert (await db.get(key.first_position)).payload == b"another key"


def streams_of_producers(machine: Machine) -> set[int]:
    entries = machine.disk.files()[PRODUCERS]
    found, place = set(), 0
    while place < len(entries):
        end = place + 8 + int.from_bytes(entries[place : place + 8], "little")
        found |= {int.from_bytes(entries[at + 56 : at + 60], "little") for at in range(place + 8, end, 64)}
        place = end + 32
    return found


async def test_a_start_from_a_checkpoint_in_the_middle_forgets_its_producers_too(encrypted: Machine) -> None:
    await filled(encrypted)
    left: list[Machine] = []
    async with encrypted.open(segment_bytes=SEGMENT) as db:
        assert db.upkeep is not None
        eraser = db.upkeep.eraser
        say = eraser._say

        async def checkpointed(payload: bytes) -> None:
            await say(payload)
            await eraser._checkpointer.take()
            left.append(encrypted.image())

        eraser._say = checkpointed  # type: ignore[method-assign]
        await db.erase("gone", reason=WHY)
    [machine] = left
    assert streams_of_producers(machine) == {0, 1, 2, 3}
    async with machine.open(segment_bytes=SEGMENT) as db:
        assert len((await db.info())["erasures"]) == 1
    assert streams_of_producers(machine) == {0, 1, 3}


@pytest.mark.parametrize("stream", ["", "nothing", 7])
async def test_what_cannot_be_erased_is_refused(either: Machine, stream: str) -> None:
    async with either.open() as db:
        await db.append("s", b"x")
        with pytest.raises(Invalid):
            await db.erase(stream, reason=WHY)
        for reason in ("", "é" * 513, 7, "\ud800"):
            with pytest.raises(Invalid, match="reason"):
                await db.erase("s", reason=reason)  # type: ignore[arg-type]
        with pytest.raises(Invalid):
            await db.confirm_erasure(stream)
        assert (await db.info())["records"] == 2
        if either.key is None:
            with pytest.raises(Invalid, match="plain and cannot be erased"):
                await db.erase("s", reason=WHY)
            with pytest.raises(Invalid, match="without a master key"):
                await db.rotate(either.key or __file__)
        else:
            with pytest.raises(Invalid, match="not erased"):
                await db.confirm_erasure("s")
            await db.erase("s", reason="é" * 512)
        assert (await db.info())["records"] == 2 + (either.key is not None)
    async with either.open(read_only=True) as reader:
        with pytest.raises(Invalid, match="reading only"):
            await reader.erase("s", reason=WHY)
    with pytest.raises(Closed):
        await db.erase("s", reason=WHY)


@pytest.mark.parametrize("power", [True, False], ids=["cut", "kill"])
@pytest.mark.parametrize("count", [5, COUNT], ids=["", "as a segment ends"])
async def test_a_crash_at_any_step_erases_all_or_nothing(encrypted: Machine, count: int, power: bool) -> None:
    receipts = await filled(encrypted, count)
    start = encrypted.disk.files()
    countdown, done, seen = 0, False, set()
    while not done:
        countdown += 1
        machine = Machine(encrypted.key)
        machine.disk = Disk.from_files(start)
        async with machine.open(segment_bytes=SEGMENT, pack=0, idle=60) as db:
            cut = Cut(machine.disk, countdown, Random(countdown), power)
            machine.disk.on_step = cut
            await db.erase("gone", reason=WHY)
            machine.disk.on_step = None
        done = cut.left is None
        left = Machine(encrypted.key)
        left.disk = machine.disk if done else cut.taken()
        report = left.verify(receipts[-1])
        async with left.open(segment_bytes=SEGMENT, read_only=True) as reader:
            # What no watermark covers yet is not shown.
            shown = len((await reader.info())["erasures"])
            await (expect_erased(reader, receipts) if shown else whole(reader, receipts))
        async with left.open(segment_bytes=SEGMENT, pack=0) as db:
            after = len((await db.info())["erasures"])
            assert after == len(report.erasures) >= shown
            await (expect_erased(db, receipts) if after else whole(db, receipts))
            seen.add(after)
        for copy in (0, 1):
            assert len(places(left, copy)) == len(places(encrypted, copy)) - after
        assert left.verify(receipts[-1]).notes == []
        async with left.open(segment_bytes=SEGMENT, pack=0) as db:
            await db.erase("gone", reason=WHY)
            await expect_erased(db, receipts)
    assert seen == {0, 1}
    assert countdown > 6


async def test_old_copies_of_the_vault_bring_nothing_back(encrypted: Machine) -> None:
    receipts = await filled(encrypted)
    old = {name: encrypted.disk.files()[name] for name in VAULTS}
    await erased(encrypted)
    async with encrypted.open(segment_bytes=SEGMENT) as db:
        receipts.append(await db.append("new", b"its key is where that of the erased one was"))
    count = len(places(encrypted, 0))
    for put in ([0], [1], [0, 1]):
        machine = encrypted.image()
        for copy in put:
            file = machine.backend().open(VAULTS[copy], "w")
            file.truncate(len(old[VAULTS[copy]]))
            file.write(0, old[VAULTS[copy]])
        if put == [0, 1]:
            with pytest.raises(KeyUnavailable, match="'new'"):
                await machine.open(segment_bytes=SEGMENT)
            with pytest.raises(KeyUnavailable, match="'new'"):
                machine.verify()
            continue
        async with machine.open(segment_bytes=SEGMENT, read_only=True) as reader:
            await expect_erased(reader, receipts)
        async with machine.open(segment_bytes=SEGMENT) as db:
            await expect_erased(db, receipts)
        assert [len(places(machine, copy)) for copy in (0, 1)] == [count, count]
        assert machine.verify().notes == []


async def test_a_missing_key_is_lost_unless_the_log_says_that_it_was_erased(encrypted: Machine) -> None:
    await filled(encrypted)
    other = encrypted.image()
    await erased(other)
    for name in VAULTS:
        file = encrypted.backend().open(name, "w")
        file.write(0, other.disk.files()[name])
    for gone in ([], [CHECKPOINT]):
        for name in gone:
            encrypted.backend().unlink(name)
        before = encrypted.disk.files()
        for read_only in (True, False):
            with pytest.raises(KeyUnavailable, match="the key of 1 streams is missing, 'gone'"):
                await encrypted.open(segment_bytes=SEGMENT, read_only=read_only)
        with pytest.raises(KeyUnavailable, match="'gone'"):
            encrypted.verify()
        assert encrypted.disk.files() == before


async def test_appends_before_it_are_erased_with_it_and_none_comes_behind(encrypted: Machine) -> None:
    await filled(encrypted)
    async with encrypted.open(segment_bytes=SEGMENT, depth=2) as db:
        early = [asyncio.create_task(db.append("gone", b"early")) for _ in range(5)]
        await asyncio.sleep(0)
        erasing = asyncio.create_task(db.erase("gone", reason=WHY))
        late: list[asyncio.Task[Receipt]] = []
        while not erasing.done():
            late.append(asyncio.create_task(db.append("gone", b"late")))
            late.append(asyncio.create_task(db.append("kept", b"beside")))
            await asyncio.sleep(0)
        answers = await asyncio.gather(*early, *late, return_exceptions=True)
        position = (await erasing).position
        assert all(isinstance(answer, Receipt) for answer in answers[: len(early)])
        for answer in answers:
            assert isinstance(answer, Erased) or (isinstance(answer, Receipt) and answer.durable)
            if isinstance(answer, Receipt) and answer.stream == "gone":
                assert answer.last_position < position
        assert any(isinstance(answer, Erased) for answer in answers)
        assert sum(isinstance(answer, Receipt) and answer.stream == "kept" for answer in answers) == len(late) // 2
    encrypted.verify()


async def test_whoever_reads_it_meanwhile_is_told(encrypted: Machine) -> None:
    await filled(encrypted)
    async with encrypted.open(segment_bytes=SEGMENT) as db, encrypted.open(read_only=True) as reader:
        reading, beside = db.read("gone"), reader.read("gone")
        assert (await anext(reading)).payload == (await anext(beside)).payload == payload("gone", 0)
        tails = [asyncio.create_task(drained(each.tail("gone"))) for each in (db, reader)]
        await asyncio.sleep(0.02)
        await db.erase("gone", reason=WHY)
        for tail in tails:
            with pytest.raises(Erased, match=WHY):
                await asyncio.wait_for(tail, 5)
        with pytest.raises(Erased):
            await anext(reader.read("gone"))
        with pytest.raises(Erased):
            await anext(db.read("gone"))


async def drained(records: AsyncIterator[Record]) -> None:
    async for _ in records:
        pass


@pytest.mark.parametrize("number", range(1, 8))
async def test_what_the_disk_refuses_of_the_vault_is_done_again(encrypted: Machine, number: int) -> None:
    receipts = await filled(encrypted)
    calls = iter(range(1, 100))

    def fault(verb: str, name: str, place: int, length: int) -> OSError | None:
        if name not in VAULTS or verb not in ("write", "sync") or next(calls) != number:
            return None
        return failing(verb, name)(verb, name, place, length)  # type: ignore[return-value]

    async with encrypted.open(segment_bytes=SEGMENT) as db:
        encrypted.fault = fault
        if number < 5:
            with pytest.raises(Unavailable, match="not out of the vault yet"):
                await db.erase("gone", reason=WHY)
        else:
            await db.erase("gone", reason=WHY)
        encrypted.fault = None
        # It is no less erased for that.
        await expect_erased(db, receipts)
        if number % 2:
            await db.erase("gone", reason=WHY)
        else:
            # What was not written then is written with the next key.
            await db.append("new", b"x")
        for copy in (0, 1):
            assert len(places(encrypted, copy)) == 4 + (number % 2 == 0)
    encrypted.verify()


async def test_a_failed_write_of_the_record_ends_the_handle_and_the_key_stays(encrypted: Machine) -> None:
    receipts = await filled(encrypted)
    db = await encrypted.open(segment_bytes=SEGMENT)
    encrypted.fault = failing("submit", "segments/")
    with pytest.raises(UnknownOutcome):
        await db.erase("gone", reason=WHY)
    encrypted.fault = None
    with pytest.raises(UnknownOutcome):
        await db.close()
    assert len(places(encrypted, 0)) == 5
    encrypted.kill()
    async with encrypted.open(segment_bytes=SEGMENT) as db:
        await (expect_erased(db, receipts) if (await db.info())["erasures"] else whole(db, receipts))


async def test_a_full_disk_has_room_for_it(encrypted: Machine) -> None:
    receipts = await filled(encrypted)
    async with encrypted.open(segment_bytes=SEGMENT) as db:
        encrypted.disk.capacity = 1 << 30
        encrypted.disk.capacity -= encrypted.disk.free()
        for size in (4096, 1):
            with suppress(NoSpace):
                while True:
                    await db.append("kept", bytes(size))
        await db.erase("gone", reason=WHY)
        with pytest.raises(Erased, match=WHY):
            await anext(db.read("gone"))
        encrypted.disk.capacity = None
        await db.append("kept", b"there is room")
    async with encrypted.open(segment_bytes=SEGMENT) as db:
        assert [each["reason"] for each in (await db.info())["erasures"]] == [WHY]
    encrypted.verify(receipts[-1])


async def test_who_is_cancelled_abandons_only_the_wait(encrypted: Machine) -> None:
    receipts = await filled(encrypted)
    for turns in range(0, 40, 3):
        machine = encrypted.image()
        async with machine.open(segment_bytes=SEGMENT) as db:
            erasing = asyncio.create_task(db.erase("gone", reason=WHY))
            for _ in range(turns):
                await asyncio.sleep(0)
            erasing.cancel()
            await asyncio.gather(erasing, return_exceptions=True)
        async with machine.open(segment_bytes=SEGMENT) as db:
            begun = len((await db.info())["erasures"])
            assert begun or turns == 0
            await (expect_erased(db, receipts) if begun else whole(db, receipts))
        assert len(places(machine, 0)) == 5 - begun


async def test_retention_says_what_was_erased_in_what_it_dropped(encrypted: Machine) -> None:
    receipts = await filled(encrypted, 3)
    await erased(encrypted)
    async with encrypted.open(segment_bytes=SEGMENT, pack=0) as db:
        for i in range(60):
            receipts.append(await db.append("kept", payload("later", i)))
        await db.erase("other", reason=WHY)
        info = await db.info()
        await db.retain(before=receipts[-1].first_position)
        first = (await db.info())["first_position"]
        assert info["erasures"][0]["position"] < first < info["erasures"][1]["position"]
    for gone in ([], [CHECKPOINT, HASHES]):
        for name in gone:
            encrypted.backend().unlink(name)
        for read_only in (True, False):
            async with encrypted.open(segment_bytes=SEGMENT, pack=0, read_only=read_only) as db:
                assert (await db.info())["erasures"] == info["erasures"]
                for stream in ("gone", "other"):
                    with pytest.raises(Erased):
                        await anext(db.read(stream))
        assert encrypted.verify(receipts[-1]).erasures == info["erasures"]


async def test_damaged_hashes_are_made_again_beside_what_was_erased(encrypted: Machine) -> None:
    receipts = await filled(encrypted)
    await erased(encrypted)
    data = encrypted.disk.files()[HASHES]
    encrypted.write(HASHES, 4096, bytes(b ^ 1 for b in data[4096 : 4096 + 32 * 40]))
    async with encrypted.open(segment_bytes=SEGMENT) as db:
        for receipt in receipts:
            if receipt.stream != "gone":
                assert (await db.get(receipt.first_position)).stream == receipt.stream
    async with encrypted.open(segment_bytes=SEGMENT) as db:
        await expect_erased(db, receipts)
    assert encrypted.verify().notes == []


async def test_many_at_once_are_erased_one_after_another(encrypted: Machine) -> None:
    names = [f"s{i}" for i in range(30)]
    async with encrypted.open(segment_bytes=SEGMENT) as db:
        for name in names:
            await db.append(name, name.encode())
        making = [asyncio.create_task(db.append(f"new {i}", b"x")) for i in range(5)]
        found = await asyncio.gather(*(db.erase(name, reason=name) for name in names[::2]))
        await asyncio.gather(*making)
        assert [each.stream for each in found] == names[::2]
        assert {record.stream async for record in db.read()} == {*names[1::2], *(f"new {i}" for i in range(5))}
    assert len(places(encrypted, 0)) == len(places(encrypted, 1)) == 2 + 15 + 5
    encrypted.verify()


async def test_an_erasure_that_only_its_record_tells_of_is_found_by_verify_and_by_a_writer(encrypted: Machine) -> None:
    receipts = await filled(encrypted)
    old = encrypted.disk.files()
    await erased(encrypted)
    backend = encrypted.backend()
    backend.unlink(CHECKPOINT)
    for name in (*VAULTS, MARKS):
        file = backend.open(name, "w")
        file.truncate(0)
        file.write(0, old[name])
        file.sync()
    assert [each["reason"] for each in encrypted.verify().erasures] == [WHY]
    async with encrypted.open(segment_bytes=SEGMENT) as db:
        await expect_erased(db, receipts)
    assert [len(places(encrypted, copy)) for copy in (0, 1)] == [4, 4]
    async with encrypted.open(segment_bytes=SEGMENT, read_only=True) as reader:
        await expect_erased(reader, receipts)


async def test_what_a_start_shows_as_erased_has_no_key_on_the_disk(encrypted: Machine) -> None:
    """What a killed process wrote is with the kernel, and the start that reads it there has nothing to mend."""
    await filled(encrypted, 3)
    start, countdown, seen = encrypted.disk.files(), 0, set[bool]()
    while True:
        countdown += 1
        machine = Machine(encrypted.key)
        machine.disk = Disk.from_files(start)
        before = slots(machine)
        async with machine.open(segment_bytes=SEGMENT) as db:
            cut = Cut(machine.disk, countdown, Random(countdown), False)
            machine.disk.on_step = cut
            await db.erase("gone", reason=WHY)
            machine.disk.on_step = None
        if cut.left is None:
            break
        [gone] = before - slots(machine)
        left = Machine(encrypted.key)
        left.disk = cut.taken()
        async with left.open(segment_bytes=SEGMENT) as db:
            shown = any(stream.erased for stream in db.streams())
            seen.add(shown)
            for seed in range(8 * shown):
                later = Machine(encrypted.key)
                later.disk = left.disk.crash(Random(seed))
                assert gone not in slots(later)
    assert seen == {True, False}


async def test_an_erasure_is_pending_until_the_key_of_then_is_said_to_be_destroyed(
    encrypted: Machine, other: Machine
) -> None:
    receipts = await filled(encrypted, 3)
    old = {name: encrypted.disk.files()[name] for name in VAULTS}
    assert encrypted.key is not None
    assert other.key is not None
    async with encrypted.open(segment_bytes=SEGMENT) as db:
        assert (await db.erase("gone", reason=WHY)).pending
        with pytest.raises(Invalid, match="still under the master key of then"):
            await db.confirm_erasure("gone")
        await db.rotate(other.key)
        found = await db.confirm_erasure("gone")
        assert not found.pending
        records = (await db.info())["records"]
        assert await db.confirm_erasure("gone") == found == await db.erase("gone", reason=WHY)
        assert (await db.info())["records"] == records
        # One that comes now is pending until the next rotation.
        assert (await db.erase("other", reason=WHY)).pending
        with pytest.raises(Invalid, match="of then"):
            await db.confirm_erasure("other")
    for machine in (other, other):
        async with machine.open(segment_bytes=SEGMENT) as db:
            assert [each["pending"] for each in (await db.info())["erasures"]] == [False, True]
        machine.backend().unlink(CHECKPOINT)
    log = read_log(other.disk.files(), load_master(other.key))
    assert [erasure.pending for erasure in log.erasures] == [False, True]
    # The vault of before is under a key that opens nothing here any more.
    for put in ([0], [1], [0, 1]):
        machine = other.image()
        for copy in put:
            machine.write(VAULTS[copy], 0, old[VAULTS[copy]])
        if put == [0, 1]:
            with pytest.raises(KeyUnavailable, match="not the master key"):
                await machine.open(segment_bytes=SEGMENT)
            machine.key = encrypted.key
            # Whoever has kept both opens what is left of it; the log says what was erased.
            async with machine.open(segment_bytes=SEGMENT, read_only=True) as reader:
                with pytest.raises(Erased):
                    await anext(reader.read("gone"))
            continue
        async with machine.open(segment_bytes=SEGMENT) as db:
            kept = [receipt for receipt in receipts if receipt.stream == "kept"]
            await whole(db, kept)
        assert machine.verify().notes == []
        assert [len(places(machine, copy)) for copy in (0, 1)] == [3, 3]


async def test_tails_of_the_whole_log_go_on(encrypted: Machine) -> None:
    await filled(encrypted, 1)
    async with encrypted.open(segment_bytes=SEGMENT) as db:
        seen: list[str] = []

        async def follow() -> None:
            async for batch in db.tail(start=0).batches():
                seen.extend(record.stream for record in batch)

        following = asyncio.create_task(follow())

        async def enough() -> bool:
            return len(seen) == 5

        await until(enough)
        await db.erase("gone", reason=WHY)
        await db.append("kept", b"one more")

        async def more() -> bool:
            return len(seen) == 6

        await until(more)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        assert [record.stream async for record in db.read(system=True)].count("") == 5
