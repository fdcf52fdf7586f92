"""A daemon under a load, for what looks into it while it works."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from benches import frames, sampling
from benches.daemon import Daemon, Mode, settings
from benches.packages import Missing
from kimberlite.cli.forms import parse_number
from kimberlite.load.plan import Plan, Work
from kimberlite.load.run import Outcome, Processes

PROCESSES: Final = 2
#: Seconds of load that do not count.
WARM: Final = 0.5


#: Seconds that the load lasts longer than what looks at it, which takes a moment to begin.
LONGER: Final = 1.0
Whose = Literal["serve", "bench"]


@dataclass(frozen=True, slots=True)
class Loaded:
    daemon: Daemon
    plan: Plan
    processes: Processes
    #: Where framed processes write.
    directory: Path

    @property
    def clients(self) -> list[int]:
        """The processes of the load."""
        return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--work", choices=get_args(Work), default="append")
    parser.add_argument("--clients", metavar="N", type=parse_number, default=64)
    parser.add_argument("--depth", metavar="N", type=parse_number, default=1, help="requests of each that are open")
    parser.add_argument("--batch", metavar="N", type=parse_number, default=1, help="records of a request")
    parser.add_argument("--size", metavar="BYTES", type=parse_number, default=256, help="of a record")
    parser.add_argument("--mode", choices=get_args(Mode), default="plain", help="of the database; plain by default")
    parser.add_argument("--seconds", metavar="S", type=float, default=10.0, help="that are looked at; 10 by default")
    parser.add_argument("--directory", type=Path, default=Path(), help="on the disk in question; here by default")


def planned(options: argparse.Namespace, address: str, rate: float | None = None) -> Plan:
    return Plan(
        options.work,
        address,
        options.clients,
        options.batch,
        options.size,
        json=options.mode == "json+zstd",
        depth=options.depth,
        rate=rate,
        processes=min(PROCESSES, options.clients),
    )


def words(plan: Plan) -> str:
    """`64 clients × 1 in flight × 1 record of 256 B`."""
    clients = "1 client" if plan.clients == 1 else f"{plan.clients} clients"
    records = "1 record" if plan.batch == 1 else f"{plan.batch} records"
    return f"{plan.work}: {clients} × {plan.depth} in flight × {records} of {plan.size} B"


@contextmanager
def database(directory: Path) -> Iterator[Path]:
    """A directory that is gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="bench-", dir=directory)).resolve()
    try:
        yield path
    finally:
        shutil.rmtree(path)


@contextmanager
def loaded(options: argparse.Namespace, library: Path | None = None, whose: Whose = "serve") -> Iterator[Loaded]:
    """A daemon and clients that are warm; those that are looked at are framed, if there is the library for it."""
    with database(options.directory) as path:
        written = path / "frames"
        written.mkdir()
        framing = frames.environment(library, written) if library is not None else {}
        module = "benches.framed" if framing and whose == "serve" else "kimberlite.cli.main"
        told = settings(options.mode, path)
        with Daemon(path / "db", *told, environment=os.environ | framing, module=module) as daemon:
            plan = planned(options, daemon.address)
            with _inherited(framing if whose == "bench" else {}), Processes(plan) as processes:
                processes.run(WARM, warm=True)
                yield Loaded(daemon, plan, processes, written)


@contextmanager
def _inherited(environment: Mapping[str, str]) -> Iterator[None]:
    """By processes that begin meanwhile."""
    os.environ.update(environment)
    try:
        yield
    finally:
        for name in environment:
            del os.environ[name]


@dataclass(frozen=True, slots=True)
class Seen:
    """Where the time went while a load was answered."""

    plan: Plan
    mode: Mode
    outcome: Outcome
    profile: sampling.Profile
    #: Of all the load, by label.
    calls: Counter[str]
    #: Seconds of processor of the daemon, of all the load.
    cpu: float
    #: That perf looked.
    seconds: float

    @property
    def requests(self) -> int:
        return self.outcome.appends.requests + self.outcome.reads.requests

    def did(self) -> str:
        return f"{words(self.plan)}, {self.mode}, {self.outcome.records_per_s:,.0f} records/s"


def seen(options: argparse.Namespace, whose: Whose = "serve", *, framed: bool = True) -> Seen:
    """Framed, there are stacks, with Python's functions in them."""
    perf, library = sampling.had_perf(), frames.built() if framed else None
    with loaded(options, library, whose) as load:
        pids = [load.daemon.pid] if whose == "serve" else load.clients
        data = load.directory / "perf.data"
        cpu, before = load.daemon.cpu, _calls(load.directory)
        with sampling.recorded(perf, pids, options.seconds, data, stacks=framed):
            outcome = load.processes.run(options.seconds + LONGER)
        cpu, calls = load.daemon.cpu - cpu, _calls(load.directory) - before
        profile = sampling.profile(perf, data, load.directory, stacks=framed)
    if not profile.samples:
        raise Missing("perf took no sample")
    return Seen(load.plan, options.mode, outcome, profile, calls, cpu, options.seconds)


def _calls(directory: Path) -> Counter[str]:
    found: Counter[str] = Counter()
    for pid in frames.framed(directory):
        counts = frames.calls(directory, pid)
        for number, function in frames.functions(directory, pid).items():
            found[function.label()] += counts[number]
    return found
