"""verify: check every byte of the log, and say what it is or exit with why not."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

from kimberlite import api
from kimberlite.cli import forms
from kimberlite.cli.target import RETRY, add_key_file, add_target, directory, is_url
from kimberlite.cli.terminal import Ink, Progress, dropped, erased, repaired, say, table
from kimberlite.errors import Invalid
from kimberlite.log.verify import shown, verify_directory
from kimberlite.records import Erasure, Receipt


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument("--anchor", metavar="FILE", help="a receipt kept elsewhere: the log must reach it and agree")
    add_key_file(parser)


def run(arguments: argparse.Namespace) -> int:
    anchor = None if arguments.anchor is None else forms.read_receipt(Path(arguments.anchor))
    found = asyncio.run(asked(arguments, anchor)) if is_url(arguments.target) else checked(arguments, anchor)
    if arguments.json:
        say(forms.line(found))
        return 0
    notes, drops, erasures, repairs = (found.pop(name) for name in ("notes", "dropped", "erasures", "repairs"))
    say(table({"verdict": Ink.GREEN.on(sys.stdout, "sound")} | found))
    for drop in drops:
        say(dropped(drop))
    for each in erasures:
        say(erased(Erasure(**each)))
    for each in repairs:
        say(repaired(each))
    for note in notes:
        say(f"note: {note}")
    return 0


def checked(arguments: argparse.Namespace, anchor: Receipt | None) -> dict[str, Any]:
    path = directory(arguments.target)
    if not path.is_dir():
        raise Invalid(f"there is no database at {path}")
    with Progress("verify") as progress:
        report = verify_directory(path, key_file=arguments.key_file, anchor=anchor, progress=progress)
    return shown(report, anchored=anchor is not None)


async def asked(arguments: argparse.Namespace, anchor: Receipt | None) -> dict[str, Any]:
    """The daemon reads its own disk: what it says is worth what the daemon is."""
    if arguments.key_file is not None:
        raise Invalid("--key-file is for a directory: the daemon has the keys")
    async with api.connect(arguments.target, retry=RETRY) as client:
        return await client.verify(anchor)
