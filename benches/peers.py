"""What would a user get from the embedded stores that exist, given the same work?

One writer appends `batch` records of `size` bytes to one stream in each durable transaction, keyed by stream and
offset, through the fastest batch call that each store has, on keys in ascending order. More writers would gain these
nothing: SQLite and LMDB have one at a time, and rocksdict keeps the interpreter's lock while it writes.

The settings are the fastest we found that keep the promise, and they are printed. The records are random bytes, so
compression is off where there is any.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Protocol

from benches import disk
from benches.table import Table, machine, microseconds, quantile, show, write_json

if TYPE_CHECKING:
    import lmdb
    import rocksdict

STREAM = 1
#: Different batches that are written in turn, so that making them is not what is measured.
BATCHES = 16
POINT_READS = 20_000
#: Bytes of address space for LMDB, which cannot grow a map that is in use.
MAP = 1 << 40


class Peer(Protocol):
    name: str
    settings: str

    def append(self, first: int, records: Sequence[bytes]) -> None: ...
    def get(self, offset: int) -> bytes | None: ...
    def scan(self) -> Iterable[bytes]:
        """Every record in order."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """The settings name the version too."""

    peer: str
    synced: bool
    batch: int
    size: int
    records_per_second: float
    get_p50_ns: int
    get_p99_ns: int
    scanned_per_second: float
    settings: str


class SQLite:
    name = "SQLite"

    def __init__(self, directory: Path, *, sync: bool = True) -> None:
        level = "FULL" if sync else "OFF"
        self.settings = (
            f"{sqlite3.sqlite_version}: WAL, synchronous={level}, locking_mode=EXCLUSIVE, mmap_size, "
            "integer primary key of stream and offset, executemany"
        )
        self._database = sqlite3.connect(directory / "log.db", isolation_level=None)
        for setting in (
            "locking_mode=EXCLUSIVE",
            "journal_mode=WAL",
            f"synchronous={level}",
            f"mmap_size={1 << 34}",
            f"cache_size={-(64 << 10)}",
        ):
            self._database.execute(f"PRAGMA {setting}").fetchall()
        self._database.execute("CREATE TABLE log (place INTEGER PRIMARY KEY, record BLOB NOT NULL)")

    @staticmethod
    def _place(offset: int) -> int:
        return STREAM << 40 | offset

    def append(self, first: int, records: Sequence[bytes]) -> None:
        place = self._place(first)
        self._database.execute("BEGIN")
        self._database.executemany("INSERT INTO log VALUES (?, ?)", enumerate(records, place))
        self._database.execute("COMMIT")

    def get(self, offset: int) -> bytes | None:
        row = self._database.execute("SELECT record FROM log WHERE place = ?", (self._place(offset),)).fetchone()
        return None if row is None else bytes(row[0])

    def scan(self) -> Iterable[bytes]:
        first, after = self._place(0), (STREAM + 1) << 40
        rows = self._database.execute("SELECT record FROM log WHERE place >= ? AND place < ? ORDER BY place", (first, after))
        return (row[0] for row in rows)

    def close(self) -> None:
        self._database.close()


class RocksDB:
    name = "RocksDB"

    def __init__(self, directory: Path, *, sync: bool = True) -> None:
        import rocksdict

        self.settings = (
            f"rocksdict {version('rocksdict')}: WriteBatch, sync={sync}, 256 MiB write buffer, no compression, "
            "recycled WAL files, raw keys of 16 bytes"
        )
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_write_buffer_size(256 << 20)
        options.set_compression_type(rocksdict.DBCompressionType.none())
        options.set_recycle_log_file_num(4)
        options.increase_parallelism(os.cpu_count() or 1)
        self._batch: type[rocksdict.WriteBatch] = rocksdict.WriteBatch
        self._writing = rocksdict.WriteOptions()
        self._writing.sync = sync
        self._database = rocksdict.Rdict(str(directory / "log"), options)

    def append(self, first: int, records: Sequence[bytes]) -> None:
        batch = self._batch(raw_mode=True)
        for offset, record in enumerate(records, first):
            batch.put(_key(offset), record)
        self._database.write(batch, self._writing)

    def get(self, offset: int) -> bytes | None:
        record: bytes | None = self._database.get(_key(offset))
        return record

    def scan(self) -> Iterable[bytes]:
        return self._database.values(from_key=_key(0))

    def close(self) -> None:
        self._database.close()


class LMDB:
    name = "LMDB"

    def __init__(self, directory: Path, *, sync: bool = True) -> None:
        import lmdb

        self.settings = (
            f"{'.'.join(map(str, lmdb.version()))} (lmdb {version('lmdb')}): putmulti, MDB_APPEND, sync={sync}, "
            "keys of 16 bytes"
        )
        self._environment: lmdb.Environment = lmdb.open(str(directory / "log"), map_size=MAP, sync=sync, metasync=sync)
        self._reading: lmdb.Transaction[bytes] | None = None

    def append(self, first: int, records: Sequence[bytes]) -> None:
        self._reading = None
        with self._environment.begin(write=True) as transaction:
            pairs = [(_key(offset), record) for offset, record in enumerate(records, first)]
            transaction.cursor().putmulti(pairs, append=True)

    def get(self, offset: int) -> bytes | None:
        return self._snapshot().get(_key(offset))

    def scan(self) -> Iterable[bytes]:
        return self._snapshot().cursor().iternext(keys=False, values=True)

    def close(self) -> None:
        self._reading = None
        self._environment.close()

    def _snapshot(self) -> lmdb.Transaction[bytes]:
        """One for all reads until the next append, as a reader in a hurry would hold it."""
        if self._reading is None:
            self._reading = self._environment.begin()
        return self._reading


PEERS: tuple[Callable[..., Peer], ...] = (SQLite, RocksDB, LMDB)
#: What to install for those that Python does not bring.
PACKAGES = {"RocksDB": "rocksdict", "LMDB": "lmdb"}


def _key(offset: int) -> bytes:
    """Sorts as stream and offset do."""
    return (STREAM << 64 | offset).to_bytes(16, "big")


def fill(peer: Peer, batch: int, size: int, seconds: float) -> tuple[int, float, dict[int, bytes]]:
    """Records written, records a second, and the first batch to compare with."""
    ready = [[os.urandom(size) for _ in range(batch)] for _ in range(BATCHES)]
    written = turn = 0
    begin = time.perf_counter()
    while True:
        peer.append(written, ready[turn % BATCHES])
        written += batch
        turn += 1
        if (spent := time.perf_counter() - begin) >= seconds:
            return written, written / spent, dict(enumerate(ready[0]))


def measure(make: Callable[..., Peer], directory: Path, batch: int, size: int, seconds: float, *, sync: bool) -> Outcome:
    """Writes for `seconds`, then reads what was written: at random, and all of it in order."""
    with closing(make(directory, sync=sync)) as peer:
        written, rate, first = fill(peer, batch, size, seconds)
        if any(peer.get(offset) != record for offset, record in first.items()):
            raise RuntimeError(f"{peer.name} does not return what it was given")
        samples: list[int] = []
        for offset in Random(0).choices(range(written), k=min(written, POINT_READS)):
            before = time.perf_counter_ns()
            peer.get(offset)
            samples.append(time.perf_counter_ns() - before)
        before = time.perf_counter_ns()
        scanned = sum(1 for _ in peer.scan())
        spent = time.perf_counter_ns() - before
        if scanned != written:
            raise RuntimeError(f"{peer.name} was given {written} records and has {scanned}")
        p50, p99 = quantile(samples, 0.5), quantile(samples, 0.99)
        return Outcome(peer.name, sync, batch, size, rate, p50, p99, scanned / spent * 1e9, peer.settings)


def run(make: Callable[..., Peer], directory: Path, batch: int, size: int, seconds: float) -> float:
    """Durable records a second."""
    with closing(make(directory)) as peer:
        return fill(peer, batch, size, seconds)[1]
