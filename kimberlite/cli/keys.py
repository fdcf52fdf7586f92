"""keys: make a master key, take another one, or see what a vault opens with it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from kimberlite import _native, sync
from kimberlite.cli import forms
from kimberlite.cli.target import add_key_file, connected, directory, is_url
from kimberlite.cli.terminal import Progress, escaped, say, table
from kimberlite.crypto.master import create_master, load_master, read_key_file
from kimberlite.errors import Invalid, KeyUnavailable
from kimberlite.log.keycheck import check_directory, wrapped_by

WHAT: Final = ("init", "rotate", "check")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        choices=WHAT,
        help="init: a new key, in a new file; rotate: wrap all keys under another one; check: which streams' keys open",
    )
    parser.add_argument("file", metavar="PATH", help="where the new key goes; or a database")
    parser.add_argument("--new-key-file", metavar="FILE", help="of rotate: the key that is to be the master key")
    add_key_file(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.new_key_file is not None and arguments.what != "rotate":
        raise Invalid("--new-key-file is for rotate")
    if arguments.what == "check":
        return check(arguments)
    if arguments.what == "rotate":
        return rotate(arguments)
    if arguments.key_file is not None:
        raise Invalid("init makes a key and needs none")
    create_master(arguments.file)
    key_id = _native.key_id(read_key_file(Path(arguments.file))).hex()
    if arguments.json:
        say(forms.line({"file": arguments.file, "key_id": key_id}))
    else:
        say(f"{arguments.file}: master key {key_id}. Without it nothing can be decrypted: keep a copy elsewhere.")
    return 0


def rotate(arguments: argparse.Namespace) -> int:
    arguments.target, begun = arguments.file, False
    if is_url(arguments.target):
        if arguments.new_key_file is not None:
            raise Invalid("a key does not travel: the daemon takes the one that its setting next_key_file names")
        with connected(arguments) as database:
            key_id = database.rotate()
    else:
        key_id, begun = rotate_directory(arguments)
    if arguments.json:
        say(forms.line({"key_id": key_id}))
    else:
        already = "already " if begun else ""
        say(f"every key is {already}wrapped under master key {key_id}: with another one nothing opens.")
    return 0


def rotate_directory(arguments: argparse.Namespace) -> tuple[str, bool]:
    """The id of the key, and whether it was the master key before."""
    path, new = directory(arguments.target), arguments.new_key_file
    if new is None:
        raise Invalid("rotate needs --new-key-file")
    # Once it was cut off, with the one before the database may not open.
    begun = path.is_dir() and wrapped_by(path) == _native.key_id(read_key_file(new))
    with sync.open(path, create=False, key_file=new if begun else arguments.key_file) as database:
        return database.rotate(new), begun


def check(arguments: argparse.Namespace) -> int:
    path = directory(arguments.file)
    if not path.is_dir():
        raise Invalid(f"there is no database at {path}")
    with Progress("keys") as progress:
        found = check_directory(path, load_master(arguments.key_file), progress)
    if arguments.json:
        say(forms.line(found))
    else:
        shown: dict[str, Any] = {name: value for name, value in found.items() if name not in ("missing", "refused")}
        say(table(shown))
        if found["refused"]:
            say(f"refused: {found['refused']}")
        for each in found["missing"]:
            say(f"missing: {escaped(each['stream'])}: {each['why']}")
        if found["orphans"]:
            what = "their streams were taken back by a repair or a crash, and what is in quarantine/ may open with them"
            say(f"orphans: {what}: `keys rotate` leaves them out")
    return KeyUnavailable.exit_code if found["missing"] or found["refused"] else 0
