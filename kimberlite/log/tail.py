"""The segment that is being written, and the room ahead of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Final

from kimberlite.errors import UnknownOutcome
from kimberlite.log.names import PREPARE, SEGMENTS, prepared_name, segment_name
from kimberlite.log.refusals import refusal
from kimberlite.log.tasks import begin
from kimberlite.storage.backend import BLOCK, Backend, File

#: Zeroed at a time: 13 ms of a slow disk.
STEP: Final = 4 << 20
#: Allocated at a time when appends are waiting for it.
HURRY: Final = 16 << 20
#: Zeros kept ahead of a log that is hardly written; a busy one gets what it wrote in the last second, up to the most.
LEAST_AHEAD: Final = 1 << 20
MOST_AHEAD: Final = 64 << 20
#: Zeros cost the disk as much as the groups that are to lie in them and save each group about 0.1 ms. So above this
#: many bytes a second, groups that are this large on average get room that is only allocated.
BUSY: Final = 64 << 20
LARGE: Final = 128 * 1024
#: Kept of what is allocated for the closing group and for records that free space.
RESERVE: Final = 64 * 1024
#: Allocated at a time for those when the disk has no room.
LAST: Final = 4 * BLOCK


class Prepared:
    """A file and how much of it, from its start, is allocated. Only the preparer writes beyond `ready`."""

    def __init__(self, file: File, ready: int) -> None:
        self.file = file
        self.ready = ready
        #: Why a sync of it failed while more room was made. If groups are in it by then, it was the only word that
        #: they are lost: their own sync may succeed.
        self.lost: OSError | None = None
        #: Whether it is the active segment, or is about to be.
        self.used = False


class Tail:
    """Owns the active segment file: where the next group goes, and the room ahead of it.

    * `place` only grows, in steps of BLOCK; bytes before it are never written again.
    * Everything from `place` to `current.ready` is allocated and reads as zeros: a group that lies in
      it cannot fail for want of space.
    * One task prepares: it writes only beyond `ready`, then moves it. So it never meets a group.
    * A next segment's file is called `prepare/N.seg` until rotation renames it.
    """

    def __init__(self, backend: Backend, number: int, file: File, place: int, segment_bytes: int) -> None:
        self.backend = backend
        self.number = number
        self.place = place
        self.segment_bytes = segment_bytes
        self.current = Prepared(file, min(max(place, file.size() // BLOCK * BLOCK), segment_bytes))
        self.current.used = True
        self.next: Prepared | None = None
        self.refused: OSError | None = None
        self._reserve = RESERVE
        self._written = self._groups = 0
        self._rate = 0.0
        self._large = False
        self._hurry = False
        self._stopping = False
        self._work = asyncio.Event()
        self._progress: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._since = 0.0
        #: Called when the preparation has ended by itself: nobody knows what a thread may still write.
        self.on_death: Callable[[BaseException], None] = lambda _error: None

    @property
    def file(self) -> File:
        return self.current.file

    @property
    def most(self) -> int:
        """The largest group that any segment takes."""
        return self.segment_bytes - 2 * BLOCK

    def full(self, bound: int) -> bool:
        """Whether a group of this size needs the next segment."""
        return self.place + bound + BLOCK > self.segment_bytes

    def largest(self) -> int:
        """What a group may take at most to be neither too large for this segment nor for the room in it."""
        ready = self.current.ready
        spare = 0 if ready >= self.segment_bytes else self._reserve
        return min(self.segment_bytes - BLOCK, ready - max(spare, BLOCK)) - self.place

    def has_room(self, bound: int) -> bool:
        ready = self.current.ready
        spare = 0 if ready >= self.segment_bytes else self._reserve
        return self.place + bound + max(spare, BLOCK) <= ready

    @contextlib.contextmanager
    def to_the_last(self) -> Iterator[None]:
        """Meanwhile what is kept for records that free space is room, too."""
        self._reserve = BLOCK
        try:
            yield
        finally:
            self._reserve = RESERVE

    def advance(self, length: int) -> None:
        self.place += length
        self._written += length
        self._groups += 1
        # In steps: topped up at every group, the disk would be as busy with zeros as with groups.
        if self._ahead() < self._wanted() // 2:
            self._work.set()

    async def make_room(self, bound: int) -> None:
        """Returns when a group of this size has room in this segment; NoSpace if the disk has none, Unavailable if it
        refuses."""
        while not self.has_room(bound):
            self.refused = None
            await self._next_progress(hurry=True)
            if self.refused is not None and not self.has_room(bound):
                raise refusal(f"no room for {bound} bytes", self.refused)

    async def make_next(self) -> Prepared:
        """The next segment's file, with room for a header; fails as `make_room` does."""
        while self.next is None or self.next.ready < 2 * BLOCK:
            self.refused = None
            await self._next_progress(hurry=True)
            if self.refused is not None and (self.next is None or self.next.ready < 2 * BLOCK):
                raise refusal("no room for another segment", self.refused)
        self.next.used = True
        return self.next

    def rotated(self, prepared: Prepared) -> None:
        """The prepared file is now the active segment, and its header is on disk."""
        assert prepared is self.next
        self.number += 1
        self.current, self.next = prepared, None
        self.place = BLOCK
        self._work.set()

    def start(self) -> None:
        self._since = asyncio.get_running_loop().time()
        self._work.set()
        self._task = begin(self._prepare(), "kimberlite-prepare", self._died)

    async def stop(self) -> None:
        # A step that has begun is finished: its thread writes to the file whatever we do here.
        if self._task is not None:
            self._stopping = True
            self._work.set()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self.next is not None:
            self.next.file.close()
            self.next = None

    def _ahead(self) -> int:
        return self.current.ready - self.place + (self.next.ready if self.next else 0)

    def _wanted(self) -> int:
        return int(min(max(self._rate, LEAST_AHEAD), MOST_AHEAD)) + RESERVE

    async def _next_progress(self, *, hurry: bool) -> None:
        if self._task is None or self._task.done():
            raise UnknownOutcome("no room is prepared any more")
        self._hurry = self._hurry or hurry
        self._work.set()
        if self._progress is None:
            self._progress = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._progress)

    def _made_progress(self) -> None:
        if self._progress is not None:
            self._progress.set_result(None)
            self._progress = None

    def _died(self, error: BaseException) -> None:
        self.on_death(error)
        self._made_progress()

    async def _prepare(self) -> None:
        loop = asyncio.get_running_loop()
        # Asked before waiting too: a step that fails while it is being stopped takes the signal with it.
        while not self._stopping:
            await self._work.wait()
            if self._stopping:
                return
            now = loop.time()
            if now - self._since >= 0.25:
                self._rate = max(self._written / (now - self._since), self._rate / 2)
                self._large = self._written > self._groups * LARGE
                self._written, self._groups, self._since = 0, 0, now
            hurry, self._hurry = self._hurry, False
            # What was wanted is taken meanwhile, a little of it in each step: that little is not worth another.
            if not hurry and self._ahead() >= self._wanted() * 3 // 4:
                self._work.clear()
                continue
            try:
                await self._step(hurry)
            except OSError as error:
                # Nothing of the log is in what was being prepared. Who is in a hurry may get by with less.
                if hurry:
                    self.refused = error
                self._work.clear()
            self._made_progress()

    async def _step(self, hurry: bool) -> None:
        target = self.current
        if target.ready >= self.segment_bytes:
            if self.next is None:
                self.next = await self.backend.run(self._create_next)
            target = self.next
            if target.ready >= self.segment_bytes:
                self._work.clear()
                return
        start = target.ready
        behind = max(BLOCK, self._wanted() - self._ahead())
        if not hurry:
            wanted = min(STEP, behind)
        elif self._reserve > BLOCK:
            wanted = max(LEAST_AHEAD, min(HURRY, behind))
        else:
            wanted = min(LAST, behind)
        end = min(start + -(-wanted // BLOCK) * BLOCK, self.segment_bytes)
        zero = not hurry and not (self._large and self._rate > BUSY)
        try:
            await self.backend.run(self._filler(target, start, end, zero=zero))
        except OSError:
            if not target.used:
                target.lost = None
            raise
        target.ready = end

    def _create_next(self) -> Prepared:
        self.backend.mkdir(PREPARE)
        name = prepared_name(self.number + 1)
        if self.backend.exists(name):
            self.backend.unlink(name)
        file = self.backend.open(name, "x")
        file.lock()
        return Prepared(file, 0)

    def _filler(self, prepared: Prepared, start: int, end: int, *, zero: bool) -> Callable[[], None]:
        def fill() -> None:
            try:
                prepared.file.allocate(start, end - start)
            except OSError:
                # What some file systems keep of it nobody else would have.
                with contextlib.suppress(OSError):
                    prepared.file.truncate(start)
                raise
            if not zero:
                return
            prepared.file.zero(start, end - start)
            try:
                prepared.file.sync()
            except OSError as error:
                prepared.lost = error
                raise

        return fill


def install(backend: Backend, prepared: Prepared, number: int, header: bytes) -> None:
    """Makes a prepared file segment `number`: rename, fsync both directories, header, fdatasync.

    Called only when everything before it is durable, and nothing is appended until it returns.
    """
    backend.rename(prepared_name(number), segment_name(number))
    backend.sync_directory(SEGMENTS)
    backend.sync_directory(PREPARE)
    prepared.file.name = segment_name(number)
    prepared.file.write(0, header)
    prepared.file.sync()
