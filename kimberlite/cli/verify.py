"""verify: check every byte of the log, and say what it is or exit with why not."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from kimberlite.cli import forms
from kimberlite.cli.target import add_key_file, add_target, directory
from kimberlite.cli.terminal import Progress, say, table
from kimberlite.errors import Invalid
from kimberlite.log.verify import verify_directory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument("--anchor", metavar="FILE", help="a receipt kept elsewhere: the log must reach it and agree")
    add_key_file(parser)


def run(arguments: argparse.Namespace) -> int:
    path = directory(arguments.target)
    if not path.is_dir():
        raise Invalid(f"there is no database at {path}")
    anchor = None if arguments.anchor is None else forms.read_receipt(Path(arguments.anchor))
    with Progress("verify") as progress:
        report = verify_directory(path, key_file=arguments.key_file, anchor=anchor, progress=progress)
    found = asdict(report) | {"root": report.root.hex(), "chain": report.chain.hex(), "anchored": anchor is not None}
    if arguments.json:
        say(forms.line(found))
        return 0
    notes = found.pop("notes")
    say(table(found))
    for note in notes:
        say(f"note: {note}")
    return 0
