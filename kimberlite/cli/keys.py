"""keys: make a master key, in a new file that only its owner can read."""

from __future__ import annotations

import argparse
from pathlib import Path

from kimberlite import _native
from kimberlite.cli import forms
from kimberlite.cli.terminal import say
from kimberlite.crypto.master import create_master, read_key_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=["init"], help="init: a new key; what is there is never overwritten")
    parser.add_argument("file", metavar="FILE")


def run(arguments: argparse.Namespace) -> int:
    create_master(arguments.file)
    key_id = _native.key_id(read_key_file(Path(arguments.file))).hex()
    if arguments.json:
        say(forms.line({"file": arguments.file, "key_id": key_id}))
    else:
        say(f"{arguments.file}: master key {key_id}. Without it nothing can be decrypted: keep a copy elsewhere.")
    return 0
