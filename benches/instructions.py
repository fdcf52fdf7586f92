"""How many instructions the core needs for what it does: figures that do not depend on the machine's mood.

Each kind of work is done by `native/core/examples/work.rs` under callgrind, a few times and many times; the difference
is what one time costs, to the last instruction or nearly so. The counts are held against those in
`instructions.json`, which belong to a version of the compiler: more than 3 % above is an error. Callgrind hides
AVX-512, SHA-NI and VAES from the program, so what is counted is the portable code; `benches.compare` times the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benches.packages import Installed, Missing, Program, had
from benches.table import Table, asked, publish

ROOT: Final = Path(__file__).parents[1]
KEPT: Final = Path(__file__).with_suffix(".json")
VALGRIND: Final = Program("valgrind", "valgrind", "valgrind", "usr/bin")
#: A few times and many times.
FEW, MANY = 20, 120
#: More instructions than are written down are too many beyond this.
ALLOWED: Final = 0.03


@dataclass(frozen=True, slots=True)
class Counted:
    kind: str
    instructions: float
    #: What is written down for this compiler; None if nothing is.
    kept: float | None

    @property
    def ratio(self) -> float | None:
        return None if self.kept is None else self.instructions / self.kept

    @property
    def verdict(self) -> str:
        if self.ratio is None:
            return "new"
        if self.ratio > 1 + ALLOWED:
            return "more"
        return "less" if self.ratio < 1 - ALLOWED else "same"


def timed(program: Path, kind: str, seconds: float) -> tuple[float, float]:
    """Nanoseconds that a kind of its work takes: in the mean, and at the 99th percentile."""
    said = subprocess.run([program, kind, f"{seconds}s"], check=True, stdout=subprocess.PIPE, text=True).stdout
    mean, most = map(float, said.split())
    return mean, most


def built(checkout: Path = ROOT, target: Path | None = None, program: str = "work") -> Path:
    """An example of the core; by itself the one that does the work."""
    manifest = checkout / "native" / "Cargo.toml"
    place = target or checkout / "native" / "target"
    command = ["cargo", "build", "--release", "--locked", "--quiet", "--manifest-path", str(manifest)]
    command += ["--package", "kimberlite-core", "--example", program]
    subprocess.run(command, check=True, env=os.environ | {"CARGO_TARGET_DIR": str(place)})
    return place / "release" / "examples" / program


def valgrind() -> list[str]:
    """The words before a program whose instructions are counted; Missing if there are none to be had."""
    found = had(VALGRIND)
    words = [str(found.path), "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    return [*_libraries(found), *words]


def _libraries(found: Installed) -> list[str]:
    """Unpacked somewhere else than it was built for, it has to be told where its tools are."""
    tools = found.path.parents[1] / "libexec" / "valgrind"
    return ["env", f"VALGRIND_LIB={tools}"] if tools.is_dir() else []


def counted(program: Path, counter: list[str]) -> dict[str, float]:
    """Instructions of each kind of work done once."""
    kinds = subprocess.run([program], check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    runs = [(kind, times) for kind in kinds for times in (FEW, MANY)]
    # Each is a process of its own; no other changes what it counts.
    with ThreadPoolExecutor(os.cpu_count()) as several:
        found = dict(zip(runs, several.map(lambda run: _count(program, counter, *run), runs), strict=True))
    return {kind: (found[kind, MANY] - found[kind, FEW]) / (MANY - FEW) for kind in kinds}


def _count(program: Path, counter: list[str], kind: str, times: int) -> int:
    # What the environment has to say takes instructions to pass on.
    environment = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        [*counter, program, kind, str(times)], stderr=subprocess.PIPE, text=True, env=environment, check=False
    )
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or found is None:
        raise Missing(f"valgrind: {done.stderr.strip().splitlines()[-1:]}")
    return int(found[1])


def compiler() -> str:
    """What the counts belong to."""
    said = subprocess.run(["rustc", "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout
    return f"rustc {said.split()[1]}, {platform.machine()}"


def kept() -> dict[str, Mapping[str, float]]:
    found: dict[str, Mapping[str, float]] = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    return found


def held_against(counts: Mapping[str, float], known: Mapping[str, float]) -> list[Counted]:
    return [Counted(kind, count, known.get(kind)) for kind, count in counts.items()]


def table(found: list[Counted], title: str) -> Table:
    rows = tuple(
        (
            each.kind,
            "" if each.kept is None else f"{each.kept:,.0f}",
            f"{each.instructions:,.0f}",
            "" if each.ratio is None else f"{each.ratio:.3f}",
            each.verdict,
        )
        for each in found
    )
    return Table(title, ("work", "before", "now", "now ÷ before", ""), rows)


def arguments() -> argparse.ArgumentParser:
    parser = asked("instructions", __doc__, on_disk=False)
    parser.add_argument("--write", action="store_true", help="these counts are the ones to hold others against")
    return parser


def main() -> int:
    options = arguments().parse_args()
    try:
        counts = counted(built(), valgrind())
    except Missing as problem:
        print(f"instructions cannot be counted: {problem}", file=sys.stderr)
        return 69
    known = kept()
    found = held_against(counts, known.get(compiler(), {}))
    publish(compiler(), [table(found, "Instructions for each kind of work")], {"instructions": found}, options)
    if options.write:
        known[compiler()] = {kind: round(count) for kind, count in counts.items()}
        KEPT.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
        return 0
    return 1 if any(each.verdict == "more" for each in found) else 0


if __name__ == "__main__":
    sys.exit(main())
