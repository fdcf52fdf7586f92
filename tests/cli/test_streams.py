"""`kimberlite streams`, of a directory and through a daemon."""

from __future__ import annotations

from pathlib import Path

import kimberlite.sync
from tests.cli.conftest import Call
from tests.cli.test_serve import ANY, Daemon


def test_it_prints_what_there_is(tmp_path: Path, call: Call) -> None:
    path = tmp_path / "db"
    with kimberlite.sync.open(path) as db:
        db.append("b", [b"x"] * 1_500)
        db.append("a\u202e", b"x")
    assert call("streams", path).out.decode().splitlines() == [
        "       1,500  plain      b",
        "           1  plain      a\\u202e",
    ]
    expected = [
        {"name": "b", "length": 1_500, "encrypted": False, "erased": False},
        {"name": "a\u202e", "length": 1, "encrypted": False, "erased": False},
    ]
    assert call("streams", path, "--json").lines() == expected
    daemon = Daemon(path, *ANY)
    url = f"kimberlite://{daemon.listening()}"
    assert call("streams", url, "--json").lines() == expected
    assert daemon.end() == 0


def test_every_command_that_takes_a_url_asks_the_daemon(tmp_path: Path, call: Call, process: Call) -> None:
    daemon = Daemon(tmp_path / "db", *ANY)
    url = f"kimberlite://{daemon.listening()}"
    receipts = process("append", url, "s", stdin=b"one\ntwo\n").lines()
    assert [receipts[0]["first_offset"], receipts[-1]["last_offset"]] == [0, 1]
    assert process("append", url, "s", "--expect", "7", stdin=b"no\n").status == 1
    assert call("read", url, "s").out == b"one\ntwo\n"
    assert call("read", url, "--reverse", "--limit", "1").out == b"two\n"
    assert call("info", url, "--json").json()["records"] == 3
    refused = call("read", url, "--key-file", "/nowhere")
    assert (refused.status, b"the daemon has the keys" in refused.err) == (64, True)
    anchor = tmp_path / "receipt"
    anchor.write_bytes(process("append", url, "s", stdin=b"three\n").out)
    told = call("verify", url, "--json", "--anchor", anchor).json()
    assert (told["records"], told["anchored"], told["notes"]) == (4, True, [])
    assert call("inspect", url).status == 64
    [segment] = (tmp_path / "db" / "segments").iterdir()
    with segment.open("r+b") as file:
        file.seek(4096 + 700)
        byte = file.read(1)
        file.seek(4096 + 700)
        file.write(bytes([byte[0] ^ 1]))
    assert call("verify", url).status == 65
    with segment.open("r+b") as file:
        file.seek(4096 + 700)
        file.write(byte)
    assert call("verify", url).status == 0
    assert daemon.end() == 0
    large = tmp_path / "lines"
    large.write_bytes(b"".join(b"%08d" % i + b"x" * 1_000_000 + b"\n" for i in range(40)))
    again = Daemon(tmp_path / "db", *ANY)
    url = f"kimberlite://{again.listening()}"
    call("append", url, "large", "--file", large)
    assert call("read", url, "large").out == large.read_bytes()
    assert again.end() == 0
