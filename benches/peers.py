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
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Protocol

from benches import disk
from benches.table import Table, asked, machine, microseconds, publish, quantile

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
class Work:
    batch: int
    #: Bytes of a record.
    size: int
    #: Of writing.
    seconds: float
    without_sync: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """The settings name the version too."""

    peer: str
    synced: bool
    batch: int
    size: int
    records_per_second: float
    #: None for the raw disk, which is only written to.
    get_p50_ns: float | None
    get_p99_ns: float | None
    scanned_per_second: float | None
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
        query = "SELECT record FROM log WHERE place >= ? AND place < ? ORDER BY place"
        return (row[0] for row in self._database.execute(query, (first, after)))

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


Maker = Callable[..., Peer]
PEERS: dict[str, Maker] = {SQLite.name: SQLite, RocksDB.name: RocksDB, LMDB.name: LMDB}
#: What to install for those that Python does not bring.
PACKAGES = {"RocksDB": "rocksdict", "LMDB": "lmdb"}


#: The disk with no store on it, for the same bytes.
RAW = {
    "raw disk, plain": (disk.plain, "pwrite and fdatasync, growing file"),
    "raw disk, best": (disk.best, "O_DIRECT | O_DSYNC, zeroed blocks, padded to 4 KiB"),
}


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


def measure(make: Maker, directory: Path, work: Work, *, sync: bool) -> Outcome:
    """Writes for `seconds`, then reads what was written: at random, and all of it in order."""
    with closing(make(directory, sync=sync)) as peer:
        written, rate, first = fill(peer, work.batch, work.size, work.seconds)
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
        return Outcome(
            peer.name,
            sync,
            work.batch,
            work.size,
            rate,
            quantile(samples, 0.5),
            quantile(samples, 0.99),
            scanned / spent * 1e9,
            peer.settings,
        )


def run(make: Maker, directory: Path, batch: int, size: int, seconds: float) -> float:
    """Durable records a second."""
    with closing(make(directory)) as peer:
        return fill(peer, batch, size, seconds)[1]


def available() -> tuple[list[Maker], list[str]]:
    """The peers that can run here, and a line for each that cannot."""
    missing = [name for name in PEERS if name in PACKAGES and find_spec(PACKAGES[name]) is None]
    lines = [f"{name} is left out: pip install {PACKAGES[name]}" for name in missing]
    return [make for name, make in PEERS.items() if name not in missing], lines


def compare(directory: Path, work: Work, peers: Sequence[Maker], rounds: int = 3) -> list[Outcome]:
    """The peers and the raw disk in turns, each on an empty directory; medians over the rounds."""
    found: dict[tuple[str, bool], list[Outcome]] = defaultdict(list)
    for number in range(rounds):
        print(f"peers, round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        outcomes = [_raw(directory, work, name) for name in RAW]
        for make, sync in product(peers, (True, False) if work.without_sync else (True,)):
            with tempfile.TemporaryDirectory(dir=directory, prefix="peer-") as name:
                outcomes.append(measure(make, Path(name), work, sync=sync))
        for outcome in outcomes:
            found[outcome.peer, outcome.synced].append(outcome)
    return [_middle(outcomes) for outcomes in found.values()]


def _raw(directory: Path, work: Work, name: str) -> Outcome:
    write, settings = RAW[name]
    batches = write(directory, work.batch * work.size, work.seconds)
    return Outcome(name, True, work.batch, work.size, batches * work.batch, None, None, None, settings)


def _middle(outcomes: Sequence[Outcome]) -> Outcome:
    def over(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return statistics.median(known) if known else None

    return replace(
        outcomes[0],
        records_per_second=statistics.median(each.records_per_second for each in outcomes),
        get_p50_ns=over(each.get_p50_ns for each in outcomes),
        get_p99_ns=over(each.get_p99_ns for each in outcomes),
        scanned_per_second=over(each.scanned_per_second for each in outcomes),
    )


def peer_table(found: Sequence[Outcome]) -> Table:
    rows = [
        (
            each.peer + ("" if each.synced else ", no sync"),
            f"{each.records_per_second:,.0f}",
            *("" if value is None else microseconds(value) for value in (each.get_p50_ns, each.get_p99_ns)),
            "" if each.scanned_per_second is None else f"{each.scanned_per_second:,.0f}",
        )
        for each in found
    ]
    headings = ("store", "records/s", "get p50 µs", "get p99 µs", "scan records/s")
    return Table(f"{found[0].batch} records of {found[0].size} bytes in each transaction", headings, tuple(rows))


def settings_table(found: Sequence[Outcome]) -> Table:
    rows = [(f"{each.peer}{'' if each.synced else ', no sync'}: {each.settings}",) for each in found]
    return Table("What was run", ("store: version and settings",), tuple(rows))


def arguments() -> argparse.ArgumentParser:
    parser = asked("peers", "Embedded stores doing the same work.")
    parser.add_argument("--batch", type=int, default=100, help="records in each durable transaction")
    parser.add_argument("--size", type=int, default=256, help="bytes of a record")
    parser.add_argument("--seconds", type=float, default=2.0, help="of writing, for each store in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-sync", action="store_true", help="each store without its promise, too")
    return parser


def main() -> None:
    options = arguments().parse_args()
    where = machine(options.directory)
    peers, missing = available()
    print(*missing, sep="\n", end="\n" if missing else "", file=sys.stderr)
    work = Work(options.batch, options.size, options.seconds, options.no_sync)
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="bench-peers-") as name:
        found = compare(Path(name), work, peers, options.rounds)
    publish(where, [peer_table(found), settings_table(found)], {"peers": found}, options)


if __name__ == "__main__":
    main()
