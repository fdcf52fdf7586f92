"""info: print what a database is and where it stands."""

from __future__ import annotations

import argparse

from kimberlite.cli import forms
from kimberlite.cli.target import add_key_file, add_target, open_reader
from kimberlite.cli.terminal import dropped, erased, repaired, say, table
from kimberlite.records import Erasure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target(parser)
    add_key_file(parser)


def run(arguments: argparse.Namespace) -> int:
    with open_reader(arguments) as database:
        found = database.info()
    if arguments.json:
        say(forms.line(found))
        return 0
    notes, drops, erasures, repairs = (found.pop(name) for name in ("notes", "dropped", "erasures", "repairs"))
    say(table(found))
    for drop in drops:
        say(dropped(drop))
    for each in erasures:
        say(erased(Erasure(**each)))
    for each in repairs:
        say(repaired(each))
    for note in notes:
        say(f"note: {note}")
    return 0
