"""Real power cuts: the engine on a loop-mounted file system that is shut down under it without a flush.

A child appends and says through a pipe what was acknowledged and what it is doing. At a random moment the file system
is shut down (nothing that its log or cache still holds reaches the image), the child is killed, the image is mounted
again, and a second child opens the database and holds it against every durable acknowledgement.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, Literal

from kimberlite.crypto.master import create_master
from kimberlite.errors import KimberliteError
from kimberlite.log import checkpoint, committer, opening, streams
from kimberlite.log.log import Log
from kimberlite.log.opening import Injected, open_log
from kimberlite.log.options import MIB, Options
from kimberlite.log.verify import verify_directory

#: FS_IOC_SHUTDOWN of ext4 and XFS_IOC_GOINGDOWN, and the flag for "without flushing the log".
SHUTDOWN, NO_FLUSH = 0x8004587D, 2
MAKE = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"]}
#: XFS refuses less.
IMAGE_BYTES = 320 * MIB
#: What a child can be in the middle of, and where the engine does it.
STEPS: dict[str, tuple[Any, str]] = {
    "rotation": (committer, "install"),
    "vault": (streams.Streams, "_write"),
    "checkpoint": (checkpoint.Checkpointer, "_write"),
    "opening": (opening.Opener, "_prepare"),
}
Engine = Literal["auto", "threads"]
ENGINES: tuple[Engine, ...] = ("auto", "threads")
#: Stream, first offset, first position, seed, records.
Ack = tuple[str, int, int, int, int]


def lacking() -> str | None:
    """Why there can be no power cuts here."""
    if os.geteuid() != 0:
        return "not root"
    if not Path("/dev/loop-control").exists():
        return "no loop devices"
    missing = [make[0] for make in MAKE.values() if shutil.which(make[0]) is None]
    return f"no {' and no '.join(missing)}" if missing else None


def payloads(seed: int, count: int) -> list[bytes]:
    rng = Random(seed)
    sizes = (0, 20, 300, 3000, 9000) if seed % 16 else (60_000, 90_000)
    return [rng.randbytes(rng.choice(sizes)) for _ in range(count)]


class Mount:
    """A file system in an image, which can lose power."""

    def __init__(self, kind: str, place: Path) -> None:
        self.image, self.path = place / f"{kind}.img", place / kind
        self.path.mkdir()
        with self.image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        subprocess.run([*MAKE[kind], str(self.image)], check=True, stdout=subprocess.DEVNULL)
        self.mounted = False
        self.mount()

    def mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", self.image, self.path], check=True)
        self.mounted = True

    def cut(self) -> None:
        directory = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(directory, SHUTDOWN, struct.pack("I", NO_FLUSH))
        finally:
            os.close(directory)

    def unmount(self) -> None:
        # A ring of a killed process lets its files go a moment after the process.
        for _ in range(200):
            if subprocess.run(["umount", self.path], stderr=subprocess.DEVNULL).returncode == 0:
                break
            time.sleep(0.02)
        else:
            subprocess.run(["umount", "-l", self.path], check=True)
        self.mounted = False

    def close(self) -> None:
        if self.mounted:
            self.unmount()
        self.image.unlink()


def reporting(say: Callable[[Any], None], name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*arguments: Any) -> Any:
        say(["begin", name])
        result = call(*arguments)
        say(["end", name])
        return result

    return wrapped


def report_steps(say: Callable[[Any], None]) -> None:
    """In a child only: what it does is said before and after. A mark is done when its completion has come."""
    for name, (owner, attribute) in STEPS.items():
        setattr(owner, attribute, reporting(say, name, getattr(owner, attribute)))
    mark = committer.Committer._write_mark

    def write_mark(self: committer.Committer, *, clean: bool, done: Callable[[], None] = lambda: None) -> None:
        def finished() -> None:
            say(["end", "mark"])
            done()

        say(["begin", "mark"])
        mark(self, clean=clean, done=finished)

    committer.Committer._write_mark = write_mark  # type: ignore[method-assign]
    checkpoint.LEAST_INTERVAL = 0.02  # type: ignore[misc]


async def opened(path: Path, engine: Engine, key: Path | None, rng: Random) -> Log:
    options = Options(segment_bytes=MIB, depth=rng.randrange(1, 9), checkpoint_records=200, idle=0.001)
    return await open_log(
        path, create=True, read_only=False, key_file=key, backend=engine, origin=None, anchor=None,
        options=options, injected=Injected(),
    )  # fmt: skip


async def work(path: Path, engine: Engine, key: Path | None, seed: int, say: Callable[[Any], None]) -> None:
    report_steps(say)
    rng = Random(seed)
    db = await opened(path, engine, key, rng)
    say(["engine", (await db.info())["backend"]])

    # Large groups are in flight together: one can land without the one before it.
    heavy = rng.random() < 0.3

    async def client(rng: Random) -> None:
        while True:
            policy = rng.choice(["group", "group", "batch", "os", "record"])
            count = 1 if policy == "record" else rng.randrange(1, 9)
            stream = f"s{rng.randrange(40)}" if rng.random() < 0.9 else f"new{rng.randrange(10**6)}"
            records = rng.getrandbits(48) & (~15 if heavy and rng.random() < 0.7 else -1)
            r = await db.append(stream, payloads(records, count), sync=policy)  # type: ignore[arg-type]
            if r.durable:
                say(["ack", [stream, r.first_offset, r.first_position, records, count]])
            if rng.random() < 0.1:
                await asyncio.sleep(rng.random() * 0.01)

    await asyncio.gather(*(client(Random(rng.random())) for _ in range(rng.randrange(1, 9))))


async def check(path: Path, key: Path | None, acks: list[Ack], seed: int, say: Callable[[Any], None]) -> None:
    """Opens what the cut left; says what is lost, whether it verifies and that it goes on."""
    rng = Random(seed)
    db = await opened(path, rng.choice(ENGINES), key, rng)
    say(["torn", sum("torn" in note for note in (await db.info())["notes"])])
    by_stream: dict[str, list[tuple[int, bytes]]] = {}
    async for record in db.read():
        of_stream = by_stream.setdefault(record.stream, [])
        assert record.offset == len(of_stream)
        of_stream.append((record.position, record.payload))
    for stream, offset, position, records, count in acks:
        found = by_stream.get(stream, [])[offset : offset + count]
        if [payload for _, payload in found] != payloads(records, count) or found[0][0] != position:
            say(["lost", [stream, offset, position, len(by_stream.get(stream, []))]])
    after = [await db.append(f"after{i}", payloads(seed + i, 3)) for i in range(2)]
    await db.close()
    verify_directory(path, key_file=key)
    for i, r in enumerate(after):
        say(["ack", [f"after{i}", r.first_offset, r.first_position, seed + i, 3]])


class Child:
    """A forked process and what it says."""

    def __init__(self, work: Callable[[Callable[[Any], None]], Any]) -> None:
        self._pipe, out = os.pipe()
        self._said = b""
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._pipe)
            self._run(work, out)
        os.close(out)

    def _run(self, work: Callable[[Callable[[Any], None]], Any], out: int) -> None:
        def say(what: Any) -> None:
            os.write(out, json.dumps(what).encode() + b"\n")

        try:
            asyncio.run(work(say))
            say(["done", None])
        except BaseException as error:
            kind = "refused" if isinstance(error, KimberliteError) else "escaped"
            text = traceback.format_exc() if kind == "escaped" else f"{type(error).__name__}: {error}"
            say([kind, text[-1500:]])
        os._exit(0)

    def listen(self, seconds: float, until: str | None = None) -> bool:
        """Whether it ended in that time; returns sooner if it begins that step."""
        begins = json.dumps(["begin", until]).encode()
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self._pipe], [], [], left)[0]:
                data = os.read(self._pipe, 1 << 16)
                if not data:
                    return True
                self._said += data
                if begins in data:
                    break
        return False

    def end(self) -> list[Any]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.listen(60)
        os.close(self._pipe)
        return [json.loads(line) for line in self._said.splitlines()]


class Database:
    """One directory through several cuts, and everything durable that it acknowledged."""

    def __init__(self, path: Path, key: Path | None) -> None:
        self.path, self.key, self.acks = path, key, list[Ack]()

    def cut(self, mount: Mount, rng: Random, counts: Counter[str]) -> None:
        seed, engine = rng.getrandbits(40), rng.choice(ENGINES)
        writer = Child(lambda say: work(self.path, engine, self.key, seed, say))
        ended = writer.listen(rng.choice((0.05, 0.2, 0.6)) * rng.random() + 0.002)
        if not ended and rng.random() < 0.6:
            ended = writer.listen(0.2, until=rng.choice([*STEPS, "mark"]))
            time.sleep(rng.choice((0, 0.0003, 0.002)) * rng.random())
        mount.cut()
        said = writer.end()
        mount.unmount()
        mount.mount()
        counts["cuts"] += 1
        counts["stopped early"] += ended
        self._count(said, counts)
        for text in (text for kind, text in said if kind == "escaped"):
            counts["escaped"] += 1
            print(f"escaped before the cut: {text}")
        checker = Child(lambda say: check(self.path, self.key, self.acks, seed, say))
        finished = checker.listen(60)
        self._judge(checker.end(), finished, counts)

    def _count(self, said: list[Any], counts: Counter[str]) -> None:
        new = [tuple(what) for kind, what in said if kind == "ack"]
        self.acks += new
        counts["acknowledged"] += len(new)
        for name in (*STEPS, "mark"):
            edges = [kind for kind, what in said if what == name]
            counts[f"{name} done"] += edges.count("end")
            counts[f"{name} hit"] += edges.count("begin") > edges.count("end")
        counts.update(f"on {what}" for kind, what in said if kind == "engine")

    def _judge(self, said: list[Any], finished: bool, counts: Counter[str]) -> None:
        counts["hung"] += not finished
        for kind, what in said:
            if kind in ("lost", "refused", "escaped"):
                counts[kind] += 1
                print(f"{kind}: {self.path.name}: {what}")
            elif kind == "torn":
                counts["torn tails"] += what
            elif kind == "ack":
                self.acks.append(tuple(what))


@contextlib.contextmanager
def mounts() -> Iterator[list[Mount]]:
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="powercut", dir=memory) as place, contextlib.ExitStack() as stack:
        made = []
        for kind in MAKE:
            made.append(Mount(kind, Path(place)))
            stack.callback(made[-1].close)
        create_master(Path(place) / "key")
        yield made


def run(cuts: int, seed: int) -> Counter[str]:
    counts = Counter(dict.fromkeys(("cuts", "acknowledged", "lost", "refused", "escaped", "hung", "torn tails"), 0))
    rng = Random(seed)
    with mounts() as made:
        while counts["cuts"] < cuts:
            mount = rng.choice(made)
            key = mount.path.parent / "key" if rng.random() < 0.5 else None
            database = Database(mount.path / f"db{counts['cuts']}", key)
            for _ in range(min(rng.randrange(1, 7), cuts - counts["cuts"])):
                database.cut(mount, rng, counts)
            shutil.rmtree(database.path, ignore_errors=True)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.powercut", description=__doc__)
    parser.add_argument("--cuts", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    arguments = parser.parse_args()
    if (why := lacking()) is not None:
        print(f"no power cuts: {why}")
        return 0
    began = time.monotonic()
    counts = run(arguments.cuts, arguments.seed)
    for name, count in counts.items():
        print(f"{name:18} {count}")
    print(f"seed {arguments.seed}, {counts['cuts'] / (time.monotonic() - began):.1f} cuts/s")
    return int(any(counts[bad] for bad in ("lost", "refused", "escaped", "hung")))


if __name__ == "__main__":
    sys.exit(main())
