"""Everything that can be checked of a directory, read only."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import kimberlite.sync
from kimberlite import Corrupt, Invalid, KeyUnavailable, KimberliteError, Receipt, RolledBack
from kimberlite.crypto.master import create_master, load_master
from kimberlite.log import keyring
from kimberlite.log import verify as verifying
from kimberlite.log.names import CHECKPOINT, HASHES, MARKS, PRODUCERS, RESERVE, VAULTS, index_name, segment_name
from kimberlite.log.verify import verify, verify_directory
from kimberlite.storage import open_backend
from kimberlite.storage.backend import BLOCK
from kimberlite.storage.memory import MemoryBackend
from tests.log.simulated import Machine, payloads


async def filled(machine: Machine) -> Receipt:
    async with machine.open(segment_bytes=64 * 1024) as db:
        for i in range(50):
            receipt = await db.append(f"s{i % 3}", b"%d" % i * 900)
    return receipt


async def test_a_report_says_what_was_found_sound(either: Machine) -> None:
    receipt = await filled(either)
    report = either.verify(receipt)
    segments = [name for name in either.disk.files() if name.startswith("segments/")]
    assert (report.records, report.tree_size, report.streams) == (53, 53, 3)
    assert (report.root, report.chain) == (receipt.root, receipt.chain)
    assert (report.groups, report.segments) == (receipt.group, len(segments))
    assert report.read == sum(len(either.disk.files()[name]) - BLOCK for name in segments)
    assert report.keys_checked == (either.key is not None)
    assert report.notes == []


async def test_it_reads_and_writes_nothing(either: Machine) -> None:
    await filled(either)
    either.write(segment_name(0), BLOCK, either.disk.files()[segment_name(0)][BLOCK : 2 * BLOCK])
    before = either.disk.files()
    trace = either.watch()
    either.verify()
    assert {verb for verb, *_ in trace} <= {"open", "exists", "check", "list", "read", "size", "extent"}
    assert either.disk.files() == before


async def test_it_tells_how_far_it_has_got(machine: Machine) -> None:
    await filled(machine)
    steps: list[tuple[int, int]] = []
    report = verify(MemoryBackend(machine.disk), None, progress=lambda done, of: steps.append((done, of)))
    assert steps == [(i + 1, report.segments) for i in range(report.segments)]
    assert report.segments > 3


async def test_a_flipped_bit_in_every_third_block_of_every_segment_is_found(either: Machine) -> None:
    await filled(either)
    for name, data in list(either.disk.files().items()):
        if name.startswith("segments/"):
            for place in range(0, len(data), 3 * BLOCK):
                at = place + (place // BLOCK * 577) % BLOCK
                either.flip(name, at)
                with pytest.raises(KimberliteError) as found:
                    either.verify()
                assert isinstance(found.value, (Corrupt, RolledBack)), (name, at)
                either.flip(name, at)
    either.verify()


async def test_bytes_behind_a_log_that_was_closed_cleanly_are_damage(either: Machine) -> None:
    await filled(either)
    last = max(name for name in either.disk.files() if name.startswith("segments/"))
    end = len(either.disk.files()[last])
    either.write(last, end, bytes(5_000) + b"x")
    with pytest.raises(Corrupt, match="closed cleanly") as damaged:
        either.verify()
    assert damaged.value.file == last


async def test_what_is_behind_the_watermark_of_a_log_that_was_killed_is_counted_and_not_judged(either: Machine) -> None:
    async with either.open(idle=3600.0) as db:
        for i in range(3):
            last = await db.append("s", b"%d" % i)
        dead = either.image()
    report = dead.verify()
    assert (report.records, report.groups) == (last.last_position + 1, last.group)
    assert report.root == last.root
    assert report.notes == [f"groups {last.group} to {last.group} are sound, and no watermark covers them yet"]
    end = dead.end()
    dead.write(segment_name(0), end, b"x" * 100)
    [_, torn] = dead.verify().notes
    assert torn.startswith(f"{segment_name(0)}: bytes {end} to {end + 99} are no sound group")
    async with dead.open() as db:
        assert len(await payloads(db.read("s"))) == 3


async def test_a_wrong_hash_is_noted_by_its_number(either: Machine) -> None:
    receipt = await filled(either)
    either.flip(HASHES, BLOCK + 32 * 7 + 3)
    report = either.verify(receipt)
    assert (report.root, report.notes) == (
        receipt.root,
        [f"{HASHES}: hash 7 is wrong; delete the file to have it made again"],
    )


@pytest.mark.parametrize("name", [PRODUCERS, CHECKPOINT, RESERVE, index_name(0)])
async def test_what_is_in_a_file_that_is_not_of_the_log_is_not_judged_and_a_writer_goes_on(
    either: Machine, name: str
) -> None:
    await filled(either)
    async with either.open() as db:
        receipt = await db.append("s0", b"once", producer=("p", 0))
    sound = either.verify()
    for place in (0, 100):
        either.flip(name, place)
    assert either.verify() == sound
    async with either.open() as db:
        assert await db.append("s0", b"once", producer=("p", 0)) == receipt
        assert len(await payloads(db.read())) == 51
    assert either.verify().notes == []


async def test_a_copy_that_differs_from_its_sound_twin_is_noted(encrypted: Machine) -> None:
    await filled(encrypted)
    encrypted.flip(MARKS, 40)
    encrypted.flip(VAULTS[1], 5_000)
    notes = encrypted.verify().notes
    assert len(notes) == 2
    assert any(VAULTS[1] in note for note in notes)
    assert any(MARKS in note for note in notes)


async def test_slots_that_open_in_neither_copy_are_noted_and_no_copy_is_called_sound(encrypted: Machine) -> None:
    await filled(encrypted)
    end = len(encrypted.disk.files()[VAULTS[0]])
    unopened = "vault.0 and vault.1: slots that open in neither, 16 of them, at bytes "
    for copy in VAULTS:
        encrypted.write(copy, end, b"\xa5" * BLOCK)
    [alike] = encrypted.verify().notes
    assert alike.startswith(f"{unopened}{end}, {end + 256}, ")
    encrypted.write(VAULTS[1], end, b"\x5a" * BLOCK)
    [differs, both] = encrypted.verify().notes
    assert differs == "vault.1 differs from its twin"
    assert both == alike


async def test_copies_that_make_each_other_whole_are_noted(encrypted: Machine) -> None:
    await filled(encrypted)
    for number, copy in enumerate(VAULTS):
        encrypted.flip(copy, BLOCK + (2 + number) * 256 + 100)
    assert encrypted.verify().notes == ["vault.0 and vault.1: neither is what both together are"]
    async with encrypted.open() as db:
        await db.append("s", b"x")
    assert encrypted.verify().notes == []


async def test_any_receipt_ever_given_is_an_anchor(either: Machine) -> None:
    async with either.open(segment_bytes=64 * 1024) as db:
        receipts = [await db.append("s", b"%d" % i * 900) for i in range(15)]
    for receipt in receipts:
        either.verify(receipt)
        with pytest.raises(RolledBack):
            either.verify(either.forge(receipt, root=bytes(32)))
    with pytest.raises(RolledBack):
        either.verify(either.forge(receipts[-1], tree_size=999))
    assert either.forge(receipts[3]) == receipts[3]
    for change in ({"root": bytes(32)}, {"mac": bytes(16)}, {"first_offset": 99}, {"incarnation": 7}):
        with pytest.raises(Invalid, match="MAC"):
            either.verify(receipts[3]._replace(**change))


async def test_without_the_key_the_chain_and_the_tree_are_checked_all_the_same(encrypted: Machine) -> None:
    receipt = await filled(encrypted)
    encrypted.key, key = None, encrypted.key
    report = encrypted.verify(receipt)
    assert (report.records, report.root, report.keys_checked) == (53, receipt.root, False)
    encrypted.flip(segment_name(1), 3 * BLOCK + 500)
    with pytest.raises(Corrupt):
        encrypted.verify()
    encrypted.key = key


async def test_a_wrong_key_is_said_to_be_one(encrypted: Machine, tmp_path: Path) -> None:
    await filled(encrypted)
    create_master(tmp_path / "other")
    encrypted.key = tmp_path / "other"
    with pytest.raises(KeyUnavailable):
        encrypted.verify()


async def test_a_directory_on_a_real_disk_is_verified_beside_its_writer(tmp_path: Path) -> None:
    async with kimberlite.open(tmp_path / "db", backend="threads", segment_bytes=64 * 1024) as db:
        for _ in range(20):
            receipt = await db.append("s", bytes(5_000))
        report = verify_directory(tmp_path / "db", anchor=receipt)
        assert report.records == 21
    assert verify_directory(tmp_path / "db", anchor=receipt).notes == []


def test_what_is_no_database_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="no database"):
        verify_directory(tmp_path)
    with pytest.raises(KimberliteError):
        verify_directory(tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []


async def test_what_a_writer_takes_away_meanwhile_is_no_complaint(either: Machine) -> None:
    async with either.open() as db:
        await db.append("s", b"x")
    either.backend().open("prepare/checkpoint", "x").close()

    def taken(verb: str, name: str, place: int, length: int) -> None:
        if verb == "check" and name == "prepare/checkpoint":
            MemoryBackend(either.disk).unlink(name)

    report = verify(MemoryBackend(either.disk, fault=taken), load_master(either.key))
    assert (report.records, report.notes) == (2, [])


@pytest.mark.parametrize("step", ["Hashes.notes", "behind_end"])
def test_a_writer_that_begins_meanwhile_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "db"
    with kimberlite.sync.open(path) as db:
        db.append("s", [b"1"] * 25)
    checkpoint = (path / CHECKPOINT).read_bytes()
    with kimberlite.sync.open(path) as db:
        db.append("s", [b"2"] * 100)
    if step == "Hashes.notes":
        # As a kill between the two leaves them: the start cuts off the hashes that the checkpoint does not name.
        (path / CHECKPOINT).write_bytes(checkpoint)
    owner = verifying.Hashes if step == "Hashes.notes" else verifying
    goes_on = getattr(owner, step.rpartition(".")[2])
    writers = []

    def beside(*arguments: Any) -> Any:
        writers.append(kimberlite.sync.open(path))
        writers[0].append("s", b"3")
        return goes_on(*arguments)

    monkeypatch.setattr(owner, goes_on.__name__, beside)
    assert verify_directory(path).records == 126
    writers[0].close()


async def test_a_checkpoint_of_what_is_dropped_meanwhile_is_no_complaint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db, late = tmp_path / "db", tmp_path / "late"
    async with kimberlite.open(db, segment_bytes=64 * 1024) as log:
        for i in range(60):
            await log.append("s", b"%d" % i)
    old = (db / CHECKPOINT).read_bytes()
    async with kimberlite.open(db, segment_bytes=64 * 1024) as log:
        for i in range(60, 180):
            await log.append("s", b"%d" % i)
    shutil.copytree(db, late)
    (late / CHECKPOINT).write_bytes(old)
    async with kimberlite.open(db) as log:
        assert (await log.retain(before=120)).segments > 6
    notes = keyring.orphan_notes

    def meanwhile(*asked: Any) -> list[str]:
        for segment in (late / "segments").iterdir():
            if not (db / "segments" / segment.name).exists():
                segment.unlink()
        return notes(*asked)

    monkeypatch.setattr(verifying, "orphan_notes", meanwhile)
    backend = open_backend(os.fspath(late), read_only=True)
    try:
        assert verify(backend, None).records >= 180
    finally:
        backend.close()
