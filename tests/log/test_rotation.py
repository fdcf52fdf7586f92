"""All keys of a database under another master key, and what a crash or a disk does to that."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from kimberlite import Invalid, KeyUnavailable, Log, Receipt, Unavailable
from kimberlite.errors import UnknownOutcome
from kimberlite.log import checkpoint
from kimberlite.log.names import CHECKPOINT, VAULTS
from kimberlite.storage.memory import Disk
from tests.log.erasing import SEGMENT, WHY, create, filled, payload, places, slots, whole
from tests.log.simulated import Machine, failing, payloads
from tests.log.steps import Cut


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "LEAST_INTERVAL", 0.002)


async def test_all_keys_are_wrapped_anew_while_everything_goes_on(encrypted: Machine, other: Machine) -> None:
    receipts = await filled(encrypted)
    assert other.key is not None
    async with encrypted.open(segment_bytes=SEGMENT) as db, encrypted.open(read_only=True) as reader:
        making = [asyncio.create_task(db.append(f"new {i % 7}", b"%d" % i)) for i in range(20)]
        key_id = await db.rotate(other.key)
        made = await asyncio.gather(*making)
        assert await db.rotate(other.key) == key_id
        receipts += [await db.append("kept", b"after"), await db.append("newest", b"after"), *made]
        await whole(db, receipts)
        await asyncio.sleep(0.02)
        assert (await anext(reader.read("kept", reverse=True))).payload == b"after"
        with pytest.raises(KeyUnavailable, match="newest"):
            await payloads(reader.read("newest"))
        assert (await anext(reader.read("kept"))).payload == payload("kept", 0)
    for read_only in (True, False):
        with pytest.raises(KeyUnavailable, match=f"wrapped with, {key_id}$"):
            await encrypted.open(read_only=read_only)
        async with other.open(segment_bytes=SEGMENT, read_only=read_only) as db:
            await whole(db, receipts)
    assert other.verify(receipts[-1]).notes == []
    with pytest.raises(KeyUnavailable):
        encrypted.verify()


async def test_a_rotation_that_a_crash_cuts_off_leaves_one_key_that_opens(encrypted: Machine, other: Machine) -> None:
    receipts = await filled(encrypted, 3)
    start, seen = encrypted.disk.files(), set()
    for power in (True, False):
        countdown, done = 0, False
        while not done:
            countdown += 1
            machine = Machine(encrypted.key)
            machine.disk = Disk.from_files(start)
            async with machine.open(segment_bytes=SEGMENT) as db:
                cut = Cut(machine.disk, countdown, Random(countdown), power)
                machine.disk.on_step = cut
                assert other.key is not None
                await db.rotate(other.key)
                machine.disk.on_step = None
            done = cut.left is None
            old, new = Machine(encrypted.key), Machine(other.key)
            old.disk = new.disk = machine.disk if done else cut.taken()
            outcomes = []
            for tried in (old, new):
                try:
                    tried.verify(receipts[-1])
                    outcomes.append("opens")
                except KeyUnavailable as error:
                    outcomes.append("finish" if "finishes it" in str(error) else "refused")
            assert outcomes in (["opens", "refused"], ["finish", "opens"], ["refused", "opens"])
            seen.add(tuple(outcomes))
            if outcomes[0] == "opens":
                async with old.open(segment_bytes=SEGMENT) as db:
                    await db.rotate(other.key)
            async with new.open(segment_bytes=SEGMENT) as db:
                await whole(db, receipts)
            assert new.verify(receipts[-1]).notes == []
            with pytest.raises(KeyUnavailable):
                await old.open(segment_bytes=SEGMENT)
    assert seen == {("opens", "refused"), ("finish", "opens"), ("refused", "opens")}


def bereft(machine: Machine, later: Machine) -> set[tuple[int, bytes]]:
    """Gives it the vault of when it had more streams; what the slots of those are bound to."""
    orphans = slots(later) - slots(machine)
    for name in VAULTS:
        file = machine.backend().open(name, "w")
        file.truncate(0)
        file.write(0, later.disk.files()[name])
        file.sync()
    return orphans


async def orphaned(machine: Machine) -> set[tuple[int, bytes]]:
    """Appends to streams that a crash then takes back; what their slots are bound to."""
    later = machine.image()
    async with later.open(segment_bytes=SEGMENT) as db:
        for i in range(20):
            await db.append(f"torn off {i}", b"x")
    return bereft(machine, later)


async def test_keys_of_streams_that_the_log_does_not_know_end_with_a_rotation(
    encrypted: Machine, other: Machine
) -> None:
    receipts = await filled(encrypted, 3)
    orphans = await orphaned(encrypted)
    assert len(orphans) == 20
    async with encrypted.open(segment_bytes=SEGMENT) as db:
        await db.append("torn off 3", b"another")
        await db.erase("torn off 3", reason=WHY)
        # It is not known which of them was of that name.
        assert slots(encrypted) >= orphans
        assert other.key is not None
        making = [asyncio.create_task(db.append(f"new {i}", b"%d" % i)) for i in range(20)]
        await db.rotate(other.key)
        receipts += await asyncio.gather(*making)
        assert slots(encrypted).isdisjoint(orphans)
        await whole(db, receipts)
    assert len(places(other, 0)) == len(places(other, 1)) == 2 + 3 + 20
    async with other.open(segment_bytes=SEGMENT) as db:
        await whole(db, receipts)
    assert other.verify(receipts[-1]).notes == []


@pytest.mark.parametrize("power", [True, False], ids=["cut", "kill"])
async def test_a_crash_in_a_rotation_takes_no_key_but_orphans(encrypted: Machine, other: Machine, power: bool) -> None:
    receipts = await filled(encrypted, 2)
    orphans = await orphaned(encrypted)
    start, countdown, done, seen = encrypted.disk.files(), 0, False, set()
    while not done:
        countdown += 1
        machine = Machine(encrypted.key)
        machine.disk = Disk.from_files(start)
        made: list[Receipt] = []
        async with machine.open(segment_bytes=SEGMENT) as db:
            promised: list[list[Receipt]] = []
            cut = Cut(machine.disk, countdown, Random(countdown), power)

            def step(cut: Cut = cut, made: list[Receipt] = made, promised: list[list[Receipt]] = promised) -> None:
                cut()
                if cut.left is not None and not promised:
                    promised.append(list(made))

            async def append(i: int, db: Log = db, made: list[Receipt] = made) -> None:
                made.append(await db.append(f"new {i}", b"%d" % i))

            machine.disk.on_step = step
            # One in front of the rotation, one beside it and one behind it.
            await append(0)
            assert other.key is not None
            await asyncio.gather(append(1), db.rotate(other.key), append(2))
            machine.disk.on_step = None
        done = cut.left is None
        left = Machine(encrypted.key)
        left.disk = machine.disk if done else cut.taken()
        try:
            left.verify()
        except KeyUnavailable:
            left.key = other.key
        rotated = left.key == other.key
        async with left.open(segment_bytes=SEGMENT) as db:
            await whole(db, [*receipts, *(made if done else promised[0])])
            # A copy from before is written anew by this start.
            assert slots(left).isdisjoint(orphans) if rotated else slots(left) >= orphans
            assert other.key is not None
            await db.rotate(other.key)
            assert slots(left).isdisjoint(orphans)
            receipt = await db.append("new 3", b"3")
        left.key = other.key
        left.verify(receipt)
        seen.add(rotated)
    assert seen == {True, False}
    assert countdown > 10


async def test_a_master_key_under_which_a_stream_was_erased_is_not_taken_again(
    encrypted: Machine, other: Machine
) -> None:
    receipts = await filled(encrypted, 3)
    assert encrypted.key is not None
    assert other.key is not None
    third = create(encrypted, "third")
    async with encrypted.open(segment_bytes=SEGMENT) as db:
        # There is nothing yet that it could open.
        await db.rotate(other.key)
        await db.rotate(encrypted.key)
        await db.erase("gone", reason=WHY)
        await db.rotate(other.key)
        before = encrypted.disk.files()
        for confirmed in (False, True):
            if confirmed:
                await db.confirm_erasure("gone")
            with pytest.raises(Invalid, match="when stream 'gone' was erased"):
                await db.rotate(encrypted.key)
            assert {name: encrypted.disk.files()[name] for name in VAULTS} == {name: before[name] for name in VAULTS}
        await db.erase("other", reason=WHY)
        # It is the one that counts, and a rotation to it may not be over.
        await db.rotate(other.key)
        await db.rotate(third)
        with pytest.raises(Invalid, match="when stream 'other' was erased"):
            await db.rotate(other.key)
    last = Machine(third)
    last.disk = encrypted.disk
    last.backend().unlink(CHECKPOINT)
    async with last.open(segment_bytes=SEGMENT) as db:
        for old in (encrypted.key, other.key):
            with pytest.raises(Invalid, match="make a new one"):
                await db.rotate(old)
        await whole(db, [receipt for receipt in receipts if receipt.stream == "kept"])


@pytest.mark.parametrize("verb", ["write", "sync"])
async def test_a_refused_rotation_leaves_no_keys_behind(encrypted: Machine, other: Machine, verb: str) -> None:
    """What is erased then would be in it, under a master key that nobody has to destroy."""
    await filled(encrypted, 3)
    assert other.key is not None
    async with encrypted.open(segment_bytes=SEGMENT) as db:
        encrypted.fault = failing(verb, "prepare/vault.1")
        with pytest.raises(Unavailable, match="was not wrapped anew"):
            await db.rotate(other.key)
        encrypted.fault = None
        await db.erase("gone", reason=WHY)
        for left in (encrypted.disk.files(), encrypted.disk.crash(Random(1)).files()):
            assert [name for name in left if name.startswith("prepare/vault")] == []


async def test_what_the_disk_refuses_of_a_rotation_is_done_again(encrypted: Machine, other: Machine) -> None:
    receipts = await filled(encrypted, 3)
    assert other.key is not None
    for verb, name, what in [
        ("write", "prepare/vault.1", "was not wrapped anew"),
        ("write", "prepare/vault.0", "do it again"),
        ("rename", "prepare/vault.0", "do it again"),
    ]:
        machine = encrypted.image()
        async with machine.open(segment_bytes=SEGMENT) as db:
            machine.fault = failing(verb, name)
            with pytest.raises(Unavailable, match=what):
                await db.rotate(other.key)
            machine.fault = None
            await db.append("new", b"its key is durable in both copies")
            await db.rotate(other.key)
            await whole(db, receipts)
        after = Machine(other.key)
        after.disk = machine.disk
        assert after.verify().notes == []
        async with after.open(segment_bytes=SEGMENT) as db:
            assert await payloads(db.read("new")) == [b"its key is durable in both copies"]


async def test_when_nobody_knows_which_key_counts_nothing_is_written_any_more(
    encrypted: Machine, other: Machine
) -> None:
    receipts = await filled(encrypted, 3)
    assert other.key is not None
    db = await encrypted.open(segment_bytes=SEGMENT)
    encrypted.fault = failing("rename", "prepare/vault.1")
    with pytest.raises(UnknownOutcome, match="under which master key"):
        await db.rotate(other.key)
    encrypted.fault = None
    with pytest.raises(UnknownOutcome):
        await db.append("new", b"x")
    with pytest.raises(UnknownOutcome):
        await db.close()
    encrypted.kill()
    async with encrypted.open(segment_bytes=SEGMENT) as db:
        await whole(db, receipts)


async def test_a_key_file_that_is_none_changes_nothing(encrypted: Machine) -> None:
    await filled(encrypted, 1)
    before = {name: encrypted.disk.files()[name] for name in VAULTS}
    async with encrypted.open(segment_bytes=SEGMENT) as db:
        with pytest.raises(Invalid, match="named"):
            await db.rotate()
        with pytest.raises(KeyUnavailable):
            await db.rotate("/nowhere/at/all")
        assert encrypted.key is not None
        await db.rotate(encrypted.key)
    assert {name: encrypted.disk.files()[name] for name in VAULTS} == before
