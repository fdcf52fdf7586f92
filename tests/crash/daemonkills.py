"""Kills a daemon under load, again and again, while clients outside of it go on and keep their own list.

    python -m tests.crash.daemonkills --kills 1000
    python -m tests.crash.daemonkills --cuts 200

With `--cuts` the disk loses power under the daemon first, and is mounted again before the next one starts.
Every append that was acknowledged must be there, where its receipt says; every payload once; those of each client and
stream in the order in which they were sent. An operator drops the older half again and again; where there are keys he
erases streams and rotates the master key too: none of that is to come back.
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
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

import kimberlite
from kimberlite import (
    Client,
    Duplicate,
    Erased,
    KeyUnavailable,
    KimberliteError,
    Log,
    Record,
    Unavailable,
    UnknownOutcome,
)
from kimberlite.crypto.master import create_master
from tests.crash.mounts import Shut, isolate, lacking, mounts
from tests.crash.nonces import find_slots, read_files
from tests.crash.workload import slots

ROOT = Path(__file__).parents[2]
#: Stream, client, and which of its records.
Row = tuple[str, int, int]
#: Records that are dropped at a time.
MOST = 10_000
#: Of an operator; without keys only the first.
OPERATIONS = ("retention", "erasure", "rotation")
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
    back: int = 0
    twice: int = 0
    reordered: int = 0
    #: What the operator did, and segments that were found packed.
    done: Counter[str] = field(default_factory=Counter)
    #: What of that was under way at a kill.
    amid: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    @property
    def sound(self) -> bool:
        return not (self.lost or self.back or self.twice or self.reordered or self.errors)


@dataclass
class Operated:
    """What an operator asked for, and what was answered."""

    #: The position in front of which everything was asked to be dropped, and the first that was left.
    asked: int = 0
    dropped: int = 0
    erasing: list[str] = field(default_factory=list)
    erased: list[str] = field(default_factory=list)
    done: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OPERATIONS, 0))
    errors: list[str] = field(default_factory=list)
    #: Of what was dropped: records, those acknowledged, the last of each stream and client, and what was lost.
    records: int = 0
    acknowledged: int = 0
    last: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    reordered: int = 0


class Operator:
    """Drops what it has read, erases and rotates. What was asked of a daemon that dies is asked of the next one."""

    def __init__(self, url: str, keys: Keys | None) -> None:
        self.url, self.keys, self.told = url, keys, Operated()
        self.loads = [Load(i, url, self) for i in range(CLIENTS)]
        #: What is under way.
        self.doing = ""
        #: Whether it is not known that the vault is under the next master key.
        self.rotating = False
        self.ended = False

    @property
    def stream(self) -> str:
        """The one that is erased next."""
        return f"gone-{len(self.told.erasing)}"

    async def run(self) -> None:
        whats = OPERATIONS if self.keys is not None else OPERATIONS[:1]
        async with kimberlite.connect(self.url, retry=60) as client:
            # On a slow machine no kill may have left the time for one of them.
            while not self.ended or not all(self.told.done[what] for what in whats):
                await asyncio.sleep(random.random() * 0.05)
                what = min(whats, key=lambda what: self.told.done[what] + random.random())
                try:
                    first, end = (await client.info())["first_position"], client.durable_position
                    await self.operate(client, what, first, end)
                    self.told.done[what] += 1
                except (UnknownOutcome, Unavailable):
                    # Of a disk that is gone, before the daemon is.
                    continue
                except KimberliteError as error:
                    self.told.errors.append(f"{what}: {error.code}: {error}")
                    return
                finally:
                    self.doing = ""

    async def operate(self, client: Client, what: str, first: int, end: int) -> None:
        told = self.told
        if what == "retention":
            before = first + min((end - first) // 2, MOST)
            rows = await self.look(client, first, before)
            told.asked = max(told.asked, before)
            self.doing = what
            told.dropped = max(told.dropped, (await client.retain(before=before)).first)
            self.forget(rows)
        elif what == "erasure":
            stream = self.stream
            await client.append(stream, b"")
            told.erasing.append(stream)
            self.doing = what
            assert (await client.erase(stream, reason=stream)).stream == stream
            told.erased.append(stream)
        elif self.keys is not None:
            # One whose outcome is not known is finished, and what was erased since may be under its key already.
            before_it = [] if self.rotating else told.erased[-1:]
            if not self.rotating:
                self.keys.renew()
            self.rotating, self.doing = True, what
            await client.rotate()
            self.keys.settle()
            self.rotating, self.doing = False, ""
            for stream in before_it:
                await client.confirm_erasure(stream)

    async def look(self, client: Client, first: int, before: int) -> dict[int, Row]:
        """What is there before it is dropped, held against what was acknowledged."""
        rows = {record.position: row(record) async for record in client.read(start=first, until=before)}
        for load in self.loads:
            for stream, _, position, begin, count in load.acknowledged:
                if first <= position and position + count <= before and stream not in self.told.erasing:
                    there = [rows.get(position + i) for i in range(count)]
                    self.told.lost += there != [(stream, load.number, begin + i) for i in range(count)]
        return rows

    def forget(self, rows: dict[int, Row]) -> None:
        told = self.told
        for position, (stream, who, at) in rows.items():
            if position < told.dropped:
                told.records += 1
                told.reordered += at <= told.last.get(f"{stream} {who}", -1)
                told.last[f"{stream} {who}"] = at
        for load in self.loads:
            kept = [each for each in load.acknowledged if each[2] >= told.dropped]
            told.acknowledged += sum(each[4] for each in load.acknowledged) - sum(each[4] for each in kept)
            load.acknowledged = kept


def row(record: Record) -> Row:
    """Its stream, whose it is and which of theirs; what the operator itself appends is in the order of the log."""
    if not record.payload:
        return record.stream, -1, record.position
    who, at, _ = map(bytes.decode, record.payload.split(b":", 2))
    return record.stream, int(who), int(at)


class Keys(NamedTuple):
    """The master key of a daemon, and the one that it is to be rotated to: it starts with the one that fits."""

    key: Path
    following: Path

    def renew(self) -> None:
        made = self.key.with_name("made")
        create_master(made)
        made.replace(self.following)

    def settle(self) -> None:
        made = self.key.with_name("made")
        shutil.copy2(self.following, made)
        made.replace(self.key)


class Load:
    """One client: appends to a stream of its own, to one that all share and to the one that is erased next, and
    remembers every receipt."""

    def __init__(self, number: int, url: str, operator: Operator) -> None:
        self.number, self.url, self.operator = number, url, operator
        self.client: Client | None = None
        #: What was acknowledged: stream, offset, position and payload of the first record, and how many.
        self.acknowledged: list[tuple[str, int, int, int, int]] = []
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
            stream = random.choice(["shared", "shared", self.operator.stream, *[f"client-{self.number}"] * 4])
            records = [b"%d:%d:" % (self.number, first + i) + b"." * random.choice([10, 300]) for i in range(count)]
            try:
                receipt = await self.client.append(stream, records, sync=random.choice([None, None, "batch"]))
            except KimberliteError as error:
                # One that was sent again may have been appended before.
                if isinstance(error, (Erased, UnknownOutcome)) and stream in self.operator.told.erasing:
                    continue
                # And dropped since: then there is no receipt of it.
                if isinstance(error, Duplicate) and self.operator.told.asked:
                    continue
                self.errors.append(f"{error.code}: {error}")
                return
            self.acknowledged.append((stream, receipt.first_offset, receipt.first_position, first, count))


async def clients(url: str, report: Path, keys: Keys | None) -> None:
    """Runs until SIGTERM; on SIGUSR1 it says how many appends are in flight, and what the operator is waiting for."""
    operator = Operator(url, keys)
    loads = operator.loads
    loop = asyncio.get_running_loop()

    def say() -> None:
        print(sum(load.in_flight() for load in loads), operator.doing, flush=True)

    def end() -> None:
        operator.ended = True
        for load in loads:
            load.ended = True

    loop.add_signal_handler(signal.SIGUSR1, say)
    loop.add_signal_handler(signal.SIGTERM, end)
    print("ready", flush=True)
    await asyncio.gather(operator.run(), *(load.run() for load in loads))
    told = json.dumps({"all": [[load.acknowledged, load.errors] for load in loads], "operator": asdict(operator.told)})
    report.write_text(told)  # noqa: ASYNC240


def start(path: Path, port: int, keys: Keys | None, *, slow: bool) -> subprocess.Popen[str]:
    """`slow`: with threads that write, some of which come late to their system call: so that a kill finds a group on
    the disk, and not the one in front of it."""
    command = [sys.executable, "-m", "kimberlite.cli.main", "serve", str(path), "--listen", f"127.0.0.1:{port}"]
    if slow:
        late = ["-e", "trace=pwritev2", "-e", "inject=pwritev2:delay_enter=20000:when=3+3"]
        command = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", *late, *command, "--set=backend=threads"]
    # Small groups, many at a time: one may be on the disk before the one in front of it.
    small = {"group_bytes": 4096, "largest_group": 65536, "depth": 8}
    # Segments that are soon dropped, or packed.
    small |= {"segment_bytes": 1 << 20, "checkpoint_records": 1000, "pack": 1}
    more = ["--http", "", *[f"--set=log.{name}={value}" for name, value in small.items()]]
    if keys is not None:
        more += ["--key-file", str(keys.key), f"--set=next_key_file={keys.following}"]
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


def hunt(kills: int, directory: Path, disk: Shut | None = None, *, keyed: bool = False, quiet: bool = True) -> Outcome:
    directory = Path(tempfile.mkdtemp(dir=directory))
    path, report, port = (directory if disk is None else disk.path) / "db", directory / "report", free_port()
    outcome, keys = Outcome(), None
    if keyed:
        keys = Keys(directory / "key", directory / "following")
        create_master(keys.key)
    daemon = start(path, port, keys, slow=False)
    ready(daemon)
    told_clients = [f"kimberlite://127.0.0.1:{port}", str(report), *map(str, keys or ())]
    load = subprocess.Popen(
        [sys.executable, "-m", "tests.crash.daemonkills", "--clients", *told_clients],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    told = load.stdout
    assert told is not None
    assert told.readline() == "ready\n"

    def in_flight() -> tuple[int, str]:
        load.send_signal(signal.SIGUSR1)
        appends, _, operation = told.readline().strip("\n").partition(" ")
        return int(appends), operation

    try:
        for kill in range(kills):
            # Clients that could not connect wait for up to a second.
            begun = time.monotonic()
            while not in_flight()[0] and time.monotonic() - begun < 3:
                time.sleep(0.02)
            time.sleep(random.uniform(0, 0.3))
            appends, operation = in_flight()
            outcome.in_flight += appends > 0
            outcome.amid[operation or "nothing"] += 1
            end(daemon, disk)
            outcome.kills += 1
            daemon = start(path, port, keys, slow=STRACE and kill % 3 == 0)
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
    reported = json.loads(report.read_text())
    told_last = Operated(**reported["operator"])
    asyncio.run(judge(path, keys, reported["all"], told_last, outcome))
    return outcome


async def judge(
    path: Path,
    keys: Keys | None,
    told: list[tuple[list[tuple[str, int, int, int, int]], list[str]]],
    operated: Operated,
    outcome: Outcome,
) -> None:
    found: dict[str, list[tuple[int, int]]] = {}
    begins: dict[str, int] = {}
    async with await opened(path, keys) as log:
        info = await log.info()
        async for record in log.read():
            begins.setdefault(record.stream, record.offset)
            found.setdefault(record.stream, []).append(row(record)[1:])
        erased = {each["stream"] for each in info["erasures"]}
        for stream in erased:
            with suppress(Erased):
                outcome.back += bool(await anext(log.read(stream)))
        left = list(find_slots(read_files(path), slots(log).values()))
    first = info["first_position"]
    outcome.back += (first < operated.dropped) + len(set(operated.erased) - erased) + len(left)
    outcome.lost += (first > operated.asked) + len(erased - set(operated.erasing)) + operated.lost
    outcome.reordered += operated.reordered
    outcome.acknowledged += operated.acknowledged
    outcome.errors += [*operated.errors, *left]
    outcome.done.update(operated.done)
    outcome.done["packing"] = sum(is_packed(segment) for segment in (path / "segments").iterdir())
    everything = [each for records in found.values() for each in records]
    outcome.records = len(everything) + operated.records
    outcome.twice = len(everything) - len(set(everything))
    for number, (acknowledged, errors) in enumerate(told):
        outcome.errors += errors
        for stream, offset, position, begin, count in acknowledged:
            outcome.acknowledged += count
            if position < first or stream in erased:
                continue
            at = offset - begins.get(stream, 0)
            there = found.get(stream, [])[at : at + count]
            outcome.lost += there != [(number, begin + i) for i in range(count)]
        for stream, records in found.items():
            mine = [place for sender, place in records if sender == number]
            last = operated.last.get(f"{stream} {number}", -1)
            outcome.reordered += mine != sorted(mine) or min(mine, default=last + 1) <= last
    outcome.torn = len(os.listdir(path / "quarantine"))


async def opened(path: Path, keys: Keys | None) -> Log:
    if keys is None:
        return await kimberlite.open(path, read_only=True)
    try:
        return await kimberlite.open(path, read_only=True, key_file=keys.key)
    except KeyUnavailable:
        return await kimberlite.open(path, read_only=True, key_file=keys.following)


def is_packed(segment: Path) -> bool:
    with segment.open("rb") as file:
        return file.read(12)[10:11] == b"\1"


def hunt_with_power_cuts(cuts: int, directory: Path) -> Outcome:
    """On every kind of disk in turn, until so many; a disk has room for some."""
    isolate()
    total = Outcome()
    with mounts() as made:
        while total.kills < cuts:
            for disk in made:
                share = min(CUTS_OF_A_DISK, cuts - total.kills)
                if share > 0:
                    total.add(hunt(share, directory, disk, keyed=random.random() < 0.7))
                    shutil.rmtree(disk.path / "db")
                    print(f"{total.kills} cuts: {disk.name}", file=sys.stderr, flush=True)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--cuts", type=int, help="of power, with a kill each, instead")
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--clients", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.clients:
        url, report, *keys = arguments.clients
        asyncio.run(clients(url, Path(report), Keys(*map(Path, keys)) if keys else None))
        return
    if arguments.cuts is not None and (why := lacking()) is not None:
        sys.exit(f"no power cuts: {why}")
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        directory = Path(name)
        if arguments.cuts is None:
            plain = arguments.kills // 3
            outcome = hunt(arguments.kills - plain, directory, keyed=True, quiet=False)
            outcome.add(hunt(plain, directory, quiet=False))
        else:
            outcome = hunt_with_power_cuts(arguments.cuts, directory)
    ends = "kills" if arguments.cuts is None else "power cuts"
    print(
        f"{outcome.kills} {ends}, {outcome.in_flight} with requests in flight, {outcome.torn} torn tails; "
        f"{outcome.acknowledged} records acknowledged, {outcome.records} read: "
        f"{outcome.lost} lost, {outcome.twice} twice, {outcome.reordered} streams reordered, {outcome.back} back"
    )
    for what in OPERATIONS:
        print(f"{what}: {outcome.done[what]} done, {outcome.amid[what]} {ends} in the middle")
    print(f"packing: {outcome.done['packing']} segments are packed")
    for error in outcome.errors:
        print(error)
    # Of few kills none may come at the right moment.
    hit = outcome.in_flight >= 0.9 * outcome.kills and (not STRACE or outcome.torn >= 0.05 * outcome.kills)
    sys.exit(0 if outcome.sound and (hit or outcome.kills < 100) else 1)


if __name__ == "__main__":
    main()
