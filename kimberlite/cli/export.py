"""export: write records with all that is known of them into a file, for another database or another program.

The file is called FILE.part until it is whole, and an export that was cut off goes on with it. With one --stream the
bounds are offsets, else positions.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import fcntl
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from kimberlite import _native
from kimberlite.arguments import checked_name
from kimberlite.cli import exports, forms
from kimberlite.cli.exports import Asked, Bound, Form, Frames, Kind, Lines, Source
from kimberlite.cli.read import parse_bound
from kimberlite.cli.target import add_key_file, add_target, check_outside, opened
from kimberlite.cli.terminal import Progress, note, say, table
from kimberlite.client.client import Client
from kimberlite.errors import Busy, Corrupt, Dropped, Erased, Invalid, RolledBack
from kimberlite.importing import HIGHEST
from kimberlite.log.log import Log
from kimberlite.records import Time, nanoseconds

STDOUT: Final = "-"
PART: Final = ".part"
FOREIGN: Final = "is not of this export: take it away, or ask for the one that it is of"
GIVEN_UP: Final = (
    "has records that the database has no more: a repair gave them up, or an older copy of it was put back; "
    "take it away to export what is there"
)
UNCOVERED: Final = (
    "no watermark covers them, as where a writer was killed: they are not in the file until somebody has opened the "
    "database for writing"
)
NOT_OURS: Final = "is no file that is yours and has no other name: take it away, or name another FILE"


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
    if arguments.file != STDOUT:
        if os.path.lexists(arguments.file):
            raise Invalid(f"{arguments.file} is there already: name another file, or take it away")
        check_outside(arguments.file)
    asked = Asked(streams, as_bound(arguments.start), as_bound(arguments.until))
    form, behind = asyncio.run(export(arguments, asked, Frames if arguments.binary else Lines))
    tell(arguments, asked, form, behind)
    return 0


def tell(arguments: argparse.Namespace, asked: Asked, form: Form, behind: tuple[int, int] | None) -> None:
    said: dict[str, Any] = {"file": arguments.file, "records": form.records}
    lacking: dict[str, Any] = form.lacking.form() | {"uncovered": behind and list(behind)}
    if arguments.file != STDOUT:
        say(forms.line(said | lacking) if arguments.json else table(said))
    elif arguments.json and any(lacking.values()):
        note(forms.line(lacking))
    if not arguments.json:
        form.lacking.tell(asked.stream)
        if behind is not None:
            note(f"groups {behind[0]} to {behind[1]} are sound, and {UNCOVERED}")


def as_bound(bound: int | datetime | None) -> Bound:
    if isinstance(bound, datetime):
        if bound.utcoffset() is None:
            raise Invalid("a time must be aware: it has no time zone")
        # No record's time is beyond.
        return Time(max(-HIGHEST, min(nanoseconds(bound), HIGHEST)))
    return bound


async def export(
    arguments: argparse.Namespace, asked: Asked, make: Callable[[], Form]
) -> tuple[Form, tuple[int, int] | None]:
    """And which groups of a directory are not taken, though they are sound."""
    file = arguments.file
    with Progress("export") as progress:
        async with opened(arguments, write=False) as db:
            behind = await db._behind() if isinstance(db, Log) else None
            if file == STDOUT:
                return await write(db, asked, make(), sys.stdout.buffer, progress), behind
            part = f"{file}{PART}"
            with open_part(part) as out:
                form = await write_file(db, asked, make, out, part, progress)
                out.flush()
                os.fsync(out.fileno())
                put_in_place(part, file)
    return form, behind


@contextmanager
def open_part(part: str) -> Iterator[BinaryIO]:
    """Nobody else writes to it, and, as it is in the clear, nobody else reads it."""
    with open(part, "ab+", opener=open_own) as out:
        try:
            fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"{part} is being written by another export") from None
        if not os.path.lexists(part) or not os.path.samestat(os.fstat(out.fileno()), os.lstat(part)):
            raise Busy(f"{part} was another export's until now: call again")
        yield out


def open_own(part: str, flags: int) -> int:
    """A file that nobody else has, or has by another name, whatever was there before."""
    try:
        fd = os.open(part, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY, 0o600)
    except OSError as error:
        what = f" {NOT_OURS}" if error.errno == errno.ELOOP else f": {error.strerror}"
        raise Invalid(f"{part}{what}") from None
    about = os.fstat(fd)
    if stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid() and about.st_nlink == 1:
        os.fchmod(fd, 0o600)
        return fd
    os.close(fd)
    raise Invalid(f"{part} {NOT_OURS}")


def put_in_place(part: str, file: str) -> None:
    """A file that has come meanwhile stays what it is."""
    try:
        take_name(part, file)
    except FileExistsError:
        raise Invalid(f"{file} has come meanwhile, and {part} is whole: take one of them away and call again") from None


def take_name(part: str, file: str) -> None:
    """link → fsync of the directory → unlink; where there are no links: create → rename → fsync of the directory."""
    try:
        os.link(part, file, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        os.rename(part, file)
        sync_directory(Path(file).parent)
    else:
        sync_directory(Path(file).parent)
        os.unlink(part)


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
    if found.record is not None and not found.whole:
        await check_same(db, found.record, found.head["incarnation"], part)
    out.truncate(form.passed)
    if found.whole:
        return form
    at = None if found.last is None else found.last[asked.stream is None] + 1
    return await go_on(db, asked, form, out, found.head, at, progress)


class Known(NamedTuple):
    """A record as an export has it."""

    stream: str
    offset: int
    position: int
    time: int
    stored: bytes


class Found(NamedTuple):
    """What an export has left that was cut off."""

    head: dict[str, Any]
    #: Offset and position of the last that is there or is said to be missing; and the last record that is there.
    last: tuple[int, int] | None
    record: Known | None
    whole: bool


async def check_same(db: Log | Client, known: Known, incarnation: int, part: str) -> None:
    """Whether the database has what an export of this incarnation has. What was dropped or erased since is gone by a
    rule, and of that only the records of repairs tell."""
    stream, offset, position, _, _ = known
    try:
        found = [record async for record in db.read(stream, start=offset, until=offset + 1)]
        same = [Known(stream, each.offset, each.position, each.timestamp, _native.encode(each).last) for each in found]
        sound = same == [known]
    except (Dropped, Erased):
        info = await db.info()
        gone = given_up(info, position, lambda each: each["incarnation"] > incarnation)
        sound = position < info["durable_position"] and not gone
    if not sound:
        raise RolledBack(f"{part} {GIVEN_UP}")


async def is_short(db: Log | Client, asked: Asked, head: dict[str, Any], info: dict[str, Any]) -> bool:
    """Whether a repair has given up some of the lengths that an export up to the end has begun with."""
    until = exports.bound_of(head["until"])
    if asked.until is not None or not isinstance(until, int):
        return False
    if asked.stream is None:
        return given_up(info, until - 1, lambda each: each["incarnation"] > head["incarnation"])
    return until > max([stream.length async for stream in db.streams() if stream.name == asked.stream], default=0)


def incarnation_of(info: dict[str, Any]) -> int:
    """As far as what was given up is known of."""
    return max((each["incarnation"] for each in info["repairs"] if each["incarnation"] is not None), default=0)


def given_up(info: dict[str, Any], position: int, is_new: Callable[[dict[str, Any]], bool]) -> bool:
    """Whether a repair that is new has given up what was here."""
    said = (each for each in info["repairs"] if each["kept"] is not None)
    return any(each["kept"] <= position and is_new(each) for each in said)


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
    last, record, kind, sound = None, None, None, 0
    try:
        async for found in exports.read(source, form):
            kind, sound = found.kind, form.passed
            head = found.value if kind == "head" else head
            if kind == "records":
                last, (stream, offset, when, batch, _) = found.last, found.runs[-1]
                record = Known(stream, offset + len(batch) - 1, last[1], when, batch.last)
            if kind == "missing":
                last = found.value[1] - 1, found.value[1] - 1
            form.lacking.take(kind, found.value)
    except (Corrupt, Invalid):
        # What follows was not on the disk yet when it was cut off.
        if head is not None and form.passed != sound:
            raise Invalid(f"{part} {FOREIGN}") from None
    # Without a record nobody knows whether all lengths are there.
    return None if head is None or kind in ("head", "lengths") else Found(head, last, record, kind == "end")


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
        "incarnation": incarnation_of(info),
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
    """From `at`, or where it was asked for, to its end; over what was dropped meanwhile."""
    until, more, reached = exports.bound_of(head["until"]), True, -1
    repaired = (await db.info())["repairs"]
    while more:
        try:
            async for data, last in form.exported(db, asked, asked.start if at is None else at, until):
                out.write(data)
                at, reached = last[asked.stream is None] + 1, last[1]
                if isinstance(until, int):
                    progress(at, until)
            more = False
        except Dropped as dropped:
            # Where nothing was written yet it was asked for what is not there.
            if at is None or dropped.first is None:
                raise
            first = dropped.first
            lack(form, out, "missing", [at, min(first, until) if isinstance(until, int) else first])
            at = first
    info = await db.info()
    if given_up(info, reached, lambda each: each not in repaired) or await is_short(db, asked, head, info):
        raise RolledBack(f"the export {GIVEN_UP}")
    erased = await erasures(db, asked)
    for start in range(0, len(erased), exports.STREAMS):
        lack(form, out, "erased", erased[start : start + exports.STREAMS])
    out.write(form.end())
    out.flush()
    return form


def lack(form: Form, out: BinaryIO, kind: Kind, value: Any) -> None:
    """Whoever goes on with it, or imports it, is told too."""
    out.write(form.put(kind, value))
    form.lacking.take(kind, value)


async def erasures(db: Log | Client, asked: Asked) -> list[dict[str, Any]]:
    """Which of its streams are erased by now."""
    # To a reader the streams are as of its last look.
    await db.info()
    found = []
    erased = [info.name async for info in db.streams() if info.erased]
    for name in erased if asked.streams is None else [name for name in erased if name in asked.streams]:
        try:
            await anext(db.read(name, limit=0), None)
        except Erased as error:
            found.append({"stream": name, "when": error.when, "reason": error.reason})
    return found
