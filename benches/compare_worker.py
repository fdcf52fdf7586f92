"""One side of a comparison: a process that has one commit's package, and does what it is told, a slice at a time.

It is run by its path, so that `kimberlite` is whatever PYTHONPATH says, and uses nothing else of the project. It reads
names of cases and seconds, a line each, and answers each with nanoseconds a record: of processor, where nothing but
that is in question.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop

import kimberlite
import kimberlite.crypto.master
from kimberlite import _native

BATCH = 100
RECORDS = [os.urandom(256) for _ in range(BATCH)]
#: Records of a log that is read.
FILLED = 100_000

Case = Callable[[float], Awaitable[float]]


class Timed:
    """A native log whose `name` is timed, in nanoseconds of this thread."""

    def __init__(self, log: Any, name: str) -> None:
        self._log, self._call, self.spent = log, getattr(log, name), 0
        setattr(self, name, self._timed)

    def _timed(self, *arguments: Any) -> Any:
        begun = time.thread_time_ns()
        try:
            return self._call(*arguments)
        finally:
            self.spent += time.thread_time_ns() - begun

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)


class Side:
    def __init__(self, disk: Path, memory: Path) -> None:
        self._disk, self._memory = disk, memory
        self._stack = contextlib.AsyncExitStack()
        self._opened: dict[str, Any] = {}
        self.cases: dict[str, Case] = {
            "encode": self._encode,
            "seal": lambda seconds: self._native_call("seal", False, seconds),
            "seal, encrypted": lambda seconds: self._native_call("seal", True, seconds),
            "decode": self._decode,
            "append": self._append,
            "sync, 1 × 1 × 1": lambda seconds: self._durable(1, 1, seconds),
            "sync, 32 × 1 × 100": lambda seconds: self._durable(32, BATCH, seconds),
            "read p99": self._read,
        }

    async def close(self) -> None:
        await self._stack.aclose()

    # ---- cases: nanoseconds for a record, of processor where nothing but that is in question

    async def _encode(self, seconds: float) -> float:
        begun, until, count = time.thread_time_ns(), time.perf_counter() + seconds, 0
        while time.perf_counter() < until:
            for _ in range(50):
                _native.encode(RECORDS)
            count += 50 * BATCH
        return (time.thread_time_ns() - begun) / count

    async def _native_call(self, name: str, encrypted: bool, seconds: float) -> float:
        """Of a call of the committer's, while a log in memory is appended to."""
        db = await self._log("encrypted" if encrypted else "plain", self._memory, encrypted=encrypted)
        committer = db._committer
        timed, committer.log = Timed(committer.log, name), committer.log
        log, committer.log = committer.log, timed
        try:
            count = await self._load(db, 8, RECORDS, "os", seconds)
        finally:
            committer.log = log
        return timed.spent / count

    async def _append(self, seconds: float) -> float:
        db = await self._log("plain", self._memory)
        begun = time.process_time_ns()
        count = await self._load(db, 8, RECORDS, "os", seconds)
        return (time.process_time_ns() - begun) / count

    async def _durable(self, clients: int, batch: int, seconds: float) -> float:
        db = await self._log("durable", self._disk)
        begun = time.perf_counter_ns()
        count = await self._load(db, clients, RECORDS[:batch], "group", seconds)
        return (time.perf_counter_ns() - begun) / count

    async def _decode(self, seconds: float) -> float:
        db = await self._filled()
        begun, until, count = time.process_time_ns(), time.perf_counter() + seconds, 0
        while time.perf_counter() < until:
            async for batch in db.read(limit=10_000).batches():
                count += len(batch)
        return (time.process_time_ns() - begun) / count

    async def _read(self, seconds: float) -> float:
        """Nanoseconds that 99 in a hundred reads of a record anywhere do not exceed."""
        db = await self._filled()
        took, clock, until = [], time.perf_counter_ns, time.perf_counter() + seconds
        while time.perf_counter() < until:
            position = random.randrange(16, FILLED)
            begun = clock()
            await db.get(position)
            took.append(clock() - begun)
        took.sort()
        return float(took[len(took) * 99 // 100])

    # ---- what they are done with

    async def _log(self, name: str, directory: Path, *, encrypted: bool = False) -> Any:
        if name not in self._opened:
            key = directory / f"{name}.key"
            if encrypted:
                kimberlite.crypto.master.create_master(key)
            options: dict[str, Any] = {"key_file": key} if encrypted else {}
            self._opened[name] = await self._stack.enter_async_context(
                kimberlite.open(directory / name, segment_bytes=64 << 20, backend="threads", **options)
            )
        return self._opened[name]

    async def _filled(self) -> Any:
        db = await self._log("filled", self._memory)
        if db.durable_position < FILLED:
            for _ in range(FILLED // BATCH + 1):
                await db.append("s", RECORDS)
        return db

    async def _load(self, db: Any, clients: int, records: list[bytes], sync: str, seconds: float) -> int:
        until, count = time.perf_counter() + seconds, 0

        async def client(number: int) -> None:
            nonlocal count
            while time.perf_counter() < until:
                await db.append(f"stream-{number}", records, sync=sync)
                count += len(records)

        await asyncio.gather(*map(client, range(clients)))
        return count


async def main() -> None:
    side = Side(Path(sys.argv[1]), Path(sys.argv[2]))
    loop = asyncio.get_running_loop()
    try:
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            name, _, seconds = line.strip().rpartition(" ")
            print(await side.cases[name](float(seconds)), flush=True)
    finally:
        await side.close()


if __name__ == "__main__":
    uvloop.run(main())
