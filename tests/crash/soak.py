"""A daemon at work for long: memory and descriptors stay where they are.

    python -m tests.crash.soak --seconds 3600

Clients append, read, follow, come and go, and some misbehave. What `/metrics` says is drawn from time to time; the end
is held against the time after the beginning. What a log remembers of producers is bounded, and filled before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import kimberlite
from tests.crash.daemonkills import ROOT, free_port

SAMPLED = ("kimberlite_resident_bytes", "kimberlite_descriptors", "kimberlite_connections", "kimberlite_inbox_bytes")
#: By how much the last quarter's median may be above the second's.
GROWTH = 1.05
SLACK = 8 << 20
#: That a log remembers, and how many are filled in together.
PRODUCERS = 10_000
TOGETHER = 200
#: Times that a worker appends before it is another producer; each time once or four times.
TIMES = range(5, 50)


@dataclass
class Course:
    """What was drawn, and what is wrong with it."""

    samples: list[dict[str, float]] = field(default_factory=list)
    appends: float = 0
    wrong: list[str] = field(default_factory=list)

    def quarter(self, name: str, number: int) -> float:
        size = max(1, len(self.samples) // 4)
        return statistics.median(sample[name] for sample in self.samples[number * size : (number + 1) * size])

    def judge(self) -> None:
        for name, slack in (("kimberlite_resident_bytes", SLACK), ("kimberlite_descriptors", 8)):
            before, after = self.quarter(name, 1), self.quarter(name, 3)
            if after > before * GROWTH + slack:
                self.wrong.append(f"{name} grew from {before:,.0f} to {after:,.0f}")


async def worker(number: int, port: int) -> None:
    """One client, again and again."""
    url = f"kimberlite://127.0.0.1:{port}"
    while True:
        async with kimberlite.connect(url) as db:
            for _ in range(random.choice(TIMES)):
                batch = [os.urandom(random.choice([20, 200, 2000]))] * random.choice([1, 10, 50])
                await asyncio.gather(*(db.append(f"s{number % 7}", batch) for _ in range(random.choice([1, 4]))))
                if random.random() < 0.05:
                    async for _ in db.read(f"s{number % 7}", reverse=True, limit=200):
                        pass
                if random.random() < 0.02:
                    tail = db.tail()
                    await anext(tail)
                    await tail.aclose()
                await asyncio.sleep(0.1)


async def nuisance(port: int) -> None:
    """One that sends what is no message, or half of one, and goes."""
    while True:
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(random.choice([b"GET / HTTP/1.1\r\n\r\n", b"\x05\x00", os.urandom(200)]))
            await asyncio.sleep(random.uniform(0, 0.3))
            writer.transport.abort()


async def fill(port: int, producers: int) -> None:
    """As many producers as a log remembers, with as many batches as one of the workers makes."""
    async with kimberlite.connect(f"kimberlite://127.0.0.1:{port}") as db:
        for first in range(0, producers, TOGETHER):
            names = [f"producer-{i}" for i in range(first, min(first + TOGETHER, producers))]
            batches = range(sum(random.choice([1, 4]) for _ in range(random.choice(TIMES))))
            await asyncio.gather(*(db.append("s0", b".", producer=(name, i)) for i in batches for name in names))


async def load(port: int, producers: int) -> None:
    await fill(port, producers)
    print("filled", flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    tasks = [asyncio.create_task(worker(i, port)) for i in range(8)] + [asyncio.create_task(nuisance(port))]
    stopping = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
    for task in done - {stopping}:
        task.result()


def drawn(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    found = re.findall(r"^(\w+?)(?:_total)? (\S+)$", text, flags=re.M)
    return {name: float(value) for name, value in found}


def run(seconds: float, directory: Path, *, every: float, producers: int = PRODUCERS) -> Course:
    port, http = free_port(), free_port()
    serve = ["serve", str(directory / "db"), "--listen", f"127.0.0.1:{port}", "--http", f"127.0.0.1:{http}"]
    more = [
        "--set",
        "log.segment_bytes=8388608",
        "--set",
        "log.cache_bytes=8388608",
        "--set",
        "limits.handshake=1",
        "--set",
        "log_level=error",
    ]
    daemon = subprocess.Popen([sys.executable, "-m", "kimberlite.cli.main", *serve, *more], cwd=ROOT)
    clients = None
    course = Course()
    try:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            with suppress(OSError):
                drawn(http)
                break
            time.sleep(0.05)
        command = [sys.executable, "-m", "tests.crash.soak", "--load", str(port), str(producers)]
        clients = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert clients.stdout is not None
        assert clients.stdout.readline() == "filled\n"
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(every)
            sample = drawn(http)
            course.appends = sample["kimberlite_appends"]
            course.samples.append({name: sample[name] for name in SAMPLED})
            if clients.poll() is not None:
                course.wrong.append("the clients ended")
                break
        course.judge()
    finally:
        for process in (clients, daemon):
            if process is not None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(20)
                process.kill()
                process.communicate()
    if daemon.returncode:
        course.wrong.append(f"the daemon ended with {daemon.returncode}")
    return course


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--load", nargs=2, type=int, metavar=("PORT", "PRODUCERS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        asyncio.run(load(*arguments.load))
        return
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        course = run(arguments.seconds, Path(directory), every=max(0.2, arguments.seconds / 400))
    for number in range(4):
        print(json.dumps({"quarter": number + 1} | {name: course.quarter(name, number) for name in SAMPLED}))
    print(f"{course.appends:,.0f} appends in {arguments.seconds:g} s; {'; '.join(course.wrong) or 'flat'}")
    sys.exit(bool(course.wrong))


if __name__ == "__main__":
    main()
