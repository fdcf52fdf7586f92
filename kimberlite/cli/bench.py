"""bench: put a daemon under load, and the raw disk beside it."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, get_args

from kimberlite.arguments import POLICIES, checked_name
from kimberlite.cli import forms
from kimberlite.cli.target import is_url
from kimberlite.cli.terminal import Status, say
from kimberlite.client.client import address_of
from kimberlite.errors import Invalid
from kimberlite.load.picture import picture
from kimberlite.load.plan import Plan, Work
from kimberlite.load.report import Report
from kimberlite.load.run import WARM, Disk, Outcome, Processes
from kimberlite.load.worker import Count

#: Load and the raw disk take turns so often.
ROUNDS: Final = 4
#: Of a round's load, the time that the raw disk gets.
DISK_SHARE: Final = 0.25
#: Clients, and open requests of each.
MOST: Final = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    number = forms.parse_number
    parser.add_argument("work", choices=get_args(Work), help="mixed: every second client reads")
    parser.add_argument("target", metavar="URL", help="kimberlite://HOST:PORT; what is appended stays in its log")
    parser.add_argument("--clients", metavar="N", type=number, default=1)
    parser.add_argument("--batch", metavar="N", type=number, default=100, help="records of a request; 100 by default")
    parser.add_argument("--size", metavar="BYTES", type=number, default=256, help="of a record; 256 by default")
    parser.add_argument(
        "--payload", choices=("random", "json"), default="random", help="json: events that compress as events do"
    )
    parser.add_argument("--depth", metavar="N", type=number, default=1, help="open requests of each client")
    parser.add_argument("--seconds", metavar="SECONDS", type=float, default=10.0, help="of load; 10 by default")
    parser.add_argument(
        "--rate",
        metavar="RATE",
        type=float,
        help="records a second of all clients, sent when they are due, whatever is answered; else as fast as possible",
    )
    parser.add_argument("--sync", choices=POLICIES, help="of the appends; the daemon's own by default")
    parser.add_argument("--stream", metavar="NAME", default="bench", help="append to NAME/0, NAME/1, …")
    parser.add_argument("--processes", metavar="N", type=number, default=os.cpu_count() or 1, help="of clients")
    parser.add_argument(
        "--disk", metavar="DIR", type=Path, default=Path(), help="where the raw disk is measured; here by default"
    )
    parser.add_argument("--csv", metavar="FILE", type=Path, help="every latency, and the share of requests below it")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="the same as a picture, in SVG")


def run(arguments: argparse.Namespace) -> int:
    plan = planned(arguments)
    if not arguments.disk.is_dir():
        raise Invalid(f"{arguments.disk} is no directory")
    for path in filter(None, (arguments.csv, arguments.plot)):
        # Not only when all is done; and what is there from before stays until then.
        written(path, "", "a")
    disk = Disk(arguments.disk.resolve())
    with Processes(plan) as processes, Status() as status:
        processes.run(WARM, warm=True)
        outcome = Outcome()
        for number in range(ROUNDS):
            status(f"round {number + 1}/{ROUNDS}: the raw disk")
            measure(disk, plan, arguments.seconds / ROUNDS * DISK_SHARE)
            outcome = processes.run(arguments.seconds / ROUNDS, watcher(status, outcome, number))
    report = Report(plan, outcome, disk)
    if arguments.csv is not None:
        written(arguments.csv, report.csv())
    if arguments.plot is not None:
        title = next(report.lines())
        written(arguments.plot, picture(title, report.curves()))
    say(forms.line(report.form()) if arguments.json else "\n".join(report.lines()))
    return 0


def planned(arguments: argparse.Namespace) -> Plan:
    if not is_url(arguments.target):
        raise Invalid(f"{arguments.target}: bench wants a daemon; start one with kimberlite serve, and give its URL")
    for name in ("clients", "batch", "size", "depth", "processes", "seconds", "rate"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < float("inf"):
            raise Invalid(f"--{name} is a number above 0")
    for name in ("clients", "depth"):
        if getattr(arguments, name) > MOST:
            raise Invalid(f"--{name} is at most {MOST:,}")
    checked_name(f"{arguments.stream}/{arguments.clients}")
    if arguments.work == "mixed" and arguments.clients < 2:
        raise Invalid("a mixed load needs two clients: one appends, one reads")
    return Plan(
        arguments.work,
        address_of(arguments.target),
        clients=arguments.clients,
        batch=arguments.batch,
        size=arguments.size,
        json=arguments.payload == "json",
        depth=arguments.depth,
        rate=arguments.rate,
        sync=arguments.sync,
        stream=arguments.stream,
        processes=min(arguments.processes, arguments.clients),
    )


def measure(disk: Disk, plan: Plan, seconds: float) -> None:
    try:
        disk.measure(plan.batch * plan.size, seconds)
    except OSError as error:
        raise Invalid(f"the raw disk cannot be measured in {disk.directory}: {error.strerror}") from error


def watcher(status: Status, before: Outcome, number: int) -> Callable[[Count, Count], object]:
    begun = time.monotonic()

    def watch(appends: Count, reads: Count) -> None:
        records = (appends + reads).records
        since = records - (before.appends + before.reads).records
        elapsed = max(time.monotonic() - begun, 1e-3)
        status(f"round {number + 1}/{ROUNDS}: {records:,} records, {since / elapsed:,.0f} a second")

    return watch


def written(path: Path, text: str, mode: Literal["w", "a"] = "w") -> None:
    try:
        with path.open(mode) as file:
            file.write(text)
    except OSError as error:
        raise Invalid(f"{path}: {error.strerror}") from error
