"""What machine code a loaded daemon spends its time in, whose it is, and what it asks of the kernel for a request."""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

from benches import loaded, sampling
from benches.loaded import Seen
from benches.packages import Missing
from benches.sampling import INTERPRETER, KERNEL, RUST, Frame
from benches.table import Table, machine, show

#: Seconds of load while things are counted, at most; and for perf to begin with it, and to end.
COUNTED: Final = 2.0
BEGINS: Final = 1.0
PATIENCE: Final = 30
#: System calls that have a line of their own: each has its price when perf ends.
CALLS: Final = (
    *("read", "write", "recvfrom", "sendto", "epoll_pwait", "futex", "getrandom", "getpid", "io_uring_enter"),
    *("pwrite64", "fdatasync", "fallocate", "madvise", "mmap", "munmap"),
)
ANY: Final = "raw_syscalls:sys_enter"
#: A line of `perf stat -x,`: how often, and what.
COUNT: Final = re.compile(r"^(\d+),[^,]*,(?:syscalls:sys_enter_)?(\w[\w:]*),", re.MULTILINE)


def part(frame: Frame) -> str:
    if frame.kind == RUST:
        return "Rust core"
    if frame.kind == INTERPRETER:
        return "Python interpreter"
    if frame.kind == KERNEL:
        return "kernel"
    library = Path(frame.where).name
    return "uvloop" if "uvloop" in frame.where else library.partition(".")[0] or "others"


def tables(seen: Seen, most: int) -> list[Table]:
    samples = seen.profile.samples
    micro = 1e6 * seen.cpu / seen.requests
    parts: Counter[str] = Counter()
    symbols: Counter[tuple[str, str]] = Counter()
    for stack, count in seen.profile.stacks.items():
        innermost = stack[-1]
        parts[part(innermost)] += count
        symbols[innermost.name, part(innermost)] += count
    split = [(name, f"{n / samples:.1%}", f"{micro * n / samples:.2f}") for name, n in parts.most_common()]
    tops = [
        (name[:90], whose, f"{n / samples:.2%}", f"{micro * n / samples:.3f}")
        for (name, whose), n in symbols.most_common(most)
    ]
    title = f"{seen.did()}: time on the processor, {samples:,} samples in {seen.seconds:g} s"
    return [
        Table(title, ("part", "share", "µs a request"), (*split, ("all", "100.0%", f"{micro:.2f}"))),
        Table("Where most of it goes", ("symbol", "part", "share", "µs a request"), tuple(tops)),
    ]


def switches(pid: int) -> Counter[str]:
    """Of all threads so far."""
    found: Counter[str] = Counter()
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            name, _, count = line.partition(":")
            if name.endswith("voluntary_ctxt_switches"):
                found["voluntary" if name.startswith("voluntary") else "involuntary"] += int(count)
    return found


def asked(options: argparse.Namespace) -> Table:
    """By a load of its own, since counting system calls slows it down."""
    perf = sampling.had_perf()
    seconds = min(COUNTED, options.seconds)
    events = ",".join([ANY, *(f"syscalls:sys_enter_{name}" for name in CALLS)])
    with loaded.loaded(options) as load:
        before = switches(load.daemon.pid)
        plain = load.processes.run(seconds)
        switched = switches(load.daemon.pid) - before
        said = load.directory / "calls"
        command = [str(perf.path), "stat", "-x,", "-e", events, "-o", str(said), "-p", str(load.daemon.pid)]
        with subprocess.Popen(command, env=perf.environment(), stderr=subprocess.PIPE, text=True) as counter:
            try:
                time.sleep(BEGINS)
                both = load.processes.run(seconds)
                counter.send_signal(signal.SIGINT)
                _, complaint = counter.communicate(timeout=PATIENCE)
            finally:
                counter.kill()
        found = COUNT.findall(said.read_text() if said.exists() else "")
    requests = (plain.appends + plain.reads).requests
    counted = (both.appends + both.reads).requests - requests
    rows = [(f"{how} context switches", f"{count / requests:.4f}") for how, count in switched.most_common()]
    calls = Counter({name: int(count) for count, name in found if count != "0"})
    if every := calls.pop(ANY, 0):
        rows += [(f"{name}()", f"{count / counted:.4f}") for name, count in calls.most_common()]
        rows += [("other system calls", f"{(every - calls.total()) / counted:.4f}")]
        rows += [("all system calls", f"{every / counted:.4f}")]
    else:
        why = (complaint.strip().splitlines() or ["perf stat says nothing"])[0]
        print(f"perf: system calls are not counted: {why}", file=sys.stderr)
    slowed = counted / requests
    title = f"What it asks of the kernel; it answered {slowed:.0%} as much while system calls were counted"
    return Table(title, ("what", "times a request"), tuple(rows))


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benches.perf", description=__doc__)
    loaded.add_arguments(parser)
    parser.add_argument("--top", metavar="N", type=int, default=30, help="symbols; 30 by default")
    parser.add_argument("--markdown", action="store_true")
    return parser


def main() -> int:
    options = arguments().parse_args()
    try:
        seen = loaded.seen(options, framed=False)
        found = [*tables(seen, options.top), asked(options)]
    except Missing as problem:
        print(f"perf: {problem}", file=sys.stderr)
        return 1
    show(machine(options.directory), found, markdown=options.markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
