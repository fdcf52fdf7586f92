"""Whether one commit is slower than another, and how sure that is.

Both are built, and do every case in turns, a slice at a time: whatever the machine does meanwhile it does to both. Of
each case the ratio of the two is printed, later ÷ earlier, the median over pairs of neighbouring slices, and between
what 95 % of resampled medians lie. A case is called slower when all of them are above 1 and the median is beyond what
its kind allows, and then this ends with 1. So it does when the core needs more instructions for something than is
allowed: these are counted, where that can be done, and know no noise.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from benches import instructions
from benches.daemon import Daemon
from benches.packages import Missing, cache
from benches.table import Table, asked, machine, publish
from kimberlite.load.plan import Plan
from kimberlite.load.run import Processes

ROOT: Final = Path(__file__).parents[1]
WORKER: Final = Path(__file__).with_name("compare_worker.py")
#: The program of a checkout whose instructions are counted.
WORK: Final = "work"
WORK_SOURCE: Final = "native/core/examples/work.rs"
#: More instructions than this are too many.
ALLOWED: Final = 0.10
#: Resamplings for the bounds of a median, from a fixed seed.
RESAMPLED: Final = 2_000


@dataclass(frozen=True, slots=True)
class Kind:
    """How much more time is too much, the seconds of a slice, and for each round how many."""

    name: str
    allowed: float
    slice: float
    share: float = 1.0


CRYPTO: Final = Kind("crypto", 0.10, 0.15)
CODEC: Final = Kind("codec", 0.10, 0.15)
APPEND: Final = Kind("append", 0.20, 0.1, 3.0)
SYNC: Final = Kind("sync", 0.20, 0.3, 2.0)
READ: Final = Kind("read p99", 0.50, 0.3)
NETWORK: Final = Kind("network", 0.20, 1.0, 1 / 3)

#: Clients, requests in flight of each, and records a batch: time of day a record.
SHAPES: Final = {
    f"network, {clients} × {depth} × {batch}": (clients, depth, batch)
    for clients, depth, batch in ((1, 1, 1), (1, 1, 100), (1, 8, 100), (32, 1, 100), (64, 1, 1), (64, 16, 1))
}
#: What `WORK` does in one thread, with what the processor has for it, and for how many records.
KERNELS: Final = {"hash": ("sha256 leaves", 100), "encrypt": ("aes 1 KiB", 4)}
#: The others are the worker's.
CASES: Final[Mapping[str, Kind]] = {
    "encode": CODEC,
    "decode": CODEC,
    "seal": CRYPTO,
    "seal, encrypted": CRYPTO,
    **dict.fromkeys(KERNELS, CRYPTO),
    "append": APPEND,
    "sync, 1 × 1 × 1": SYNC,
    "sync, 32 × 1 × 100": SYNC,
    "read p99": READ,
    **dict.fromkeys(SHAPES, NETWORK),
}


@dataclass(frozen=True, slots=True)
class Compared:
    case: str
    kind: str
    before_ns: float
    after_ns: float
    ratio: float
    low: float
    high: float
    verdict: str


def compared(case: str, kind: Kind, pairs: Sequence[tuple[float, float]]) -> Compared:
    """Of pairs of neighbouring slices, earlier commit and later."""
    logs = [math.log(after / before) for before, after in pairs]
    ratio = math.exp(statistics.median(logs))
    low, high = (math.exp(bound) for bound in bounds(logs))
    verdict = "same"
    if low > 1 and ratio > 1 + kind.allowed:
        verdict = "slower"
    elif high < 1 and ratio < 1 / (1 + kind.allowed):
        verdict = "faster"
    before, after = (statistics.median(side) for side in zip(*pairs, strict=True))
    return Compared(case, kind.name, before, after, ratio, low, high, verdict)


def bounds(values: Sequence[float]) -> tuple[float, float]:
    """Between which 95 % of the medians of resampled values are."""
    chance = random.Random(1)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(RESAMPLED))
    return medians[RESAMPLED * 25 // 1000], medians[RESAMPLED * 975 // 1000]


class Side:
    """A commit's package, a process that has it, and its daemon."""

    def __init__(self, checkout: Path, disk: Path, memory: Path) -> None:
        self._checkout = checkout
        disk.mkdir()
        memory.mkdir()
        self._database = disk / "served"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KIMBERLITE_")}
        self._environment = environment | {"PYTHONPATH": str(checkout)}
        self._worker = subprocess.Popen(
            [sys.executable, str(WORKER), str(disk), str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment,
        )
        self._stack = ExitStack()
        self._daemon: Daemon | None = None
        self._loads: dict[tuple[int, int, int], Processes] = {}

    def took(self, case: str, seconds: float) -> float:
        """Nanoseconds a record."""
        if case in SHAPES:
            return self._network(SHAPES[case], seconds)
        return self._kernel(*KERNELS[case], seconds) if case in KERNELS else self._embedded(case, seconds)

    def _kernel(self, kind: str, records: int, seconds: float) -> float:
        try:
            return instructions.timed(self._checkout / WORK, kind, seconds)[0] / records
        except (FileNotFoundError, subprocess.CalledProcessError) as problem:
            raise Missing("a commit has nothing that does it") from problem

    def _embedded(self, case: str, seconds: float) -> float:
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        self._worker.stdin.write(f"{case} {seconds}\n")
        self._worker.stdin.flush()
        line = self._worker.stdout.readline()
        if not line:
            raise SystemExit(f"{self._checkout}: {case} ended with {self._worker.wait()}")
        return float(line)

    def _network(self, shape: tuple[int, int, int], seconds: float) -> float:
        """Both are driven by the same clients."""
        if self._daemon is None:
            self._daemon = self._stack.enter_context(Daemon(self._database, environment=self._environment))
        if shape not in self._loads:
            clients, depth, batch = shape
            plan = Plan("append", self._daemon.address, clients, batch, 256, depth=depth, processes=min(2, clients))
            self._loads[shape] = self._stack.enter_context(Processes(plan))
        load = self._loads[shape]
        load.run(seconds / 10, warm=True)
        outcome = load.run(seconds)
        return 1e9 * outcome.seconds / outcome.appends.records

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        # It ends with its input.
        self._worker.__exit__(kind, error, trace)


def paired(before: Callable[[], float], after: Callable[[], float], rounds: int) -> list[tuple[float, float]]:
    """Now the one goes first and now the other; the first pair is to warm up."""
    pairs = []
    for number in range(rounds + 1):
        if number % 2:
            second, first = after(), before()
        else:
            first, second = before(), after()
        pairs.append((first, second))
    return pairs[1:]


def checked_out(commit: str | None, work: bytes | None = None) -> Path:
    """A built copy of a commit, or of the working tree; made once. `WORK` is made of the later commit's source if the
    core has what that wants: a count is of the core then, and not of who calls it."""
    made = cache() / "compare"
    with tempfile.TemporaryDirectory(dir=_directory(made)) as name:
        copy = Path(name) / "copy"
        copy.mkdir()
        unpack(commit, copy)
        source = copy / WORK_SOURCE
        own = source.read_bytes() if source.exists() else None
        if work is not None:
            source.parent.mkdir(parents=True, exist_ok=True)
            source.write_bytes(work)
        where = made / _digest(copy)
        if where.exists():
            return where
        target = made / "target"
        manifest = copy / "native" / "Cargo.toml"
        build = ["cargo", "build", "--release", "--locked", "--quiet", "--manifest-path", str(manifest)]
        try:
            subprocess.run(build, check=True, env=os.environ | {"CARGO_TARGET_DIR": str(target)})
        except (OSError, subprocess.CalledProcessError) as problem:
            raise SystemExit(f"{commit or 'the tree'} cannot be built: {problem}") from problem
        shutil.copyfile(target / "release" / "lib_native.so", copy / "kimberlite" / "_native.abi3.so")
        for text in (work, own):
            if text is not None and not (copy / WORK).exists():
                source.write_bytes(text)
                with suppress(subprocess.CalledProcessError):
                    shutil.copy(instructions.built(copy, target), copy / WORK)
        copy.rename(where)
    return where


def work_of(commit: str | None) -> bytes | None:
    """The source of `WORK` in a commit, or in the working tree."""
    if commit is None:
        return (ROOT / WORK_SOURCE).read_bytes()
    with suppress(SystemExit):
        return _output("git", "show", f"{commit}:{WORK_SOURCE}")
    return None


def unpack(commit: str | None, copy: Path) -> None:
    """A commit's files, or those of the working tree, as new as they are here: cargo takes what is older than another
    commit's build for a part of that."""
    if commit is not None:
        archive = _output("git", "archive", commit)
        tar = subprocess.Popen(["tar", "-mx", "-C", copy], stdin=subprocess.PIPE)
        tar.communicate(archive)
        if tar.returncode:
            raise SystemExit(f"tar ended with {tar.returncode}")
        return
    listed = _output("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").decode()
    for file in filter(None, listed.split("\0")):
        if (ROOT / file).is_file():
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, copy / file)


def _directory(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _output(*command: str) -> bytes:
    try:
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    except subprocess.CalledProcessError as problem:
        raise SystemExit(f"{' '.join(command)}: {problem.stderr.decode().strip()}") from problem


def _digest(copy: Path) -> str:
    """Of what is run and built; documents and tests change nothing."""
    whole = hashlib.sha256()
    for part in ("kimberlite", "native"):
        for file in sorted((copy / part).rglob("*")):
            if file.is_file():
                whole.update(f"{file.relative_to(copy)}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return whole.hexdigest()[:20]


def counted(checkout: Path) -> dict[str, float]:
    """Instructions of what the commit's core does; Missing if they cannot be counted, or it has nothing for that."""
    program, known = checkout / WORK, checkout / "instructions.json"
    if not program.exists():
        raise Missing("the earlier commit has nothing whose instructions can be counted")
    if not known.exists():
        known.write_text(json.dumps(instructions.counted(program, instructions.valgrind())), encoding="utf-8")
    found: dict[str, float] = json.loads(known.read_text(encoding="utf-8"))
    return found


def table(found: Sequence[Compared]) -> Table:
    rows = tuple(
        (
            each.case,
            each.kind,
            f"{each.before_ns:,.1f}",
            f"{each.after_ns:,.1f}",
            f"{each.ratio:.3f}",
            f"{each.low:.3f} to {each.high:.3f}",
            each.verdict,
        )
        for each in found
    )
    headings = ("case", "kind", "earlier ns", "later ns", "later ÷ earlier", "95 %", "")
    return Table("Time for a record of 256 bytes; less is better", headings, rows)


def compare(before: Side, after: Side, cases: Sequence[str], rounds: int) -> list[Compared]:
    found = []
    for case in cases:
        print(case, file=sys.stderr, flush=True)
        kind = CASES[case]
        turns = [partial(side.took, case, kind.slice) for side in (before, after)]
        try:
            pairs = paired(turns[0], turns[1], max(3, round(rounds * kind.share)))
        except Missing as problem:
            print(f"{case} is not compared: {problem}", file=sys.stderr)
            continue
        found.append(compared(case, kind, pairs))
    return found


def arguments() -> argparse.ArgumentParser:
    parser = asked("compare", __doc__)
    parser.add_argument("base", help="the earlier commit")
    parser.add_argument("commit", nargs="?", help="the later one; without it, the working tree")
    parser.add_argument("--case", action="append", choices=CASES, help="only this; again for more")
    parser.add_argument("--rounds", type=int, default=30)
    return parser


def main() -> int:
    options = arguments().parse_args()
    sides = [checked_out(options.base, work_of(options.commit)), checked_out(options.commit)]
    with ExitStack() as stack:
        disk = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compare-", dir=options.directory)))
        memory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kimberlite-", dir="/dev/shm")))
        before, after = (
            stack.enter_context(Side(side, disk.resolve() / name, memory / name))
            for name, side in zip(("before", "after"), sides, strict=True)
        )
        found = compare(before, after, options.case or list(CASES), options.rounds)
        where = machine(disk)
    tables, counts = [table(found)], []
    try:
        before_counts, after_counts = (counted(side) for side in sides)
        counts = instructions.held_against(after_counts, before_counts)
        tables.append(instructions.table(counts, "Instructions for each kind of work of the core"))
    except Missing as problem:
        print(f"no instructions are counted: {problem}", file=sys.stderr)
    publish(where, tables, {"compared": found, "instructions": counts}, options)
    more = any(each.ratio is not None and each.ratio > 1 + ALLOWED for each in counts)
    return 1 if more or any(each.verdict == "slower" for each in found) else 0


if __name__ == "__main__":
    sys.exit(main())
