"""erase: destroy the key of a stream, so that nobody can read its records any more."""

from __future__ import annotations

import argparse

from kimberlite.cli import forms
from kimberlite.cli.target import add_key_file, add_target, open_writer
from kimberlite.cli.terminal import erased, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument("stream", metavar="STREAM")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--reason", metavar="TEXT", help="why; it stays in the log, for all to read")
    what.add_argument(
        "--confirm", action="store_true", help="the master key of then, and those before it, are destroyed"
    )
    add_key_file(parser)


def run(arguments: argparse.Namespace) -> int:
    with open_writer(arguments, create=False) as database:
        if arguments.confirm:
            found = database.confirm_erasure(arguments.stream)
        else:
            found = database.erase(arguments.stream, reason=arguments.reason)
    if arguments.json:
        say(forms.line(found._asdict()))
    else:
        say(erased(found))
    return 0
