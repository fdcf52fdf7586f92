"""read: print records, of one stream or of the whole log.

Without `--json` a record is its payload as it is and a newline; on a terminal control characters are escaped, and
its stream and offset stand before it.
"""

from __future__ import annotations

import argparse
import sys
from datetime import datetime

from kimberlite.cli import forms
from kimberlite.cli.target import add_key_file, add_target, open_reader
from kimberlite.cli.terminal import located, plain, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument("stream", metavar="STREAM", nargs="?")
    bound = "an offset with a STREAM, a position without, or a time such as 2026-01-31T12:00:00Z"
    parser.add_argument("--start", metavar="AT", type=parse_bound, help=f"the first record: {bound}")
    parser.add_argument("--until", metavar="AT", type=parse_bound, help="where to stop, exclusive: the same")
    parser.add_argument("--limit", metavar="N", type=forms.parse_number, help="no more than N records")
    parser.add_argument("--reverse", action="store_true", help="start at the end")
    parser.add_argument("--system", action="store_true", help="the log's own records too")
    add_key_file(parser)


def run(arguments: argparse.Namespace) -> int:
    shown = sys.stdout.isatty()
    text = located if shown else plain
    with open_reader(arguments) as database:
        found = database.read(
            arguments.stream,
            start=arguments.start,
            until=arguments.until,
            limit=arguments.limit,
            reverse=arguments.reverse,
            system=arguments.system,
        )
        for batch in found.batches():
            if arguments.json:
                say(b"".join(forms.line(forms.record_form(record), escape=shown) for record in batch))
            else:
                say(b"".join(map(text, batch)))
    return 0


def parse_bound(text: str) -> int | datetime:
    if text.isascii() and text.isdigit():
        return forms.parse_number(text)
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor a time") from None
