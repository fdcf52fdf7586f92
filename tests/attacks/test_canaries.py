"""Nothing that is encrypted is on the disk in the clear: after work, cuts, kills, and recoveries that failed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

import kimberlite
from kimberlite import KimberliteError
from kimberlite.log.opening import Opening, open_log
from kimberlite.log.options import Options
from kimberlite.storage.memory import Disk, MemoryBackend

from .canaries import HEADER, KEY, MOMENT, PAYLOAD, PRODUCER, SEVERAL, STREAM, VALUE, found, needles, work
from .databases import MASTER, Installed, key_file

PACKAGE = Path(__file__).parents[2]


def opened(disk: Disk, key: Path | None, compression: int | None, backend: MemoryBackend | None = None) -> Opening:
    return open_log(
        "simulated",
        create=True,
        read_only=False,
        key_file=key,
        backend=backend or MemoryBackend(disk),
        origin=None,
        anchor=None,
        options=Options(segment_bytes=128 * 1024, idle=0.0005, compression=compression, checkpoint_records=50),
    )


@pytest.fixture
def key(tmp_path: Path) -> Path:
    made = key_file(tmp_path, MASTER)
    assert made is not None
    return made


@pytest.mark.parametrize("compression", [None, 3])
async def test_no_canary_is_on_the_disk_while_it_is_written_and_after(compression: int | None, key: Path) -> None:
    disk, seen = Disk(), 0
    for session in range(2):
        async with opened(disk, key, compression) as db:
            for part in range(3):
                await work(db, 6, seed=3 * session + part, largest=50_000 if part == 2 else 6_000)
                assert found(disk.files()) == set()
            seen += len([record async for record in db.read() if PAYLOAD in record.payload])
        assert found(disk.files()) == set()
    assert seen > 500
    names = set(disk.files())
    assert {"hashes", "checkpoint", "producers", "marks", "vault.0"} < names
    assert sum(name.startswith("index/") for name in names) > 3


@pytest.mark.parametrize("compression", [None, 3])
async def test_whoever_looks_finds_every_canary_of_a_plain_database(compression: int | None) -> None:
    disk = Disk()
    async with opened(disk, None, compression) as db:
        await work(db, 6, largest=20_000)
    needles_found = {needle for _, needle in found(disk.files())}
    many = {half for half in needles() if half in (SEVERAL[:15], SEVERAL[-15:])}
    # The producer of an append to several streams is kept as a keyed hash in plain ones too.
    big_endian = {MOMENT.to_bytes(8, "big")}
    assert needles_found == set(needles()) - many - big_endian


async def test_names_of_streams_show_and_the_documentation_says_so(key: Path) -> None:
    disk = Disk()
    async with opened(disk, key, None) as db:
        await work(db, 1)
    assert STREAM.encode() in disk.files()["segments/00000000000000000000.seg"]
    assert STREAM.encode() in disk.files()["checkpoint"]
    shown = (PACKAGE / "docs" / "security.md").read_text().partition("What shows all the same")[2]
    assert "names of streams" in shown.partition("##")[0]


class Cutter:
    """Cuts the power at random steps and keeps what is left; what a process saw then is looked at too."""

    def __init__(self, disk: Disk, rng: Random, often: float) -> None:
        self.disk, self.rng, self.often = disk, rng, often
        self.left: list[Disk] = []
        disk.on_step = self._step

    def _step(self) -> None:
        if self.rng.random() < self.often:
            self.left.append(self.disk.crash(Random(self.rng.random())))
            assert found(self.disk.files()) == set()

    def stop(self) -> list[Disk]:
        self.disk.on_step = None
        return self.left


async def recovered(disk: Disk, key: Path, rng: Random) -> list[Disk]:
    """Opens, appends and closes; returns what cuts in the middle of that leave."""
    cutter = Cutter(disk, rng, 0.03)
    async with opened(disk, key, rng.choice([None, 1]), MemoryBackend(disk, rng)) as db:
        await work(db, 1, seed=rng.randrange(1 << 30))
    return cutter.stop()


async def test_no_canary_is_left_by_cuts_or_by_cuts_in_recoveries_from_them(key: Path) -> None:
    quarantined = looked = 0
    for seed in range(20):
        if looked > 40 and quarantined:
            break
        rng, disk = Random(seed), Disk()
        cutter = Cutter(disk, rng, 0.02)
        async with opened(disk, key, rng.choice([None, 1]), MemoryBackend(disk, rng)) as db:
            await work(db, 10, seed=seed)
        states = cutter.stop()
        for depth in range(3):
            again: list[Disk] = []
            for state in rng.sample(states, min(len(states), 10 - 3 * depth)):
                assert found(state.files()) == set()
                again += await recovered(state, key, rng)
                assert found(state.files()) == set()
                quarantined += any(name.startswith("quarantine/") for name in state.files())
                looked += 1
            states = again
    assert looked > 40
    assert quarantined > 0


def failing_from(number: int, error: int) -> Callable[[str, str, int, int], OSError | None]:
    """From the n-th change on, every change of the disk fails."""
    changes = {"write", "sync", "submit", "submit_sync", "rename", "unlink", "truncate", "allocate", "sync_directory"}
    left = [number]

    def fault(verb: str, name: str, place: int, length: int) -> OSError | None:
        left[0] -= verb in changes
        return OSError(error, os.strerror(error), name) if verb in changes and left[0] < 0 else None

    return fault


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
async def test_no_canary_is_left_by_recoveries_that_fail_anywhere(error: int, key: Path) -> None:
    rng, disk = Random(error), Disk()
    cutter = Cutter(disk, rng, 0.02)
    async with opened(disk, key, 1, MemoryBackend(disk, rng)) as db:
        await work(db, 10)
    failed = 0
    for torn in cutter.stop()[-4:]:
        for number in range(0, 60, 3):
            state = Disk.from_files(torn.files())
            try:
                async with opened(state, key, 1, MemoryBackend(state, None, failing_from(number, error))) as db:
                    await work(db, 1)
            except KimberliteError:
                failed += 1
            assert found(state.files()) == set()
    assert failed > 20


def kill_after(acknowledgements: int, doors: Installed) -> None:
    command = [sys.executable, "-m", "tests.attacks.canaries", str(doors.path), str(doors.key)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=PACKAGE) as child:
        try:
            assert child.stdout is not None
            assert len(child.stdout.read(acknowledgements)) == acknowledgements
        finally:
            child.kill()


async def test_no_canary_is_left_by_a_process_that_was_killed(key: Path, tmp_path: Path) -> None:
    doors = Installed(key, tmp_path / "db")
    for _ in range(2):
        kill_after(300, doors)
        files = doors.files()
        assert any(name.startswith("prepare/") for name in files)
        assert found(files) == set()
    async with kimberlite.open(doors.path, key_file=key, backend="threads") as db:
        records = [record async for record in db.read()]
    assert len(records) >= 1_200
    assert all(record.key is not None and record.key.startswith(KEY) for record in records)
    assert records[0].headers == ((HEADER.decode(), VALUE),)
    assert found(doors.files()) == set()
    assert PRODUCER not in b"".join(doors.files().values())
