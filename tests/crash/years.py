"""Two years of a log in minutes: the clock is ours, the disk, the processes and their deaths are real.

    python -m tests.crash.years --days 730 --out results/years

A process appends and drops, packs, erases and rotates keys by itself; it is killed in the middle or closes, and the
next one goes on. A plain model holds what each of them shows against what was acknowledged. Disk, memory, descriptors
and the time a start takes are drawn over the days; the end is held against the time after the beginning.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kimberlite import Dropped, Erased, Log, Record
from kimberlite.crypto.master import create_master
from kimberlite.log.clock import Moment
from kimberlite.log.names import PAST
from kimberlite.log.opening import Injected, open_log
from kimberlite.log.options import Options
from tests.crash.daemonkills import ROOT

DAY: Final = 86_400 * 10**9
BEGAN: Final = 1_700_000_000 * 10**9
#: Time from one append to the next; records older than this go, and a segment is older than its newest record.
STEP: Final = 600 * 10**9
AGE: Final = 30 * DAY
SEGMENT: Final = 64 * 1024
#: Streams of each month, and months until one of them is erased, if at all.
STREAMS: Final = 4
MONTH: Final = 30 * DAY
#: By how much the last quarter's median may be above the second's.
GROWTH: Final = 1.25
SLACK: Final = {"disk": 1 << 20, "memory": 8 << 20, "descriptors": 4, "start": 0.05}


def payload(stream: str, offset: int) -> bytes:
    """A record of 256 bytes that says which it is."""
    front = f"{stream} {offset} ".encode()
    return front + hashlib.shake_128(front).digest(256 - len(front))


# ---- one life


@dataclass
class Life:
    """A process that has the database open."""

    directory: Path
    key: Path
    now: int
    ticks: int
    seed: int
    log: Log = field(init=False)

    async def live(self) -> None:
        begun = time.perf_counter()
        boot = b"%016d" % 0
        injected = Injected(clock=lambda: self.now, moment=lambda: Moment(self.now, boot, self.now - BEGAN))
        self.log = await open_log(
            self.directory,
            create=True,
            read_only=False,
            key_file=self.key,
            backend="threads",
            origin=None,
            anchor=None,
            options=Options(segment_bytes=SEGMENT, retain_age=AGE / 10**9, checkpoint_records=200),
            injected=injected,
        )
        self.measure(start=time.perf_counter() - begun)
        await self.show()
        draw = random.Random(self.seed)
        for tick in range(self.ticks):
            self.now += STEP
            await self.append(draw)
            if draw.random() < 1 / 1000:
                await self.erase(draw)
            if draw.random() < 1 / 3000:
                await self.rotate()
            if tick % 500 == 0:
                self.measure()
        self.measure()
        await self.log.close()
        say(closed=True)

    async def append(self, draw: random.Random) -> None:
        month = (self.now - BEGAN) // MONTH
        stream = f"{month}/{draw.randrange(STREAMS)}"
        there = {info.name: info.length for info in self.log.streams()}.get(stream, 0)
        records = [payload(stream, there + i) for i in range(draw.choice([1, 1, 1, 3]))]
        try:
            receipt = await self.log.append(stream, records, expect=there)
        except Erased:
            return
        say(appended=[stream, receipt.first_offset, receipt.last_offset + 1, receipt.timestamp])

    async def erase(self, draw: random.Random) -> None:
        names = [info.name for info in self.log.streams()]
        stream = draw.choice(names)
        say(erasing=stream)
        await self.log.erase(stream, reason="asked for")
        say(erased=stream)

    async def rotate(self) -> None:
        key = self.key.with_name(f"key{int(self.key.name[3:]) + 1}")
        if not key.exists():
            create_master(key)
        say(rotating=str(key))
        await self.log.rotate(key)
        self.key = key
        say(rotated=str(key))
        for each in (await self.log.info())["erasures"]:
            if each["pending"]:
                await self.log.confirm_erasure(each["stream"])

    async def show(self) -> None:
        """All that is there."""
        erased = {each["stream"] for each in (await self.log.info())["erasures"]}
        for info in list(self.log.streams()):
            first, wrong = info.length, 0
            if info.name in erased:
                with suppress(Erased):
                    wrong = len([record async for record in self.log.read(info.name)])
                say(stream=[info.name, None, info.length, wrong, 0])
                continue
            records = await self.all_of(info.name)
            for record in records:
                first = min(first, record.offset)
                wrong += record.payload != payload(info.name, record.offset)
            say(stream=[info.name, first, info.length, wrong, len(records)])
        say(shown=(await self.log.info())["first_position"])

    async def all_of(self, stream: str) -> list[Record]:
        """Once more if retention, which goes on beside, has overtaken it."""
        while True:
            with suppress(Dropped):
                return [record async for record in self.log.read(stream)]

    def measure(self, **more: float) -> None:
        sizes = [path.stat().st_blocks * 512 for path in self.directory.rglob("*") if path.is_file()]
        past = self.directory / PAST
        kept = past.stat().st_blocks * 512 if past.exists() else 0
        memory = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
        descriptors = len(os.listdir("/proc/self/fd"))
        say(measured={"disk": sum(sizes) - kept, "past": kept, "memory": memory, "descriptors": descriptors, **more})


def say(**said: Any) -> None:
    print(json.dumps(said), flush=True)


# ---- all of them


@dataclass
class Stream:
    #: When each record was appended that was acknowledged.
    times: list[int] = field(default_factory=list)
    #: The first offset that was seen last.
    first: int = 0
    #: "", "asked" while nobody knows, or "erased".
    gone: str = ""


@dataclass
class Course:
    """The plain model, and what was drawn."""

    streams: dict[str, Stream] = field(default_factory=dict)
    samples: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    now: int = BEGAN
    wrong: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    first: int = 0

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def take(self, said: dict[str, Any]) -> None:
        [(what, value)] = said.items()
        if what == "appended":
            name, begin, end, when = value
            times = self.streams.setdefault(name, Stream()).times
            # What was under way at a kill may have come to be.
            times += [when] * (end - len(times))
            self.expect(begin <= end == len(times), f"{name}: {begin} to {end} after {len(times)}")
            self.now = max(self.now, when)
            self.count("appends")
        elif what in ("erasing", "erased"):
            self.streams[value].gone = {"erasing": self.streams[value].gone or "asked", "erased": "erased"}[what]
            self.count(what)
        elif what == "measured":
            self.samples.append((self.now, value))
        elif what == "stream":
            self.look(*value)
        elif what == "shown":
            self.expect(value >= self.first, f"what was dropped is back: {value} after {self.first}")
            self.count("dropped" if value > self.first else "kept")
            self.first = value
        elif what in ("rotating", "rotated", "closed"):
            self.count(what)

    def look(self, name: str, first: int | None, length: int, wrong: int, there: int) -> None:
        """What a start shows of a stream."""
        stream = self.streams.setdefault(name, Stream())
        self.expect(wrong == 0, f"{name}: {wrong} records are wrong or should not be readable")
        self.expect(length >= len(stream.times), f"{name}: {length} records, and {len(stream.times)} were acknowledged")
        self.expect(length <= len(stream.times) + 3, f"{name}: {length} records, and {len(stream.times)} were sent")
        stream.times += [self.now] * (length - len(stream.times))
        if first is None:
            self.expect(stream.gone != "", f"{name} is erased, and nobody asked for it")
            stream.gone = "erased"
            return
        self.expect(stream.gone != "erased", f"{name} was erased and is back")
        stream.gone = ""
        self.expect(there == length - first, f"{name}: {there} records from {first} to {length}")
        self.expect(first >= stream.first, f"{name}: what was dropped is back")
        young = bisect_left(stream.times, self.now - AGE)
        self.expect(first <= young, f"{name}: {first - young} records went too early")
        stream.first = first

    def expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.wrong.append(f"day {(self.now - BEGAN) / DAY:.1f}: {what}")

    def drawn(self, name: str) -> list[tuple[float, float]]:
        return [((now - BEGAN) / DAY, sample[name]) for now, sample in self.samples if name in sample]

    def judge(self) -> None:
        for name, slack in SLACK.items():
            values = [value for _, value in self.drawn(name)]
            size = max(1, len(values) // 4)
            before, after = statistics.median(values[size : 2 * size]), statistics.median(values[-size:])
            if after > before * GROWTH + slack:
                self.wrong.append(f"{name} grew from {before:,.2f} to {after:,.2f}")


def run(days: int, directory: Path, *, seed: int) -> Course:
    draw, course, life = random.Random(seed), Course(), 0
    key = directory / "key0"
    create_master(key)
    while course.now < BEGAN + days * DAY and not course.wrong:
        life += 1
        ticks = draw.randrange(50, 3000)
        # Killed as often as closed, anywhere: also while it starts.
        deadline = draw.randrange(1, ticks) if life % 2 else None
        key = one(directory, key, course, ticks, draw.randrange(1 << 30), deadline)
        course.now += draw.choice([0, STEP, DAY // 2])
    course.judge()
    return course


def one(directory: Path, key: Path, course: Course, ticks: int, seed: int, deadline: int | None) -> Path:
    """A life, killed after so many lines; the key that the next one has."""
    known = [str(directory / "db"), str(key), str(course.now), str(ticks), str(seed)]
    command = [sys.executable, "-m", "tests.crash.years", "--life", *known]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert child.stdout is not None
    next_key, closed = key, False
    try:
        for lines, line in enumerate(child.stdout, 1):
            said = json.loads(line)
            course.take(said)
            next_key = Path(said.get("rotating", next_key))
            closed = closed or "closed" in said
            if lines == deadline:
                child.send_signal(signal.SIGKILL)
                course.count("killed")
                # What it had said by then counts.
                deadline = None
    finally:
        child.kill()
        status = child.wait()
        child.stdout.close()
    course.expect(status in (0, -signal.SIGKILL), f"a process ended with {status}")
    course.count("lives")
    return opening(directory / "db", key, next_key)


def opening(directory: Path, key: Path, other: Path) -> Path:
    """Of two keys the one that opens: a rotation may have been cut off."""
    if key == other:
        return key
    check = [sys.executable, "-m", "kimberlite.cli.main", "keys", "check", str(directory), "--key-file", str(other)]
    return other if subprocess.run(check, cwd=ROOT, capture_output=True, check=False).returncode == 0 else key


def picture(course: Course) -> str:
    """Each of them over the days, from zero."""
    names = [*SLACK, "past"]
    width, height = 860, 160
    box = f'viewBox="0 0 {width} {height * len(names)}" font-family="sans-serif" font-size="12"'
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" {box}>']
    out.append('<rect width="100%" height="100%" fill="white"/>')
    for i, name in enumerate(names):
        points = course.drawn(name)
        most, last = max(value for _, value in points) or 1, points[-1][0] or 1
        base = height * (i + 1) - 30
        places = (f"{70 + 760 * x / last:.1f},{base - 100 * y / most:.1f}" for x, y in points)
        out.append(f'<text x="8" y="{base - 104}">{name}: {most:,.2f} at most, over {last:.0f} days</text>')
        out.append(f'<path d="M70 {base}H830" stroke="#999"/>')
        out.append(f'<polyline points="{" ".join(places)}" fill="none" stroke="#1f6fb4"/>')
    return "\n".join([*out, "</svg>", ""])


def lines(course: Course) -> Iterator[str]:
    yield ", ".join(f"{count:,} {what}" for what, count in sorted(course.counts.items()))
    for name in (*SLACK, "past"):
        values = [value for _, value in course.drawn(name)]
        size = max(1, len(values) // 4)
        quarters = [statistics.median(values[i * size : (i + 1) * size]) for i in range(4)]
        yield f"{name}: medians of the quarters {', '.join(f'{value:,.2f}' for value in quarters)}"
    yield from course.wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--days", type=int, default=730)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a directory for the picture and the numbers")
    parser.add_argument("--life", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.life:
        directory, key, now, ticks, seed = arguments.life
        asyncio.run(Life(Path(directory), Path(key), int(now), int(ticks), int(seed)).live())
        return
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix="years-") as directory:
        course = run(arguments.days, Path(directory), seed=arguments.seed)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "years.svg").write_text(picture(course))
        (arguments.out / "years.json").write_text(json.dumps(course.samples))
    print("\n".join(lines(course)))
    sys.exit(1 if course.wrong else 0)


if __name__ == "__main__":
    main()
