"""Completion as the shells themselves do it."""

from __future__ import annotations

import argparse
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from kimberlite.arguments import POLICIES
from kimberlite.cli import main, shells
from tests.cli.conftest import Call, environment

#: What a shell is asked to complete, and what the command then gets. There are files `lines` and
#: `my file`, and a directory `my dir`.
COMPLETED = {
    "ap": ["append"],
    "--ver": ["--version"],
    "keys in": ["keys", "init"],
    "keys init li": ["keys", "init", "lines"],
    "completion ba": ["completion", "bash"],
    "append --sy": ["append", "--sync"],
    "append --sync gr": ["append", "--sync", "group"],
    "append --sync=gr": ["append", "--sync=group"],
    "append my": ["append", "my dir/"],
    "append --sync os my": ["append", "--sync", "os", "my dir/"],
    "append --jsonl my": ["append", "--jsonl", "my dir/"],
    "append t s --file li": ["append", "t", "s", "--file", "lines"],
    "append t s --file=li": ["append", "t", "s", "--file=lines"],
    "append kimberlite://127.0.0.1:1 s --file li": ["append", "kimberlite://127.0.0.1:1", "s", "--file", "lines"],
    "read -- my": ["read", "--", "my dir/"],
    "read read my": ["read", "read", "my"],
    "tail t --fo": ["tail", "t", "--follow"],
    "read t s --limit li": ["read", "t", "s", "--limit", "li"],
    "read kimberlite://m": ["read", "kimberlite://m"],
    "tail t -n 5 --fo": ["tail", "t", "-n", "5", "--follow"],
    "nonsense --sy": ["nonsense", "--sy"],
}
#: What a parser's names of values are, besides paths: only the user knows them.
UNKNOWN = {
    "STREAM",
    "NAME",
    "TEXT",
    "URL",
    "N",
    "BYTES",
    "SECONDS",
    "RATE",
    "ID:SEQ",
    "POSITION",
    "AGE",
    "SIZE",
    "AT",
    "WHERE",
    "HOST:PORT",
    "NAME=VALUE",
}
WAYS = ["bash", "zsh", "zsh with fpath", "fish"]


def script(shell: str) -> str:
    return shells.SCRIPTS[shell](main.parser())


def installed(shell: str) -> str:
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed")
    return found


class Shell:
    """An interactive shell on a terminal, in which `kimberlite` prints what it is called with."""

    def __init__(self, way: str, home: Path) -> None:
        command = [installed(way.partition(" ")[0]), *lay_out(way, home)]
        work = home / "work"
        (work / "my dir").mkdir(parents=True)
        (work / "my file").touch()
        (work / "lines").touch()
        setting = {
            "HOME": f"{home}",
            "ZDOTDIR": f"{home}",
            "PATH": os.environ["PATH"],
            "TERM": "xterm",
            "LC_ALL": "C.UTF-8",
        }
        self.terminal, child = pty.openpty()
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command], stdin=child, stdout=child, stderr=child, cwd=work, env=setting
        )
        os.close(child)
        self.read_until(b"ready")

    def read_until(self, end: bytes) -> str:
        seen, deadline = b"", time.monotonic() + 30
        while end not in seen:
            ready, _, _ = select.select([self.terminal], [], [], deadline - time.monotonic())
            assert ready, seen
            seen += os.read(self.terminal, 65536)
        return seen.decode()

    def complete(self, line: str) -> list[str]:
        os.write(self.terminal, f"kimberlite {line}\t\r".encode())
        return re.findall(r"\{(.*?)\}", self.read_until(b"}ready"))

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)


def lay_out(way: str, home: Path) -> list[str]:
    """Installs the script in a home, and says what the shell is started with."""
    shown = "kimberlite() { printf '{%s}' \"$@\"; echo ready; }; PS1='$ '; echo ready\n"
    if way == "bash":
        (home / "rc").write_text(script("bash") + "bind 'set bell-style none'\n" + shown)
        return ["--noprofile", "--rcfile", f"{home}/rc", "-i"]
    if way == "fish":
        place = home / ".config" / "fish" / "completions" / "kimberlite.fish"
        place.parent.mkdir(parents=True)
        place.write_text(script("fish"))
        return ["-i", "-C", "function kimberlite; printf '{%s}' $argv; echo ready; end; echo ready"]
    (home / "_kimberlite").write_text(script("zsh"))
    before, after = (f"fpath=({home} $fpath);", "") if way == "zsh with fpath" else ("", f"source {home}/_kimberlite;")
    (home / ".zshrc").write_text(
        f"{before} autoload -Uz compinit; compinit -u; {after} unsetopt beep autoremoveslash; {shown}"
    )
    return ["-d", "-i"]


@pytest.fixture(scope="module", params=WAYS)
def shell(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    started = Shell(request.param, tmp_path_factory.mktemp("home"))
    yield started
    started.end()


@pytest.mark.parametrize("line", COMPLETED)
def test_a_shell_completes(shell: Shell, line: str) -> None:
    assert shell.complete(line) == COMPLETED[line]


def offers(shell: str, line: str, home: Path) -> list[str]:
    """What it offers for the end of a line."""
    (home / "script").write_text(script(shell))
    if shell == "bash":
        # What it splits at "=" and ":" has spaces there, and a last word may be empty.
        words = "kimberlite " + (line if line and line[-1] != " " else f"{line}''")
        setting = f"source {home}/script; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))"
        return output("bash", "-u", "-c", f"{setting}; _kimberlite; printf '%s\\n' \"${{COMPREPLY[@]}}\"").split()
    offered = output("fish", "--no-config", "-c", f"source {home}/script; complete -C 'kimberlite {line}'")
    return [each.partition("\t")[0] for each in offered.splitlines()]


def output(shell: str, *arguments: str) -> str:
    done = subprocess.run([installed(shell), *arguments], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("r", ["read", "retain", "repair"]),
        ("append t s --sync ", POLICIES),
        ("append t s --sync = ", POLICIES),
        ("append t s --sync =", POLICIES),
        ("keys ", ["init", "rotate", "check"]),
        ("config ", ["-h", "--help", "--listen", "--http", "--key-file", "--config", "--set", "--json"]),
        ("read t ", []),
        ("read t s --limit ", []),
        ("read t s --json=", []),
        ("read kimberlite : //", []),
        ("nonsense ", []),
    ],
)
def test_bash_offers_what_can_stand_there(tmp_path: Path, line: str, offered: Sequence[str]) -> None:
    assert offers("bash", line, tmp_path) == list(offered)


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_every_command_is_offered(tmp_path: Path, shell: str) -> None:
    assert set(offers(shell, "", tmp_path)) == main.COMMANDS.keys()


@pytest.mark.parametrize("shell", ["bash", "fish"])
@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_flag_is_offered(tmp_path: Path, shell: str, name: str) -> None:
    flags = shells.flags(shells.commands(main.parser())[name])
    assert {"-h", "--help", "--json"} <= set(flags)
    assert sorted(offers(shell, f"{name} -", tmp_path)) == sorted(flags)


@pytest.mark.parametrize("name", ["", *main.COMMANDS])
def test_the_script_of_zsh_has_every_flag_of_a_command_once(name: str) -> None:
    text = script("zsh")
    arm = text.partition(f"'arguments {name}')")[2].partition(";;")[0] if name else text.partition("ret=0")[0]
    flags = [flag for action in shells.options(shells.commands(main.parser())[name]) for flag in action.option_strings]
    assert re.findall(r"'(?:\*|\([^)]*\))(-[-a-z]+)=?\[", arm) == flags


def test_the_script_of_zsh_has_every_command(tmp_path: Path) -> None:
    assert re.findall(r"^        '([a-z-]+):", script("zsh"), flags=re.M) == list(main.COMMANDS)
    (tmp_path / "script").write_text(script("zsh"))
    assert output("zsh", "-n", f"{tmp_path}/script") == ""


def test_the_parser_says_of_every_value_what_it_is() -> None:
    for command in shells.commands(main.parser()).values():
        for action in shells.options(command) + shells.places(command):
            known = shells.DIRECTORIES | shells.FILES | UNKNOWN
            assert action.nargs == 0 or action.choices is not None or action.metavar in known, action


@pytest.mark.parametrize("shell", shells.SCRIPTS)
def test_help_may_have_what_a_shell_takes_for_its_own(tmp_path: Path, shell: str) -> None:
    text = "it's [a] $HOME: `b` \\c"
    top = argparse.ArgumentParser()
    command = top.add_subparsers().add_parser("odd", description=text)
    command.add_argument("--odd", metavar="FILE", default="d", help=f"{text} 1%% %(default)s")
    (tmp_path / "script").write_text(shells.SCRIPTS[shell](top))
    assert output(shell, "-n", f"{tmp_path}/script") == ""
    if shell == "fish":
        asked = f"source {tmp_path}/script; complete -C 'kimberlite odd --o'"
        assert output("fish", "--no-config", "-c", asked) == f"--odd\t{text} 1% d\n"


@pytest.mark.parametrize("shell", shells.SCRIPTS)
def test_the_command_prints_the_script(call: Call, shell: str) -> None:
    assert call("completion", shell).out.decode() == script(shell)
    assert call("completion", shell, "--json").json() == {"shell": shell, "script": script(shell)}
    assert call("completion").status == call("completion", "tcsh").status == 64


def test_no_other_command_pays_for_it() -> None:
    text = "import sys, kimberlite.cli.main; sys.exit('kimberlite.cli.shells' in sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", text], env=environment(), timeout=60, check=True)
