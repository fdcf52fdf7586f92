"""TARGET: what a command works on, and the flags that say how it is opened."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Final

from kimberlite import sync
from kimberlite.errors import Invalid

URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def directory(target: str) -> Path:
    """The directory that a TARGET names."""
    if URL.match(target):
        raise Invalid(f"{target}: TARGET is a directory; there is no daemon in this version")
    if not target:
        raise Invalid("TARGET is empty")
    return Path(target)


def add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="TARGET", help="the database's directory")


def add_key_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--key-file",
        metavar="FILE",
        help="the master key; else KIMBERLITE_KEY_FILE, KIMBERLITE_KEY or a systemd credential",
    )


def open_reader(arguments: argparse.Namespace) -> sync.Database:
    """The database for reading: no lock is taken, so a writer may be at work."""
    path = directory(arguments.target)
    if not path.is_dir():
        raise Invalid(f"there is no database at {path}")
    return sync.open(path, create=False, read_only=True, key_file=arguments.key_file)
