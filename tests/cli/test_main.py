from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import pytest

from kimberlite.cli.main import COMMANDS
from tests.cli.conftest import Call, command, environment


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["read"], ["append", "t", "s", "--sync", "never"], ["info", "t", "--js"]]
)
def test_a_call_that_cannot_be_parsed_exits_with_64(call: Call, arguments: list[str]) -> None:
    outcome = call(*arguments)
    assert (outcome.status, outcome.out) == (64, b"")
    assert outcome.err.startswith(b"kimberlite: INVALID: ")
    assert outcome.err.count(b"\n") == 1


@pytest.mark.parametrize("number", ["9" * 5_000, str(1 << 63), "-1", "1_0", "\u0663", ""], ids=lambda text: text[:20])
@pytest.mark.parametrize(
    "arguments",
    [
        ["read", "s", "--start={}"],
        ["read", "--until={}"],
        ["read", "--limit={}"],
        ["append", "s", "--expect={}"],
        ["append", "s", "--producer=x:{}"],
        ["inspect", "--segment={}"],
    ],
    ids=lambda arguments: str(arguments[-1]),
)
def test_what_is_no_number_below_2_to_the_63_is_invalid(
    path: Path, call: Call, arguments: list[str], number: str
) -> None:
    name, *rest, last = arguments
    outcome = call(name, path, *rest, last.format(number))
    assert (outcome.status, outcome.out) == (64, b"")
    assert outcome.err.startswith(b"kimberlite: INVALID: argument --")
    assert (outcome.err.count(b"\n"), len(outcome.err) < 200) == (1, True)
    assert not path.exists()


@pytest.mark.parametrize("number", ["0" * 5_000, str((1 << 63) - 1)], ids=["zeros", "largest"])
def test_every_number_below_2_to_the_63_is_taken(ledger: Path, call: Call, number: str) -> None:
    assert call("read", ledger, "a", "--start=0", f"--limit={number}").status == 0
    assert call("read", ledger, "a", f"--start={number}").status == 0


def test_with_json_an_error_is_an_object(call: Call) -> None:
    error = json.loads(call("read", "--json").err)
    assert (error["code"], error["exit_code"]) == ("INVALID", 64)


HOSTILE = "caf\u00e9 \x1b]0;owned\x07\x1b[31m\x7f\u009b2J\u202e"


@pytest.mark.parametrize("name", ["info", "verify", "append"])
def test_an_error_shows_control_characters_of_a_name_and_does_not_send_them(
    ledger: Path, call: Call, name: str
) -> None:
    more = ["s", "--file", os.devnull] if name == "append" else []
    (ledger / "segments" / HOSTILE).touch()
    outcome = call(name, ledger, *more)
    assert outcome.status != 0
    assert outcome.err.decode().rstrip("\n").isprintable()
    assert "caf\u00e9 \\x1b]0;owned\\x07\\x1b[31m\\x7f\\x9b2J\\u202e" in outcome.err.decode()


@pytest.mark.parametrize(
    "arguments",
    [["info", HOSTILE], ["append", "t", "s", "--file", HOSTILE], ["read", "t", "--start", HOSTILE], [HOSTILE]],
)
def test_an_error_shows_control_characters_of_an_argument_and_does_not_send_them(
    call: Call, arguments: list[str]
) -> None:
    assert call(*arguments).err.decode().rstrip("\n").isprintable()


def test_json_of_an_error_on_a_terminal_is_ascii(path: Path) -> None:
    parent, child = pty.openpty()
    done = subprocess.run(
        command("info", path / HOSTILE, "--json"), stderr=child, timeout=60, check=False, env=environment()
    )
    shown = os.read(parent, 4096).replace(b"\r\x1b[K", b"")
    os.close(parent)
    os.close(child)
    assert done.returncode == 64
    assert shown.decode("ascii").rstrip().isprintable()
    assert HOSTILE in json.loads(shown)["message"]


@pytest.mark.parametrize("name", ["inspect", "serve", "repair"])
def test_what_is_done_in_a_directory_refuses_a_url(call: Call, name: str) -> None:
    outcome = call(name, "kimberlite://host:1")
    assert outcome.status == 64
    assert b"this is done in the directory" in outcome.err


@pytest.mark.parametrize("url", ["http://host:1", "kimberlite://host", "kimberlite+unix:relative"])
def test_a_url_that_no_daemon_has_is_refused(call: Call, url: str) -> None:
    for name in (["append", url, "s"], ["read", url], ["info", url]):
        assert call(*name).status == 64


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_explains_itself(process: Call, name: str) -> None:
    outcome = process(name, "--help")
    assert (outcome.status, outcome.err) == (0, b"")
    assert b"--json" in outcome.out


def test_a_link_in_the_directory_is_a_configuration_error(ledger: Path, call: Call) -> None:
    (ledger / "marks").rename(ledger / "elsewhere")
    (ledger / "marks").symlink_to(ledger / "elsewhere")
    assert call("verify", ledger).status == 78


@pytest.mark.parametrize("where", ["dangling", "missing/database"])
def test_a_target_that_leads_nowhere_is_a_configuration_error(tmp_path: Path, process: Call, where: str) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    outcome = process("append", tmp_path / where, "s", stdin=b"x\n")
    assert (outcome.status, outcome.out) == (78, b"")
    assert outcome.err.startswith(b"kimberlite: INVALID: ")
    assert os.listdir(tmp_path) == ["dangling"]


def test_an_interrupt_ends_an_append_that_waits_and_keeps_what_it_has(path: Path, call: Call) -> None:
    with subprocess.Popen(
        command("append", path, "s"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdin.write(b"line\n")
        child.stdin.flush()
        assert child.stdout.readline()
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 130
        assert child.stderr.read() == b""
    assert call("read", path, "s").out == b"line\n"


def test_a_bar_is_drawn_on_a_terminal_and_taken_away(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes(b"x\n" * 50_000)
    parent, child = pty.openpty()
    done = subprocess.run(
        command("append", path, "s", "--file", file),
        stdout=subprocess.DEVNULL,
        stderr=child,
        timeout=60,
        check=False,
        env=environment(),
    )
    time.sleep(0.1)
    shown = os.read(parent, 65536)
    os.close(parent)
    os.close(child)
    assert done.returncode == 0
    assert shown.startswith(b"\rappend [")
    assert shown.endswith(b"\r\x1b[K")


def test_no_bar_is_drawn_elsewhere(ledger: Path, call: Call) -> None:
    assert call("verify", ledger).err == b""


@pytest.mark.parametrize(
    ("arguments", "closed", "status"), [(["read"], 1, 74), (["append", "s"], 1, 74), (["append", "s"], 0, 64)]
)
def test_a_standard_stream_that_is_closed_is_said_to_be(
    ledger: Path, arguments: list[str], closed: int, status: int
) -> None:
    name, *rest = arguments
    done = subprocess.run(
        command(name, ledger, *rest),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment(),
        preexec_fn=lambda: os.close(closed),
        check=False,
    )
    assert done.returncode == status
    assert done.stderr.startswith(b"kimberlite: ")
    assert b"closed" in done.stderr
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("name", ["read", "inspect", "verify"])
def test_output_that_finds_no_room_is_an_error(ledger: Path, name: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command(name, ledger), stdout=full, stderr=subprocess.PIPE, env=environment(), check=False
        )
    assert done.returncode == 74
    assert done.stderr == b"kimberlite: UNAVAILABLE: input or output: No space left on device\n"
