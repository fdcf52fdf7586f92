"""How long requests take at several loads: as their clients see it, and in which parts of the daemon.

Clients count from when a request was meant to be sent. Of an append the daemon counts all that is between the pool and
the receipt, and of this the waiting for a group, the sealing of the group, and from there until it is durable; of a
read, until its first records leave. What is only in the clients' figure is sockets, and waiting to be read from them.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any, Final

import kimberlite
from benches.daemon import Daemon
from benches.loaded import PROCESSES, WARM, database, words
from benches.table import Table, machine, show
from kimberlite import _native
from kimberlite.cli.top import TIMES, Moment
from kimberlite.load.picture import picture
from kimberlite.load.plan import Plan
from kimberlite.load.run import Processes

RESULTS: Final = Path(__file__).parents[1] / "results"
QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
CLIENTS: Final = 64
STYLE: Final = """
body { font: 14px sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 2em } th, td { padding: .15em .8em; text-align: right }
th { border-bottom: 1px solid #888 } td:first-child, th:first-child { text-align: left }
svg { width: 100% }
"""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a load was, and the times of each part that had any, in nanoseconds."""

    load: str
    records_per_s: float
    times: Mapping[str, _native.Histogram]

    def label(self) -> str:
        return f"{self.load} → {self.records_per_s:,.0f} records/s"


def seen(path: Path, name: str, plan: Plan, seconds: float) -> Seen:
    """On a daemon of its own."""
    with Daemon(path) as daemon:
        plan = replace(plan, address=daemon.address)
        if plan.work == "mixed":
            with Processes(replace(plan, work="append")) as processes:
                # What is to be read.
                processes.run(WARM)
        with Processes(plan) as processes:
            processes.run(WARM, warm=True)
            before, then = metrics(daemon.address), time.monotonic()
            outcome = processes.run(seconds)
            moment = Moment(before, metrics(daemon.address), time.monotonic() - then)
    times = {"client: append": outcome.append_times, "client: read": outcome.read_times}
    times |= {part: moment.histogram(f"{part}_seconds") for part in TIMES}
    pace = "" if plan.rate is None else f", {plan.rate:,.0f} records/s asked for"
    label = f"{name}: {words(plan)}{pace}"
    return Seen(label, outcome.records_per_s, {part: found for part, found in times.items() if len(found)})


def metrics(address: str) -> dict[str, Any]:
    async def asked() -> dict[str, Any]:
        async with kimberlite.connect(f"kimberlite://{address}") as client:
            return await client.metrics()

    return asyncio.run(asked())


def report(directory: Path, seconds: float) -> list[Seen]:
    lone = Plan("append", "", clients=1, batch=1)
    many = replace(lone, clients=CLIENTS, processes=PROCESSES)
    print("alone", file=sys.stderr, flush=True)
    found = [seen(directory / "alone", "alone", lone, seconds)]
    print("together", file=sys.stderr, flush=True)
    found.append(seen(directory / "together", "together", many, seconds))
    rate = found[-1].records_per_s / 2
    for name, plan in {
        "at half of that rate": replace(many, rate=rate),
        "half of them read": replace(many, work="mixed"),
    }.items():
        print(name, file=sys.stderr, flush=True)
        found.append(seen(directory / name.replace(" ", "-"), name, plan, seconds))
    return found


def table(each: Seen) -> Table:
    rows = []
    for part, times in each.times.items():
        shown = (f"{times.quantile(share) / 1e6:.3f}" for share in QUANTILES.values())
        rows.append((part, f"{len(times):,}", *shown))
    return Table(each.label(), ("milliseconds", "times", *QUANTILES), tuple(rows))


def curves(each: Seen) -> dict[str, list[tuple[float, float]]]:
    return {part: [(max(ns, 1) / 1e6, share) for ns, share in times.curve()] for part, times in each.times.items()}


def page(where: str, found: Sequence[Seen]) -> str:
    """A table and a picture of each load."""
    parts = ["<!doctype html>", '<html lang="en"><meta charset="utf-8"><title>Latencies</title>']
    parts += [f"<style>{STYLE}</style>", "<h1>Latencies</h1>", f"<p>{escape(where)}</p>"]
    assert __doc__ is not None
    parts += [f"<p>{escape(__doc__.partition(chr(10) * 2)[2])}</p>"]
    for each in found:
        parts += [f"<h2>{escape(each.load.partition(':')[0])}</h2>", picture(each.label(), curves(each))]
        shown = table(each)
        parts += ["<table><tr>", *(f"<th>{escape(cell)}</th>" for cell in shown.headings), "</tr>"]
        for row in shown.rows:
            parts += ["<tr>", *(f"<td>{escape(cell)}</td>" for cell in row), "</tr>"]
        parts += ["</table>"]
    return "\n".join([*parts, "</html>", ""])


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benches.latency_report", description=__doc__)
    parser.add_argument("--seconds", metavar="S", type=float, default=10.0, help="of each load; 10 by default")
    parser.add_argument("--directory", type=Path, default=Path(), help="on the disk in question; here by default")
    parser.add_argument("--out", metavar="FILE", type=Path, default=RESULTS / "latency-report.html")
    parser.add_argument("--markdown", action="store_true")
    return parser


def main() -> None:
    options = arguments().parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with database(options.directory) as path:
        found = report(path, options.seconds)
        where = machine(path)
    options.out.write_text(page(where, found), encoding="utf-8")
    show(where, [table(each) for each in found], markdown=options.markdown)
    print(f"\n{options.out}")


if __name__ == "__main__":
    main()
