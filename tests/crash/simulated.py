"""Crash states of the simulated disk in any number: `python -m tests.crash.simulated --states 1000000 --jobs 2`."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random

from kimberlite.crypto.master import create_master, load_master
from kimberlite.errors import KimberliteError
from kimberlite.log.verify import verify
from kimberlite.storage.memory import Disk, MemoryBackend
from tests.crash.test_states import Acknowledged, Run, opened


def image(disk: Disk) -> bytes:
    """What tells one crash state from another."""
    hasher = hashlib.blake2b(digest_size=8)
    for name, data in sorted(disk.files().items()):
        hasher.update(name.encode() + len(data).to_bytes(8, "little") + data)
    return hasher.digest()


async def judge(disk: Disk, acknowledged: Acknowledged, key: Path | None) -> str:
    """`sound`, `torn`, `lost` or `refused`, by opening the state as any user would."""
    try:
        async with await opened(disk, key) as db:
            torn = any("torn" in note for note in (await db.info())["notes"])
            found = {(r.stream, r.offset): r.payload async for r in db.read()}
            await db.append("after", b"the crash")
        verify(MemoryBackend(disk), None if key is None else load_master(key))
    except KimberliteError:
        return "refused"
    if any(found.get((stream, offset)) != payload for stream, offset, payload in acknowledged):
        return "lost"
    return "torn" if torn else "sound"


def run(seed: int) -> tuple[Counter[str], set[bytes]]:
    """One workload and all its crash states."""
    with tempfile.TemporaryDirectory() as name:
        key = Path(name) / "key" if seed % 2 else None
        if key is not None:
            create_master(key)

        async def work() -> tuple[Counter[str], set[bytes]]:
            workload = Run(Random(seed), key)
            await workload.work()
            images = {image(disk) for disk, _ in workload.states}
            return Counter([await judge(disk, acked, key) for disk, acked in workload.states]), images

        return asyncio.run(work())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--states", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    verdicts: Counter[str] = Counter()
    images: set[bytes] = set()
    begun, seed = time.monotonic(), options.seed
    with ProcessPoolExecutor(options.jobs) as pool:
        while verdicts.total() < options.states:
            for found, seen in pool.map(run, range(seed, seed + 8 * options.jobs)):
                verdicts += found
                images |= seen
            seed += 8 * options.jobs
    total = verdicts.total()
    print(f"{total} states, {len(images)} distinct, {total / (time.monotonic() - begun):.0f}/s")
    print(f"{verdicts['torn'] / total:.1%} with a torn tail, {verdicts['lost']} lost, {verdicts['refused']} refused")
    raise SystemExit(1 if verdicts["lost"] or verdicts["refused"] else 0)


if __name__ == "__main__":
    main()
