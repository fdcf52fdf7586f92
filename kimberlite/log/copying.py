"""`kimberlite salvage`: what is left of a database, in a new one."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from kimberlite import _native
from kimberlite.crypto.master import load_master
from kimberlite.errors import Busy, Corrupt, Invalid
from kimberlite.importing import Import
from kimberlite.log.description import erasures, repairs
from kimberlite.log.log import LATEST, Log
from kimberlite.log.marks import INCARNATIONS
from kimberlite.log.opening import Injected, Opening, checked_path, open_log
from kimberlite.log.options import Options
from kimberlite.log.refusals import UNFIT_TO_BEGIN, translate
from kimberlite.log.remains import MOST_SAID
from kimberlite.log.salvage import Finder, Gone, Progress, Report
from kimberlite.storage import open_backend
from kimberlite.storage.files import move_directory

#: Why a stream of the new log has a gap.
NOT_SALVAGED: Final = "not salvaged"
#: In the place of the master key's id in a confirmation, where that of today is the one of the erasure again.
NO_MASTER: Final = bytes(16)


class Finished:
    """The time until which the new log's clock has come: records keep theirs, also where a clock was ahead of ours."""

    def __init__(self) -> None:
        self.latest = 0

    def __call__(self) -> int:
        return max(self.latest, time.time_ns())


class Copying:
    """What was found, on its way into an empty log. Offsets and times stay what they are."""

    def __init__(self, finder: Finder, db: Log, clock: Finished, into: Import) -> None:
        self._finder, self._db, self._clock, self._into = finder, db, clock, into
        #: Behind the last record of each stream.
        self._ends: dict[str, int] = {}
        self._time = 0

    async def run(self) -> None:
        erasing = deque(self._erasing())
        for stream, offset, when, batch in self._finder.records():
            while erasing and erasing[0][0] <= when:
                await self._erase(*erasing.popleft()[1:])
            self._reach(when)
            await self._skip_to(stream, offset)
            await self._into.add(stream, offset, when, batch)
            self._ends[stream] = offset + len(batch)
        for _, confirms, gone in erasing:
            await self._erase(confirms, gone)
        for number, length in self._finder.lengths.items():
            await self._skip_to(self._finder.name_of(number), length)

    def _erasing(self) -> list[tuple[int, bool, Gone]]:
        """When each stream was erased, and when that was confirmed. Where nothing says it, it comes last."""
        if not self._finder.master_id:
            # Plain ones cannot be.
            return []
        found = []
        for gone in {self._finder.name_of(gone.stream): gone for gone in self._finder.erasures}.values():
            when = gone.when or LATEST
            found.append((when, False, gone))
            if gone.confirmed is not None:
                found.append((max(when, gone.confirmed or LATEST), True, gone))
        return sorted(found)

    def _reach(self, when: int) -> None:
        self._time = max(self._time, when)
        self._clock.latest = max(self._clock.latest, self._time)

    async def _skip_to(self, stream: str, offset: int) -> None:
        if offset > self._ends.get(stream, 0):
            await self._into.gap(stream, offset, self._time, NOT_SALVAGED)
            self._ends[stream] = offset

    async def _erase(self, confirms: bool, gone: Gone) -> None:
        """Nothing of the stream is here, and its key never was. What is pending there is pending here."""
        native, (_, streams) = self._db._native, self._db._writer()
        stream = self._finder.name_of(gone.stream)
        number = streams.number(stream)
        if confirms:
            self._reach(gone.confirmed or 0)
            now = self._finder.master_id
            await self._say(native.confirmation_record(number, now if now != gone.master else NO_MASTER))
            return
        self._reach(gone.when)
        await self._skip_to(stream, self._finder.lengths[gone.stream])
        await self._say(native.erasure_record(number, gone.master, gone.reason))

    async def _say(self, payload: bytes) -> None:
        """At the time that the log has come to."""
        committer, _ = self._db._writer()
        if committer.crowded:
            await committer.turn()
        future = asyncio.get_running_loop().create_future()
        batch = _native.encode([payload])
        committer.enter(_native.Request.importing("", 0, None, self._time, batch, None, future, committer.quantum))
        await future


async def copy(finder: Finder, db: Log, clock: Finished) -> Report:
    """Into an empty log; what it is comes last."""
    report, before = finder.report, finder.incarnation
    after = min(before + 1, INCARNATIONS - 1)
    db._native.raise_incarnation(after)
    committer, streams = db._writer()
    await streams.create(finder.streams())
    async with db.importing() as into:
        await Copying(finder, db, clock, into).run()
    origin, lost = finder.origin.database_id, report.lost()
    said = _native.encode_repair(
        origin, salvaged=True, when=clock(), before=before, after=after, kept=report.copied, lost=lost
    )
    await committer.mark(await committer.say([*finder.earlier(), said]))
    assert db.upkeep is not None, "whoever writes has it"
    await db.upkeep.eraser.settle()
    report.erasures = erasures(db._native)
    report.earlier = repairs(db._native)[:-1]
    return report


async def salvage_directory(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    key_file: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Into a new directory, which gets its name when it is whole."""
    name, target = checked_path(path), checked_path(out)
    unfinished = f"{target}.salvaging"
    left = "a salvage that was cut off has left it: delete it, unless one is at work"
    for there, what in ((target, "name a directory that is not there yet"), (unfinished, left)):
        if os.path.lexists(there):  # noqa: ASYNC240 (once, before anything runs)
            raise Invalid(f"{there} is there already: {what}")
    master, clock = load_master(key_file), Finished()
    try:
        backend = open_backend(name, read_only=True)
    except OSError as error:
        raise translate(error, name, UNFIT_TO_BEGIN) from error
    try:
        backend.lock_directory()
        finder = Finder(backend, master, progress)
        try:
            if why := finder.why_none():
                raise Corrupt(f"not one record of it can be saved: {'; '.join(why[:MOST_SAID])}", file=name)
            async with new_log(unfinished, key_file, clock) as db:
                report = await copy(finder, db, clock)
        finally:
            finder.close()
        move_directory(unfinished, target)
    except BlockingIOError:
        raise Busy("a writer has the database open") from None
    except OSError as error:
        raise translate(error, name) from error
    finally:
        backend.close()
    return report


def new_log(path: str, key_file: str | os.PathLike[str] | None, clock: Callable[[], int]) -> Opening:
    return open_log(
        path,
        create=True,
        read_only=False,
        key_file=key_file,
        backend="auto",
        origin=None,
        anchor=None,
        options=Options(),
        or_read=False,
        injected=Injected(clock=clock),
    )
