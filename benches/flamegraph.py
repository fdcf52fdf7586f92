"""One picture of where a loaded daemon, or the processes that load it, spend their time: Python, Rust, C and kernel."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from benches import flame, frames, loaded, sampling
from benches.packages import Missing
from benches.sampling import Profile

RESULTS: Final = Path(__file__).parents[1] / "results"


def about(profile: Profile, seconds: float) -> str:
    busy = profile.samples / sampling.FREQUENCY / seconds
    return (
        f"Time on the processor only, waiting is not shown: {profile.samples:,} samples in {seconds:g} s, {busy:.0%} "
        f"of a core. perf, cpu-clock at {sampling.FREQUENCY} Hz, stacks unwound by DWARF; Python functions by frames.c."
    )


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benches.flamegraph", description=__doc__)
    parser.add_argument("whose", nargs="?", choices=("serve", "bench"), default="serve", help="the daemon's by default")
    parser.add_argument("--out", metavar="FILE", type=Path, help="results/flamegraph-serve.svg, or -bench.svg")
    loaded.add_arguments(parser)
    return parser


def main() -> int:
    options = arguments().parse_args()
    path = options.out or RESULTS / f"flamegraph-{options.whose}.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        seen = loaded.seen(options, options.whose)
    except Missing as problem:
        print(f"flamegraph: {problem}", file=sys.stderr)
        return 1
    profile = seen.profile
    who = "kimberlite serve" if options.whose == "serve" else "the load generator"
    path.write_text(flame.svg(f"{who} — {seen.did()}", about(profile, options.seconds), profile), encoding="utf-8")
    print(f"{path}: {seen.did()}; {profile.samples:,} samples")
    for kind, count in profile.by_kind().most_common():
        print(f"{count / profile.samples:7.1%}  {kind}")
    return 0


if __name__ == "__mp_main__":
    # A process with clients, begun by this one.
    frames.install()
if __name__ == "__main__":
    sys.exit(main())
