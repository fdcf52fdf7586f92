"""import: take the records of an export, with their offsets and times, into a database.

What is there already is passed over, so an import that was cut off goes on when it is called again. Nobody else may
write meanwhile, unless the records get --new-times.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from kimberlite import _native
from kimberlite.cli import exports, forms
from kimberlite.cli.append import open_input
from kimberlite.cli.exports import Lacking, Source
from kimberlite.cli.target import add_key_file, add_target, opened
from kimberlite.cli.terminal import Progress, say, table
from kimberlite.client.client import Client
from kimberlite.errors import Conflict, Dropped, Erased, Invalid, LimitExceeded
from kimberlite.importing import HIGHEST, LONGEST_REASON, Import
from kimberlite.log.log import Log

STDIN: Final = "-"
#: Why offsets are missing of a stream that was not erased.
REASON: Final = "not in the export"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument("file", metavar="FILE", help="an export of either form; - for stdin")
    parser.add_argument("--new-times", action="store_true", help="records get the present time, and keep only offsets")
    add_key_file(parser)


def run(arguments: argparse.Namespace) -> int:
    loading = asyncio.run(load(arguments))
    said = {"records": loading.added, "passed_over": loading.passed, "gaps": loading.gaps}
    say(forms.line(said | loading.lacking.form()) if arguments.json else table(said))
    if not arguments.json:
        loading.lacking.tell(loading.stream)
    return 0


async def load(arguments: argparse.Namespace) -> Loading:
    with Progress("import") as progress:
        async with source_of(arguments.file) as (source, total), opened(arguments, write=True) as db:
            loading = Loading(db, new_times=arguments.new_times)
            async with db.importing(new_times=arguments.new_times) as into:
                form = await exports.form_of(source)
                async for piece in exports.read(source, form):
                    await loading.take(into, piece)
                    if total:
                        progress(source.place, total)
            return loading


@asynccontextmanager
async def source_of(name: str) -> AsyncIterator[tuple[Source, int]]:
    """And how long it is, if that is known. A file that is known not to be what was exported is refused."""
    file = open_input(None if name == STDIN else name)
    with file:
        about = os.fstat(file.fileno())
        regular = stat.S_ISREG(about.st_mode)

        async def read(length: int) -> bytes:
            # What comes late holds up nobody.
            return file.read(length) if regular else await asyncio.to_thread(file.read, length)

        source = Source("stdin" if name == STDIN else name, read)
        if regular and not await asyncio.to_thread(exports.is_sound, file):
            start = file.tell()
            # This names the line, if that can be told, before anything of the file is imported.
            async for _ in exports.read(source, await exports.form_of(source)):
                pass
            file.seek(start)
            source = Source(source.name, read)
        yield source, about.st_size if regular else 0


class Loading:
    """Which of an export's records are there already, and which are added.

    * In each stream records come in their order, and where some are missing the export says so by an offset that is
      higher: then there is a gap.
    * What is there is passed over; the last record of it is compared.
    """

    def __init__(self, db: Log | Client, *, new_times: bool) -> None:
        self._db, self._new_times = db, new_times
        self.added = self.passed = self.gaps = 0
        self.lacking = Lacking()
        #: The one that the export is of, if it is only one.
        self.stream: str | None = None
        #: How long each stream was before; and where it goes on, in the export and in the database.
        self._there: dict[str, int] = {}
        self._next: dict[str, int] = {}
        #: Of each stream the last record that is passed over, to be compared: offset, time, itself, and what it is of.
        self._last: dict[str, tuple[int, int, bytes, str]] = {}
        self._lengths: dict[str, int] = {}
        self._time = 0

    async def take(self, into: Import, piece: exports.Piece) -> None:
        if piece.kind == "head":
            self._there = {info.name: info.length async for info in self._db.streams()}
            self._time = piece.value["time"]
            streams = piece.value["asked"]["streams"] or []
            self.stream = streams[0] if len(streams) == 1 else None
        elif piece.kind == "lengths":
            self._lengths |= dict(piece.value)
        elif piece.kind == "records":
            for run in piece.runs:
                await self._batch(into, *run)
        elif piece.kind == "end":
            await self._end(into, piece.of)
        else:
            self.lacking.take(piece.kind, piece.value)

    async def _batch(self, into: Import, stream: str, offset: int, time: int, batch: _native.Batch, of: str) -> None:
        there, end = self._there.get(stream, 0), offset + len(batch)
        known = self._next.get(stream)
        if end > HIGHEST:
            # Before the gap in front of it fills the stream.
            raise LimitExceeded(f"{of}: stream {stream!r} would be longer than 2^63 - 1 records")
        if known is not None and offset < known:
            raise Invalid(f"{of}: stream {stream!r} goes back from offset {known} to {offset}")
        if known is None and 0 < there < offset:
            what = f"stream {stream!r} ends at offset {there}, and the export begins at {offset}"
            raise Conflict(f"{of}: {what}", there)
        self._next[stream], self._time = end, time
        if offset < there:
            over = min(end, there) - offset
            self.passed += over
            if end <= there:
                self._last[stream] = end - 1, time, batch.last, of
                return
            await self._same(stream, offset + over - 1, time, batch.split()[over - 1].last, of)
            offset, batch = offset + over, batch.behind(over)
        await self._compare(stream)
        if offset > max(known or 0, there):
            await self._gap(into, stream, offset, time, of)
        await into.add(stream, offset, time, batch, of=of)
        self.added += len(batch)

    async def _gap(self, into: Import, stream: str, offset: int, time: int, of: str) -> None:
        erasure = self.lacking.erased.get(stream)
        reason = REASON if erasure is None else exports.shown(erasure)
        await into.gap(stream, offset, time, reason.encode()[:LONGEST_REASON].decode(errors="ignore"), of=of)
        self.gaps += 1

    async def _end(self, into: Import, of: str) -> None:
        for stream in list(self._last):
            await self._compare(stream)
        for stream, length in self._lengths.items():
            there, known = self._there.get(stream, 0), self._next.get(stream)
            if length > max(there, known or 0):
                # Of one that was erased no other export has them either.
                if known is None and there and stream not in self.lacking.erased:
                    what = f"stream {stream!r} ends at offset {there}, and goes on at {length} by the export"
                    raise Conflict(f"{of}: {what}", there)
                await self._gap(into, stream, length, self._time, of)

    async def _compare(self, stream: str) -> None:
        if stream in self._last:
            await self._same(stream, *self._last.pop(stream))

    async def _same(self, stream: str, offset: int, time: int, stored: bytes, of: str) -> None:
        """Whether the last record that is passed over is that which is there."""
        found = None
        try:
            # From behind, where a gap is none of what was asked for.
            async for record in self._db.read(stream, until=offset + 1, limit=1, reverse=True):
                found = record
            if found is None:
                # Dropped or never there: only to what was dropped no read may go.
                await anext(self._db.read(stream, until=offset, limit=1, reverse=True), None)
        except (Dropped, Erased):
            # It was there.
            return
        same = found is not None and found.offset == offset and _native.encode(found).last == stored
        if not same or (found is not None and found.timestamp != time and not self._new_times):
            raise Conflict(f"{of}: stream {stream!r} has another record at offset {offset} than the export")
