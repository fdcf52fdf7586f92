"""`kimberlite tail`, of a directory and through a daemon."""

from __future__ import annotations

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
