"""Kills a daemon under load, again and again, while clients outside of it go on and keep their own list.

    python -m tests.crash.daemonkills --kills 1000
    python -m tests.crash.daemonkills --cuts 200

With `--cuts` the disk loses power under the daemon first, and is mounted again before the next one starts.
Every append that was acknowledged must be there, where its receipt says; every payload once; those of each client and
stream in the order in which they were sent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path

import kimberlite
from kimberlite import Client, KimberliteError
from tests.crash.mounts import Shut, isolate, lacking, mounts

ROOT = Path(__file__).parents[2]
STRACE = shutil.which("strace") is not None
CLIENTS = 6
#: After which a disk is full of what was appended between them, or nearly.
CUTS_OF_A_DISK = 5
DEPTH = 24


@dataclass
class Outcome:
    """What came of it."""

    kills: int = 0
    in_flight: int = 0
    torn: int = 0
    acknowledged: int = 0
    records: int = 0
    lost: int = 0
    twice: int = 0
    reordered: int = 0
    errors: list[str] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    @property
    def sound(self) -> bool:
        return not (self.lost or self.twice or self.reordered or self.errors)


class Load:
    """One client: appends to a stream of its own and to one that all share, and remembers every receipt."""

    def __init__(self, number: int, url: str) -> None:
        self.number, self.url = number, url
        self.client: Client | None = None
        #: What was acknowledged: stream, offset and payload of the first record, and how many.
        self.acknowledged: list[tuple[str, int, int, int]] = []
        self.errors: list[str] = []
        self.next = 0
        self.ended = False

    def in_flight(self) -> int:
        """Appends that were sent over a connection that is there, and are not answered."""
        if self.client is None or self.client._connection.link is None:
            return 0
        return sum(call.sent for call in self.client._appends.calls)

    async def run(self) -> None:
        async with kimberlite.connect(self.url, retry=60) as self.client:
            await asyncio.gather(*(self.append() for _ in range(DEPTH)))

    async def append(self) -> None:
        assert self.client is not None
        while not self.ended:
            first, count = self.next, random.choice([1, 1, 2, 20])
            self.next += count
            stream = "shared" if random.random() < 0.3 else f"client-{self.number}"
            records = [b"%d:%d:" % (self.number, first + i) + b"." * random.choice([10, 300]) for i in range(count)]
            try:
                receipt = await self.client.append(stream, records, sync=random.choice([None, None, "batch"]))
            except KimberliteError as error:
                self.errors.append(f"{error.code}: {error}")
                return
            self.acknowledged.append((stream, receipt.first_offset, first, count))


async def clients(url: str, report: Path) -> None:
    """Runs until SIGTERM; on SIGUSR1 it says how many appends are in flight."""
    loads = [Load(i, url) for i in range(CLIENTS)]
    loop = asyncio.get_running_loop()

    def say() -> None:
        print(sum(load.in_flight() for load in loads), flush=True)

    def end() -> None:
        for load in loads:
            load.ended = True

    loop.add_signal_handler(signal.SIGUSR1, say)
    loop.add_signal_handler(signal.SIGTERM, end)
    print("ready", flush=True)
    await asyncio.gather(*(load.run() for load in loads))
    told = json.dumps({"all": [[load.acknowledged, load.errors] for load in loads]})
    report.write_text(told)  # noqa: ASYNC240


def start(path: Path, port: int, *, slow: bool) -> subprocess.Popen[str]:
    """`slow`: with threads that write, some of which come late to their system call: so that a kill finds a group on
    the disk, and not the one in front of it."""
    command = [sys.executable, "-m", "kimberlite.cli.main", "serve", str(path), "--listen", f"127.0.0.1:{port}"]
    if slow:
        late = ["-e", "trace=pwritev2", "-e", "inject=pwritev2:delay_enter=20000:when=3+3"]
        command = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", *late, *command, "--set=backend=threads"]
    # Small groups, many at a time: one may be on the disk before the one in front of it.
    small = {"segment_bytes": 4 << 20, "group_bytes": 4096, "largest_group": 65536, "depth": 8}
    more = ["--http", "", *[f"--set=log.{name}={value}" for name, value in small.items()]]
    return subprocess.Popen([*command, *more], stderr=subprocess.PIPE, text=True, cwd=ROOT)


def ready(daemon: subprocess.Popen[str]) -> None:
    assert daemon.stderr is not None
    for line in daemon.stderr:
        if "listening" in line:
            return
    raise SystemExit(f"the daemon did not start: {daemon.wait()}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def end(daemon: subprocess.Popen[str], disk: Shut | None) -> None:
    """At once; with a disk of its own the power goes first, and whatever the daemon still says is held against it."""
    if disk is not None:
        disk.cut(random.Random())
        time.sleep(random.choice([0, 0, 0.002, 0.05]))
    daemon.kill()
    daemon.communicate()
    if disk is not None:
        disk.again()


def hunt(kills: int, directory: Path, disk: Shut | None = None, *, quiet: bool = True) -> Outcome:
    path, report, port = (directory if disk is None else disk.path) / "db", directory / "report", free_port()
    outcome = Outcome()
    daemon = start(path, port, slow=False)
    ready(daemon)
    load = subprocess.Popen(
        [sys.executable, "-m", "tests.crash.daemonkills", "--clients", f"kimberlite://127.0.0.1:{port}", str(report)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    told = load.stdout
    assert told is not None
    assert told.readline() == "ready\n"

    def in_flight() -> int:
        load.send_signal(signal.SIGUSR1)
        return int(told.readline())

    try:
        for kill in range(kills):
            # Clients that could not connect wait for up to a second.
            begun = time.monotonic()
            while not in_flight() and time.monotonic() - begun < 3:
                time.sleep(0.02)
            time.sleep(random.uniform(0, 0.3))
            outcome.in_flight += in_flight() > 0
            end(daemon, disk)
            outcome.kills += 1
            daemon = start(path, port, slow=STRACE and kill % 3 == 0)
            ready(daemon)
            if not quiet and kill % 20 == 19:
                print(f"{kill + 1} kills", file=sys.stderr, flush=True)
        time.sleep(0.5)
        load.terminate()
        load.wait(60)
        daemon.terminate()
        if (status := daemon.wait(20)) != 0:
            outcome.errors.append(f"the daemon ended with {status}")
    finally:
        for process in (load, daemon):
            with suppress(OSError):
                process.kill()
            process.communicate()
    asyncio.run(judge(path, json.loads(report.read_text())["all"], outcome))
    return outcome


async def judge(path: Path, told: list[tuple[list[tuple[str, int, int, int]], list[str]]], outcome: Outcome) -> None:
    found: dict[str, list[tuple[int, int]]] = {}
    async with kimberlite.open(path, read_only=True) as log:
        async for record in log.read():
            who, at, _ = map(bytes.decode, record.payload.split(b":", 2))
            found.setdefault(record.stream, []).append((int(who), int(at)))
    everything = [each for records in found.values() for each in records]
    outcome.records = len(everything)
    outcome.twice = len(everything) - len(set(everything))
    for number, (acknowledged, errors) in enumerate(told):
        outcome.errors += errors
        for stream, offset, first, count in acknowledged:
            outcome.acknowledged += count
            there = found.get(stream, [])[offset : offset + count]
            outcome.lost += there != [(number, first + i) for i in range(count)]
        for records in found.values():
            mine = [place for sender, place in records if sender == number]
            outcome.reordered += mine != sorted(mine)
    outcome.torn = len(os.listdir(path / "quarantine"))


def hunt_with_power_cuts(cuts: int, directory: Path) -> Outcome:
    """On every kind of disk in turn, until so many; a disk has room for some."""
    isolate()
    total = Outcome()
    with mounts() as made:
        while total.kills < cuts:
            for disk in made:
                share = min(CUTS_OF_A_DISK, cuts - total.kills)
                if share > 0:
                    total.add(hunt(share, directory, disk))
                    shutil.rmtree(disk.path / "db")
                    print(f"{total.kills} cuts: {disk.name}", file=sys.stderr, flush=True)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--cuts", type=int, help="of power, with a kill each, instead")
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--clients", nargs=2, metavar=("URL", "REPORT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.clients:
        asyncio.run(clients(arguments.clients[0], Path(arguments.clients[1])))
        return
    if arguments.cuts is not None and (why := lacking()) is not None:
        sys.exit(f"no power cuts: {why}")
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        directory = Path(name)
        if arguments.cuts is None:
            outcome = hunt(arguments.kills, directory, quiet=False)
        else:
            outcome = hunt_with_power_cuts(arguments.cuts, directory)
    ends = "kills" if arguments.cuts is None else "power cuts"
    print(
        f"{outcome.kills} {ends}, {outcome.in_flight} with requests in flight, {outcome.torn} torn tails; "
        f"{outcome.acknowledged} records acknowledged of {outcome.records}: "
        f"{outcome.lost} lost, {outcome.twice} twice, {outcome.reordered} streams reordered"
    )
    for error in outcome.errors:
        print(error)
    # Of few kills none may come at the right moment.
    hit = outcome.in_flight >= 0.9 * outcome.kills and (not STRACE or outcome.torn >= 0.05 * outcome.kills)
    sys.exit(0 if outcome.sound and (hit or outcome.kills < 100) else 1)


if __name__ == "__main__":
    main()
