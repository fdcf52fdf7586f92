"""The same faults as `faults`, met by real system calls: both engines on a file system that refuses the n-th of them.

`python -m tests.crash.realfaults` tries every place, then the failed syncs and full disks of `fulldisk` in number.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

from kimberlite.log.log import Log
from kimberlite.log.names import MARKS, SEGMENTS
from kimberlite.log.opening import Injected, open_log
from kimberlite.log.verify import verify_directory
from tests.crash import fulldisk
from tests.crash.children import Engine, usable
from tests.crash.device import unmount
from tests.crash.faults import (
    DISPENSABLE,
    OPTIONS,
    Effect,
    Outcome,
    eager,
    judge,
    make_keys,
    report_unhandled,
    workload,
)
from tests.crash.nonces import read_files

#: What is made to fail, and how: an error, or 0 for a short write.
VERBS: Final = {
    "write": (errno.EIO, errno.ENOSPC, errno.EDQUOT, 0),
    "sync": (errno.EIO, errno.ENOSPC),
    "sync_directory": (errno.EIO,),
    "allocate": (errno.EIO, errno.ENOSPC, errno.EDQUOT),
    "truncate": (errno.EIO,),
    "rename": (errno.EIO, errno.ENOSPC),
    "open": (errno.EIO, errno.EMFILE),
    "create": (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EMFILE),
    "mkdir": (errno.EIO, errno.ENOSPC),
    "unlink": (errno.EIO,),
    "read": (errno.EIO,),
    "list": (errno.EIO, errno.ENFILE),
}


class Case(NamedTuple):
    """One fault: the n-th request of a verb, and, if it lasts, all that follow."""

    engine: Engine
    verb: str
    number: int
    nth: int

    @property
    def lasting(self) -> bool:
        return self.nth % 2 == 0 and self.number != 0

    @property
    def kind(self) -> str:
        return f"{self.engine} {self.verb} {errno.errorcode[self.number] if self.number else 'short'}"


def lacking() -> str | None:
    """Why no file system can be made to fail here."""
    if os.geteuid() != 0:
        return "not root"
    if not Path("/dev/fuse").exists():
        return "no /dev/fuse"
    with tempfile.TemporaryDirectory() as place:
        try:
            Faulty(Path(place)).close()
        except OSError as problem:
            return f"FUSE cannot be mounted: {problem.strerror}"
    return None


class Faulty:
    """A directory on a file system that fails as planned, served by a process of its own."""

    def __init__(self, place: Path) -> None:
        self.store, self.path = place / "store", place / "faulty"
        self.store.mkdir()
        self.path.mkdir()
        command = [sys.executable, "-m", "tests.crash.faultfs", str(self.store), str(self.path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            self._process.wait()
            raise OSError(errno.ENODEV, "the file system did not start")

    def plan(self, **plan: Any) -> dict[str, Any]:
        """Begins a plan, or none; how far the one before it got."""
        return self._ask(plan)

    def state(self) -> dict[str, Any]:
        return self._ask(None)

    def _ask(self, plan: dict[str, Any] | None) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(plan).encode() + b"\n")
        stdin.flush()
        answer: dict[str, Any] = json.loads(stdout.readline())
        return answer

    def close(self) -> None:
        unmount(self.path, lazily=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@contextmanager
def faulty() -> Iterator[Faulty]:
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="faults", dir=memory) as place:
        disk = Faulty(Path(place))
        try:
            yield disk
        finally:
            disk.close()


def effect_of(case: Case, hit: dict[str, Any]) -> Effect:
    """What this fault must do to a handle. Zeros are room that is prepared; all else in a segment is log."""
    verb, path = hit["verb"], hit["path"].partition("/")[2]
    prepared = verb == "write" and (case.number == 0 or hit["zeros"])
    if verb in ("write", "sync") and path.startswith((SEGMENTS + "/", MARKS)) and not prepared:
        return "dead"
    if verb in ("write", "sync", "allocate", "create") and (prepared or path.startswith(DISPENSABLE)):
        # One that lasts meets the log in the end.
        return None if case.lasting else "alive"
    return None


async def opened(path: Path, engine: Engine, key: Path | None) -> Log:
    return await open_log(
        path, create=True, read_only=False, key_file=key, backend=engine, origin=None, anchor=None,
        options=OPTIONS, injected=Injected(),
    )  # fmt: skip


async def run_one(disk: Faulty, case: Case, key: Path | None) -> tuple[Outcome, dict[str, Any]]:
    """What came of it, and how far the plan got."""
    outcome, path = Outcome(key), disk.path / "x"
    report_unhandled(outcome)
    plan = {"verb": case.verb, "nth": case.nth, "number": case.number, "lasting": case.lasting}
    disk.plan(**plan)

    def effect() -> tuple[bool, Effect]:
        hit = disk.state()["hit"]
        return hit is not None, None if hit is None else effect_of(case, hit)

    await workload(lambda key: opened(path, case.engine, key), effect, outcome)
    state = disk.plan()
    try:
        await judge(lambda key: opened(path, case.engine, key), lambda: read_files(path), outcome)
        verify_directory(path, key_file=outcome.keys[0])
    except Exception:
        outcome.wrong.append(f"recovery\n{traceback.format_exc()[-1200:]}")
    shutil.rmtree(disk.store / "x", ignore_errors=True)
    return outcome, state


class Tally:
    """Runs cases, and keeps count of them and of what went wrong."""

    def __init__(self, disk: Faulty, key: Path | None) -> None:
        self.disk, self.key = disk, key
        self.counts, self.wrong = Counter[str](), list[str]()

    def run(self, case: Case) -> bool:
        """Whether the fault was met."""
        outcome, state = asyncio.run(run_one(self.disk, case, self.key))
        for text in outcome.wrong:
            self.wrong.append(f"{case.kind} n={case.nth} lasting={case.lasting} ({state['hit']}): {text}")
        self.counts.update({"runs": 1, "refused": outcome.refused, "acknowledged": len(outcome.acknowledged)})
        self.counts.update({"hit": 1, case.kind: 1} if state["hit"] else {})
        return state["hit"] is not None

    def every(self, stride: int, only: str | None) -> None:
        for i, (engine, verb, number) in enumerate(kinds(only)):
            nth = 1 + i % stride
            while self.run(Case(engine, verb, number, nth)):
                nth += stride

    def sample(self, size: int, rng: Random) -> None:
        """Kinds that all differ, at places among those that a clean run has."""
        _, state = asyncio.run(run_one(self.disk, Case(usable()[0], "", 0, 0), self.key))
        for engine, verb, number in rng.sample(kinds(None), size):
            self.run(Case(engine, verb, number, rng.randint(1, state["seen"][verb])))


def kinds(only: str | None) -> list[tuple[Engine, str, int]]:
    return [
        (engine, verb, number)
        for engine in usable()
        for verb, numbers in VERBS.items()
        for number in numbers
        if only in (None, verb)
    ]


@contextmanager
def tally(key: Path | None) -> Iterator[Tally]:
    """That descriptors are left open is wrong too."""
    with faulty() as disk, eager():
        counted, before = Tally(disk, key), descriptors()
        yield counted
        gc.collect()
        if (left := descriptors()) > before:
            counted.wrong.append(f"{left - before} descriptors are left open")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def scenarios(place: Path, seed: int) -> None:
    """Every one of `fulldisk`, on every engine."""
    for engine in usable():
        whole = (fulldisk.appends_stop_and_resume, fulldisk.a_full_disk_opens, fulldisk.a_full_disk_forgets)
        for i, scenario in enumerate(whole):
            with fulldisk.small_disk(place / f"{engine}{i}") as disk:
                asyncio.run(scenario(disk, engine, seed))
        for limit in (fulldisk.descriptors_run_out, fulldisk.files_must_not_grow):
            (place / f"{engine}{limit.__name__}").mkdir()
            asyncio.run(limit(place / f"{engine}{limit.__name__}", engine, seed))
        for buffered in (False, True):
            under = place / f"{engine}{buffered}"
            under.mkdir()
            asyncio.run(fulldisk.a_failed_sync_leaves_no_ghost(under, engine, seed, buffered=buffered))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.realfaults", description=__doc__)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--only", choices=VERBS)
    parser.add_argument("--times", type=int, default=20, help="of each scenario of full disks and failed syncs")
    arguments = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        make_keys(place / "key")
        for seed in range(arguments.times):
            (place / f"{seed}").mkdir()
            scenarios(place / f"{seed}", seed)
        print(f"full disks, limits and failed syncs: {arguments.times} times sound", flush=True)
        for key in (None, place / "key"):
            with tally(key) as counted:
                counted.every(arguments.stride, arguments.only)
            for text in counted.wrong:
                print(text)
            print(dict(counted.counts), f"wrong: {len(counted.wrong)}", flush=True)
            failed += len(counted.wrong)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
