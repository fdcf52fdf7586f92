"""What would a user get from the servers that exist, given the same work over the same loopback?

Clients with batches in flight append records of random bytes, which are durable when they are answered. Every run is
on a new server with an empty directory, and afterwards the server is asked whether it has what it acknowledged.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from random import Random
from typing import Protocol

from benches import disk, servers
from benches.clients import Lane, Tally, drive
from benches.clients import Load as Load
from benches.dialects import Copy, Insert, Resp, command, query
from benches.packages import Installed, Missing, had
from benches.table import Table, machine, quantile, show, write_json

#: Clients, batches in flight of each, records of a batch.
SHAPES = ((1, 1, 100), (1, 8, 100), (32, 1, 100), (1, 1, 1), (64, 1, 1), (64, 16, 1))
SIZE = 256
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
    name: str
    #: The version too, in one line.
    settings: str

    def run(self, load: Load) -> Figures: ...


class Redis:
    name = "Redis Streams"

    def __init__(self, program: Installed, directory: Path) -> None:
        self._program, self._directory = program, directory
        self.settings = (
            f"{program.version()}: {_listed(servers.REDIS_SETTINGS)}; XADD, a stream for each client, pipelined, "
            "a batch in MULTI and EXEC"
        )

    def run(self, load: Load) -> Figures:
        with _directory(self._directory) as place, servers.redis(self._program, place) as port:
            lanes = [Lane(number, load.depth) for number in range(load.clients)]
            tally = drive(port, Resp(), lanes, load, min(WARM, load.seconds))
            stored = sum(int(command(port, "XLEN", f"log-{number}")) for number in range(load.clients))
        return figures(self.name, load, tally, stored)


class PostgreSQL:
    name = "PostgreSQL"
    _table = "log"

    def __init__(self, program: Installed, directory: Path) -> None:
        self._program, self._directory = program, directory
        self.settings = (
            f"{program.version()}: {_listed(servers.POSTGRES_SETTINGS)}; a table for all clients with an identity as "
            "primary key, a transaction for each batch, binary COPY or a prepared INSERT of one, a connection for "
            f"each batch in flight up to {CONNECTIONS} that share them"
        )

    def run(self, load: Load) -> Figures:
        with _directory(self._directory) as place, servers.postgres(self._program, place) as port:
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


def _listed(settings: dict[str, str]) -> str:
    return ", ".join(f"{name}={value or repr(value)}" for name, value in settings.items())


@contextmanager
def _directory(parent: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=parent, prefix="rival-") as name:
        yield Path(name).resolve()


def spread(in_flight: int) -> list[Lane]:
    """Over the connections."""
    lanes = min(in_flight, CONNECTIONS)
    return [Lane(number, in_flight // lanes + (number < in_flight % lanes)) for number in range(lanes)]


def figures(name: str, load: Load, tally: Tally, stored: int) -> Figures:
    if stored < tally.acknowledged * load.batch:
        raise RuntimeError(f"{name} acknowledged {tally.acknowledged * load.batch} records and has {stored}")
    if not tally.took:
        raise RuntimeError(f"{name} answered nothing in {load.seconds} s")
    p50, p99, p999 = (quantile(tally.took, part) / 1e6 for part in (0.5, 0.99, 0.999))
    return Figures(len(tally.took) * load.batch / load.seconds, p50, p99, p999)


@contextmanager
def rivals(directory: Path) -> Iterator[tuple[list[Rival], list[str]]]:
    """Those that run here, and a line for each that does not; downloads what is neither installed nor in the cache."""
    found: list[Rival] = []
    missing: list[str] = []
    for make, program, start in (
        (Redis, servers.REDIS, servers.redis),
        (PostgreSQL, servers.POSTGRES, servers.postgres),
    ):
        try:
            installed = had(program)
            with _directory(directory) as place, start(installed, place):
                found.append(make(installed, directory))
        except Missing as problem:
            missing.append(f"{make.name} is left out: missing: {problem}")
    yield found, missing


@dataclass(frozen=True, slots=True)
class Row:
    rival: str
    load: Load
    figures: Figures
    #: Records a second of the disk alone: one such batch a sync, one at a time.
    raw_plain: float
    raw_best: float


def compare(directory: Path, found: Sequence[Rival], loads: Sequence[Load], rounds: int) -> list[Row]:
    """All loads in turns, the disk alone in every round too; medians over the rounds."""
    runs: dict[tuple[Load, Rival], list[Figures]] = {key: [] for key in product(loads, found)}
    raw: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for number in range(rounds):
        print(f"rivals, round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        for batch, size in dict.fromkeys((load.batch, load.size) for load in loads):
            seconds = min(1.0, loads[0].seconds)
            both = (write(directory, batch * size, seconds) * batch for write in (disk.plain, disk.best))
            raw[batch, size].append((next(both), next(both)))
        for load, rival in Random(number).sample(list(runs), len(runs)):
            runs[load, rival].append(rival.run(load))
    return [
        Row(
            rival.name,
            load,
            Figures(*(statistics.median(getattr(each, field.name) for each in those) for field in fields(Figures))),
            *(statistics.median(rates) for rates in zip(*raw[load.batch, load.size], strict=True)),
        )
        for (load, rival), those in runs.items()
    ]


def table(found: Sequence[Row]) -> Table:
    rows = []
    for each in found:
        load, figure = each.load, each.figures
        rows.append(
            (
                f"{load.clients} × {load.depth} × {load.batch} × {load.size} B: {each.rival}",
                f"{figure.records_per_s:,.0f}",
                *(f"{value:,.2f}" for value in (figure.p50_ms, figure.p99_ms, figure.p999_ms)),
                f"{each.raw_plain:,.0f}",
                f"{each.raw_best:,.0f}",
                f"{figure.records_per_s / each.raw_plain:.2f}",
            )
        )
    headings = (
        "clients × in flight × batch × size: server",
        *("records/s", "p50 ms", "p99 ms", "p99.9 ms", "raw plain/s", "raw best/s", "÷ plain"),
    )
    return Table("Durable appends over the loopback; raw: one such batch a sync, one at a time", headings, tuple(rows))


def settings_table(found: Sequence[Rival]) -> Table:
    return Table("What was run", ("server: version and settings",), tuple((f"{r.name}: {r.settings}",) for r in found))


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benches.rivals", description="Other servers doing the same work.")
    parser.add_argument("--directory", type=Path, default=Path(), help="where to write; nothing is left there")
    parser.add_argument("--seconds", type=float, default=2.0, help="of appending, for each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2, help="that the clients are spread over")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


def main() -> None:
    options = arguments().parse_args()
    where = machine(options.directory)
    loads = [Load(*shape, SIZE, options.seconds, options.processes) for shape in SHAPES]
    with (
        tempfile.TemporaryDirectory(dir=options.directory, prefix="bench-rivals-") as name,
        rivals(Path(name)) as (found, missing),
    ):
        print(*missing, sep="\n", end="\n" if missing else "", file=sys.stderr)
        rows = compare(Path(name), found, loads, options.rounds)
    show(where, [table(rows), settings_table(found)], markdown=options.markdown)
    if options.json:
        write_json(options.json, where, {"rivals": rows})


if __name__ == "__main__":
    main()
