"""No nonce is used for two plaintexts, whatever a crash takes back: over all that one log may leave and go on from."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

from kimberlite.crypto.master import create_master
from kimberlite.log.log import Log
from kimberlite.log.opening import Injected, open_log
from kimberlite.log.options import Options
from kimberlite.storage.memory import Disk, MemoryBackend
from tests.crash.nonces import Nonces, Sealed

Files = dict[str, bytes]


async def opened(disk: Disk, key: Path, injected: Injected, rng: Random | None = None) -> Log:
    return await open_log(
        "simulated", create=True, read_only=False, key_file=key, backend=MemoryBackend(disk, rng), origin=None,
        anchor=None, options=Options(segment_bytes=128 * 1024, depth=8, idle=0.0005), injected=injected,
    )  # fmt: skip


async def append(db: Log, rng: Random, count: int) -> None:
    for _ in range(count):
        payloads = [rng.randbytes(rng.randrange(1, 3000)) for _ in range(rng.randrange(1, 5))]
        await db.append(f"s{rng.randrange(8)}", payloads, sync=rng.choice(["group", "batch", "os"]))


async def crashed(disk: Disk, key: Path, injected: Injected, rng: Random) -> list[Disk]:
    """What a log leaves when the power goes, at many moments."""
    states: list[Disk] = []

    def cut() -> None:
        if rng.random() < 0.12:
            states.append(disk.crash(Random(rng.random())))

    disk.on_step = cut
    async with await opened(disk, key, injected, rng) as db:
        await asyncio.gather(*(append(db, Random(rng.random()), 12) for _ in range(4)))
    disk.on_step = None
    return states


async def images(key: Path, injected: Injected, seed: int) -> list[Files]:
    """Each state that a first log and then a recovery were cut in, and each after it has gone on."""
    rng, found = Random(seed), list[Files]()
    states = await crashed(Disk(), key, injected, rng)
    for state in list(states[::8]):
        states += (await crashed(state.copy(), key, injected, rng))[:4]
    for state in states:
        found.append(state.files())
        async with await opened(state, key, injected) as db:
            await append(db, rng, 4)
        found.append(state.files())
    return found


def looked_at(found: list[Files]) -> Nonces:
    nonces = Nonces()
    for files in found:
        nonces.look(files)
    return nonces


async def test_no_crash_makes_a_nonce_come_twice(tmp_path: Path) -> None:
    create_master(tmp_path / "key")
    found = await images(tmp_path / "key", Injected(), seed=1)
    nonces = looked_at(found)
    assert len(found) > 30
    assert any(name.startswith("quarantine/") for files in found for name in files)
    assert len(nonces.seen) > 100
    assert nonces.twice == []


async def test_nonces_from_a_generator_that_starts_again_are_noticed(tmp_path: Path) -> None:
    create_master(tmp_path / "key")
    found = await images(tmp_path / "key", Injected(seed=bytes(32)), seed=1)
    assert looked_at(found).twice


def test_a_torn_sighting_agrees_with_a_whole_one_and_with_nothing_else() -> None:
    whole = Sealed(100, bytes(range(1, 251)) * 8)
    torn = Sealed(100, whole.data[:412] + bytes(512) + whole.data[924:])
    assert whole.agrees(torn)
    assert torn.agrees(whole)
    # In a packed segment it stands elsewhere, and may be torn too.
    moved = Sealed(356, whole.data[:668] + bytes(512) + whole.data[1180:])
    assert moved.agrees(whole)
    assert moved.agrees(torn)
    assert not moved.agrees(Sealed(100, b"x" + torn.data[1:]))
    for other in (
        Sealed(100, whole.data[:-1] + b"x"),
        Sealed(100, b"x" + torn.data[1:]),
        Sealed(100, whole.data[:-1]),
    ):
        assert not whole.agrees(other)
        assert not other.agrees(whole)
