"""What a terminal shows, and nobody else."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Call, command, environment
from tests.cli.test_verify import SEGMENT, flip

COLOURS = {"TERM": "xterm", "NO_COLOR": ""}


def terminal(*arguments: object, **variables: str) -> str:
    """What a command says on a terminal, on stdout and stderr."""
    parent, child = pty.openpty()
    done = subprocess.Popen(command(*arguments), stdout=child, stderr=child, env=environment() | COLOURS | variables)
    os.close(child)
    shown = b""
    # A terminal whose last writer is gone fails instead of ending.
    while piece := read(parent):
        shown += piece
    os.close(parent)
    done.wait(60)
    # The bar that is drawn on stderr, and taken away.
    return re.sub(r"(\r\w+ \[[#.]+\] +\d+%\x1b\[K)*\r\x1b\[K", "", shown.decode()).replace("\r\n", "\n")


def read(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except OSError:
        return b""


def test_the_code_of_an_error_is_red(tmp_path: Path) -> None:
    assert terminal("info", tmp_path / "no").startswith("kimberlite: \x1b[31mINVALID\x1b[0m: there is no database at ")


def test_a_sound_log_is_green_and_names_are_bold(ledger: Path) -> None:
    shown = terminal("verify", ledger)
    assert shown.startswith("\x1b[1mverdict         \x1b[0m\x1b[32msound\x1b[0m\n")
    assert "\n\x1b[1mrecords         \x1b[0m7\n" in shown
    assert "\n\x1b[1mbackend" in terminal("info", ledger)


def test_a_log_that_is_not_sound_is_red(ledger: Path) -> None:
    flip(ledger / SEGMENT, 4096 + 200)
    assert terminal("verify", ledger).startswith("kimberlite: \x1b[31mCORRUPT\x1b[0m: segments/")


@pytest.mark.parametrize("name", ["read", "tail"])
def test_a_record_stands_behind_its_dim_stream_and_offset(path: Path, process: Call, name: str) -> None:
    assert process("append", path, "s\u202e", stdin=b"one\n\x1b[31mtwo\n").status == 0
    shown = "\x1b[2ms\\u202e:0\x1b[0m  one\n\x1b[2ms\\u202e:1\x1b[0m  \\x1b[31mtwo\n"
    assert terminal(name, path, "s\u202e") == shown
    assert terminal(name, path, NO_COLOR="1") == ink_removed(shown)
    assert process(name, path).out == b"one\n\x1b[31mtwo\n"


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"NO_COLOR": "0"}, {"TERM": "dumb"}, {"TERM": ""}])
@pytest.mark.parametrize("arguments", [["verify", "ledger"], ["info", "ledger"], ["info", "nowhere"]])
def test_whoever_wants_no_colours_gets_the_same_words(
    ledger: Path, arguments: list[str], variables: dict[str, str]
) -> None:
    name, where = arguments
    target = ledger if where == "ledger" else where
    shown = terminal(name, target)
    plain = terminal(name, target, **variables)
    assert "\x1b" in shown
    assert "\x1b" not in plain
    assert ink_removed(shown) == plain


@pytest.mark.parametrize(
    "arguments", [["verify", "ledger"], ["info", "ledger"], ["read", "ledger"], ["info", "nowhere"]]
)
def test_json_has_no_colours(ledger: Path, arguments: list[str]) -> None:
    name, where = arguments
    shown = terminal(name, ledger if where == "ledger" else where, "--json")
    assert shown.startswith("{")
    assert "\x1b" not in shown


def test_what_is_not_a_terminal_gets_no_colours(ledger: Path, process: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in COLOURS.items():
        monkeypatch.setenv(name, value)
    for arguments in (["verify", ledger], ["info", ledger], ["read", ledger], ["tail", ledger], ["info", "nowhere"]):
        outcome = process(*arguments)
        assert outcome.out + outcome.err
        assert b"\x1b" not in outcome.out + outcome.err


def test_each_stream_is_judged_by_itself(tmp_path: Path) -> None:
    """An error is red while stdout is piped."""
    parent, child = pty.openpty()
    done = subprocess.run(
        command("info", tmp_path / "no"),
        stdout=subprocess.PIPE,
        stderr=child,
        env=environment() | COLOURS,
        timeout=60,
        check=False,
    )
    os.close(child)
    assert done.stdout == b""
    assert b"\x1b[31mINVALID\x1b[0m" in read(parent)
    os.close(parent)


def ink_removed(text: str) -> str:
    return re.sub(r"\x1b\[\d+m", "", text)
