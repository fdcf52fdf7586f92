"""salvage: copy every record that can still be proven into a new database, and say what is missing."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from kimberlite.cli import forms
from kimberlite.cli.target import add_key_file, check_outside, directory
from kimberlite.cli.terminal import Progress, erased, escaped, repaired, say, table
from kimberlite.errors import Invalid
from kimberlite.log.copying import salvage_directory
from kimberlite.log.description import ranged
from kimberlite.log.salvage import Report
from kimberlite.records import Erasure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="DIR", help="what is left of the database")
    parser.add_argument(
        "--out", metavar="DIR", required=True, help="the new database: a directory that is not there yet"
    )
    add_key_file(parser)


def run(arguments: argparse.Namespace) -> int:
    path = directory(arguments.target)
    if not path.is_dir():
        raise Invalid(f"there is no database at {path}")
    check_outside(arguments.out, path)
    with Progress("salvage") as progress:
        salvaging = salvage_directory(path, Path(arguments.out), key_file=arguments.key_file, progress=progress)
        report = asyncio.run(salvaging)
    if arguments.json:
        say(forms.line(report.shown()))
        return 0
    counts = {"records": report.records, "copied": report.copied, "streams": report.streams}
    say(table(counts | {"complete": "yes" if report.complete else "no"}))
    for line in told(report):
        say(escaped(line))
    return 0


def told(report: Report) -> list[str]:
    return [
        *(f"missing: positions {ranged(each.first, each.end)}: {each.why}" for each in report.missing),
        *(f"missing: {each.stream}, offsets {ranged(each.first, each.end)}: {each.why}" for each in report.jumps),
        *(f"missing before: {repaired(each)}" for each in report.earlier),
        *(erased(Erasure(**each)) for each in report.erasures),
        *(f"without its time: positions {ranged(each.first, each.end)}" for each in report.times),
        *(f"note: {note}" for note in report.notes),
    ]
