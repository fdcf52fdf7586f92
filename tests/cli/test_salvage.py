from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Call

SEGMENT = "segments/00000000000000000000.seg"


def broken(ledger: Path, place: int, length: int = 1) -> None:
    file = ledger / SEGMENT
    data = bytearray(file.read_bytes())
    data[place : place + length] = bytes(255 - byte for byte in data[place : place + length])
    file.write_bytes(data)


def test_what_is_sound_is_copied_whole(ledger: Path, tmp_path: Path, call: Call) -> None:
    before = {file: file.read_bytes() for file in ledger.rglob("*") if file.is_file()}
    outcome = call("salvage", ledger, "--out", tmp_path / "new", "--json")
    assert outcome.status == 0
    report = outcome.json()
    assert (report["records"], report["copied"], report["complete"], report["missing"]) == (5, 5, True, [])
    assert before == {file: file.read_bytes() for file in ledger.rglob("*") if file.is_file()}
    for stream in ("a", "b"):
        records = [call("read", path, stream, "--json").lines() for path in (ledger, tmp_path / "new")]
        for each in records[0] + records[1]:
            del each["position"]
        assert records[0] == records[1]
    assert call("verify", tmp_path / "new").status == 0
    assert (
        call("info", ledger, "--json").json()["database_id"]
        != call("info", tmp_path / "new", "--json").json()["database_id"]
    )


def test_what_is_missing_is_said(ledger: Path, tmp_path: Path, call: Call, process: Call) -> None:
    # In the run of the first stream, behind the one that declares it.
    place = (ledger / SEGMENT).read_bytes().index(b"two")
    broken(ledger, place)
    outcome = call("salvage", ledger, "--out", tmp_path / "new")
    assert outcome.status == 0
    assert b"missing: positions 2 to 2: no sound record of it is left" in outcome.out
    assert b"missing: a, offsets 1 to 1: " in outcome.out
    # The others of its run make their leaves.
    assert call("read", tmp_path / "new", "a").out == b"one\nthree\n"
    assert call("read", tmp_path / "new", "b").out == b"four\nfive\n"
    assert process("append", tmp_path / "new", "b", stdin=b"six\n").json()["first_offset"] == 2
    assert call("verify", tmp_path / "new").status == 0


def test_what_was_given_up_before_is_said_too(ledger: Path, tmp_path: Path, call: Call) -> None:
    broken(ledger, 2 * 4096 + 250)
    assert call("repair", ledger, "--accept-loss", "--yes").status == 0
    expected: list[dict[str, Any]] = []
    for source, target in ((ledger, tmp_path / "new"), (tmp_path / "new", tmp_path / "again")):
        outcome = call("salvage", source, "--out", target)
        told = outcome.out.decode()
        assert (outcome.status, "complete  yes" in told) == (0, True)
        assert "missing before: repaired: database " in told
        assert "lost: positions 4 to 6" in told
        before = call("info", source, "--json").json()
        expected += [each | {"position": 0} for each in before["repairs"][len(expected) :]]
        repairs = call("info", target, "--json").json()["repairs"]
        assert [each | {"position": 0} for each in repairs[:-1]] == expected
        assert (repairs[-1]["database_id"], repairs[-1]["lost"]) == (before["database_id"], [])
        assert call("verify", target, "--json").json()["repairs"] == repairs
        shown = call("info", target).out.decode()
        assert ("lost: positions 4 to 6" in shown, "nothing was lost by that" in shown) == (True, True)
    assert len(expected) == 2


def test_encrypted_with_its_key(path: Path, key: Path, tmp_path: Path, call: Call) -> None:
    lines = tmp_path / "lines"
    lines.write_bytes(b"one\ntwo\n")
    assert call("append", path, "a", "--file", lines, "--key-file", key).status == 0
    (path / "identity").unlink()
    (path / "vault.0").unlink()
    assert call("salvage", path, "--out", tmp_path / "no").status == 77
    assert not (tmp_path / "no").exists()
    assert call("salvage", path, "--out", tmp_path / "new", "--key-file", key).status == 0
    assert call("read", tmp_path / "new", "a", "--key-file", key).out == b"one\ntwo\n"
    assert call("verify", tmp_path / "new", "--key-file", key).status == 0


def test_what_was_erased_and_what_is_lost_is_told(path: Path, key: Path, tmp_path: Path, call: Call) -> None:
    lines = tmp_path / "lines"
    lines.write_bytes(b"one\ntwo\n")
    for stream in ("gone", "kept"):
        assert call("append", path, stream, "--file", lines, "--key-file", key).status == 0
    with_key = ("--key-file", key)
    done = call("erase", path, "gone", "--reason", "a ticket", *with_key, "--json").json()
    outcome = call("salvage", path, "--out", tmp_path / "new", *with_key)
    assert (outcome.status, b"erased: gone" in outcome.out, b"(pending" in outcome.out) == (0, True, True)
    for command in ("info", "verify"):
        said = call(command, tmp_path / "new", *with_key, "--json").json()
        [found] = said["erasures"]
        assert found | {"position": 0} == done | {"position": 0}
        [salvaged] = said["repairs"]
        assert (salvaged["salvaged"], salvaged["kept"], salvaged["lost"]) == (True, 2, [])
        assert b"nothing was lost by that" in call(command, tmp_path / "new", *with_key).out
    assert b"ERASED" in call("read", tmp_path / "new", "gone", *with_key).err


@pytest.mark.parametrize("name", ["new", "new.salvaging"])
def test_nothing_is_written_over(ledger: Path, tmp_path: Path, call: Call, name: str) -> None:
    (tmp_path / name).mkdir()
    outcome = call("salvage", ledger, "--out", tmp_path / "new")
    advice = b"delete it" if name.endswith("salvaging") else b"not there yet"
    assert (outcome.status, advice in outcome.err) == (64, True)
    assert list((tmp_path / name).iterdir()) == []


def test_where_there_is_no_database(tmp_path: Path, call: Call) -> None:
    assert call("salvage", tmp_path / "nowhere", "--out", tmp_path / "new").status == 64
    (tmp_path / "empty").mkdir(0o700)
    assert call("salvage", tmp_path / "empty", "--out", tmp_path / "new").status == 64
    assert call("salvage", "kimberlite://host:1", "--out", tmp_path / "new").status == 64


def in_the_way(place: Path, kind: str) -> None:
    if kind == "writable":
        place.chmod(0o777)
        return
    shutil.rmtree(place)
    if kind == "file":
        place.write_bytes(b"something")
    elif kind == "link":
        place.symlink_to(place.parent.parent)
    else:
        os.mkfifo(place)


@pytest.mark.parametrize("kind", ["file", "link", "fifo", "writable"])
def test_what_is_in_the_way_is_noted_and_left(ledger: Path, tmp_path: Path, call: Call, kind: str) -> None:
    in_the_way(ledger / "index", kind)
    outcome = call("salvage", ledger, "--out", tmp_path / "new", "--json")
    assert outcome.status == 0
    report = outcome.json()
    assert (report["copied"], report["complete"]) == (5, True)
    assert [note.partition(":")[0] for note in report["notes"]] == ["index"]


@pytest.mark.parametrize("kind", ["file", "link", "fifo", "writable"])
def test_of_nothing_it_says_why_and_makes_nothing(ledger: Path, tmp_path: Path, call: Call, kind: str) -> None:
    in_the_way(ledger / "segments", kind)
    outcome = call("salvage", ledger, "--out", tmp_path / "new")
    assert outcome.status == 65
    assert b"no segment is left" in outcome.err
    assert b"segments: it " in outcome.err
    assert sorted(each.name for each in tmp_path.glob("new*")) == []


def test_a_directory_that_has_another_name_is_looked_into(ledger: Path, tmp_path: Path, call: Call) -> None:
    (ledger / "segments").rename(ledger / "old")
    outcome = call("salvage", ledger, "--out", tmp_path / "new", "--json")
    assert (outcome.status, outcome.json()["copied"]) == (0, 5)


def test_of_records_without_a_key_it_makes_nothing(path: Path, key: Path, tmp_path: Path, call: Call) -> None:
    lines = tmp_path / "lines"
    lines.write_bytes(b"one\ntwo\n")
    assert call("append", path, "a", "--file", lines, "--key-file", key).status == 0
    for copy in ("vault.0", "vault.1"):
        (path / copy).unlink()
    outcome = call("salvage", path, "--out", tmp_path / "new", "--key-file", key)
    assert outcome.status == 65
    assert b"there is no key that opens it" in outcome.err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("out", ["new", "segments/new", "../database/new", "link/new"])
def test_nothing_is_made_in_what_is_salvaged(ledger: Path, call: Call, out: str) -> None:
    (ledger.parent / "link").symlink_to(ledger)
    place = ledger.parent / out if out.startswith("link") else ledger / out
    for lost in ("", "identity"):
        if lost:
            (ledger / lost).unlink()
        before = sorted(ledger.rglob("*"))
        outcome = call("salvage", ledger, "--out", place)
        assert (outcome.status, b"inside of the database" in outcome.err) == (64, True)
        assert sorted(ledger.rglob("*")) == before
