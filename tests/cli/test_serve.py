"""`kimberlite serve`: from its start to its end."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import kimberlite
from kimberlite import Receipt

ROOT = Path(__file__).parents[2]


class Daemon:
    """A daemon in a process of its own."""

    def __init__(self, path: Path, *more: str, **environment: str) -> None:
        command = [sys.executable, "-m", "kimberlite.cli.main", "serve", str(path), "--http", "", *more]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("KIMBERLITE_")}
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=clean | {"PYTHONPATH": str(ROOT)} | environment
        )
        self.said: list[str] = []

    def listening(self) -> str:
        """Where, once it does."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if "listening on " in line:
                return line.partition("listening on ")[2].strip()
        pytest.fail(f"it ended with {self.process.wait()}: {self.said}")

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        _, rest = self.process.communicate(timeout=30)
        self.said += rest.splitlines()
        return self.process.returncode


@pytest.fixture
def daemons() -> Iterator[list[Daemon]]:
    started: list[Daemon] = []
    yield started
    for daemon in started:
        with suppress(OSError):
            daemon.process.kill()
        daemon.process.communicate()


ANY = ("--listen", "127.0.0.1:0")


def test_it_serves_until_it_is_told_to_stop_and_keeps_what_it_acknowledged(
    tmp_path: Path, daemons: list[Daemon]
) -> None:
    daemons.append(Daemon(tmp_path / "db", *ANY))
    url = f"kimberlite://{daemons[0].listening()}"
    acknowledged: list[Receipt] = []

    async def load() -> None:
        async with kimberlite.connect(url, retry=2) as db:

            async def append() -> None:
                with suppress(kimberlite.KimberliteError):
                    while True:
                        acknowledged.append(await db.append("s", b"x" * 1000))

            tasks = [asyncio.create_task(append()) for _ in range(100)]
            await asyncio.sleep(0.5)
            daemons[0].process.send_signal(signal.SIGTERM)
            begun = time.monotonic()
            assert await asyncio.to_thread(daemons[0].process.wait, 20) == 0
            assert time.monotonic() - begun < 5
            await asyncio.wait(tasks, timeout=10)

    asyncio.run(load())
    assert daemons[0].wait() == 0

    async def judge() -> None:
        async with kimberlite.open(tmp_path / "db", read_only=True) as db:
            assert "quarantine" not in str((await db.info())["notes"])
            [stream] = db.streams()
            assert stream.length > max(receipt.last_offset for receipt in acknowledged)

    asyncio.run(judge())
    assert len(acknowledged) > 100
    assert not os.listdir(tmp_path / "db" / "quarantine")


def test_a_start_that_recovers_is_ended_by_sigterm_and_the_next_one_goes_through(
    tmp_path: Path, daemons: list[Daemon]
) -> None:
    async def fill() -> None:
        async with kimberlite.open(tmp_path / "db", segment_bytes=4 << 20) as db:
            await asyncio.gather(*(db.append("s", [os.urandom(1000)] * 1000) for _ in range(40)))

    asyncio.run(fill())
    (tmp_path / "db" / "checkpoint").unlink()
    daemons.append(Daemon(tmp_path / "db", *ANY, "--http", "127.0.0.1:0"))
    said = daemons[0].process.stderr
    assert said is not None
    assert "metrics and health" in said.readline()
    assert daemons[0].end() == 0
    assert any("stopped while it recovered" in line for line in daemons[0].said)
    daemons.append(Daemon(tmp_path / "db", *ANY))
    daemons[1].listening()
    assert daemons[1].end() == 0


def test_a_unix_socket_is_its_owners_and_one_that_was_left_is_replaced(tmp_path: Path, daemons: list[Daemon]) -> None:
    where = f"unix:{tmp_path / 'socket'}"
    daemons.append(Daemon(tmp_path / "db", "--listen", where))
    assert daemons[0].listening() == where
    assert (tmp_path / "socket").stat().st_mode & 0o777 == 0o600
    daemons.append(Daemon(tmp_path / "other", "--listen", where))
    assert daemons[1].wait() == 75
    daemons[0].end(signal.SIGKILL)
    daemons.append(Daemon(tmp_path / "db", "--listen", where))
    daemons[2].listening()

    async def append() -> None:
        async with kimberlite.connect(f"kimberlite+unix:{tmp_path / 'socket'}") as db:
            assert (await db.append("s", b"x")).durable

    asyncio.run(append())
    assert daemons[2].end() == 0


@pytest.mark.parametrize(
    ("more", "status"),
    [
        (["--listen", "0.0.0.0:0"], 78),
        (["--listen", "8.8.8.8:1"], 78),
        (["--listen", "nothing"], 78),
        (["--listen", "127.0.0.1:99999"], 78),
        (["--listen", "unix:/no/such/directory/s"], 78),
        (["--listen", f"unix:{__file__}"], 78),
        (["--set", "log.depth=99"], 78),
        (["--set", "log.pool_bytes=0"], 78),
        (["--set", "log.idle=nan"], 78),
        (["--set", "log.cache_bytes=-1"], 78),
        (["--set", "limits.inbox_bytes=1"], 78),
        (["--config", "/no/such/file"], 78),
        (["--key-file", "/no/such/file"], 77),
        (["--nothing"], 64),
    ],
)
def test_what_cannot_be_served_is_said_by_its_exit(
    tmp_path: Path, daemons: list[Daemon], more: list[str], status: int
) -> None:
    daemons.append(Daemon(tmp_path / "db", *more))
    assert daemons[0].wait() == status
    assert not (tmp_path / "db").exists()


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="prlimit is not installed")
@pytest.mark.parametrize(("limit", "status"), [("900:900", 78), ("256:4096", 0)])
def test_there_are_descriptors_for_every_client_or_it_does_not_start(tmp_path: Path, limit: str, status: int) -> None:
    serve = [sys.executable, "-m", "kimberlite.cli.main", "serve", str(tmp_path / "db"), *ANY, "--http", ""]
    process = subprocess.Popen(
        ["prlimit", f"--nofile={limit}", *serve],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stderr is not None
    if status == 0:
        assert next(line for line in process.stderr if "listening on" in line)
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        assert int(limits.partition("Max open files")[2].split()[0]) == 1024 + 512
        process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == status


def test_a_second_daemon_and_a_damaged_log_are_said_by_their_exit(tmp_path: Path, daemons: list[Daemon]) -> None:
    daemons.append(Daemon(tmp_path / "db", *ANY))
    url = f"kimberlite://{daemons[0].listening()}"

    async def append() -> None:
        async with kimberlite.connect(url) as db:
            await db.append("s", [b"x" * 100] * 100)

    asyncio.run(append())
    daemons.append(Daemon(tmp_path / "db", *ANY))
    assert daemons[1].wait() == 75
    assert daemons[0].end() == 0
    [segment] = sorted((tmp_path / "db" / "segments").iterdir())
    data = bytearray(segment.read_bytes())
    data[6000] ^= 1
    segment.write_bytes(data)
    (tmp_path / "db" / "checkpoint").unlink()
    daemons.append(Daemon(tmp_path / "db", *ANY))
    assert daemons[2].wait() == 65
    assert "CORRUPT" in "".join(daemons[2].said)


def test_systemd_is_told_when_it_is_ready_and_hands_over_sockets(tmp_path: Path, daemons: list[Daemon]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "notify"))
        told.settimeout(20)
        words = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
        daemons.append(Daemon(tmp_path / "db", *ANY, **words))
        seen: list[str] = []
        while "READY=1" not in "".join(seen):
            seen.append(told.recv(4096).decode())
        assert seen[0].startswith("EXTEND_TIMEOUT_USEC=")
        seen = [told.recv(4096).decode() for _ in range(5)]
        assert seen == ["WATCHDOG=1"] * 5
        assert daemons[0].end() == 0
        while "STOPPING=1" not in seen[-1]:
            seen.append(told.recv(4096).decode())


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_log_that_fails_ends_the_daemon_and_its_clients_go_on_with_the_next(
    tmp_path: Path, daemons: list[Daemon]
) -> None:
    where = f"unix:{tmp_path / 'socket'}"
    daemons.append(Daemon(tmp_path / "db", "--listen", where, "--set", "backend=threads"))
    daemons[0].listening()

    async def load() -> list[Receipt]:
        async with kimberlite.connect(f"kimberlite+unix:{tmp_path / 'socket'}") as db:
            receipts = [await db.append("s", b"%d" % i) for i in range(10)]
            inject = ["-e", "trace=pwritev2", "-e", "inject=pwritev2:error=EIO:when=3+"]
            strace = await asyncio.create_subprocess_exec(
                *["strace", "-f", "-qq", "-o", "/dev/null", *inject, "-p", str(daemons[0].process.pid)]
            )
            more = asyncio.create_task(appended(db))
            status = await asyncio.to_thread(daemons[0].wait)
            assert status == 74, daemons[0].said
            await strace.wait()
            daemons.append(Daemon(tmp_path / "db", "--listen", where))
            await asyncio.to_thread(daemons[1].listening)
            receipts += await asyncio.wait_for(more, 30)
            found = [record.payload async for record in db.read("s")]
            assert found == [b"%d" % i for i in range(300)]
            return receipts

    async def appended(db: kimberlite.Client) -> list[Receipt]:
        made = []
        for i in range(10, 300):
            made.append(await db.append("s", b"%d" % i))
            await asyncio.sleep(0.01)
        return made

    receipts = asyncio.run(load())
    assert [receipt.first_offset for receipt in receipts] == list(range(300))
    assert daemons[1].end() == 0


def test_that_retention_waits_for_a_clock_is_said_once(tmp_path: Path, daemons: list[Daemon]) -> None:
    async def fill() -> None:
        async with kimberlite.open(tmp_path / "db") as db, db.importing() as into:
            await into.add("s", 0, time.time_ns() - 40 * 86_400 * 10**9, [b"long ago"])

    asyncio.run(fill())
    (tmp_path / "db" / "clock").unlink()
    daemons.append(Daemon(tmp_path / "db", *ANY, "--set", "log.retain_age=60"))
    daemons[0].listening()
    time.sleep(0.2)
    assert daemons[0].end() == 0
    [line] = [line for line in daemons[0].said if "retention: " in line]
    assert "40.0 days ahead" in line
