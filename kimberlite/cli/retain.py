"""retain: drop the oldest segments, by position, age or size; what is left stays provable."""

from __future__ import annotations

import argparse

from kimberlite.cli import forms
from kimberlite.cli.target import add_key_file, add_target, open_reader, open_to_retain
from kimberlite.cli.terminal import say
from kimberlite.errors import Invalid


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument("--before", metavar="POSITION", type=forms.parse_number, help="what is before this position")
    parser.add_argument("--age", metavar="AGE", type=forms.parse_age, help="what is older: 90d, 12h, 30min, 45s")
    parser.add_argument("--size", metavar="SIZE", type=forms.parse_size, help="what is beyond it: 10GiB, 512MiB, 1000")
    parser.add_argument("--dry-run", action="store_true", help="say what would go, and drop nothing")
    parser.add_argument(
        "--confirm-clock", action="store_true", help="the clock is right, though it seems to have jumped"
    )
    add_key_file(parser)


def run(arguments: argparse.Namespace) -> int:
    rule = {"before": arguments.before, "age": arguments.age, "size": arguments.size}
    if all(value is None for value in rule.values()) and not arguments.confirm_clock:
        raise Invalid("say what may go: --before, --age or --size")
    with open_reader(arguments) if arguments.dry_run else open_to_retain(arguments) as database:
        dropped = database.retain(**rule, dry_run=arguments.dry_run, confirm_clock=arguments.confirm_clock)
    if arguments.json:
        say(forms.line(dropped._asdict() | {"dry_run": arguments.dry_run}))
        return 0
    verb = "would be dropped" if arguments.dry_run else "dropped"
    say(f"{verb}: {dropped.segments:,} segments, {dropped.records:,} records, {dropped.bytes:,} bytes")
    say(f"what is left begins with position {dropped.first:,}")
    return 0
