"""tail: print the last records, and with `-f` those that come, as they become durable."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from kimberlite.cli import forms
from kimberlite.cli.target import add_key_file, add_target, open_reader
from kimberlite.cli.terminal import complain, located, plain, say
from kimberlite.errors import Dropped
from kimberlite.records import Record


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument("stream", metavar="STREAM", nargs="?")
    parser.add_argument("--follow", "-f", action="store_true", help="go on with those that come")
    parser.add_argument(
        "--lines", "-n", metavar="N", type=forms.parse_number, default=10, help="the last N; 10 by default"
    )
    add_key_file(parser)


def run(arguments: argparse.Namespace) -> int:
    shown = sys.stdout.isatty()
    text = located if shown else plain

    def show(records: Iterable[Record]) -> None:
        if arguments.json:
            say(b"".join(forms.line(forms.record_form(record), escape=shown) for record in records))
        else:
            say(b"".join(map(text, records)))

    with open_reader(arguments) as database:
        last: list[Record] = []
        try:
            for batch in database.read(arguments.stream, reverse=True, limit=max(1, arguments.lines)).batches():
                last += batch
        finally:
            # Of those that cannot all be read, the newest.
            last.reverse()
            show(last[len(last) - min(arguments.lines, len(last)) :])
        if arguments.follow:
            start = 0 if not last else 1 + (last[-1].position if arguments.stream is None else last[-1].offset)
            while True:
                try:
                    for batch in database.tail(arguments.stream, start=start).batches():
                        show(batch)
                        sys.stdout.flush()
                        start = 1 + (batch[-1].position if arguments.stream is None else batch[-1].offset)
                    return 0
                except Dropped as error:
                    # Of what was asked for, none, if nothing was shown yet.
                    if error.first is None:
                        raise
                    if start:
                        complain(error, as_json=arguments.json)
                    start = error.first
    return 0
