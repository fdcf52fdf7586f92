"""Crash states of the simulated disk, each opened by the production `open`: nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from kimberlite.crypto.master import create_master, load_master
from kimberlite.log.log import Log
from kimberlite.log.opening import open_log
from kimberlite.log.options import Options, Sync
from kimberlite.log.verify import verify
from kimberlite.storage.memory import Disk, MemoryBackend

POLICIES: list[Sync] = ["group", "group", "batch", "os", "record"]
SEEDS = range(12)

Acknowledged = list[tuple[str, int, bytes]]


@dataclass
class Run:
    """A workload on a disk that is cut at random moments, and what had been acknowledged at each."""

    rng: Random
    key: Path | None
    disk: Disk = field(default_factory=Disk)
    acknowledged: Acknowledged = field(default_factory=list)
    states: list[tuple[Disk, Acknowledged]] = field(default_factory=list)

    def cut(self) -> None:
        if self.rng.random() < 0.02:
            self.states.append((self.disk.crash(Random(self.rng.random())), list(self.acknowledged)))

    async def client(self, db: Log) -> None:
        for _ in range(self.rng.randrange(1, 20)):
            stream = f"s{self.rng.randrange(6)}"
            payloads = [self.rng.randbytes(self.rng.randrange(1, 3000)) for _ in range(self.rng.randrange(1, 8))]
            policy = self.rng.choice(POLICIES)
            receipt = await db.append(stream, payloads, sync=policy)
            if receipt.durable and policy != "record":
                self.acknowledged += [(stream, receipt.first_offset + i, p) for i, p in enumerate(payloads)]
            if self.rng.random() < 0.1:
                await asyncio.sleep(0.002)

    async def work(self) -> None:
        self.disk.on_step = self.cut
        db = await opened(self.disk, self.key, self.rng, depth=self.rng.randrange(1, 9))
        await asyncio.gather(*(self.client(db) for _ in range(self.rng.randrange(1, 9))))
        if self.rng.random() < 0.5:
            await db.close()
        self.disk.on_step = None
        self.states.append((self.disk.crash(self.rng), list(self.acknowledged)))
        await db.close()


async def opened(disk: Disk, key: Path | None, rng: Random | None = None, depth: int = 4) -> Log:
    compression = None if rng is None else rng.choice([None, 1])
    return await open_log(
        "simulated",
        create=True,
        read_only=False,
        key_file=key,
        backend=MemoryBackend(disk, rng),
        origin=None,
        anchor=None,
        options=Options(segment_bytes=128 * 1024, depth=depth, idle=0.0005, compression=compression),
    )


async def check(disk: Disk, acknowledged: Acknowledged, key: Path | None) -> None:
    async with await opened(disk, key) as db:
        found = {(r.stream, r.offset): r.payload async for r in db.read()}
        for stream, offset, payload in acknowledged:
            assert found.get((stream, offset)) == payload
        await db.append("after", b"the crash")
    verify(MemoryBackend(disk), None if key is None else load_master(key))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["plain", "encrypted"])
async def test_what_was_acknowledged_survives_every_cut(seed: int, kind: str, tmp_path: Path) -> None:
    key = tmp_path / "key" if kind == "encrypted" else None
    if key is not None:
        create_master(key)
    run = Run(Random(seed), key)
    await run.work()
    assert run.states
    for disk, acknowledged in run.states:
        await check(disk, acknowledged, key)
