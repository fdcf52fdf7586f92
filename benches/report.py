"""Every bench, one after another, and what they found as one file of results and one page to look at.

Nothing else should run on the machine meanwhile. Each bench is a process of its own, measures the limit or the peer
that its figures are to be held against in the same run, and says what it does with `--help`. `--quick` does the same
with less: figures to see that all is well, not to quote.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import platform
import subprocess
import sys
import tempfile
import time
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any, Final

from benches.plots import costs, latencies, throughput
from benches.table import Table, machine
from kimberlite import _native

ROOT: Final = Path(__file__).parents[1]
RESULTS: Final = ROOT / "results"
#: In a line by which a bench says what it could not have.
LEFT_OUT: Final = "left out"
#: What figures may depend on.
PACKAGES: Final = ("uvloop", "blake3", "cryptography", "hdrhistogram", "lmdb", "matplotlib", "rocksdict")


@dataclass(frozen=True, slots=True)
class Bench:
    """A module of this package, and what it is told: for figures to quote, and to be quick."""

    module: str
    about: str
    whole: str
    quick: str
    #: Whether it takes a directory to write in.
    on_disk: bool = True


BENCHES: Final = (
    Bench("limits", "The processor's limits", "", "--seconds 0.2", on_disk=False),
    Bench("disk", "The disk's limits", "", "--seconds 0.01 --rounds 1"),
    Bench("targets", "Targets", "", "--seconds 0.2 --records 100000"),
    Bench("sweep", "Throughput", "", "--seconds 0.4 --rounds 1 --clients 64 --batches 1 100"),
    Bench("network", "Over loopback, beside peers", "--modes --peers", "--seconds 0.3 --rounds 1 --records 200000"),
    Bench("engine", "Embedded", "--peers", "--peers --seconds 0.15 --rounds 1"),
    Bench("reads", "Reads", "", "--records 100000 --rounds 1 --seconds 0.2"),
    Bench("sizes", "Large logs", "", "--records 100000 1000000"),
    Bench("startup", "Starts", "", "--gib 0.25 --streams 1000 --producers 1000 --rounds 2"),
    Bench("upkeep", "Beside upkeep", "", "--clients 64 --seconds 0.3 --rounds 1 --mib 1 --segments 40"),
    Bench("hostile", "Beside a bad neighbour", "", "--seconds 0.1 --rounds 1"),
    Bench("instructions", "Instructions", "", "", on_disk=False),
)
STYLE: Final = """
body { font: 15px/1.5 sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 2em; font-size: 13px }
td, th { padding: .2em .8em; text-align: right; vertical-align: bottom }
th { border-bottom: 1px solid #888 } tr:nth-child(even) td { background: #f5f5f5 }
td:first-child, th:first-child { text-align: left }
h2 { margin-top: 2.5em; border-top: 1px solid #ccc; padding-top: .5em }
svg { max-width: 100%; height: auto } nav a { margin-right: 1.2em }
"""


def run(bench: Bench, directory: Path, *, quick: bool) -> dict[str, Any] | str:
    """What it found; or, if it failed, the last line that it said."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "found.json"
        command = [sys.executable, "-m", f"benches.{bench.module}", *(bench.quick if quick else bench.whole).split()]
        command += ["--json", str(path)]
        command += ["--directory", str(directory)] if bench.on_disk else []
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if not path.exists():
            said = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["nothing"]
            return f"it ended with {done.returncode}: {said[-1]}"
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found["left_out"] = [line for line in done.stderr.splitlines() if LEFT_OUT in line]
        return found


def commit() -> str:
    """With a plus if the tree is not as it was committed."""
    try:
        named = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return named.stdout.strip() or "unknown"


def versions() -> dict[str, str]:
    """Of what was measured, and of what it runs on."""
    found = {"python": platform.python_version(), "kernel": platform.release()}
    found["rustc"] = rustc()
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def rustc() -> str:
    try:
        said = subprocess.run(["rustc", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "not installed"
    return said.splitlines()[0].removeprefix("rustc ")


def page(results: Mapping[str, Any]) -> str:
    """All tables, and pictures of what changes with something."""
    parts = ['<!doctype html><html lang="en"><meta charset="utf-8"><title>Kimberlite, measured</title>']
    parts += [f"<style>{STYLE}</style><h1>Kimberlite, measured</h1>"]
    about = f"commit {results['commit']}, {results['when']}, in {results['minutes']:.0f} minutes"
    parts += [f"<p>{escape(results['machine'])}<br>{escape(about)}</p>"]
    if results["quick"]:
        parts += ["<p><b>Made with <code>--quick</code>: to see that all is well, not to quote.</b></p>"]
    parts += ["<p>", escape(", ".join(f"{name} {said}" for name, said in results["versions"].items())), "</p><nav>"]
    parts += [f'<a href="#{bench.module}">{escape(bench.about)}</a>' for bench in BENCHES]
    parts += ["</nav>"]
    for bench in BENCHES:
        parts += [f'<h2 id="{bench.module}">{escape(bench.about)}</h2>']
        found = results["benches"][bench.module]
        if isinstance(found, str):
            parts += [f"<p>Not measured: {escape(found)}</p>"]
            continue
        parts += [f"<p>{escape(line)}</p>" for line in found["left_out"]]
        parts += pictures(bench.module, found)
        parts += (shown(Table(each["title"], tuple(each["headings"]), rows(each))) for each in found["tables"])
    return "\n".join([*parts, "</html>", ""])


def rows(table: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(row) for row in table["rows"])


def pictures(module: str, found: Mapping[str, Any]) -> Iterator[str]:
    if module == "sweep":
        yield throughput(found["sweep"])
        yield latencies("Latencies by clients × in flight × batch", curves(found["sweep"]))
    elif module == "network":
        yield latencies("Latencies by clients × in flight × batch", curves(found["append"]))
    elif module == "sizes":
        yield costs(found["sizes"])


def curves(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Milliseconds, and the share that took no longer, of those that are not encrypted or compressed."""
    found = {}
    for each in outcomes:
        cell = each["cell"]
        if cell["mode"] == "plain":
            times = _native.Histogram.decode(b64decode(each["times"]))
            shape = [cell["clients"], cell["depth"], cell["batch"]]
            found[" × ".join(map(str, shape))] = [(ns / 1e6, share) for ns, share in times.curve()]
    return found


def shown(table: Table) -> str:
    out = StringIO()
    out.write(f"<h3>{escape(table.title)}</h3><table><tr>")
    out.writelines(f"<th>{escape(cell)}</th>" for cell in table.headings)
    out.write("</tr>")
    for row in table.rows:
        out.write("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    out.write("</table>")
    return out.getvalue()


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benches", description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=[bench.module for bench in BENCHES], help="these benches only")
    parser.add_argument("--directory", type=Path, default=Path(), help="on the disk in question; here by default")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="where results go")
    return parser


def main() -> int:
    options = arguments().parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    found: dict[str, Any] = {}
    for bench in BENCHES:
        if options.only and bench.module not in options.only:
            found[bench.module] = "it was not asked for"
            continue
        print(f"{bench.module}: {bench.about}", file=sys.stderr, flush=True)
        found[bench.module] = run(bench, options.directory.resolve(), quick=options.quick)
        if isinstance(found[bench.module], str):
            print(f"{bench.module}: {found[bench.module]}", file=sys.stderr, flush=True)
    results = {
        "commit": commit(),
        "when": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "minutes": (time.monotonic() - begun) / 60,
        "quick": options.quick,
        "machine": machine(options.directory),
        "versions": versions(),
        "benches": found,
    }
    (options.out / "bench.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (options.out / "bench.html").write_text(page(results), encoding="utf-8")
    print(f"{options.out / 'bench.json'}\n{options.out / 'bench.html'}")
    asked = [found[bench.module] for bench in BENCHES if not options.only or bench.module in options.only]
    return 1 if any(isinstance(each, str) for each in asked) else 0
