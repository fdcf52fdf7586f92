"""TARGET: what a command works on, and the flags that say how it is opened."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
from pathlib import Path
from typing import Final

from kimberlite import api, sync
from kimberlite.client.client import Connecting
from kimberlite.errors import Invalid
from kimberlite.log.names import FILES, SEGMENTS, segment_number
from kimberlite.log.opening import Opening
from kimberlite.log.remains import BEGINNINGS

URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9.-]*(?:://|\+unix:)")
#: Seconds for which a daemon that does not answer is asked again.
RETRY: Final = 10.0
WITH_DAEMON: Final = "--key-file is for a directory: the daemon has the keys"


def is_url(target: str) -> bool:
    return URL.match(target) is not None


def directory(target: str) -> Path:
    """The directory that a TARGET names."""
    if is_url(target):
        raise Invalid(f"{target}: this is done in the directory, not through a daemon")
    if not target:
        raise Invalid("TARGET is empty")
    return Path(target)


def check_outside(path: str | Path, *databases: Path) -> None:
    """Refuses to make something in the directory of a database, of which it would be no part."""
    known = {Path(os.path.realpath(each)) for each in databases}
    for above in Path(os.path.realpath(path)).parents:
        if above in known or is_database(above):
            raise Invalid(f"{path} would be inside of the database {above}: name a place elsewhere")


def is_database(path: Path) -> bool:
    """Or what is left of one: segments, or a file that is called and begins as one of its own."""
    with contextlib.suppress(OSError):
        if any(segment_number(name) is not None for name in os.listdir(path / SEGMENTS)):
            return True
    return any(begins_as_ours(path / name) for name in FILES)


def begins_as_ours(file: Path) -> bool:
    with contextlib.suppress(OSError):
        if file.is_file():
            with file.open("rb") as opened:
                return opened.read(8) in BEGINNINGS
    return False


def add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="TARGET", help="the database's directory, or kimberlite://HOST:PORT")


def add_key_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--key-file",
        metavar="FILE",
        help="the master key; else KIMBERLITE_KEY_FILE, KIMBERLITE_KEY or a systemd credential",
    )


def open_reader(arguments: argparse.Namespace) -> sync.Database:
    """The database for reading: in a directory no lock is taken, so a writer may be at work."""
    if is_url(arguments.target):
        return connected(arguments)
    path = directory(arguments.target)
    if not path.is_dir():
        raise Invalid(f"there is no database at {path}")
    return sync.open(path, create=False, read_only=True, key_file=arguments.key_file)


def open_writer(arguments: argparse.Namespace, *, create: bool = True) -> sync.Database:
    if is_url(arguments.target):
        return connected(arguments)
    return sync.open(directory(arguments.target), create=create, key_file=arguments.key_file)


def open_to_retain(arguments: argparse.Namespace) -> sync.Database:
    if is_url(arguments.target):
        return connected(arguments)
    return sync.open_to_retain(directory(arguments.target), key_file=arguments.key_file)


def opened(arguments: argparse.Namespace, *, write: bool) -> Opening | Connecting:
    """The database on the loop that runs."""
    if is_url(arguments.target):
        if arguments.key_file is not None:
            raise Invalid(WITH_DAEMON)
        return api.connect(arguments.target, retry=RETRY)
    path = directory(arguments.target)
    if not write and not path.is_dir():
        raise Invalid(f"there is no database at {path}")
    return api.open(path, create=write, read_only=not write, key_file=arguments.key_file)


def connected(arguments: argparse.Namespace) -> sync.Database:
    if arguments.key_file is not None:
        raise Invalid(WITH_DAEMON)
    return sync.connect(arguments.target, retry=RETRY)
