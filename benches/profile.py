"""In which Python functions a loaded daemon spends its time: in them, and in Rust, C and kernel for them."""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from typing import Final

from benches import loaded
from benches.loaded import Seen
from benches.packages import Missing
from benches.sampling import FREQUENCY, INTERPRETER, KERNEL, LIBRARY, PYTHON, RUST
from benches.table import Table, machine, show

#: Columns of what is done for a function that calls no other in Python.
PARTS: Final = {"Python": (PYTHON, INTERPRETER), "Rust": (RUST,), "C": (LIBRARY,), "kernel": (KERNEL,)}
#: Calls of which there is no mean.
FEW: Final = 10
NOBODY: Final = "(no Python: native threads)"


def table(seen: Seen, most: int) -> Table:
    """By the time that a function, without other Python functions that it calls, takes."""
    samples = seen.profile.samples
    total: Counter[str] = Counter()
    own: dict[str, Counter[str]] = defaultdict(Counter)
    for stack, count in seen.profile.stacks.items():
        names = [frame.name for frame in stack if frame.kind == PYTHON] or [NOBODY]
        total.update(dict.fromkeys(names, count))
        own[names[-1]][stack[-1].kind] += count
    shown = sorted(total, key=lambda name: (-own[name].total(), -total[name], name))[:most]
    rows = []
    for name in shown:
        parts = (sum(own[name][kind] for kind in kinds) for kinds in PARTS.values())
        calls = seen.calls[name]
        # Samples are of a part of the load, calls of all of it.
        in_time = calls * seen.seconds / seen.outcome.seconds
        rows.append(
            (
                name,
                f"{own[name].total() / samples:.1%}",
                *(f"{part / samples:.1%}" if part else "" for part in parts),
                f"{total[name] / samples:.1%}",
                f"{calls / seen.requests:.3f}" if calls >= FEW else "",
                f"{1e6 * total[name] / FREQUENCY / in_time:.1f}" if calls >= FEW else "",
            )
        )
    title = f"{seen.did()}: time on the processor, {samples:,} samples in {seen.seconds:g} s"
    headings = ("function", "own", *PARTS, "with callees", "calls/request", "µs a call")
    return Table(title, headings, tuple(rows))


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benches.profile", description=__doc__)
    loaded.add_arguments(parser)
    parser.add_argument("--top", metavar="N", type=int, default=30, help="functions; 30 by default")
    parser.add_argument("--markdown", action="store_true")
    return parser


def main() -> int:
    options = arguments().parse_args()
    try:
        seen = loaded.seen(options)
    except Missing as problem:
        print(f"profile: {problem}", file=sys.stderr)
        return 1
    show(machine(options.directory), [table(seen, options.top)], markdown=options.markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
