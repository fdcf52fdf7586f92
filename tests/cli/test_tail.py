"""`kimberlite tail`, of a directory and through a daemon."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

import kimberlite.sync
from tests.cli.conftest import Call, command, environment
from tests.cli.test_serve import ANY, Daemon


def test_it_prints_the_last_records_in_their_order(tmp_path: Path, call: Call) -> None:
    path = tmp_path / "db"
    with kimberlite.sync.open(path) as db:
        for i in range(30):
            db.append("ab"[i % 2], b"%d" % i)
    assert call("tail", path).out == b"".join(b"%d\n" % i for i in range(20, 30))
    assert call("tail", path, "a", "-n", "3").out == b"24\n26\n28\n"
    assert call("tail", path, "a", "--lines", "0").out == b""
    assert [each["offset"] for each in call("tail", path, "b", "-n", "2", "--json").lines()] == [13, 14]
    assert call("tail", path, "nobody").out == b""
    assert call("tail", path, "-n", "x").status == 64


def test_of_what_is_damaged_it_prints_what_came_after(tmp_path: Path, call: Call) -> None:
    path = tmp_path / "db"
    with kimberlite.sync.open(path, segment_bytes=65536, pack=0) as db:
        for i in range(300):
            db.append("s", b"%d" % i)
    first = path / "segments" / f"{0:020}.seg"
    data = bytearray(first.read_bytes())
    data[5 * 4096 + 20] ^= 1
    first.write_bytes(data)
    alone = call("tail", path, "-n", "200")
    assert alone.status == 0
    outcome = call("tail", path, "-n", "300")
    assert outcome.status == 65
    printed = [int(line) for line in outcome.out.split()]
    assert printed == list(range(300 - len(printed), 300))
    assert len(printed) > 280


@pytest.mark.parametrize("how", ["directory", "daemon"])
def test_it_goes_on_with_what_comes(tmp_path: Path, how: str) -> None:
    daemon = Daemon(tmp_path / "db", *ANY) if how == "daemon" else None
    url = f"kimberlite://{daemon.listening()}" if daemon is not None else None
    opened = kimberlite.sync.open(tmp_path / "db") if url is None else kimberlite.sync.connect(url)
    with opened as db:
        db.append("s", [b"1", b"2", b"3"])
        target = url or tmp_path / "db"
        process = subprocess.Popen(
            command("tail", target, "s", "-f", "-n", "2"), stdout=subprocess.PIPE, env=environment()
        )
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == [b"2\n", b"3\n"]
        for i in range(4, 9):
            db.append("s", b"%d" % i)
            assert process.stdout.readline() == b"%d\n" % i
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        assert process.returncode == 130
    if daemon is not None:
        assert daemon.end() == 0


@pytest.mark.parametrize("how", ["directory", "daemon"])
def test_it_says_what_was_dropped_before_it_came_so_far_and_goes_on_behind_it(tmp_path: Path, how: str) -> None:
    path = tmp_path / "db"
    daemon = Daemon(path, *ANY, "--set", "log.segment_bytes=65536") if how == "daemon" else None
    url = f"kimberlite://{daemon.listening()}" if daemon is not None else None
    with kimberlite.sync.connect(url) if url else kimberlite.sync.open(path, segment_bytes=65536, pack=0) as db:
        db.append("s", b"first")
        process = subprocess.Popen(
            command("tail", url or path, "s", "-f", "--json"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        assert process.stdout is not None
        offsets = [json.loads(process.stdout.readline())["offset"]]
        process.send_signal(signal.SIGSTOP)
        for _ in range(500):
            db.append("s", [b"z" * 900] * 20)
        db.retain(size=150_000)
        left = next(iter(db.read("s"))).offset
        process.send_signal(signal.SIGCONT)
        last = db.append("s", b"last").last_offset
        while offsets[-1] < last:
            offsets.append(json.loads(process.stdout.readline())["offset"])
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    [at] = [i for i in range(1, len(offsets)) if offsets[i] != offsets[i - 1] + 1]
    assert offsets[at] == left
    error = json.loads(err.splitlines()[0])
    assert (error["code"], error["first"]) == ("DROPPED", left)
    if daemon is not None:
        assert daemon.end() == 0
