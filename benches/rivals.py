"""What would a user get from the servers that exist, given the same work over the same loopback?

Clients with batches in flight append records of random bytes, which are durable when they are answered. Every run is
on a new server with an empty directory, and afterwards the server is asked whether it has what it acknowledged.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benches import servers
from benches.clients import Lane, Tally, drive
from benches.clients import Load as Load
from benches.dialects import Copy, Insert, Resp, command, query
from benches.packages import Installed
from benches.table import Table, quantile

#: Seconds before those that count, unless those are fewer.
WARM = 0.5
#: Each is a process of PostgreSQL's; on two cores 200 append no more, and nor do 32.
CONNECTIONS = 100
#: MiB of PostgreSQL's log for a second: more than it has been seen to write.
LOG_RATE = 128


@dataclass(frozen=True, slots=True)
class Figures:
    records_per_s: float
    p50_ms: float
    p99_ms: float
    p999_ms: float


class Rival(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def settings(self) -> str:
        """The version too, in one line."""

    @property
    def alone(self) -> bool:
        """In a process with its only writer, and so not for loads of more."""

    def run(self, load: Load) -> Figures: ...


class Redis:
    name = "Redis Streams"
    alone = False

    def __init__(self, program: Installed, directory: Path) -> None:
        self._program, self._directory = program, directory
        self.settings = (
            f"{program.version()}: {listed(servers.REDIS_SETTINGS)}; XADD, a stream for each client, pipelined, "
            "a batch in MULTI and EXEC"
        )

    def run(self, load: Load) -> Figures:
        with fresh(self._directory) as place, servers.redis(self._program, place) as port:
            lanes = [Lane(number, load.depth) for number in range(load.clients)]
            tally = drive(port, Resp(), lanes, load, min(WARM, load.seconds))
            stored = sum(int(command(port, "XLEN", f"log-{number}")) for number in range(load.clients))
        return figures(self.name, load, tally, stored)


class PostgreSQL:
    name = "PostgreSQL"
    alone = False
    _table = "log"

    def __init__(self, program: Installed, directory: Path) -> None:
        self._program, self._directory = program, directory
        self.settings = (
            f"{program.version()}: {listed(servers.POSTGRES_SETTINGS)}; a table for all clients with an identity as "
            "primary key, a transaction for each batch, binary COPY or a prepared INSERT of one, a connection for "
            f"each batch in flight up to {CONNECTIONS} that share them"
        )

    def run(self, load: Load) -> Figures:
        with fresh(self._directory) as place, servers.postgres(self._program, place) as port:
            self._prepare(port, load)
            dialect = (Insert if load.batch == 1 else Copy)(servers.USER, self._table)
            tally = drive(port, dialect, spread(load.clients * load.depth), load, min(WARM, load.seconds))
            stored = int(query(port, servers.USER, f"SELECT count(*) FROM {self._table}"))
        return figures(self.name, load, tally, stored)

    def _prepare(self, port: int, load: Load) -> None:
        """The table, and as much recycled log as a server has that has been up for a while."""
        mebibytes = int(LOG_RATE * (1 + load.seconds))
        for text in (
            f"CREATE TABLE {self._table} "
            "(place bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, record bytea NOT NULL)",
            f"ALTER TABLE {self._table} ALTER record SET STORAGE EXTERNAL",
            f"SELECT pg_logical_emit_message(false, '', repeat('x', 1 << 20)) FROM generate_series(1, {mebibytes})",
            "CHECKPOINT",
        ):
            query(port, servers.USER, text)


def listed(settings: dict[str, str]) -> str:
    return ", ".join(f"{name}={value or repr(value)}" for name, value in settings.items())


@contextmanager
def fresh(parent: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=parent, prefix="rival-") as name:
        yield Path(name).resolve()


def spread(in_flight: int) -> list[Lane]:
    """Over the connections."""
    lanes = min(in_flight, CONNECTIONS)
    return [Lane(number, in_flight // lanes + (number < in_flight % lanes)) for number in range(lanes)]


def figures(name: str, load: Load, tally: Tally, stored: int) -> Figures:
    check(name, tally.acknowledged * load.batch, stored)
    if not tally.took:
        raise RuntimeError(f"{name} answered nothing in {load.seconds} s")
    p50, p99, p999 = (quantile(tally.took, part) / 1e6 for part in (0.5, 0.99, 0.999))
    return Figures(len(tally.took) * load.batch / load.seconds, p50, p99, p999)


def check(name: str, acknowledged: int, stored: int) -> None:
    if stored < acknowledged:
        raise RuntimeError(f"{name} acknowledged {acknowledged} records and has {stored}")


def settings_table(found: Sequence[Rival]) -> Table:
    return Table("What was run", ("peer: version and settings",), tuple((f"{r.name}: {r.settings}",) for r in found))
