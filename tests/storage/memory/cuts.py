"""Power cuts: every disk that one may leave; and a loop to submit on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from itertools import product
from random import Random
from typing import TypeVar

from kimberlite.storage.memory import Disk, MemoryBackend, MemoryFile
from kimberlite.storage.memory.image import SECTOR

T = TypeVar("T")


def sector(letter: str, count: int = 1) -> bytes:
    return letter.encode() * (SECTOR * count)


def states(disk: Disk) -> Iterator[dict[str, bytes]]:
    """Every disk that a power cut now may leave."""
    loose = disk.unsynced()
    sizes = product(*(range(most + 1) for most in loose.resizes))
    for operations, resizes, mask in product(range(loose.operations + 1), sizes, range(1 << loose.sectors)):
        yield disk.persist(operations, resizes, mask).files()


def contents(disk: Disk, name: str = "a") -> set[bytes]:
    return {state[name] for state in states(disk)}


def left(disk: Disk, sectors: int = 0) -> Disk:
    """After a cut that let these sectors through and nothing else."""
    return disk.persist(0, [0] * len(disk.unsynced().resizes), sectors)


def opened(disk: Disk, name: str = "a", rng: Random | None = None) -> tuple[MemoryBackend, MemoryFile]:
    backend = MemoryBackend(disk, rng)
    return backend, backend.open(name, "w")


def on_loop(work: Callable[[], Awaitable[T]]) -> T:
    async def main() -> T:
        return await work()

    return asyncio.run(main())


class Ending:
    """A `done`, and what it was called with."""

    def __init__(self) -> None:
        self.calls: list[OSError | None] = []

    def __call__(self, problem: OSError | None) -> None:
        self.calls.append(problem)


async def until(*endings: Ending) -> None:
    while not all(ending.calls for ending in endings):  # noqa: ASYNC110
        await asyncio.sleep(0)
