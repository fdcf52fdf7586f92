"""`kimberlite top`, on a terminal that draws what it is told, and anywhere else."""

from __future__ import annotations

import asyncio
import base64
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pyte
import pytest
from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]

import kimberlite
from kimberlite.cli import top
from tests.cli.conftest import Call, command, environment
from tests.cli.test_serve import ANY, Daemon
from tests.cli.test_terminal import COLOURS

COLUMNS, ROWS = 100, 24
FIGURE = r"(\d[\d,.]*)"


class Terminal:
    """One that a command runs on, and what stands on it."""

    def __init__(self, *arguments: object) -> None:
        self._parent, self.child = pty.openpty()
        ioctl(self.child, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.modes = termios.tcgetattr(self.child)
        self._screen = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self._screen)
        self.written = b""
        self.process = subprocess.Popen(
            command(*arguments), stdin=self.child, stdout=self.child, stderr=self.child, env=environment() | COLOURS
        )

    def until(self, shown: Callable[[str], Any], seconds: float = 20) -> Any:
        """What is found on the screen, when it is."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if select.select([self._parent], [], [], 0.05)[0]:
                piece = os.read(self._parent, 65536)
                self.written += piece
                self._stream.feed(piece)
            if found := shown("\n".join(line.rstrip() for line in self._screen.display)):
                return found
        pytest.fail("\n".join(self._screen.display))

    def press(self, keys: bytes) -> None:
        os.write(self._parent, keys)

    def ended(self) -> int:
        status = self.process.wait(20)
        while select.select([self._parent], [], [], 0)[0]:
            self.written += os.read(self._parent, 65536)
        return status

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._parent)
        os.close(self.child)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path / "db", *ANY)
    yield daemon
    daemon.process.send_signal(signal.SIGCONT)
    daemon.end()


@contextmanager
def on_terminal(url: str, *more: object) -> Iterator[Terminal]:
    terminal = Terminal("top", url, "--interval", "0.2", *more)
    try:
        yield terminal
    finally:
        terminal.close()


@contextmanager
def load(url: str) -> Iterator[None]:
    """Appends of ten records, one after another, and reads of a hundred."""
    ending = threading.Event()

    async def work() -> None:
        async with kimberlite.connect(url) as db:
            while not ending.is_set():
                await db.append("s", [bytes(100)] * 10)
                assert [record async for record in db.read(limit=100)]

    thread = threading.Thread(target=asyncio.run, args=(work(),))
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


def row(label: str, text: str) -> str:
    return next((line for line in text.splitlines() if line.split()[:1] == [label]), "")


def test_a_terminal_shows_a_daemon_at_work_and_is_as_it_was_behind_it(daemon: Daemon) -> None:
    url = f"kimberlite://{daemon.listening()}"
    with on_terminal(url) as terminal:
        with load(url):
            terminal.until(lambda text: "█" in row("records/s", text))

            def at_work(text: str) -> bool:
                appends = re.search(rf"appends +{FIGURE}/s +{FIGURE} records/s .* 10\.0 records a group", text)
                return appends is not None and appends[1] != "0"

            terminal.until(at_work)
            quantiles = r" +\d+" + r" +[\d.]+ (?:µs|ms|s)" * 5

            def timed(text: str) -> bool:
                return all(re.fullmatch(name + quantiles, row(name, text)) for name in top.TIMES)

            terminal.until(timed)
            assert terminal.until(lambda text: row(url, text)).startswith(f"{url}  kimberlite/")
            assert terminal.until(lambda text: row("process", text)).endswith("appends are taken")
        # It is not the last rate that stays.
        terminal.until(lambda text: "0/s  0 records/s" in row("appends", text))
        assert termios.tcgetattr(terminal.child) != terminal.modes
        terminal.press(b"xq")
        assert terminal.ended() == 0
        assert terminal.written.endswith(b"\x1b[?25h\x1b[?1049l")
        assert termios.tcgetattr(terminal.child) == terminal.modes


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_leaves_the_terminal_as_it_was_too(daemon: Daemon, number: int, status: int) -> None:
    with on_terminal(f"kimberlite://{daemon.listening()}") as terminal:
        terminal.until(lambda text: "q quits" in text)
        terminal.process.send_signal(number)
        assert terminal.ended() == status
        assert terminal.written.endswith(b"\x1b[?25h\x1b[?1049l")
        assert termios.tcgetattr(terminal.child) == terminal.modes


def test_a_daemon_that_says_nothing_is_waited_for_and_left_when_somebody_wants(daemon: Daemon) -> None:
    with on_terminal(f"kimberlite://{daemon.listening()}") as terminal:
        terminal.until(lambda text: "q quits" in text)
        daemon.process.send_signal(signal.SIGSTOP)
        terminal.until(lambda text: "no answer for 1 s; q quits" in text)
        assert terminal.until(lambda text: row("process", text))
        daemon.process.send_signal(signal.SIGCONT)
        terminal.until(lambda text: text.rstrip().endswith("\nq quits"))
        daemon.process.send_signal(signal.SIGSTOP)
        terminal.until(lambda text: "no answer for 1 s; q quits" in text)
        terminal.press(b"q")
        assert terminal.ended() == 0


def test_a_program_gets_a_line_of_json_for_each_look(daemon: Daemon, process: Call) -> None:
    url = f"kimberlite://{daemon.listening()}"
    with load(url):
        looks = process("top", url, "--interval", "0.3", "--count", "3", "--json").lines()
    assert len(looks) == 3
    for look in looks:
        assert 0.3 <= look["seconds"] < 5
        assert look["times"].keys() == set(top.TIMES)
        append = look["times"]["append"]
        assert 0 < append["p50_ms"] <= append["p90_ms"] <= append["p99_ms"] <= append["p99.9_ms"] <= append["max_ms"]
        assert look["backend"] in ("uring", "threads")
        assert append["per_s"] == look["times"]["wait"]["per_s"]
    appended = looks[2]["metrics"]["kimberlite_appends"] - looks[1]["metrics"]["kimberlite_appends"]
    assert looks[2]["times"]["append"]["per_s"] * looks[2]["seconds"] == pytest.approx(appended)
    text = process("top", url, "--interval", "0.1", "--count", "1").out.decode()
    assert text.startswith("appends    0/s  0 records/s")
    [quiet] = process("top", url, "--interval", "0.1", "--count", "1", "--json").lines()
    assert quiet["times"]["append"] == {"per_s": 0.0} | dict.fromkeys(append.keys() - {"per_s"})
    assert "\x1b" not in text


def test_a_daemon_that_was_started_again_counts_from_nothing() -> None:
    def said(appends: int, *values: int) -> dict[str, Any]:
        theirs = HdrHistogram(1, 3_600_000_000_000, 2)
        for value in values:
            theirs.record_value(value)
        encoded = base64.b64decode(theirs.encode())
        return {"kimberlite_appends": appends, "kimberlite_append_seconds": {"histogram": encoded}}

    went_on = top.Moment(said(70, 10, 20, 30), said(90, 10, 20, 30, 40), 2.0)
    assert (went_on.rate("appends"), went_on.histogram("append_seconds").curve()) == (10, [(40, 1.0)])
    again = top.Moment(said(70, 10, 20, 30), said(30, 40), 2.0)
    assert (again.rate("appends"), again.histogram("append_seconds").curve()) == (15, [(40, 1.0)])


@pytest.mark.parametrize(
    "more",
    [[".", "--json"], ["kimberlite://127.0.0.1:1", "--interval", "0"], ["kimberlite://127.0.0.1:1", "--count", "x"]],
)
def test_what_it_cannot_do_is_said(process: Call, more: list[str]) -> None:
    assert process("top", *more).status == 64
