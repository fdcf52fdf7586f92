"""export: write records with all that is known of them into a file, for another database or another program.

The file is called FILE.part until it is whole, and an export that was cut off goes on with it. With one --stream the
bounds are offsets, else positions.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from kimberlite.arguments import checked_name
from kimberlite.cli import exports, forms
from kimberlite.cli.exports import HIGHEST, Asked, Bound, Form, Frames, Lines, Source
from kimberlite.cli.read import parse_bound
from kimberlite.cli.target import add_key_file, add_target, opened
from kimberlite.cli.terminal import Progress, say, table
from kimberlite.client.client import Client
from kimberlite.errors import Busy, Corrupt, Invalid
from kimberlite.log.log import Log
from kimberlite.records import Time, nanoseconds

STDOUT: Final = "-"
PART: Final = ".part"
FOREIGN: Final = "is not of this export: take it away, or ask for the one that it is of"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument("file", metavar="FILE", help="what is made, and may not be there; - for stdout")
    parser.add_argument("--stream", metavar="NAME", action="append", help="this stream only; may be given again")
    bound = "an offset with one --stream, a position without, or a time such as 2026-01-31T12:00:00Z"
    parser.add_argument("--start", metavar="AT", type=parse_bound, help=f"the first record: {bound}")
    parser.add_argument("--until", metavar="AT", type=parse_bound, help="where to stop, exclusive: the same")
    parser.add_argument("--binary", action="store_true", help="frames, a fraction as long, and not lines of JSON")
    add_key_file(parser)


def run(arguments: argparse.Namespace) -> int:
    streams = None if arguments.stream is None else tuple(dict.fromkeys(map(checked_name, arguments.stream)))
    if arguments.file != STDOUT and os.path.lexists(arguments.file):
        raise Invalid(f"{arguments.file} is there already: name another file, or take it away")
    asked = Asked(streams, as_bound(arguments.start), as_bound(arguments.until))
    form = asyncio.run(export(arguments, asked, Frames if arguments.binary else Lines))
    if arguments.file != STDOUT:
        said = {"file": arguments.file, "records": form.records}
        say(forms.line(said) if arguments.json else table(said))
    return 0


def as_bound(bound: int | datetime | None) -> Bound:
    if isinstance(bound, datetime):
        if bound.utcoffset() is None:
            raise Invalid("a time must be aware: it has no time zone")
        # No record's time is beyond.
        return Time(max(-HIGHEST, min(nanoseconds(bound), HIGHEST)))
    return bound


async def export(arguments: argparse.Namespace, asked: Asked, make: Callable[[], Form]) -> Form:
    file = arguments.file
    with Progress("export") as progress:
        async with opened(arguments, write=False) as db:
            if file == STDOUT:
                return await write(db, asked, make(), sys.stdout.buffer, progress)
            part = f"{file}{PART}"
            with open_part(part) as out:
                form = await write_file(db, asked, make, out, part, progress)
                out.flush()
                os.fsync(out.fileno())
                os.rename(part, file)
    sync_directory(Path(file).parent)
    return form


@contextmanager
def open_part(part: str) -> Iterator[BinaryIO]:
    """Nobody else writes to it, and, as it is in the clear, nobody else reads it."""
    try:
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Invalid(f"{part}: {error.strerror}") from None
    with open(fd, "ab+") as out:
        try:
            fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"{part} is being written by another export") from None
        yield out


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


async def write_file(
    db: Log | Client, asked: Asked, make: Callable[[], Form], out: BinaryIO, part: str, progress: Progress
) -> Form:
    """Goes on where the file ends, as far as it is whole."""
    form = make()
    found = await what_is_there(out, part, form)
    if found is None:
        out.truncate(0)
        return await write(db, asked, make(), out, progress)
    if found.head["database"] != (await db.info())["database_id"] or found.head["asked"] != asked.form():
        raise Invalid(f"{part} {FOREIGN}")
    out.truncate(form.passed)
    if found.whole:
        return form
    at = None if found.last is None else found.last[asked.stream is None] + 1
    return await go_on(db, asked, form, out, found.head, at, progress)


class Found(NamedTuple):
    """What an export has left that was cut off."""

    head: dict[str, Any]
    #: Offset and position of the last record.
    last: tuple[int, int] | None
    whole: bool


async def what_is_there(out: BinaryIO, part: str, form: Form) -> Found | None:
    """None if not even its beginning is there."""
    out.seek(0)

    async def piece(length: int) -> bytes:
        return out.read(length)

    source = Source(part, piece)
    begins = await source.peek(len(form.mark))
    # Where the power was cut there may be zeros.
    if not form.mark.startswith(begins) and begins.strip(b"\0"):
        raise Invalid(f"{part} {FOREIGN}")
    head: dict[str, Any] | None = None
    last, kind, sound = None, None, 0
    try:
        async for found in exports.read(source, form):
            kind, sound = found.kind, form.passed
            head = found.value if kind == "head" else head
            last = found.last if kind == "records" else last
    except (Corrupt, Invalid):
        # What follows was not on the disk yet when it was cut off.
        if head is not None and form.passed != sound:
            raise Invalid(f"{part} {FOREIGN}") from None
    # Without a record nobody knows whether all lengths are there.
    return None if head is None or kind in ("head", "lengths") else Found(head, last, kind == "end")


async def write(db: Log | Client, asked: Asked, form: Form, out: BinaryIO, progress: Progress) -> Form:
    # Before anybody asks where the log ends: what has become longer since has records that are not exported.
    lengths = [(info.name, info.length) async for info in db.streams()]
    if asked.streams is not None:
        lengths = [(name, length) for name, length in lengths if name in asked.streams]
    info = await db.info()
    until = asked.until
    if until is None:
        until = info["durable_position"] if asked.stream is None else dict(lengths).get(asked.stream, 0)
    else:
        lengths = []
    head = {
        "version": exports.VERSION,
        "database": info["database_id"],
        "origin": info["origin"],
        "time": time.time_ns(),
        "asked": asked.form(),
        "until": exports.bound_form(until),
    }
    out.write(form.front + form.put("head", head))
    for start in range(0, len(lengths), exports.STREAMS):
        out.write(form.put("lengths", lengths[start : start + exports.STREAMS]))
    return await go_on(db, asked, form, out, head, None, progress)


async def go_on(
    db: Log | Client, asked: Asked, form: Form, out: BinaryIO, head: dict[str, Any], at: int | None, progress: Progress
) -> Form:
    """From `at`, or where it was asked for, to its end."""
    until = exports.bound_of(head["until"])
    async for data, (offset, position) in form.exported(db, asked, asked.start if at is None else at, until):
        out.write(data)
        if isinstance(until, int):
            progress(position if asked.stream is None else offset, until)
    out.write(form.end())
    out.flush()
    return form
