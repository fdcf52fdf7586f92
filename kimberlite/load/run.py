"""Load from several processes, with the raw disk measured in between."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from kimberlite import _native
from kimberlite.errors import KimberliteError, Unavailable
from kimberlite.load import disk
from kimberlite.load.plan import Plan
from kimberlite.load.worker import Count, Done, main
from kimberlite.wire.messages import BY_CODE

#: Seconds of load before anything counts.
WARM: Final = 0.5

#: Seconds for which one process is waited for before another.
POLL: Final = 0.05
#: Is told what has been appended and read so far.
Watcher = Callable[[Count, Count], object]


@dataclass(slots=True)
class Outcome:
    """What was answered in so many seconds."""

    seconds: float = 0.0
    appends: Count = field(default_factory=Count)
    reads: Count = field(default_factory=Count)
    #: Of each append, and of each read, from when it was meant to be sent.
    append_times: _native.Histogram = field(default_factory=_native.Histogram)
    read_times: _native.Histogram = field(default_factory=_native.Histogram)

    @property
    def records_per_s(self) -> float:
        return (self.appends.records + self.reads.records) / self.seconds

    @property
    def times(self) -> _native.Histogram:
        return self.append_times.plus(self.read_times)


class Processes:
    """Clients in processes of their own, connected as long as this is entered."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._stack = ExitStack()
        self._pipes: list[Connection] = []
        #: What each has said last.
        self._latest: dict[Connection, tuple[Count, Count]] = {}
        #: Of load that counts, so far.
        self._seconds = 0.0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            plan, context = self._plan, multiprocessing.get_context("spawn")
            for number in range(plan.processes):
                ours, theirs = context.Pipe()
                share = range(number, plan.clients, plan.processes)
                process = context.Process(target=main, args=(theirs, plan, share), daemon=True)
                process.start()
                theirs.close()
                stack.callback(process.join)
                stack.callback(process.terminate)
                stack.enter_context(ours)
                self._pipes.append(ours)
            for pipe in self._pipes:
                received(pipe)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(self, seconds: float, watch: Watcher | None = None, *, warm: bool = False) -> Outcome:
        """So many seconds more of load; what comes of all since it was last warmed up."""
        for pipe in self._pipes:
            pipe.send((seconds, warm))
        found: dict[Connection, Done] = {}
        while len(found) < len(self._pipes):
            for pipe in self._pipes:
                if pipe in found or not pipe.poll(POLL):
                    continue
                said = received(pipe)
                if isinstance(said, Done):
                    found[pipe] = said
                    continue
                self._latest[pipe] = said
                if watch is not None:
                    appends, reads = (sum(each, Count()) for each in zip(*self._latest.values(), strict=True))
                    watch(appends, reads)
        if warm:
            self._seconds = 0.0
            return Outcome()
        self._seconds += max(done.seconds for done in found.values())
        outcome = Outcome(self._seconds)
        for done in found.values():
            outcome.appends += done.counts[0]
            outcome.reads += done.counts[1]
            outcome.append_times = outcome.append_times.plus(_native.Histogram.decode(done.times[0]))
            outcome.read_times = outcome.read_times.plus(_native.Histogram.decode(done.times[1]))
        return outcome


def received(pipe: Connection) -> Any:
    try:
        said = pipe.recv()
    except (EOFError, ConnectionError):
        raise Unavailable("a process with clients died") from None
    if isinstance(said, tuple) and isinstance(said[0], str):
        code, message = said
        raise BY_CODE.get(code, KimberliteError)(message)
    return said


@dataclass(slots=True)
class Disk:
    """Nanoseconds of writes one after another, of a batch each and of a MiB each."""

    directory: Path
    plain_batch: list[int] = field(default_factory=list)
    best_batch: list[int] = field(default_factory=list)
    plain_mib: list[int] = field(default_factory=list)
    best_mib: list[int] = field(default_factory=list)

    def measure(self, batch_bytes: int, seconds: float) -> None:
        """So many seconds more."""
        with tempfile.TemporaryDirectory(prefix="kimberlite-bench-", dir=self.directory) as name:
            path = Path(name)
            self.plain_batch += disk.plain_writes(path, batch_bytes, seconds / 4)
            self.best_batch += disk.best_writes(path, batch_bytes, seconds / 4)
            self.plain_mib += disk.plain_writes(path, disk.MIB, seconds / 4)
            self.best_mib += disk.best_writes(path, disk.MIB, seconds / 4)
