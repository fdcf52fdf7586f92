"""Where processes spend their time: perf's samples, as stacks of frames that are Python's, Rust's, C's or the kernel's.

perf takes a sample so often for each second of processor that a thread uses, in the kernel or not: who waits is not
seen. It keeps a piece of the stack, which is unwound later by the tables that compilers leave; nothing is stopped.
Without hardware counters the clock is an interrupt: what the kernel does with interrupts off is counted where it
turns them on again, as in finish_task_switch.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Final

from benches.frames import OTHERS, Function, framed, functions
from benches.packages import Installed, Missing, Program, had, run
from benches.rust import Rust

PERF: Final = Program("perf", "linux-perf", r"linux-perf\S*", "usr/bin")
#: Samples for a second of processor; no divisor of what else happens so often a second.
FREQUENCY: Final = 499
#: Bytes of stack that are kept with each, at most.
STACK: Final = 48 << 10
MODULE: Final = "_native.abi3.so"

PYTHON, RUST, INTERPRETER, LIBRARY, KERNEL, THREAD = KINDS = (
    "Python",
    "Rust",
    "interpreter",
    "C libraries",
    "kernel",
    "thread",
)
#: `comm pid/tid`, and below it `address symbol (file)`, the innermost first.
HEAD: Final = re.compile(r"\s*(\S.*?)\s+(\d+)/(\d+)\s*$")
LINE: Final = re.compile(r"\s*([0-9a-f]+) (.*) \((.*)\)$")
LONE: Final = re.compile(r"^(.*?\s\d+/\d+)\s+(?=[0-9a-f]+ )")
FRAMED: Final = re.compile(r"python_([0-9a-f]{3})$")
PLUMBING: Final = ("pyo3::impl_::trampoline", "core::", "<core::", "std::", "<std::", "alloc::", "<alloc::")
UNWOUND: Final = 0xFFFFFFFFFFFFFFFF
CYTHON: Final = re.compile(r"__pyx_(?:pw|pf|f)_(\d.*)$")


@dataclass(frozen=True, slots=True)
class Frame:
    kind: str
    name: str
    #: File and line, where they are known.
    where: str = ""


#: In place of callers that unwinding did not get to, as from assembly that has no tables.
CUT: Final = Frame(THREAD, "(callers not found)")
#: Where a thread begins, so that a stack that ends there is whole.
OUTERMOST: Final = frozenset({"_start", "clone", "__clone", "clone3", "__clone3", "ret_from_fork", "ret_from_fork_asm"})

Stack = tuple[Frame, ...]


@dataclass(slots=True)
class Profile:
    """How many samples each stack has; the outermost frame comes first, and names the thread."""

    stacks: Counter[Stack] = field(default_factory=Counter)

    @property
    def samples(self) -> int:
        return self.stacks.total()

    def by_kind(self) -> Counter[str]:
        """Samples by the kind of their innermost frame."""
        found: Counter[str] = Counter()
        for stack, count in self.stacks.items():
            found[stack[-1].kind] += count
        return found


@contextmanager
def recorded(perf: Installed, pids: Sequence[int], seconds: float, data: Path, *, stacks: bool) -> Iterator[None]:
    """perf looks at these processes for so long while what is inside runs, and is waited for."""
    command = [str(perf.path), "record", "-q", "-e", "cpu-clock", "-F", str(FREQUENCY), "-o", str(data)]
    command += ["--call-graph", f"dwarf,{STACK}"] if stacks else []
    command += ["-p", ",".join(map(str, pids)), "--", "sleep", str(seconds)]
    with tempfile.TemporaryFile("w+") as said:
        recorder = subprocess.Popen(command, env=perf.environment(), stdout=said, stderr=said)
        try:
            yield
            recorder.wait(timeout=seconds + 60)
        finally:
            recorder.kill()
            recorder.wait()
        said.seek(0)
        if recorder.returncode or not data.exists():
            lines = said.read().strip().splitlines() or [f"perf ended with {recorder.returncode}"]
            raise Missing(f"perf: {lines[-1]}")


def had_perf() -> Installed:
    """It, if it may be used and may look into the kernel."""
    perf = had(PERF)
    allowed = int(Path("/proc/sys/kernel/perf_event_paranoid").read_text())
    probe = ["record", "-q", "-e", "cpu-clock:k", "-o", "/dev/null", "--", "true"]
    try:
        run([str(perf.path), *probe], perf.environment())
    except Missing as problem:
        why = f"perf may not look into the kernel (kernel.perf_event_paranoid is {allowed}): run this as root"
        raise Missing(f"{why}; {problem}") from problem
    return perf


def profile(perf: Installed, data: Path, directory: Path, *, stacks: bool) -> Profile:
    """What perf has written; `directory` is where framed processes, if any, wrote the names of their functions."""
    command = [str(perf.path), "script", "--no-inline", "-F", "comm,pid,tid,ip,sym,dso", "-i", str(data)]
    raw = list(_blocks(run(command, perf.environment())))
    places = defaultdict(set)
    for _, _, _, lines in raw:
        for address, _, file in lines:
            if file.endswith(MODULE):
                places[file].add(address)
    rust = {file: Rust(Path(file), addresses) for file, addresses in places.items()}
    names = {pid: functions(directory, pid) for pid in framed(directory)}
    found = Profile()
    for comm, pid, tid, lines in raw:
        frames = [frame for line in lines for frame in _frames(line, names.get(pid, {}), rust)]
        cut = [CUT] if stacks and lines and lines[-1][1] not in OUTERMOST else []
        found.stacks[(_thread(comm, pid, tid), *cut, *_without_plumbing(frames[::-1]))] += 1
    return found


Line = tuple[int, str, str]


def _blocks(script: str) -> Iterator[tuple[str, int, int, list[Line]]]:
    """Of each sample, whose it is and its stack; or without stacks, on one line, only where it was."""
    for filled, group in groupby(script.splitlines(), key=lambda line: line != ""):
        if not filled:
            continue
        about, *stack = lines = list(group)
        if HEAD.match(about) is None:
            for single in lines:
                yield _block(*LONE.split(single, maxsplit=1)[1:])
        else:
            yield _block(about, *stack)


def _block(about: str, *stack: str) -> tuple[str, int, int, list[Line]]:
    head, lines = HEAD.match(about), [LINE.match(line) for line in stack]
    if head is None:
        raise Missing(f"perf script says what this cannot read: {about!r}")
    found = [(int(line[1], 16), line[2], line[3]) for line in lines if line is not None]
    return head[1], int(head[2]), int(head[3]), [line for line in found if line[0] != UNWOUND]


def _thread(comm: str, pid: int, tid: int) -> Frame:
    if pid == tid:
        return Frame(THREAD, "main thread")
    if comm.startswith("iou-"):
        return Frame(THREAD, "io_uring workers")
    return Frame(THREAD, "background threads" if comm.startswith("python") else comm)


def _frames(line: Line, names: Mapping[int, Function], rust: Mapping[str, Rust]) -> Iterator[Frame]:
    """The innermost first; none for what is only there to be seen by perf."""
    address, symbol, file = line
    library = Path(file).name
    if file.startswith("[") and file != "[vdso]" and file != "[unknown]":
        yield Frame(KERNEL, symbol.removesuffix(".isra.0").removesuffix(".part.0"))
    elif library == "frames.so":
        if found := FRAMED.match(symbol):
            function = names.get(int(found[1], 16), OTHERS)
            yield Frame(PYTHON, function.label(), f"{function.file}:{function.line}")
    elif file in rust:
        for name, where in rust[file].at(address, symbol):
            yield Frame(RUST, name, where)
    elif library.startswith(("libpython", "python")):
        yield Frame(INTERPRETER, symbol)
    else:
        yield Frame(LIBRARY, f"{library}: ?" if symbol == "[unknown]" else _cython(symbol), file)


def _cython(symbol: str) -> str:
    """`uvloop.Loop.run_forever` is easier to read than `__pyx_pw_6uvloop_4loop_4Loop_25run_forever`."""
    if (mangled := CYTHON.match(symbol)) is None:
        return symbol
    rest, parts = mangled[1], []
    while (found := re.match(r"(\d+)", rest)) and len(rest) >= found.end() + int(found[1]):
        end = found.end() + int(found[1])
        parts.append(rest[found.end() : end])
        rest = rest[end:].removeprefix("_")
    last = rest.lstrip("_0123456789")
    return ".".join([*(part for part in parts if part != "loop"), *([last] if last else [])])


def _without_plumbing(frames: Sequence[Frame]) -> Iterator[Frame]:
    """From the outermost on, without how a process or a thread begins, how the interpreter calls another function, how
    it calls Rust, what Rust's own library does to call us, and what is told twice in a row."""
    last = None
    begun = False
    for i, frame in enumerate(frames):
        begun = begun or frame.kind in (PYTHON, RUST)
        inner = [after for after in frames[i + 1 :] if after.kind in (PYTHON, RUST) or "uvloop" in after.where]
        is_plumbing = frame.kind == INTERPRETER or frame.name.startswith(PLUMBING) or not begun
        if (inner and is_plumbing) or (frame.kind, frame.name) == last:
            continue
        last = frame.kind, frame.name
        yield frame
