"""The command as a process sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kimberlite.cli.main import main
from tests.cli.exported import FORMS, fill

PACKAGE = Path(__file__).parents[2]


class Outcome(NamedTuple):
    status: int
    out: bytes
    err: bytes

    def json(self) -> Any:
        return json.loads(self.out)

    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Call = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KIMBERLITE_KEY_FILE", "KIMBERLITE_KEY", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def call(capfdbinary: pytest.CaptureFixture[bytes]) -> Call:
    """Runs a command in this process."""

    def run(*arguments: object) -> Outcome:
        capfdbinary.readouterr()
        status = main([str(argument) for argument in arguments])
        return Outcome(status, *capfdbinary.readouterr())

    return run


@pytest.fixture
def process() -> Call:
    """Runs a command in a process of its own, with something on stdin."""

    def run(*arguments: object, stdin: bytes = b"") -> Outcome:
        done = subprocess.run(
            command(*arguments), input=stdin, capture_output=True, timeout=60, check=False, env=environment()
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-P", "-m", "kimberlite.cli.main", *(str(argument) for argument in arguments)]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(PACKAGE)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "database"


@pytest.fixture
def ledger(path: Path, call: Call, tmp_path: Path) -> Path:
    """A database with five records in two streams."""
    lines = tmp_path / "lines"
    lines.write_bytes(b"one\ntwo\nthree\n")
    assert call("append", path, "a", "--file", lines).status == 0
    lines.write_bytes(b"four\nfive\n")
    assert call("append", path, "b", "--file", lines).status == 0
    return path


@pytest.fixture
def key(tmp_path: Path, call: Call) -> Path:
    assert call("keys", "init", tmp_path / "key").status == 0
    return tmp_path / "key"


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> list[str]:
    """The flags for one form of an export."""
    return FORMS[request.param]


@pytest.fixture
def source(path: Path) -> Path:
    fill(path)
    return path
