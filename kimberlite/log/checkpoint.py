"""Files that are derived from the segments: hashes, producers, indexes, and the checkpoint that names them.

The order of a checkpoint: what it covers is durable → hashes written and synced → producers written and
synced → checkpoint replaced. So what a checkpoint names is there, and what is behind it is cut off by
the next start. Any error of these files only puts a checkpoint off.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from kimberlite import _native
from kimberlite.errors import Corrupt
from kimberlite.log import past
from kimberlite.log.ahead import aside
from kimberlite.log.committer import Committer
from kimberlite.log.creation import read_small, write_small
from kimberlite.log.names import CHECKPOINT, HASHES, PRODUCERS, index_name
from kimberlite.log.options import Options
from kimberlite.log.past import HASHES_HEADER
from kimberlite.log.recovery import Ended, Loader
from kimberlite.log.refusals import FULL
from kimberlite.log.reserve import all_room, anyhow, besides, is_reserved, keep_reserve
from kimberlite.log.tail import Tail
from kimberlite.log.tasks import begin
from kimberlite.storage.backend import Backend, File, opener

#: Hashes written at a time. What the disk takes at once, appends wait for.
PIECE: Final = 16_384
#: Of a full disk so many at least.
LEAST_PIECE: Final = 128
#: Seconds between two checkpoints at least: a busy log would otherwise do nothing else. And after one that failed.
LEAST_INTERVAL: Final = 0.5
AGAIN: Final = 5.0
#: Segments that a start replays without a checkpoint of its own.
MANY: Final = 4
#: Longer than any file of producers is.
EVERYTHING: Final = 1 << 62


def hashes_header(database_id: bytes) -> bytes:
    return (b"KIMBTRE1" + database_id).ljust(HASHES_HEADER, b"\0")


class Derived:
    """Owns the derived files of a writer. `size` is how much of `producers` the last checkpoint names."""

    def __init__(self, backend: Backend, log: _native.Log, database_id: bytes) -> None:
        self.backend, self.log, self.database_id = backend, log, database_id
        self.hashes: File | None = None
        self.producers: File | None = None
        self.producers_size = 0
        self.group = 0
        #: What kept a start from making hashes again that are not to be believed.
        self.refused: Corrupt | None = None
        #: Whether the file of hashes says itself that it is not.
        self._disowned = False
        #: The segment that the newest checkpoint ends in.
        self.segment = 0
        #: How many hashes are in their file, and synced.
        self.hashed = 0
        #: What was replayed at the start: no index file is known to be of it.
        self.replayed: list[_native.Segment] = []

    def load(self, loader: Loader) -> Ended:
        """The log as of its last sound group, from the checkpoint if there is one that matches. Hashes that do not are
        made again; while the segments cannot be read from the beginning, the checkpoint does without."""
        data = read_small(self.backend, CHECKPOINT)
        resume = None if data is None else self.log.resume(data)
        loader.promised = 0 if resume is None else resume.group
        if data is not None and resume is not None and self._usable(resume, data, loader):
            return self._resume(resume, loader)
        loader.start_again()
        try:
            end = loader.run()
        except Corrupt as error:
            # Its frames hold the segments, and with them their locks.
            self.refused = error.with_traceback(None)
        if self.refused is None:
            self.log, self.replayed = loader.log, loader.segments
            loader.keys.check(self.log)
            # Only now: a checkpoint that refused this open must refuse the next one too.
            self._start_hashes()
            return end
        loader.start_again()
        if data is None or resume is None or not self._usable(resume, data, loader, fitting=False):
            raise self.refused
        peaks = self.log.peaks()
        end = self._resume(resume, loader)
        assert self.hashes is not None
        # With them all that comes behind the checkpoint is proven, whatever else is lost. A full disk does without.
        with contextlib.suppress(OSError):
            for index, peak in peaks:
                self.hashes.write(HASHES_HEADER + 32 * index, peak)
        self.log.doubt()
        return end

    def _resume(self, resume: _native.Resume, loader: Loader) -> Ended:
        end = loader.run()
        loader.keys.check(self.log)
        self.replayed = [segment for segment in loader.segments if segment.number >= resume.segment]
        # Not before: what is refused stays as it is.
        if self.hashes is None:
            self.hashes = self.backend.open(HASHES, "x")
            self.log.set_hashes(self.hashes)
        self.hashes.truncate(HASHES_HEADER + 32 * resume.hashes)
        self.hashed = resume.hashes
        return end

    def _usable(self, resume: _native.Resume, data: bytes, loader: Loader, *, fitting: bool = True) -> bool:
        """Whether the log has what the checkpoint was taken of, and, if they are to be `fitting`, its hashes; then the
        log is what it was. What is damaged of it is for a replay to judge."""
        self.log = loader.log
        hashes = self.backend.open(HASHES, "w") if self.backend.exists(HASHES) else None
        if fitting and (hashes is None or hashes.size() < HASHES_HEADER + 32 * resume.hashes):
            return False
        with aside(hashes, lambda: self._load_producers(resume)) as loaded:
            self.log.set_hashes(hashes)
            if not loader.restored(resume, data) or (fitting and not self.log.hashes_fit()) or not loaded():
                return False
        self.hashes, self.producers_size, self.group = hashes, resume.producers, resume.group
        self.segment = resume.segment
        return True

    def _start_hashes(self) -> None:
        for name in (PRODUCERS, CHECKPOINT):
            if self.backend.exists(name):
                self.backend.unlink(name)
        there = self.backend.exists(HASHES)
        if there and past.is_moved(self.backend, self.log.first):
            self.backend.unlink(HASHES)
            there = False
        # Else it has the only ones of what was dropped. No checkpoint may come back that believes the rest of it.
        if there:
            self.backend.sync_directory()
        self.hashes = self.backend.open(HASHES, "w" if there else "x")
        self.hashed = past.stored(self.log.first)
        hashes, header = self.hashes, hashes_header(self.database_id)

        def write_header() -> None:
            hashes.truncate(HASHES_HEADER + 32 * self.hashed)
            hashes.write(0, header)

        anyhow(write_header, *all_room(self.backend))
        self.log.set_hashes(hashes)
        self.producers_size = 0

    def _load_producers(self, resume: _native.Resume) -> bool:
        """The entries that the checkpoint names, if they are those that it was taken with."""
        size = resume.producers
        data = read_small(self.backend, PRODUCERS) if size else b""
        return data is not None and len(data) >= size and self.log.load_producers(data[:size], resume)

    # ---- writing

    def capture(self, segment: _native.Segment, tail: Tail) -> Callable[[], None]:
        """What to write once everything sealed so far is durable: the returned call does it, off the loop."""
        self.log.settle()
        group = self.log.sealed()[0] - 1
        entries, anew = self.log.take_producers(group, self.producers_size)
        place = 0 if anew else self.producers_size
        size = place + len(entries)
        snapshot = self.log.snapshot(segment, tail.place, size)
        self.producers_size = size

        def write() -> None:
            try:
                self._write_hashes()
                if anew:
                    self._replace_producers(entries)
                elif entries:
                    self._append_producers(place, entries)
                if self.log.doubted:
                    self._disown_hashes()
                write_small(self.backend, CHECKPOINT, snapshot)
            except OSError:
                # Hashes are kept until they are synced; what was taken of the producers is not.
                self.producers_size = EVERYTHING
                raise
            self.group, self.segment = group, segment.number

        return write

    def _write_hashes(self) -> None:
        """All there are by now, which may be more than the checkpoint names: the next one names those."""
        piece = PIECE
        while True:
            first, hashes = self.log.take_hashes(piece, again=True)
            if not hashes or self.hashes is None:
                return
            try:
                self.hashes.write(HASHES_HEADER + 32 * first, hashes)
                self.hashes.sync()
            except OSError as error:
                if error.errno not in FULL or piece <= LEAST_PIECE:
                    raise
                # There may be room for some.
                piece //= 8
                continue
            self.hashed = first + len(hashes) // 32
            self.log.flushed_hashes(self.hashed)

    def _disown_hashes(self) -> None:
        """Without its header a start makes the file again."""
        if self.hashes is not None and not self._disowned:
            self.hashes.write(0, bytes(HASHES_HEADER))
            self.hashes.sync()
            self._disowned = True

    def _replace_producers(self, entries: bytes) -> None:
        """Until the checkpoint that names it is there, the old one names more than there is: a start would replay."""
        write_small(self.backend, PRODUCERS, entries)
        if self.producers is not None:
            self.producers.close()
            self.producers = None

    def _append_producers(self, place: int, entries: bytes) -> None:
        if self.producers is None:
            mode = self.backend.exists(PRODUCERS)
            self.producers = self.backend.open(PRODUCERS, "w" if mode else "x")
            self.producers.truncate(place)
        self.producers.write(place, entries)
        self.producers.sync()

    def write_all(self, write: Callable[[], None], closed: list[_native.Segment]) -> None:
        """Index files of segments that were closed, which leave the list, and then the checkpoint."""
        while closed:
            name = index_name(closed[0].number)
            write_small(self.backend, name, self.log.index_file(closed[0]))
            self.log.close_segment(closed[0], opener(self.backend, name))
            closed.pop(0)
        write()

    def keep_replayed(self, segment: _native.Segment, tail: Tail) -> None:
        """Many short segments, as many kills leave, are not replayed at every start: now all of them is durable."""
        self.replayed = [each for each in self.replayed if each is not segment]
        if len(self.replayed) > MANY:
            with contextlib.suppress(OSError):
                self.write_all(self.capture(segment, tail), self.replayed if self.may_index() else [])

    def keep_room(self) -> None:
        """Of more streams and producers a record of retention says more."""
        with contextlib.suppress(OSError):
            if not is_reserved(self.backend, self.log):
                keep_reserve(self.backend, self.log)

    def may_index(self) -> bool:
        """Index files are made again: what a full disk has left is not for them."""
        with contextlib.suppress(OSError):
            return is_reserved(self.backend, self.log)
        return False


class Checkpointer:
    """Takes a checkpoint when enough has been appended or a segment was closed, one at a time, and at a clean close."""

    def __init__(self, derived: Derived, committer: Committer, options: Options) -> None:
        self._derived, self._committer, self._options = derived, committer, options
        self._loop = asyncio.get_running_loop()
        self._position = derived.log.durable
        self._place = 0
        self._task: asyncio.Task[OSError | None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._last = self._loop.time() - LEAST_INTERVAL
        self._closed, derived.replayed = derived.replayed, []
        self._stopped = False
        #: Whether there was a checkpoint since hashes were found wrong.
        self._doubted = False
        self._interval = LEAST_INTERVAL
        #: What is kept for what is said of streams and producers, or that a full disk did not give.
        self._besides = besides(derived.log.retained_bound)
        self._keeping: asyncio.Task[None] | None = None
        #: Whether the log says something by now that its state has not: a start from a checkpoint would never know it.
        self.held = False
        #: Whether room is being made for what must be: index files wait.
        self.sparing = False
        #: Called after a checkpoint was written.
        self.on_written: Callable[[], None] = lambda: None
        #: Called when the disk has no room for one.
        self.on_full: Callable[[], None] = lambda: None
        committer.on_rotate = self._rotated

    @property
    def segment(self) -> int:
        """The one that the newest checkpoint ends in."""
        return self._derived.segment

    @property
    def hashed(self) -> int:
        """The positions below this have their hashes in the file."""
        return past.leaves_of(self._derived.hashed)

    def published(self) -> None:
        """Called after groups became durable."""
        committer = self._committer
        if self._stopped or committer.poisoned is not None or self.held:
            return
        if (more := besides(self._derived.log.retained_bound)) > self._besides and self._keeping is None:
            self._besides = more
            self._keeping = begin(self._keep_room(), "kimberlite-reserve", committer.poison)
        if self._task is not None or committer.rotating:
            return
        records = self._derived.log.durable - self._position
        written = committer.written - self._place
        doubted = self._derived.log.doubted and not self._doubted
        due = doubted or records >= self._options.checkpoint_records or written >= self._options.checkpoint_bytes
        if not due and not self._closed:
            return
        wait = self._last + self._interval - self._loop.time()
        if wait <= 0:
            self._task = begin(self._take(), "kimberlite-checkpoint", committer.poison)
        elif self._timer is None:
            # Nothing more may be appended, and what is closed waits to be packed.
            self._timer = self._loop.call_later(wait, self._waited)

    async def _keep_room(self) -> None:
        try:
            if not self.sparing:
                await self._committer.backend.run(self._derived.keep_room)
        finally:
            self._keeping = None

    def _waited(self) -> None:
        self._timer = None
        self.published()

    def _rotated(self, segment: _native.Segment) -> None:
        self._closed.append(segment)

    async def _take(self, *, bare: bool = False) -> OSError | None:
        self._last = self._loop.time()
        lacking = not bare and not self.sparing and not self._derived.may_index()
        bare = bare or self.sparing or lacking
        self._position, self._place = self._derived.log.durable, self._committer.written
        committer, closed = self._committer, self._closed
        if committer.rotating or self.held:
            self._task = None
            return None
        self._closed = []
        taken, left = ([], closed) if bare else (closed, [])
        group = self._derived.log.sealed()[0] - 1
        write = self._derived.capture(committer.segment, committer.tail)
        self._interval = LEAST_INTERVAL
        try:
            if await committer.until_durable(group):
                doubted = self._derived.log.doubted
                await committer.backend.run(lambda: self._derived.write_all(write, taken))
                self._doubted = doubted
                self._closed = left + self._closed
                if lacking:
                    self._interval = AGAIN
                if not self.sparing and not self.held:
                    await committer.backend.run(self._derived.keep_room)
                self.on_written()
                # For what was closed meanwhile.
                self._loop.call_soon(self.published)
        except BaseException as error:
            # The disk may have room again, or another mood: nobody waits for this.
            self._interval = AGAIN
            self._closed = closed + self._closed
            self._position = self._place = 0
            if not isinstance(error, OSError):
                # A thread may still be writing them.
                raise
            if error.errno in FULL:
                self.on_full()
            # Its frames hold segments.
            return error.with_traceback(None)
        finally:
            self._task = None
        return None

    async def hold(self) -> None:
        """Returns when nothing is taken of the disk any more, until it is `held` no longer."""
        self.held = True
        while self._keeping is not None:
            await asyncio.wait([self._keeping])

    async def let_go(self) -> None:
        """Of what was dropped: it has its blocks until nobody has it open."""
        if self._task is not None:
            await asyncio.wait([self._task])
        first = self._derived.log.dropped[0]
        self._closed[:] = [segment for segment in self._closed if segment.number >= first]

    async def take(self, *, bare: bool = False) -> OSError | None:
        """Takes one now, or joins one that is being taken; an error of the disk puts it off. A `bare` one leaves the
        index files of closed segments for the next, and takes less room."""
        while self._committer.rotating and self._committer.poisoned is None:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        if self._task is None and not self._stopped:
            self._task = begin(self._take(bare=bare), "kimberlite-checkpoint", self._committer.poison)
        if (task := self._task) is None:
            return None
        await asyncio.wait([task])
        return None if task.cancelled() or task.exception() is not None else task.result()

    async def stop(self) -> None:
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        if tasks := [task for task in (self._task, self._keeping) if task is not None]:
            await asyncio.wait(tasks)

    def write_last(self) -> None:
        """At a clean close, when everything is durable."""
        with contextlib.suppress(OSError):
            write = self._derived.capture(self._committer.segment, self._committer.tail)
            self._derived.write_all(write, self._closed)
            self._derived.keep_room()
