"""Disks that are really full, limits that are really reached, and a sync that really fails and leaves a ghost behind.

What a scenario returns is what went wrong; `python -m tests.crash.realfaults` runs them in number.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import mmap
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random

from kimberlite._native import key_id
from kimberlite.crypto.master import create_master, read_key_file
from kimberlite.errors import Erased, KeyUnavailable, KimberliteError, NoSpace, Unavailable, UnknownOutcome
from kimberlite.log.keycheck import wrapped_by
from kimberlite.log.log import Log
from kimberlite.log.names import QUARANTINE, SEGMENTS
from kimberlite.log.opening import Injected, open_log
from kimberlite.log.options import MIB, Options
from kimberlite.log.verify import verify_directory
from kimberlite.storage import Backend, engines
from kimberlite.storage.backend import BLOCK, Mode
from kimberlite.storage.disk import DiskBackend
from tests.crash.children import Engine
from tests.crash.device import mount, unmount
from tests.crash.mounts import Shut
from tests.crash.nonces import find_slots, read_files
from tests.crash.workload import slots

#: Of a tmpfs that is to be filled.
SMALL: int = 4 * MIB
#: An ext4 image with nothing sparse in it, and room for little more.
IMAGE_ROOM: int = 330 * MIB
OPTIONS = Options(segment_bytes=256 * 1024, idle=0.0005)
#: Bytes under the tail of which the disk loses its blocks: more than one append takes.
HOLE = 16 * BLOCK
#: Seconds after which a reader that has not caught up never will.
PATIENCE = 10.0
#: Between what is prepared ahead and what a segment may have.
LARGEST_FILE = 2 * MIB
LARGE = Options(segment_bytes=4 * MIB, idle=0.0005)


class Buffered(DiskBackend):
    """As on a file system that does not take O_DIRECT: everything goes through the page cache."""

    def __init__(self, path: Path, engine: Engine) -> None:
        made = engines.Uring() if engine == "uring" else engines.threads()
        super().__init__(path, made, "a test", read_only=False)

    def _open_direct(self, parent: int, leaf: str, mode: Mode) -> int:
        self.direct = False
        return -1


class Ledger:
    """What was acknowledged, in its order, and what must hold of it."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.acknowledged: list[bytes] = []

    async def append(self, db: Log) -> None:
        payload = self.rng.randbytes(9000)
        receipt = await db.append("s", payload)
        assert receipt.durable
        assert receipt.first_offset == len(self.acknowledged)
        self.acknowledged.append(payload)

    async def until_refused(self, db: Log, most: int) -> KimberliteError | None:
        for _ in range(most):
            try:
                await self.append(db)
            except KimberliteError as error:
                return error
        return None

    async def check(self, db: Log) -> None:
        assert [record.payload async for record in db.read("s")] == self.acknowledged

    async def check_beside(self, path: Path, engine: Engine) -> None:
        """A reader beside a writer sees the last group when a mark says that it is durable."""
        async with await opened(path, engine, read_only=True) as reader, asyncio.timeout(PATIENCE):
            while [record.payload async for record in reader.read("s")] != self.acknowledged:  # noqa: ASYNC110
                await asyncio.sleep(0.005)


async def opened(
    path: Path,
    backend: Engine | Backend,
    *,
    read_only: bool = False,
    options: Options = OPTIONS,
    key: Path | None = None,
) -> Log:
    return await open_log(
        path, create=True, read_only=read_only, key_file=key, backend=backend, origin=None, anchor=None,
        options=options, injected=Injected(),
    )  # fmt: skip


@contextlib.contextmanager
def small_disk(place: Path, size: int = SMALL) -> Iterator[Path]:
    place.mkdir()
    mount("full", place, "tmpfs", 0, f"size={size}")
    try:
        yield place
    finally:
        try:
            unmount(place)
        except OSError:
            unmount(place, lazily=True)


@contextlib.contextmanager
def filled(place: Path) -> Iterator[None]:
    """Not one block is left."""
    ballast, step = os.open(place / "ballast", os.O_RDWR | os.O_CREAT, 0o600), 16 * MIB
    size = 0
    try:
        while step >= BLOCK:
            try:
                os.posix_fallocate(ballast, size, step)
                size += step
            except OSError as problem:
                if problem.errno != errno.ENOSPC:
                    raise
                step //= 2
        yield
    finally:
        os.close(ballast)
        os.unlink(place / "ballast")


async def appends_stop_and_resume(place: Path, engine: Engine, seed: int) -> None:
    """A full disk refuses appends before they have a number, serves reads, and takes appends again by itself."""
    ledger, path = Ledger(seed), place / "db"
    db = await opened(path, engine)
    await ledger.append(db)
    for _ in range(2):
        with filled(place):
            assert isinstance(await ledger.until_refused(db, 2000), NoSpace)
            before = (await db.info())["group"]
            for _ in range(3):
                assert isinstance(await ledger.until_refused(db, 1), NoSpace)
            assert (await db.info())["group"] == before
            await ledger.check(db)
            await ledger.check_beside(path, engine)
        for _ in range(40):
            await ledger.append(db)
    await db.close()
    verify_directory(path)


async def a_full_disk_opens(place: Path, engine: Engine, seed: int) -> None:
    """Cleanly closed or torn: everything is served; what is torn is not cut before there is room to keep it, which its
    cutting and the reserve may give."""
    ledger, path, torn = Ledger(seed), place / "db", place / "torn"
    async with await opened(path, engine) as db:
        for _ in range(12):
            await ledger.append(db)
        shutil.copytree(path, torn)
    tear(torn)
    kept = {each: ledger.acknowledged.copy() for each in (torn, path)}
    with filled(place):
        # The torn one first: what the other gives up makes room.
        for each, ledger.acknowledged in kept.items():
            db = await opened(each, engine)
            await ledger.check(db)
            assert await ledger.until_refused(db, 100) is not None
            with contextlib.suppress(NoSpace):
                await db.close()
            async with await opened(each, engine, read_only=True) as reader:
                await ledger.check(reader)
    for each, ledger.acknowledged in kept.items():
        await goes_on(each, engine, ledger)
    assert len(os.listdir(torn / QUARANTINE)) == 1


async def a_full_disk_forgets(place: Path, engine: Engine, seed: int) -> None:
    """It erases and drops all the same. Whether there is room for a rotation or not, one master key opens it."""
    ledger, path = Ledger(seed), place / "db"
    keys = [place.with_name(f"{place.name}-key{i}") for i in range(2)]
    for key in keys:
        create_master(key)
    db = await opened(path, engine, key=keys[0])
    await db.append("gone", [b"%d" % i for i in range(9)])
    for _ in range(60):
        await ledger.append(db)
    with filled(place):
        assert isinstance(await ledger.until_refused(db, 2000), NoSpace)
        await db.erase("gone", reason="full")
        with contextlib.suppress(NoSpace, Unavailable):
            await db.rotate(keys[1])
        assert (await db.retain(before=db.durable_position // 2)).segments > 0
        first = (await anext(db.read("s"))).offset
    await ledger.append(db)
    await db.close()
    keys.sort(key=lambda key: key_id(read_key_file(key)) == wrapped_by(path))
    with contextlib.suppress(KeyUnavailable):
        await opened(path, engine, key=keys[0])
        raise AssertionError("two master keys open it")
    async with await opened(path, engine, key=keys[1]) as db:
        assert [record.payload async for record in db.read("s")] == ledger.acknowledged[first:]
        with contextlib.suppress(Erased):
            await anext(db.read("gone"))
            raise AssertionError("it is back")
        erased = slots(db).values()
    assert list(find_slots(read_files(path), erased)) == []
    verify_directory(path, key_file=keys[1])


async def goes_on(path: Path, engine: Engine, ledger: Ledger) -> None:
    async with await opened(path, engine) as db:
        await ledger.check(db)
        await ledger.append(db)
    verify_directory(path)


def tear(path: Path) -> None:
    """Leaves behind the last group what a group that was cut off leaves."""
    segment = last_segment(path)
    with segment.open("r+b") as file:
        file.seek(end_of(segment))
        file.write(b"torn" * (BLOCK // 2))


def last_segment(path: Path) -> Path:
    return max((path / SEGMENTS).iterdir())


def end_of(segment: Path) -> int:
    """The first block behind the last that is not all zeros."""
    return -(-len(segment.read_bytes().rstrip(b"\0")) // BLOCK) * BLOCK


async def descriptors_run_out(place: Path, engine: Engine, seed: int) -> None:
    """With room for ever more descriptors, from none: every open gives a log, or an error of ours."""
    ledger, path = Ledger(seed), place / "db"
    refused = 0
    for more in range(40):
        db = None
        with limited(resource.RLIMIT_NOFILE, next_descriptor() + more):
            try:
                db = await opened(path, engine)
                await ledger.until_refused(db, 60)
                await ledger.check(db)
            except KimberliteError:
                refused += 1
        if db is not None:
            with contextlib.suppress(KimberliteError):
                await db.close()
        if more % 8 == 7:
            await goes_on(path, engine, ledger)
    assert refused > 3
    await goes_on(path, engine, ledger)


async def files_must_not_grow(place: Path, engine: Engine, seed: int) -> None:
    """RLIMIT_FSIZE is a full disk (EFBIG): appends are refused, reads go on, and it passes."""
    ledger, path = Ledger(seed), place / "db"
    async with await opened(path, engine, options=LARGE) as db:
        with limited(resource.RLIMIT_FSIZE, LARGEST_FILE):
            assert isinstance(await ledger.until_refused(db, 400), NoSpace)
            await ledger.check(db)
        await ledger.append(db)
    with limited(resource.RLIMIT_FSIZE, BLOCK), contextlib.suppress(NoSpace):
        await (await opened(path, engine)).close()
    await goes_on(path, engine, ledger)


@contextlib.contextmanager
def limited(which: int, soft: int) -> Iterator[None]:
    usual = resource.getrlimit(which)
    resource.setrlimit(which, (soft, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(which, usual)


def next_descriptor() -> int:
    fd = os.open("/dev/null", os.O_RDONLY)
    os.close(fd)
    return fd


async def a_failed_sync_leaves_no_ghost(place: Path, engine: Engine, seed: int, *, buffered: bool) -> None:
    """The disk loses the blocks under the tail and has no others: a group is written, and its sync fails.

    Behind the page cache there is nothing of it. Who opens the log again must not believe the cache.
    """
    ledger = Ledger(seed)
    with small_disk(place / "under", IMAGE_ROOM) as under:
        disk = Shut("ext4", under)
        try:
            with disk.image.open("r+b") as image:
                os.posix_fallocate(image.fileno(), 0, image.seek(0, os.SEEK_END))
            path = disk.path / "db"
            db = await opened(path, engine)
            for _ in range(3):
                await ledger.append(db)
            await db.close()
            db = await opened(path, Buffered(path, engine) if buffered else engine)
            await ledger.append(db)
            segment = last_segment(path)
            end = end_of(segment)
            os.sync()
            punch(disk.image, physical(segment, end), HOLE)
            with filled(under):
                assert isinstance(await ledger.until_refused(db, 1), UnknownOutcome)
                assert isinstance(await ledger.until_refused(db, 1), UnknownOutcome)
                with contextlib.suppress(KimberliteError):
                    await db.close()
            assert ghost(segment, end) == buffered
            db = await opened(path, Buffered(path, engine) if buffered else engine)
            await ledger.check(db)
            await ledger.append(db)
            await db.close()
            del db
            # A log that was closed keeps descriptors until it is collected, and with them the mount.
            gc.collect()
            disk.again()
            await goes_on(path, engine, ledger)
        finally:
            gc.collect()
            disk.close()


def physical(file: Path, place: int) -> int:
    """Where this byte of a file is on its disk."""
    told = subprocess.run(
        ["filefrag", "-v", f"-b{BLOCK}", str(file)], check=True, capture_output=True, text=True
    ).stdout
    for line in told.splitlines():
        words = line.replace("..", " ").replace(":", " ").split()
        if len(words) > 4 and words[0].isdigit() and int(words[1]) <= place // BLOCK <= int(words[2]):
            assert int(words[2]) * BLOCK >= place + HOLE - BLOCK, "the hole must lie in one extent"
            return (int(words[3]) - int(words[1])) * BLOCK + place
    raise AssertionError(f"{file} has no block at {place}")


def punch(image: Path, place: int, length: int) -> None:
    subprocess.run(["fallocate", "-p", "-o", str(place), "-l", str(length), str(image)], check=True)


def ghost(segment: Path, place: int) -> bool:
    """Whether the page cache shows what the disk does not have."""
    cached, direct = os.open(segment, os.O_RDONLY), os.open(segment, os.O_RDONLY | os.O_DIRECT)
    try:
        shown = os.pread(cached, BLOCK, place)
        with mmap.mmap(-1, BLOCK) as page:
            os.preadv(direct, [page], place)
            return any(shown) and shown != page[:]
    finally:
        os.close(cached)
        os.close(direct)
