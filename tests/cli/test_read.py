from __future__ import annotations

import json
import os
import pty
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.cli.conftest import Call, command, environment


@pytest.mark.parametrize(
    ("arguments", "payloads"),
    [
        ([], "one two three four five"),
        (["a"], "one two three"),
        (["b", "--reverse"], "five four"),
        (["a", "--start", "1"], "two three"),
        (["a", "--until", "2"], "one two"),
        (["a", "--start", "1", "--until", "2"], "two"),
        (["a", "--limit", "1", "--reverse"], "three"),
        (["unknown"], ""),
        (["a", "--start", "9"], ""),
        (["a", "--start", "2999-01-01T00:00:00Z"], ""),
        (["a", "--until", "2999-01-01T00:00:00Z"], "one two three"),
    ],
)
def test_payloads_are_printed_a_line_each(ledger: Path, call: Call, arguments: list[str], payloads: str) -> None:
    outcome = call("read", ledger, *arguments)
    assert outcome.status == 0
    assert outcome.out.decode().split() == payloads.split()


def test_json_has_every_field_of_a_record(ledger: Path, call: Call) -> None:
    [record] = call("read", ledger, "b", "--limit", 1, "--json").lines()
    timestamp = record.pop("timestamp")
    assert abs(timestamp - datetime.now(UTC).timestamp() * 1e9) < 600e9
    assert record == {
        "stream": "b",
        "offset": 0,
        "position": 5,
        "event_time": None,
        "key": None,
        "headers": [],
        "payload": "four",
    }


def test_system_records_are_shown_only_when_asked_for(ledger: Path, call: Call) -> None:
    streams = [record["stream"] for record in call("read", ledger, "--json", "--system").lines()]
    assert streams == ["", "a", "a", "a", "", "b", "b"]


@pytest.mark.parametrize("bound", ["yesterday", "-1", "1.5", "2026-01-01"])
def test_a_bound_is_a_number_or_an_aware_time(ledger: Path, call: Call, bound: str) -> None:
    assert call("read", ledger, f"--start={bound}").status == 64


def test_a_reader_that_goes_away_is_no_error(path: Path, process: Call) -> None:
    assert process("append", path, "s", stdin=b"line\n" * 100_000).status == 0
    with subprocess.Popen(
        command("read", path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == b"line\n"
        child.stdout.close()
        assert child.stderr.read() == b""
    assert child.returncode == 141


def test_a_terminal_is_not_told_what_to_do_by_a_payload(path: Path, process: Call) -> None:
    payload = b"\x1b[2Jhi\x07 caf\xc3\xa9 \xff"
    assert process("append", path, "s", stdin=payload + b"\n").status == 0
    assert process("read", path).out == payload + b"\n"
    parent, child = pty.openpty()
    done = subprocess.run(
        command("read", path), stdout=child, timeout=60, check=True, env=environment() | {"TERM": "dumb"}
    )
    shown = os.read(parent, 4096)
    os.close(parent)
    os.close(child)
    assert done.returncode == 0
    assert shown.decode() == "s:0  \\x1b[2Jhi\\x07 café \\xff\r\n"


def test_json_on_a_terminal_is_ascii(path: Path, process: Call) -> None:
    assert process("append", path, "s", stdin="x\u009b31m caf\u00e9\n".encode()).status == 0
    parent, child = pty.openpty()
    subprocess.run(command("read", path, "--json"), stdout=child, timeout=60, check=True, env=environment())
    shown = os.read(parent, 4096)
    os.close(parent)
    os.close(child)
    assert shown.isascii()
    assert json.loads(shown)["payload"] == "x\u009b31m caf\u00e9"


def test_reading_makes_nothing(tmp_path: Path, call: Call) -> None:
    assert call("read", tmp_path / "nowhere").status == 64
    assert list(tmp_path.iterdir()) == []
    assert call("read", tmp_path).status == 64
    assert list(tmp_path.iterdir()) == []


def test_encrypted_records_need_the_key(path: Path, key: Path, process: Call, call: Call) -> None:
    assert process("append", path, "s", "--key-file", key, stdin=b"secret\n").status == 0
    outcome = call("read", path)
    assert (outcome.status, outcome.out) == (77, b"")
    assert call("read", path, "--key-file", key).out == b"secret\n"
