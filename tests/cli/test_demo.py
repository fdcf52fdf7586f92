from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from kimberlite import sync
from kimberlite.cli import demo, demo_writer
from tests.cli.conftest import Call


def test_the_tour_shows_all_it_promises(tmp_path: Path, process: Call, call: Call) -> None:
    home = tmp_path / "tour"
    started = time.monotonic()
    outcome = process("demo", home, "--json")
    assert time.monotonic() - started < 60
    assert outcome.status == 0, outcome
    steps = outcome.lines()
    names = [step["step"] for step in steps if step["step"] != "recover"]
    assert names == ["keys", "append", "kill", "read", "append", "verify", "tamper", "verify", "done"]
    killed = next(step for step in steps if step["step"] == "kill")
    assert killed["records"] >= killed["receipts"] * demo_writer.BATCH > 0
    assert call("verify", home / "database", "--key-file", home / "master.key").status == 0
    assert call("verify", home / "copy", "--key-file", home / "master.key").status == 65


def test_a_directory_with_something_in_it_is_left_alone(tmp_path: Path, call: Call) -> None:
    (tmp_path / "mine").write_text("mine")
    assert call("demo", tmp_path).status == 64
    assert os.listdir(tmp_path) == ["mine"]


def test_a_lost_record_would_be_noticed(path: Path) -> None:
    name = demo_writer.stream(0)
    with sync.open(path) as database:
        database.append(name, [demo_writer.payload(name, offset) for offset in range(3)])
        assert demo.compare(database, name, 2) == 1
        with pytest.raises(demo.Broken):
            demo.compare(database, name, 4)
        database.append(name, b"something else")
        with pytest.raises(demo.Broken):
            demo.compare(database, name, 3)


def test_a_tour_that_fails_says_so(path: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.Tour, "append_and_kill", lambda self: self.lengths.update({"demo/0": 1}))
    outcome = call("demo", tmp_path / "tour")
    assert outcome.status == 1
    assert b"failed  INVALID: there is no database at " in outcome.out
