"""Small databases made through the public API, and the doors that their owner goes in by."""

from __future__ import annotations

import base64
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import kimberlite
from kimberlite import KimberliteError, Log, Receipt, Record, sync
from kimberlite.crypto.master import PREFIX, load_master
from kimberlite.log.repair import is_packed
from kimberlite.log.verify import Report, verify, verify_directory
from kimberlite.storage.memory import Disk, MemoryBackend

SEGMENT = 64 * 1024
DIRECTORIES = ("segments", "index", "prepare", "quarantine")
DERIVED = ("hashes", "checkpoint", "producers", "index/")
MASTER = b"the master key of these attacks!"
#: Batches in a database; six of them fill a segment.
BATCHES = 17

Files = dict[str, bytes]


@dataclass(frozen=True)
class Database:
    """A directory as its bytes, what it says, and what its owner keeps elsewhere: the master key and receipts."""

    files: Files
    records: tuple[Record, ...]
    receipts: tuple[Receipt, ...]
    master: bytes | None

    @property
    def segments(self) -> list[str]:
        return sorted(name for name in self.files if name.startswith("segments/"))

    def having(self, files: Mapping[str, bytes]) -> Database:
        return replace(self, files={**self.files, **files})

    def without(self, *names: str) -> Database:
        """Without these files; a name that ends in a slash is all that is in a directory."""
        return replace(self, files={name: data for name, data in self.files.items() if not name.startswith(names)})

    def only(self, *names: str) -> Database:
        return replace(self, files={name: data for name, data in self.files.items() if name.startswith(names)})

    def put(self, path: Path) -> Installed:
        """Into a new directory at this path, beside a file with the master key."""
        for directory in (path, *(path / name for name in DIRECTORIES)):
            directory.mkdir(0o700)
        installed = Installed(key_file(path.parent, self.master), path)
        installed.write(self.files)
        return installed

    def simulate(self, directory: Path) -> Simulated:
        """Onto a simulated disk; the file with the master key is in a real directory."""
        return Simulated(key_file(directory, self.master), Disk.from_files(self.files))


def key_file(directory: Path, master: bytes | None) -> Path | None:
    if master is None:
        return None
    path = directory / "master.key"
    if not path.exists():
        path.touch(0o600)
        path.write_text(f"{PREFIX}{base64.b64encode(master).decode()}\n")
    return path


@dataclass(frozen=True)
class Doors:
    """The ways its owner goes into a directory."""

    key: Path | None

    def verify(self, anchor: Receipt | None = None) -> Report:
        raise NotImplementedError

    def audit(self, anchor: Receipt | None = None) -> Report:
        """`verify` by somebody without the master key."""
        return replace(self, key=None).verify(anchor)

    async def open(self, anchor: Receipt | None = None, *, read_only: bool = False) -> Log:
        raise NotImplementedError

    def files(self) -> Files:
        raise NotImplementedError

    async def answers(
        self, truth: Iterable[Record], *, read_only: bool = False, in_order: bool = True
    ) -> list[KimberliteError]:
        """Asks for every record, by its position and in both orders: each is the true one, or an error.
        Returns the errors."""
        try:
            db = await self.open(read_only=read_only)
        except KimberliteError as error:
            return [error]
        errors = []
        truth = list(truth)
        async with db:
            for expected in truth:
                try:
                    assert await db.get(expected.position) == expected
                except KimberliteError as error:
                    errors.append(error)
            for reverse in (False, True) if in_order else ():
                rest = iter(truth[::-1] if reverse else truth)
                try:
                    async for record in db.read(system=True, reverse=reverse):
                        assert record == next(rest)
                    assert next(rest, None) is None
                except KimberliteError as error:
                    errors.append(error)
        return errors


@dataclass(frozen=True)
class Installed(Doors):
    """A real directory."""

    path: Path

    def write(self, files: Mapping[str, bytes]) -> None:
        for name, data in files.items():
            (self.path / name).touch(0o600)
            (self.path / name).write_bytes(data)

    def files(self) -> Files:
        found = (path for path in self.path.rglob("*") if path.is_file())
        return {path.relative_to(self.path).as_posix(): path.read_bytes() for path in found}

    def verify(self, anchor: Receipt | None = None) -> Report:
        return verify_directory(self.path, key_file=self.key, anchor=anchor)

    async def open(self, anchor: Receipt | None = None, *, read_only: bool = False) -> Log:
        return await kimberlite.open(
            self.path,
            create=False,
            read_only=read_only,
            key_file=self.key,
            backend="threads",
            segment_bytes=SEGMENT,
            pack=0,
            anchor=anchor,
        )


@dataclass(frozen=True)
class Simulated(Doors):
    disk: Disk

    def files(self) -> Files:
        return self.disk.files()

    def verify(self, anchor: Receipt | None = None) -> Report:
        return verify(MemoryBackend(self.disk), load_master(self.key), anchor=anchor)

    async def open(self, anchor: Receipt | None = None, *, read_only: bool = False) -> Log:
        return await kimberlite.open(
            "simulated",
            create=False,
            read_only=read_only,
            key_file=self.key,
            backend=MemoryBackend(self.disk),
            segment_bytes=SEGMENT,
            pack=0,
            anchor=anchor,
        )


def on_disk(disk: Disk, key: Path | None, pack: float = 0) -> sync.Database:
    return sync.open("simulated", key_file=key, backend=MemoryBackend(disk), segment_bytes=SEGMENT, pack=pack)


def sent(number: int, what: bytes = b"payload") -> list[Record]:
    """A batch whose group takes two blocks, plain and encrypted."""
    filler = bytes((number * 7 + i) % 251 for i in range(1_400))
    return [
        Record(what + b" %d.%d " % (number, part) + filler, b"key %d" % number, (("part", b"%d" % part),))
        for part in range(3)
    ]


def grow(disk: Disk, key: Path | None, batches: range, what: bytes = b"payload") -> list[Receipt]:
    """Appends in turn to two streams and closes cleanly."""
    with on_disk(disk, key) as db:
        return [append(db, number, what) for number in batches]


def append(db: sync.Database, number: int, what: bytes) -> Receipt:
    stream = ("orders", "events")[number % 2]
    return db.append(stream, sent(number, what), producer=(b"till 9", number // 2))


def read(disk: Disk, master: bytes | None, receipts: Iterable[Receipt]) -> Database:
    """What is on a disk, as a database."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Disk.from_files(disk.files())
        with on_disk(copy, key_file(Path(directory), master)) as db:
            records = tuple(db.read(system=True))
    # Room that is allocated ahead holds nothing; without it a copy is small.
    return Database(disk.files(), records, tuple(receipts), master).without("prepare/", "reserve")


@cache
def built(kind: str, copy: int = 0, batches: int = BATCHES) -> Database:
    """The `plain` or `encrypted` database; copies have the same records and another identity."""
    master = MASTER if kind == "encrypted" else None
    disk = Disk()
    with tempfile.TemporaryDirectory() as directory:
        receipts = grow(disk, key_file(Path(directory), master), range(batches))
    return read(disk, master, receipts)


@cache
def packed(kind: str, copy: int = 0) -> Database:
    """The same with its closed segments packed."""
    return packed_anew(built(kind, copy))


def packed_anew(database: Database) -> Database:
    """What becomes of a database by a writer that packs what it can."""
    disk = Disk.from_files(database.files)
    with tempfile.TemporaryDirectory() as directory:
        key = key_file(Path(directory), database.master)
        with on_disk(disk, key, pack=1) as db:
            until_packed(db, disk)
    return replace(database, files=disk.files()).without("prepare/", "reserve")


def until_packed(db: sync.Database, disk: Disk, damaged: int = 0) -> None:
    """But for so many, of which it says what is wrong."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        *closed, _ = sorted(name for name in disk.files() if name.startswith("segments/"))
        left = sum(not is_packed(disk.files()[name]) for name in closed)
        if left == damaged == len(db.info()["notes"]):
            return
        time.sleep(0.002)
    raise AssertionError(f"{left} of {closed} are not packed: {db.info()['notes']}")


def grown(database: Database, batches: range, what: bytes = b"payload") -> Database:
    """What becomes of a database by more appends."""
    disk = Disk.from_files(database.files)
    with tempfile.TemporaryDirectory() as directory:
        receipts = grow(disk, key_file(Path(directory), database.master), batches, what)
    return read(disk, database.master, [*database.receipts, *receipts])
