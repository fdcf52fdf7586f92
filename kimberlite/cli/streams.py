"""streams: print the streams that have records, in the order in which they were made."""

from __future__ import annotations

import argparse

from kimberlite.cli import forms
from kimberlite.cli.target import add_key_file, add_target, open_reader
from kimberlite.cli.terminal import escaped, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target(parser)
    add_key_file(parser)


def run(arguments: argparse.Namespace) -> int:
    with open_reader(arguments) as database:
        for stream in database.streams():
            if arguments.json:
                say(forms.line(stream._asdict()))
                continue
            kind = "erased" if stream.erased else "encrypted" if stream.encrypted else "plain"
            say(f"{stream.length:>12,}  {kind:9}  {escaped(stream.name)}")
    return 0
