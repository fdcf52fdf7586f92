"""A log that somebody else may be writing: loaded without a lock, and followed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from kimberlite import _native
from kimberlite.errors import Corrupt
from kimberlite.log.creation import read_small
from kimberlite.log.identity import Identity
from kimberlite.log.loading import Keys, load_marks, segment_numbers, unless_overtaken
from kimberlite.log.marks import Marks
from kimberlite.log.names import CHECKPOINT, HASHES, REPAIR, index_name, segment_name
from kimberlite.log.past import HASHES_HEADER
from kimberlite.log.recovery import NO_LIMIT, Ended, Loader
from kimberlite.storage.backend import BLOCK, Backend, File, let_go, opener, read_around

#: Read at a time when looking for what is new.
PIECE: Final = 256 * 1024


class Follower:
    """What is durable in the directory, as far as a watermark says so.

    * A group is applied only if a sound header or mark says that it is durable; nothing behind that is judged.
    * Nothing in the directory is written or locked.
    * Where it was overtaken by what drops segments, or by a repair, it begins anew, and `on_anew` is told of the log
      from then on.
    * `refresh` may be called from any thread; one at a time moves on.
    """

    def __init__(
        self,
        backend: Backend,
        identity: Identity,
        keys: Keys,
        fresh: Callable[[], _native.Log],
        acknowledged: int = 0,
    ) -> None:
        self.backend, self.identity, self.keys = backend, identity, keys
        self._fresh, self._acknowledged = fresh, acknowledged
        self._lock = threading.Lock()
        #: Called in the thread that refreshes.
        self.on_anew: Callable[[_native.Log], None] = lambda _log: None
        self._begin()
        if self.keys.lost(self.log):
            # A key leaves the vault behind a mark that covers why.
            self._take_all(load_marks(self.backend, self.identity))
            self.keys.check(self.log)

    def _begin(self) -> None:
        unless_overtaken(self.backend, self._begun_once)

    def _begun_once(self) -> None:
        marks = load_marks(self.backend, self.identity)
        loader = Loader(self.backend, self.identity, self.keys, marks, self._fresh, write=False)
        loader.acknowledged = self._acknowledged
        end = self._run(loader)
        self.loader, self.log = loader, loader.log
        self._segment, self._place, self._closed = end.segment, end.place, end.closed
        # By its name a segment is another file once it is packed.
        self._scan: File | None = None if end.closed else end.file

    def _run(self, loader: Loader) -> Ended:
        data = read_small(self.backend, CHECKPOINT)
        resume = None if data is None else loader.log.resume(data)
        loader.promised = 0 if resume is None else resume.group
        if data is None or resume is None or not self._restored(loader, data, resume):
            loader.start_again()
        try:
            return loader.run()
        except Corrupt:
            # As for a writer, whose hashes cannot be made again.
            loader.start_again()
            if data is None or resume is None or not self._restored(loader, data, resume, fitting=False):
                raise
            return loader.run()

    def _restored(self, loader: Loader, data: bytes, resume: _native.Resume, *, fitting: bool = True) -> bool:
        size, log = 0, loader.log
        if self.backend.exists(HASHES):
            hashes = self.backend.open(HASHES, "r")
            size = hashes.size()
            log.set_hashes(hashes)
            let_go(hashes)
        if fitting and size < HASHES_HEADER + 32 * resume.hashes:
            return False
        return loader.restored(resume, data) and (log.hashes_fit() or not fitting)

    def refresh(self) -> None:
        """Takes what has become durable since."""
        with self._lock:
            # During a repair it stays what it was.
            while not self.backend.exists(REPAIR):
                marks = load_marks(self.backend, self.identity, repairing=True)
                try:
                    if marks.newest.incarnation > self.loader.marks.newest.incarnation:
                        # A repair is over, and may have given up what somebody has a receipt of.
                        self._acknowledged = 0
                        self._begin_anew()
                    # A stream whose key it does not get, as after a rotation, is no loss of the others.
                    self._take_all(marks)
                except (FileNotFoundError, Corrupt):
                    if not self._repaired_since(marks):
                        raise
                else:
                    return

    def _repaired_since(self, marks: Marks) -> bool:
        """Whether a repair has begun beneath what was going on."""
        if self.backend.exists(REPAIR):
            return True
        return load_marks(self.backend, self.identity, repairing=True).newest.incarnation > marks.newest.incarnation

    def _begin_anew(self) -> None:
        before = self._scan
        self._begin()
        if before is not None:
            let_go(before)
        self.on_anew(self.log)

    def _take_all(self, marks: Marks) -> None:
        self.loader.watermark = max(self.loader.watermark, marks.newest.group)
        while self._step():
            pass

    def _step(self) -> bool:
        """Goes on by a piece or into the next segment; False when there is nothing more to take."""
        if self._closed:
            return self._enter_next()
        assert self._segment is not None
        assert self._scan is not None
        # Asked before reading: the next segment begins when all of this one is on the disk, and nothing in this one
        # says so of its last groups.
        following = self._begun(self._segment.number + 1)
        ended = following is not None
        if following is not None:
            following[1].close()
        data = read_around(self._scan, self._place, PIECE)
        limit = max(self.loader.watermark, _native.Log.watermark(self._segment, self._place, data)[0])
        if ended:
            limit = NO_LIMIT
        stop, moved, what = self._replay(data, limit)
        if stop == "bad" and not moved and self.log.sealed()[0] <= limit:
            # A read is not one step: its front may be from before a group was written that its end says is durable.
            stop, moved, what = self._replay(read_around(self._scan, self._place, PIECE), limit)
        group, position, _ = self.log.sealed()
        if stop == "damaged" or (stop == "bad" and not moved and group <= limit):
            name = segment_name(self._segment.number)
            raise Corrupt(what, file=name, place=self._place, group=group, position=position)
        return moved

    def _replay(self, data: bytes, limit: int) -> tuple[str, bool, str]:
        """Takes the groups in these bytes: why no more, whether there were any, and what is wrong."""
        assert self._segment is not None
        assert self._scan is not None
        place, stop, want, what = self.log.replay(self._segment, self._place, data, limit, self.keys.data_key)
        if stop == "more" and want > PIECE:
            data = read_around(self._scan, place, want)
            place, stop, want, what = self.log.replay(self._segment, place, data, limit, self.keys.data_key)
        moved = place != self._place
        self._place, self._closed = place, stop == "closed"
        return stop, moved, what

    def _begun(self, number: int) -> tuple[bytes, File] | None:
        """A segment's header and its file; None until it is there. The writer may be about to write it; damage shows at
        the next open."""
        if not self.backend.exists(segment_name(number)):
            return None
        file = self.backend.open(segment_name(number), "r")
        try:
            header = read_around(file, 0, BLOCK)
        except BaseException:
            file.close()
            raise
        if _native.header_damage(header, self.identity.database_id, number) is not None:
            file.close()
            return None
        return header, file

    def _enter_next(self) -> bool:
        number = 0 if self._segment is None else self._segment.number + 1
        begun = self._begun(number)
        if begun is None:
            there = segment_numbers(self.backend)
            if not there or there[0] <= number:
                return False
            self._begin_anew()
            return True
        header, file = begun
        segment = self.log.attach(header, file)
        self.loader.enter(segment, number)
        if self._segment is not None:
            self.log.release(self._segment, opener(self.backend, segment_name(number - 1)))
            # Made again from the segment as long as the writer has not made its file.
            self.log.close_segment(self._segment, opener(self.backend, index_name(number - 1)))
        if self._scan is not None:
            self._scan.close()
        self._segment, self._scan, self._place, self._closed = segment, file, BLOCK, False
        return True

    def uncovered(self) -> tuple[int, int] | None:
        """The first and the last of the sound groups behind this that no watermark covers: a writer is at work, or was
        killed."""
        self.refresh()
        with self._lock:
            if self._scan is None or not read_around(self._scan, self._place, BLOCK).strip(b"\0"):
                return None
        return unless_overtaken(self.backend, self._uncovered)

    def _uncovered(self) -> tuple[int, int] | None:
        keys, marks = replace(self.keys, missing={}), load_marks(self.backend, self.identity)
        loader = Loader(self.backend, self.identity, keys, marks, self._fresh, write=False)
        end = self._run(loader)
        try:
            count, _ = loader.beyond(end)
        finally:
            if end.file is not None:
                let_go(end.file)
        last, _ = loader.log.durable_group()
        return (last - count + 1, last) if count else None

    @property
    def end(self) -> tuple[int, int]:
        """The segment that is written, and where in it the log ends."""
        with self._lock:
            number = -1 if self._segment is None else self._segment.number
            return (number + 1, BLOCK) if self._closed or number < 0 else (number, self._place)

    def close(self) -> None:
        with self._lock:
            if self._scan is not None:
                self._scan.close()
                self._scan = None
