"""What version 1 of the format wrote is read, recovered and gone on with; and it is still written to the byte."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import kimberlite
from kimberlite import Record
from kimberlite.crypto.master import load_master
from kimberlite.log.names import CLOCK
from kimberlite.log.verify import verify_directory
from kimberlite.storage.memory import Disk
from tests.golden.make import GOLDEN, HERE, Golden, keep_key, main, text_of, unpack, written
from tests.model import read_log
from tests.model.agreement import Master, agree, closed_agree
from tests.model.files import OTHER_NAMES


@pytest.fixture(params=GOLDEN, ids=lambda golden: golden.name)
def golden(request: pytest.FixtureRequest) -> Golden:
    found: Golden = request.param
    return found


@pytest.fixture
def key(golden: Golden, tmp_path: Path) -> Path | None:
    return keep_key(tmp_path, golden.last_key) if golden.last_key else None


@pytest.fixture
def directory(golden: Golden, tmp_path: Path) -> Path:
    unpack(HERE / f"{golden.name}.tar.xz", tmp_path / "db")
    return tmp_path / "db"


def described(golden: Golden) -> str:
    return (HERE / f"{golden.name}.txt").read_text()


async def records(directory: Path, key: Path | None) -> list[Record]:
    async with kimberlite.open(directory, read_only=True, key_file=key) as db:
        return [record async for record in db.read(system=True)]


def test_a_directory_says_what_it_said_when_it_was_made(golden: Golden, directory: Path, key: Path | None) -> None:
    assert text_of(Disk.load(directory), key) == described(golden)


def test_a_directory_is_opened_gone_on_with_and_verified(golden: Golden, directory: Path, key: Path | None) -> None:
    async def go_on() -> None:
        before = await records(directory, key)
        async with kimberlite.open(directory, key_file=key) as db:
            notes = (await db.info())["notes"]
            assert [record async for record in db.read(system=True)] == before
            receipt = await db.append("orders", [b"years later", b"and another"])
            assert receipt.first_position == before[-1].position + 1
        after = await records(directory, key)
        assert after[: len(before)] == before
        assert [record.payload for record in after[len(before) :]] == [b"years later", b"and another"]
        assert [note.split(" in ")[-1].split("/")[0] for note in notes] == ["quarantine"] * golden.torn

    asyncio.run(go_on())
    assert verify_directory(directory, key_file=key).notes == []


def test_the_torn_tail_is_kept_as_it_was(tmp_path: Path) -> None:
    unpack(HERE / "torn.tar.xz", tmp_path / "db")
    segment = (tmp_path / "db/segments/00000000000000000000.seg").read_bytes().rstrip(b"\0")

    async def recover() -> None:
        async with kimberlite.open(tmp_path / "db"):
            pass

    asyncio.run(recover())
    [kept] = (tmp_path / "db/quarantine").iterdir()
    torn = kept.read_bytes()
    assert torn.startswith(b"KIMBGRP1")
    assert segment.endswith(torn)
    assert OTHER_NAMES.fullmatch(f"quarantine/{kept.name}")


async def test_the_model_reads_a_directory_as_the_engine_does(
    golden: Golden, directory: Path, key: Path | None, tmp_path: Path
) -> None:
    if golden.torn:
        async with kimberlite.open(directory):
            pass
    master = load_master(key) if key else None
    disk = Disk.load(directory)
    log = await agree(disk, None if master is None else Master.kept(tmp_path, master))
    closed_agree(disk, log)
    assert read_log(disk.files(), master) == log


def without_prepared(disk: Disk) -> dict[str, bytes]:
    return {name: data for name, data in disk.files().items() if not name.startswith("prepare/")}


async def test_the_same_input_is_written_to_the_same_bytes(golden: Golden, directory: Path, tmp_path: Path) -> None:
    key = keep_key(tmp_path, golden.key) if golden.key else None
    # Of the same format: what is prepared is nobody's yet, and that file is younger than these directories.
    again = without_prepared(await written(golden, key))
    there = without_prepared(Disk.load(directory))
    del again[CLOCK]
    assert again.keys() == there.keys()
    assert [name for name in there if again[name] != there[name]] == []


def test_made_again_they_are_the_same_and_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    main(["--out", str(tmp_path)])
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".xz"}
    assert made == {path.name: path.read_bytes() for path in HERE.iterdir() if path.suffix != ".xz"}
    (tmp_path / "plain.txt").write_text("mine")
    with pytest.raises(SystemExit, match=r"plain\.txt"):
        main(["--out", str(tmp_path)])
    assert (tmp_path / "plain.txt").read_text() == "mine"
    main(["--out", str(tmp_path), "--force"])
    assert (tmp_path / "plain.txt").read_text() == described(GOLDEN[0])


def test_they_stay_small() -> None:
    assert sum(path.stat().st_size for path in HERE.iterdir()) < 1 << 20
