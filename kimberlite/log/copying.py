"""`kimberlite salvage`: what is left of a database, in a new one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

from kimberlite import _native
from kimberlite.crypto.master import load_master
from kimberlite.errors import Busy, Corrupt, Invalid
from kimberlite.log.log import Log
from kimberlite.log.marks import INCARNATIONS
from kimberlite.log.opening import Injected, Opening, checked_path, open_log
from kimberlite.log.options import Options
from kimberlite.log.refusals import UNFIT_TO_BEGIN, translate
from kimberlite.log.remains import MOST_SAID
from kimberlite.log.salvage import Finder, Progress, Report
from kimberlite.storage import open_backend
from kimberlite.storage.files import move_directory

#: Why a stream of the new log has a gap.
NOT_SALVAGED: Final = "not salvaged"
#: Ranges of positions that its record of a salvage names at most.
MOST_LOST: Final = 65_536


class Finished:
    """The time until which the new log's clock has come: records keep theirs, also where a clock was ahead of ours."""

    def __init__(self) -> None:
        self.latest = 0

    def __call__(self) -> int:
        return max(self.latest, time.time_ns())


async def copy(finder: Finder, db: Log, clock: Finished) -> Report:
    """Into an empty log: offsets and times stay what they are, and what it is comes last."""
    report, before = finder.report, finder.incarnation
    after = min(before + 1, INCARNATIONS - 1)
    db._native.raise_incarnation(after)
    ends: dict[str, int] = {}
    async with db.importing() as into:
        for stream, offset, when, batch in finder.records():
            clock.latest = max(clock.latest, when)
            if offset > ends.get(stream, 0):
                await into.gap(stream, offset, when, NOT_SALVAGED)
            await into.add(stream, offset, when, batch)
            ends[stream] = offset + len(batch)
    lost = report.lost()[:MOST_LOST]
    origin = finder.origin.database_id
    said = _native.encode_repair(
        origin, salvaged=True, when=clock(), before=before, after=after, kept=report.copied, lost=lost
    )
    committer, _ = db._writer()
    await committer.say([said])
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
    for there in (target, unfinished):
        if os.path.lexists(there):  # noqa: ASYNC240 (once, before anything runs)
            raise Invalid(f"{there} is there already")
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
