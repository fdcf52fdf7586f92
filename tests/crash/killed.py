"""kill -9 while writes of an io_uring are in flight: they outlive their process, and land when they like.

A child appends large groups and is killed at one of them. The parent opens the directory at once, and again for as long
as it is busy. What it then shows is all that was acknowledged, and nothing of it changes any more: whatever was in
flight has landed before anybody judged where the log ends.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

from kimberlite.crypto.master import create_master
from kimberlite.errors import Busy
from kimberlite.log.log import Log
from kimberlite.log.verify import verify_directory
from tests.crash.children import Ack, Child, Manner, Writer, missing, payloads, usable
from tests.crash.device import Device
from tests.crash.mounts import Volatile
from tests.crash.mounts import lacking as lacking_mounts
from tests.crash.nonces import read_files

#: What must never be counted.
BAD = ("lost", "changed", "refused")
#: Milliseconds that a slow disk takes for a write; and seconds in which an old one has landed.
SLOW = 80
SETTLED = 0.12
MANNERS: tuple[Manner, ...] = ("large", "large", "quiet")


def lacking() -> str | None:
    return None if "uring" in usable() else "no io_uring"


async def opened(writer: Writer, counts: Counter[str]) -> Log:
    """Tried at once, and for as long as the old writer's writes keep it locked."""
    patient = time.monotonic() + 20
    first = True
    while True:
        try:
            return await writer.open(Random(writer.seed))
        except Busy:
            if time.monotonic() > patient:
                raise
            counts["busy"] += first
            first = False
            await asyncio.sleep(0.001)


def judged(path: Path) -> dict[str, bytes]:
    """What a recovery has decided about: the log, but for the segment it has begun; marks, keys and identity."""
    files = read_files(path)
    segments = sorted(name for name in files if name.startswith("segments/"))
    kept = {*segments[:-1], "marks", "identity", "vault.0", "vault.1"}
    return {name: data for name, data in files.items() if name in kept}


async def judge(writer: Writer, acks: list[Ack], counts: Counter[str]) -> list[Ack]:
    """Opens what the killed process left, and returns what was appended behind it."""
    db = await opened(writer, counts)
    try:
        before = judged(writer.path)
        for lost in await missing(db, acks):
            counts["lost"] += 1
            print(f"lost: {lost}")
        await asyncio.sleep(SETTLED)
        for name, data in judged(writer.path).items():
            if before[name] != data:
                counts["changed"] += 1
                print(f"changed beneath the log: {name}")
        receipt = await db.append("after", payloads(writer.seed, 3))
    finally:
        await db.close()
    verify_directory(writer.path, key_file=writer.key)
    return [("after", receipt.first_offset, receipt.first_position, writer.seed, 3)]


def kill(writer: Writer, acks: list[Ack], rng: Random, counts: Counter[str], device: Device | None) -> None:
    child = Child(writer.work)
    ended = child.listen(20, until="work") or child.listen(0.05 * rng.random())
    if device is not None:
        device.hold(SLOW)
    ended = ended or child.listen(2, until="mark" if writer.manner == "quiet" else "group")
    if device is not None and writer.manner == "quiet":
        # The mark that is in flight is of an earlier group than the last that is acknowledged.
        time.sleep(0.01)
        device.hold(0)
        ended = ended or child.listen(SLOW / 2000)
    time.sleep(rng.choice((0, 0.0002, 0.001)) * rng.random())
    said = child.end()
    if device is not None:
        # What is in flight stays there, and all that follows overtakes it.
        device.hold(0)
    counts["kills"] += 1
    counts["refused"] += ended
    for what in ("group", "mark"):
        edges = [kind for kind, step in said if step == what]
        counts[f"{what} in flight"] += edges.count("begin") > edges.count("end")
    acks += [tuple(what) for kind, what in said if kind == "ack"]
    acks += asyncio.run(judge(writer, acks, counts))


def run(place: Path, kills: int, seed: int, device: Device | None = None) -> Counter[str]:
    counts = Counter(dict.fromkeys(("kills", "group in flight", "mark in flight", "busy", *BAD), 0))
    rng = Random(seed)
    with tempfile.TemporaryDirectory() as keys:
        key = Path(keys) / "key"
        create_master(key)
        while counts["kills"] < kills:
            acks: list[Ack] = []
            path, used = place / f"db{counts['kills']}", rng.choice((key, None))
            for _ in range(min(4, kills - counts["kills"])):
                manner = rng.choice(MANNERS)
                writer = Writer(path, used, "uring", rng.getrandbits(40), manner, pack=0)
                kill(writer, acks, rng, counts, device)
            counts["acknowledged"] += len(acks)
            shutil.rmtree(path)
    return counts


@contextlib.contextmanager
def slow_disk(place: Path) -> Iterator[tuple[Path, Device]]:
    """A file system on a disk whose writes can be held back."""
    mount = Volatile("ext4", place)
    try:
        assert mount.device is not None
        yield mount.path, mount.device
    finally:
        mount.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.killed", description=__doc__)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    arguments = parser.parse_args()
    if (why := lacking()) is not None:
        print(f"no kills: {why}")
        return 0
    half = arguments.kills // 2
    with tempfile.TemporaryDirectory(prefix="killed") as name:
        found = {"this disk": run(Path(name), arguments.kills - half, arguments.seed)}
        if (why := lacking_mounts("/dev/fuse")) is None:
            with slow_disk(Path(name) / "slow") as (place, device):
                found["slow disk"] = run(place, half, arguments.seed, device)
        else:
            print(f"no slow disk: {why}")
    for what, counts in found.items():
        print(f"{what}: {', '.join(f'{count} {name}' for name, count in counts.items())}; seed {arguments.seed}")
    return int(any(counts[bad] for counts in found.values() for bad in BAD))


if __name__ == "__main__":
    sys.exit(main())
