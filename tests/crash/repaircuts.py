"""Real power cuts in the middle of a repair: `python -m tests.crash.repaircuts`.

A damaged database is on a file system that loses power (see `mounts`) while it is being repaired. What is found then is
refused or repaired, a repair finishes it, and every record in front of the damage is there.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

import kimberlite
from kimberlite import KimberliteError
from kimberlite.log.names import REPAIR
from kimberlite.log.repair import repair_directory
from kimberlite.log.verify import verify_directory
from tests.crash.children import Child, Say
from tests.crash.mounts import Shut, isolate, mounts

SEGMENT: Final = 64 * 1024
COUNT: Final = 60
#: Seconds that a repair takes, on a machine with time and on one without.
LONGEST: Final = (0.02, 0.05, 0.12)
#: Of so many cuts and more, so many at least are in the middle.
ENOUGH: Final = 300
LEAST: Final = 20
#: What must never be counted.
BAD: Final = ("lost", "escaped", "hung", "unrepaired")


class Broken(NamedTuple):
    """A damaged database, and how many of its records are in front of the damage."""

    path: Path
    key: Path | None
    kept: int


def payload(i: int) -> bytes:
    return b"%d." % i * 80


async def make(place: Path, key: Path | None, rng: Random) -> Broken:
    path = place / f"broken{rng.getrandbits(40)}"
    async with kimberlite.open(path, key_file=key, segment_bytes=SEGMENT, pack=0, backend="threads") as db:
        for i in range(COUNT):
            await db.append("s", payload(i))
    (path / "checkpoint").unlink()
    kept = rng.randrange(8, COUNT - 2)
    # With a group of its own each record is in the block behind its group's header.
    groups = [
        (file, at) for file in sorted((path / "segments").iterdir()) for at in range(4096, file.stat().st_size, 4096)
    ]
    headers = [(file, at) for file, at in groups if holds_records(file.read_bytes()[at : at + 36])]
    file, at = headers[kept]
    data = bytearray(file.read_bytes())
    data[at + 20] ^= 1
    file.write_bytes(data)
    return Broken(path, key, kept)


def holds_records(header: bytes) -> bool:
    return header[:8] == b"KIMBGRP1" and header[32:36] != bytes(4)


def install(broken: Broken, mount: Shut, name: str) -> Path:
    path = mount.path / name
    shutil.copytree(broken.path, path)
    path.chmod(0o700)
    directory = os.open(path, os.O_RDONLY)
    os.sync()
    os.close(directory)
    return path


def cut(broken: Broken, mount: Shut, rng: Random, counts: Counter[str]) -> None:
    path = install(broken, mount, f"db{counts['cuts']}")
    for _ in range(rng.randrange(1, 4)):
        child = Child(lambda _say: repair_directory(path, lambda _loss: True, key_file=broken.key))
        ended = child.listen(rng.choice(LONGEST) * rng.random())
        time.sleep(0.002 * rng.random())
        counts["sectors in a cache"] += mount.cut(rng)
        said = child.end()
        mount.again()
        counts["cuts"] += 1
        counts["over before the cut"] += ended
        counts["cut in the middle"] += (path / REPAIR).exists()
        counts["escaped"] += any(kind == "escaped" and "OSError" not in text for kind, text in said)
    checker = Child(lambda say: check(path, broken, say))
    counts["hung"] += not checker.listen(60)
    for kind, what in checker.end():
        if kind in BAD or kind == "refused":
            counts["unrepaired" if kind == "refused" else kind] += 1
            print(f"{kind}: {mount.name}: {what}", flush=True)
        else:
            counts[kind] += 1
    shutil.rmtree(path, ignore_errors=True)


async def check(path: Path, broken: Broken, say: Say) -> None:
    try:
        verify_directory(path, key_file=broken.key)
    except KimberliteError:
        loss = await repair_directory(path, lambda _loss: True, key_file=broken.key)
        say(["finished by another" if loss is not None else "lost", "it was refused, and nothing was wrong"])
    else:
        say(["found repaired", None])
    if await repair_directory(path, lambda _loss: True, key_file=broken.key) is not None:
        say(["lost", "it was not over"])
    async with kimberlite.open(path, key_file=broken.key, read_only=True) as reader:
        if len((await reader.info())["repairs"]) != 1:
            say(["lost", "the repair is not known"])
    async with kimberlite.open(path, key_file=broken.key, create=False, segment_bytes=SEGMENT) as db:
        records = [record.payload async for record in db.read("s")]
        if records != [payload(i) for i in range(broken.kept)]:
            say(["lost", f"{len(records)} records of {broken.kept}"])
        receipt = await db.append("s", b"more")
        if receipt.incarnation < 1 or (path / REPAIR).exists():
            say(["lost", f"incarnation {receipt.incarnation}"])
    verify_directory(path, key_file=broken.key)


def run(cuts: int, seed: int) -> Counter[str]:
    counts: Counter[str] = Counter(dict.fromkeys(("cuts", *BAD), 0))
    rng = Random(seed)
    with mounts() as made:
        place = made[0].place.parent
        broken = [asyncio.run(make(place, key, rng)) for key in (None, place / "key") for _ in range(4)]
        while counts["cuts"] < cuts:
            cut(rng.choice(broken), rng.choice(made), rng, counts)
    return counts


def run_apart(cuts: int, seed: int) -> Counter[str]:
    """In a process whose mounts nobody else sees."""
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=isolate) as pool:
        return pool.submit(run, cuts, seed).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    counts: Any = run_apart(options.cuts, options.seed)
    print(dict(counts))
    missed = options.cuts >= ENOUGH and counts["cut in the middle"] < LEAST
    sys.exit(missed or any(counts[bad] for bad in BAD))


if __name__ == "__main__":
    main()
