"""Whether comparing two commits notices what it should, and nothing else: real work that is too much, in the core.

Each slow-down is a commit of its own, which no branch has; `benches.compare` holds it against the commit that it is
made of, so many times, and is to call it slower. The commit is compared with itself as often, all cases, and is to be
called the same each time. Nothing else should run on the machine; ten times take hours.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benches.compare import ROOT
from benches.table import Table, asked, machine, publish


@dataclass(frozen=True, slots=True)
class SlowDown:
    """What is put in the place of a line of the core that is there once, and the case that is to show it."""

    name: str
    file: str
    line: str
    instead: str
    case: str


SEAL: Final = "native/core/src/group/seal.rs"
SLOWDOWNS: Final = (
    SlowDown(
        "sealing: three tenths of a group hashed once more",
        SEAL,
        "        let records: u32 = runs.iter().map(|run| run.records).sum();\n",
        "        std::hint::black_box(blake3::hash(&out[..at * 3 / 10]));\n"
        "        let records: u32 = runs.iter().map(|run| run.records).sum();\n",
        "seal",
    ),
    SlowDown(
        "appending: leaves hashed eight times more",
        SEAL,
        "        hash_leaves(&runs)\n",
        "        for _ in 0..8 {\n"
        "            std::hint::black_box(hash_leaves(&runs));\n"
        "        }\n"
        "        hash_leaves(&runs)\n",
        "append",
    ),
)
NOTHING: Final = "nothing: the same commit"


@dataclass(frozen=True, slots=True)
class Shown:
    what: str
    case: str
    ratio: float
    low: float
    high: float
    verdict: str


def git(*command: str, index: Path | None = None, text: str | None = None) -> str:
    environment = dict(os.environ) if index is None else os.environ | {"GIT_INDEX_FILE": str(index)}
    done = subprocess.run(
        ["git", *command], cwd=ROOT, env=environment, input=text, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"git {command[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def slowed(base: str, slow: SlowDown) -> str:
    """A commit that nothing names: neither branches nor the working tree are touched."""
    source = subprocess.run(["git", "show", f"{base}:{slow.file}"], cwd=ROOT, capture_output=True, text=True).stdout
    if source.count(slow.line) != 1:
        raise SystemExit(f"{base}: {slow.file} has no such line, or several: {slow.line.strip()}")
    with tempfile.TemporaryDirectory() as name:
        index = Path(name) / "index"
        git("read-tree", base, index=index)
        blob = git("hash-object", "-w", "--stdin", text=source.replace(slow.line, slow.instead))
        git("update-index", "--cacheinfo", f"100644,{blob},{slow.file}", index=index)
        tree = git("write-tree", index=index)
    who = ("-c", "user.name=bench", "-c", "user.email=bench@localhost")
    return git(*who, "commit-tree", tree, "-p", base, "-m", slow.name)


def compare(base: str, commit: str, what: str, cases: list[str], directory: Path) -> list[Shown]:
    with tempfile.TemporaryDirectory() as name:
        found = Path(name) / "found.json"
        command = [sys.executable, "-m", "benches.compare", base, commit, "--directory", str(directory)]
        command += ["--json", str(found), *(part for case in cases for part in ("--case", case))]
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
        if not found.exists():
            raise SystemExit(f"{' '.join(command)} found nothing")
        rows = json.loads(found.read_text(encoding="utf-8"))["compared"]
    return [Shown(what, *(row[name] for name in ("case", "ratio", "low", "high", "verdict"))) for row in rows]


def table(found: list[Shown]) -> Table:
    rows = []
    for what, case in dict.fromkeys((each.what, each.case) for each in found):
        those = [each for each in found if (each.what, each.case) == (what, case)]
        ratios = [each.ratio for each in those]
        wanted = "same" if what == NOTHING else "slower"
        right = sum(each.verdict == wanted for each in those)
        rows.append((what, case, f"{min(ratios):.3f} to {max(ratios):.3f}", f"{right} of {len(those)} {wanted}"))
    return Table(
        "What comparing commits calls it", ("put into the core", "case", "later ÷ earlier", "called"), tuple(rows)
    )


def arguments() -> argparse.ArgumentParser:
    parser = asked("slowdowns", __doc__)
    parser.add_argument("--base", default="HEAD", help="the commit; the last by default")
    parser.add_argument("--times", type=int, default=10, help="that each is compared")
    parser.add_argument("--case", action="append", help="only this of the same commit; again for more")
    return parser


def main() -> int:
    options = arguments().parse_args()
    base = git("rev-parse", options.base)
    asked_of = [(slow.name, slowed(base, slow), [slow.case]) for slow in SLOWDOWNS]
    asked_of.append((NOTHING, base, options.case or []))
    found: list[Shown] = []
    for number in range(options.times):
        for what, commit, cases in asked_of:
            print(f"{number + 1}/{options.times}: {what}", file=sys.stderr, flush=True)
            found += compare(base, commit, what, cases, options.directory.resolve())
    publish(machine(options.directory), [table(found)], {"slowdowns": found}, options)
    missed = [each for each in found if each.verdict != ("same" if each.what == NOTHING else "slower")]
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
