"""Blocks that the disk cannot read: like damage, they are judged, named, and nothing else is lost with them."""

from __future__ import annotations

import errno
import os
import re

import pytest

from kimberlite import Corrupt, KimberliteError, Receipt, Unavailable
from kimberlite.log.names import CHECKPOINT, HASHES, MARKS, PRODUCERS, VAULTS, index_name, segment_name
from kimberlite.storage.backend import BLOCK, CANNOT_READ
from kimberlite.storage.memory import Fault
from tests.log.simulated import Machine, failing, payloads

EVERYTHING = 1 << 40


def unreadable(file: str, start: int = 0, end: int = EVERYTHING, number: int = errno.EIO) -> Fault:
    """Reads that touch these bytes of a file fail."""

    def fault(verb: str, name: str, place: int, length: int) -> OSError | None:
        hit = verb == "read" and name == file and place < end and place + length > start
        return OSError(number, os.strerror(number), name) if hit else None

    return fault


async def filled(machine: Machine) -> list[Receipt]:
    async with machine.open(pack=0, segment_bytes=64 * 1024) as db:
        return [await db.append("s", b"%d" % i * 900, producer=("p", i)) for i in range(60)]


async def test_a_group_that_cannot_be_read_is_named_and_refused(either: Machine) -> None:
    receipts = await filled(either)
    last = max(name for name in either.disk.files() if name.startswith("segments/"))
    bad = either.end(len([n for n in either.disk.files() if n.startswith("segments/")]) - 1) - 2 * BLOCK
    either.backend().unlink(CHECKPOINT)
    either.fault = unreadable(last, bad, bad + 1)
    where = re.escape(last) + rf", byte \d+, group \d+, position \d+: .*the disk cannot read byte {bad}\b"
    for read_only in (False, True):
        with pytest.raises(Corrupt, match=where):
            await either.open(read_only=read_only)
    with pytest.raises(Corrupt, match=where):
        either.verify()
    either.fault = None
    either.verify(receipts[-1])


async def test_a_closed_segment_that_cannot_be_read_in_one_place_is_read_in_all_others(either: Machine) -> None:
    receipts = await filled(either)
    bad = 2 * BLOCK
    either.fault = unreadable(segment_name(0), bad, bad + BLOCK)
    async with either.open(pack=0, segment_bytes=64 * 1024) as db:
        readable, damaged = [], []
        for receipt in receipts:
            try:
                readable.append((await db.get(receipt.first_position)).offset)
            except Unavailable as error:
                damaged.append(str(error))
        unread = [receipt.first_position for receipt in receipts if receipt.first_offset not in readable]
        for text, position in zip(damaged, unread, strict=True):
            assert re.fullmatch(
                rf"{segment_name(0)}, byte \d+, group \d+, position {position}: the disk cannot .*", text
            )
        assert len(receipts) - 4 < len(readable) < len(receipts)
        with pytest.raises(Unavailable, match="cannot read"):
            await payloads(db.read("s"))
        assert len(await payloads(db.read("s", start=readable[8]))) == 60 - readable[8]
        await db.append("s", b"and on")


async def test_what_cannot_be_read_behind_the_last_sound_group_is_not_cut_off(either: Machine) -> None:
    async with either.open(idle=60) as db:
        receipts = [await db.append("s", b"%d" % i) for i in range(10)]
        dead = either.image()
    dead.backend().open(segment_name(0), "w").write(dead.end(), bytes(8 * BLOCK))
    # The last group, which nothing but its receipt says was durable, or what was never written.
    for bad in (dead.end() - BLOCK, dead.end() + 4 * BLOCK):
        before = dead.disk.files()
        dead.fault = unreadable(segment_name(0), bad, bad + 1)
        assert any(f"cannot read byte {bad}" in note for note in dead.verify().notes)
        with pytest.raises(Unavailable, match=f"byte {bad}, behind the last sound group"):
            await dead.open()
        async with dead.open(read_only=True) as db:
            assert len(await payloads(db.read("s"))) >= 8
        assert dead.disk.files() == before
        dead.fault = None
        dead.kill()
    async with dead.open(anchor=receipts[-1]) as db:
        assert len(await payloads(db.read("s"))) == 10


@pytest.mark.parametrize("number", CANNOT_READ)
async def test_a_disk_has_several_words_for_what_it_cannot_read(either: Machine, number: int) -> None:
    await filled(either)
    bad = 2 * BLOCK
    either.fault = unreadable(segment_name(0), bad, bad + BLOCK, number)
    with pytest.raises(Corrupt, match=f"the disk cannot read byte {bad}\\b"):
        either.verify()
    async with either.open(pack=0, segment_bytes=64 * 1024) as db:
        with pytest.raises(Unavailable, match="cannot read"):
            await payloads(db.read("s"))
    either.fault = unreadable(MARKS, 0, 1, number)
    assert any("marks" in note for note in either.verify().notes)


async def test_a_group_before_the_checkpoint_that_cannot_be_read_is_named(either: Machine) -> None:
    async with either.open() as db:
        for i in range(20):
            await db.append("s", b"%d" % i * 900)
    either.fault = unreadable(segment_name(0), 2 * BLOCK, 2 * BLOCK + 1)
    for read_only in (False, True):
        with pytest.raises(Unavailable, match=f"{segment_name(0)}, byte {2 * BLOCK}: the disk cannot read"):
            await either.open(read_only=read_only)


async def test_a_segment_without_an_index_that_cannot_be_read_in_one_place_is_named(either: Machine) -> None:
    receipts = await filled(either)
    either.backend().unlink(index_name(0))
    either.fault = unreadable(segment_name(0), 2 * BLOCK, 2 * BLOCK + 1)
    async with either.open(pack=0, segment_bytes=64 * 1024) as db:
        with pytest.raises(Unavailable, match=f"{segment_name(0)}, byte {2 * BLOCK}: the disk cannot read"):
            await db.get(receipts[0].first_position)
        assert (await db.get(receipts[-1].first_position)).offset == 59


async def test_a_receipt_key_that_cannot_be_read_is_not_made_anew(machine: Machine) -> None:
    receipts = await filled(machine)
    machine.fault = unreadable("receipt.key")
    with pytest.raises(Unavailable, match=r"receipt\.key"):
        await machine.open()
    async with machine.open(read_only=True) as db:
        assert len(await payloads(db.read("s"))) == 60
    machine.fault = None
    machine.verify(receipts[-1])


@pytest.mark.parametrize("start", [0, BLOCK])
async def test_a_last_segment_whose_beginning_cannot_be_read_stays_there(either: Machine, start: int) -> None:
    async with either.open(idle=60) as db:
        await db.append("s", b"1")
        dead = either.image()
    before = dead.disk.files()
    dead.fault = unreadable(segment_name(0), start, start + 1)
    with pytest.raises(KimberliteError, match="cannot read"):
        await dead.open()
    assert dead.disk.files() == before


@pytest.mark.parametrize("place", [0, BLOCK])
async def test_one_mark_is_enough(either: Machine, place: int) -> None:
    receipts = await filled(either)
    either.fault = unreadable(MARKS, place, place + 1)
    assert any("marks" in note for note in either.verify(receipts[-1]).notes)
    async with either.open(pack=0, segment_bytes=64 * 1024) as db:
        assert len(await payloads(db.read("s"))) == 60


@pytest.mark.parametrize("copy", VAULTS)
async def test_one_copy_of_the_vault_is_enough(encrypted: Machine, copy: str) -> None:
    receipts = await filled(encrypted)
    encrypted.fault = unreadable(copy)
    assert any(copy in note for note in encrypted.verify(receipts[-1]).notes)
    async with encrypted.open(pack=0, segment_bytes=64 * 1024) as db:
        assert len(await payloads(db.read("s"))) == 60
    encrypted.fault = None
    assert encrypted.disk.files()[VAULTS[0]] == encrypted.disk.files()[VAULTS[1]]


@pytest.mark.parametrize("name", [HASHES, CHECKPOINT, PRODUCERS, index_name(0)])
async def test_a_derived_file_that_cannot_be_read_is_made_again(either: Machine, name: str) -> None:
    receipts = await filled(either)
    either.fault = unreadable(name)
    either.verify(receipts[-1])
    async with either.open(read_only=True) as db:
        assert (await db.get(receipts[3].first_position)).offset == 3
    async with either.open(pack=0, segment_bytes=64 * 1024) as db:
        assert len(await payloads(db.read("s"))) == 60
        assert await db.append("s", b"7" * 900, producer=("p", 7)) == receipts[7]
        assert (await db.get(receipts[3].first_position)).offset == 3
    either.fault = None
    either.verify(receipts[-1])


async def test_an_open_that_is_refused_writes_nothing_to_the_vault(encrypted: Machine) -> None:
    await filled(encrypted)
    encrypted.backend().unlink(CHECKPOINT)
    encrypted.flip(segment_name(0), 2 * BLOCK)
    encrypted.flip(VAULTS[0], BLOCK + 2 * 256 + 100)
    before = [encrypted.disk.files()[name] for name in VAULTS]
    with pytest.raises(KimberliteError):
        await encrypted.open()
    assert [encrypted.disk.files()[name] for name in VAULTS] == before
    encrypted.flip(segment_name(0), 2 * BLOCK)
    async with encrypted.open() as db:
        assert len(await payloads(db.read("s"))) == 60
    assert encrypted.disk.files()[VAULTS[0]] == before[1]


@pytest.mark.parametrize("copy", VAULTS)
async def test_what_cannot_be_read_of_one_copy_of_the_vault_gets_into_neither(encrypted: Machine, copy: str) -> None:
    receipts = await filled(encrypted)
    size = len(encrypted.disk.files()[copy])
    for number in range(3):
        encrypted.fault = unreadable(copy, BLOCK)
        async with encrypted.open(pack=0, segment_bytes=64 * 1024) as db:
            await db.append(f"t{number}", b"x")
        encrypted.fault = None
        assert encrypted.verify(receipts[-1]).notes == []
        assert [len(encrypted.disk.files()[name]) for name in VAULTS] == [size, size]


async def test_a_vault_of_which_nothing_can_be_read_is_no_wrong_key(encrypted: Machine) -> None:
    await filled(encrypted)
    before = encrypted.disk.files()
    encrypted.fault = lambda *asked: next((e for name in VAULTS if (e := unreadable(name)(*asked))), None)
    for read_only in (False, True):
        with pytest.raises(Unavailable, match="the disk cannot read"):
            await encrypted.open(read_only=read_only)
    assert encrypted.disk.files() == before


async def test_what_an_anchor_names_and_the_disk_cannot_read_is_no_rollback(either: Machine) -> None:
    async with either.open(idle=60) as db:
        receipts = [await db.append("s", b"%d" % i) for i in range(10)]
        dead = either.image()
    bad = dead.end() - BLOCK
    dead.fault = unreadable(segment_name(0), bad, bad + 1)
    with pytest.raises(Corrupt, match="cannot read"):
        dead.verify(receipts[-1])
    with pytest.raises(Corrupt, match="cannot read"):
        await dead.open(read_only=True, anchor=receipts[-1])


async def test_a_repeated_append_that_cannot_be_read_again_is_refused_in_our_words(either: Machine) -> None:
    receipts = await filled(either)
    async with either.open(pack=0, segment_bytes=64 * 1024) as db:
        either.fault = unreadable(segment_name(0))
        with pytest.raises(KimberliteError):
            await db.append("s", b"7" * 900, producer=("p", 7))
        either.fault = None
        assert await db.append("s", b"7" * 900, producer=("p", 7)) == receipts[7]


async def test_a_disk_that_reads_nothing_any_more_is_away_and_not_damaged(either: Machine) -> None:
    receipts = await filled(either)
    for prefix in ("identity", "segments/", "vault"):
        if prefix == "vault" and either.key is None:
            continue
        for checkpoint in (True, False):
            if not checkpoint and CHECKPOINT in either.disk.files():
                either.backend().unlink(CHECKPOINT)
            either.fault = failing("read", prefix)
            for read_only in (False, True):
                with pytest.raises(Unavailable, match=rf"cannot read .*{prefix}"):
                    await either.open(read_only=read_only, segment_bytes=64 * 1024)
            with pytest.raises(Unavailable, match=rf"cannot read .*{prefix}"):
                either.verify()
            either.fault = None
    either.verify(receipts[-1])
