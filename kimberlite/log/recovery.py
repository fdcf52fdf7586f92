"""From segments to a log: replay, judge.

A writer does all of this with the directory and the last segment locked. A reader does the same with
nothing locked and nothing written, and judges only up to the watermark it took first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

from kimberlite import _native
from kimberlite.errors import Busy, Corrupt, KimberliteError, RolledBack, Unavailable
from kimberlite.log.ahead import Ahead
from kimberlite.log.identity import Identity
from kimberlite.log.loading import Keys, missing, segment_numbers
from kimberlite.log.marks import Marks
from kimberlite.log.names import MARKS, SEGMENTS, index_name, segment_name
from kimberlite.storage.backend import BLOCK, Backend, File, let_go, opener, read_around, written

#: Read at a time by a replay: enough that the disk streams, little enough to hold.
CHUNK: Final = 4 << 20
NO_LIMIT: Final = (1 << 64) - 1
#: Segments, counted from the last, that are searched first for what was dropped.
NEAR: Final = (1, 4, 16)

Progress = Callable[[int, int], None]


@dataclass
class Ended:
    """Where the log ends, and in what state."""

    segment: _native.Segment | None
    file: File | None
    place: int
    closed: bool
    #: Where the last byte is that is not zero, if there is any after the end.
    torn_upto: int | None
    watermark: int = 0
    #: Where the first block is, at the end or behind it, that the disk could not read.
    unreadable: int | None = None


class Opened(NamedTuple):
    """A segment to be replayed from a place on: its file and, past the page cache, its bytes."""

    segment: _native.Segment
    file: File
    scan: File
    place: int


class Loader:
    """Follows the segments of a directory and judges where the log ends."""

    def __init__(
        self,
        backend: Backend,
        identity: Identity,
        keys: Keys,
        marks: Marks,
        fresh: Callable[[], _native.Log],
        *,
        write: bool,
        progress: Progress | None = None,
    ) -> None:
        self.backend, self.identity, self.keys, self.marks = backend, identity, keys, marks
        #: Makes an empty log, whenever there is to be another one.
        self._fresh = fresh
        self.log = fresh()
        self.write = write
        self.progress = progress
        #: The highest group known to have been durable.
        self.watermark = marks.newest.group
        #: A group that somebody holds a receipt of: a reader shows up to it, though no watermark may cover it yet.
        self.acknowledged = 0
        #: A group that a checkpoint says was durable: it may be shown, and must be there.
        self.promised = 0
        self.segments: list[_native.Segment] = []
        #: Segments before this were dropped, and what the log is behind them. What is left of them is not looked at.
        self._first = 0
        self._retained: bytes | None = None
        #: The segment that is being judged, and what is wrong with one that a record says was dropped.
        self._number = 0
        self._damage: KimberliteError | None = None
        #: Where the sound groups end: segment, place, and whether that is the segment's own end. None without any.
        self.reached: tuple[int, int, bool] | None = None
        #: The segment that a checkpoint ends in, when it is open already; and the one that is replayed.
        self._resumed: Opened | None = None
        self._replayed: Opened | None = None
        #: Called after each piece that was replayed; and the bytes of those pieces.
        self.on_chunk: Callable[[], None] = lambda: None
        self.bytes = 0

    def run(self) -> Ended:
        """Replays from the beginning or, once it is `restored`, from there. What is damaged may have been dropped, and
        its file left: then it begins anew behind that."""
        while True:
            resumed, self._resumed = self._resumed, None
            try:
                return self._run(resumed)
            except (Corrupt, Unavailable) as error:
                if resumed is not None or not self._was_dropped(self._number):
                    raise
                # Its frames hold files, and with them their locks.
                self._damage = error.with_traceback(None)
            self.start_again()

    def _run(self, resumed: Opened | None) -> Ended:
        numbers = self.numbers()
        self._number = numbers[-1] if numbers else 0
        end = Ended(None, None, BLOCK, True, None)
        if resumed is None and numbers and numbers[0] > 0:
            self._begin(numbers)
        first = 0 if resumed is None else resumed.segment.number
        for number in (number for number in numbers if number >= first):
            last, self._number = number == numbers[-1], number
            opened = resumed or self._open(number, last=last)
            if opened is None:
                break
            self._replayed = opened
            segment, file, scan, place = opened
            if resumed is None:
                self.enter(segment, number)
            resumed = None
            end = self._follow(segment, file, scan, place, last=last)
            self.segments.append(segment)
            if not last:
                self.log.release(segment, opener(self.backend, segment_name(number)))
                let_go(file)
                if not self.write:
                    # A writer makes its file first.
                    self.log.close_segment(segment, opener(self.backend, index_name(number)))
            if self.progress is not None:
                self.progress(number - numbers[0] + 1, len(numbers))
        if numbers and (numbers[0] > self.log.dropped[0] or self.log.is_beginning):
            raise self._damage or missing(numbers[0] - 1)
        group = self.log.sealed()[0]
        if end.closed and self.watermark >= group:
            after = numbers[-1] + 1 if numbers else 0
            what = f"segment {after} is missing: groups up to {self.watermark} were durable"
            raise Corrupt(what, file=segment_name(after), group=group)
        newest, (durable, chain) = self.marks.newest, self.log.durable_group()
        if newest.group == durable and newest.chain != chain:
            raise Corrupt("the watermark names another chain hash", file=MARKS, group=durable)
        if self.promised >= group:
            raise RolledBack(f"the log ends at group {group - 1}, and there is a checkpoint of group {self.promised}")
        self._replayed = None
        return end

    def numbers(self) -> list[int]:
        """The segments that are looked at."""
        first = max(self._first, self.log.dropped[0])
        return [number for number in self.there() if number >= first]

    def there(self) -> list[int]:
        return segment_numbers(self.backend)

    def _begin(self, numbers: list[int]) -> None:
        """Makes the log what it was where the segments begin that were kept, by the first record that says so."""
        if self._retained is None and not self._was_dropped(numbers[0] - 1):
            raise self._damage or missing(numbers[0] - 1)
        assert self._retained is not None
        numbers[:] = [number for number in numbers if number >= self._first]
        try:
            self.log.begin(self._retained, self.keys.data_key)
        except ValueError as error:
            raise Corrupt(str(error), file=SEGMENTS) from None

    def _was_dropped(self, number: int) -> bool:
        """Whether a later segment says that this one was, and so where the log begins."""
        numbers = [each for each in self.numbers() if each > number]
        # What goes often is said near the end: a search from the beginning would be overtaken each time.
        near = [numbers[-count:] for count in NEAR if 2 * count < len(numbers)]
        return any(self._finds(each, numbers[:1]) for each in near) or self._finds(numbers, numbers)

    def _finds(self, numbers: list[int], begins: list[int]) -> bool:
        """Whether one of these segments, which end with the last, says that the log begins with one of those."""
        search = self.log.search()
        for each in numbers:
            try:
                for segment, retained in self._said(search, each, last=each == numbers[-1]):
                    if segment in begins:
                        self._first, self._retained = segment, retained
                        return True
            except (Corrupt, Unavailable) as error:
                # It may have been dropped, too.
                if begins is numbers:
                    self._damage = self._damage or error.with_traceback(None)
        return False

    def _said(self, search: _native.Search, number: int, *, last: bool) -> Iterator[tuple[int, bytes]]:
        """What a segment says was dropped. Corrupt if there may be more in it, and cannot be read."""
        scan = self.backend.open(segment_name(number), "s")
        try:
            header = self._read_block(scan, segment_name(number), 0)
            if last and _native.header_damage(header, self.identity.database_id, number) is not None:
                return
            search.enter(self._header(number))
            with Ahead(scan, BLOCK, CHUNK) as ahead:
                place, data, stop, what = BLOCK, b"", "more", "the group is cut short"
                while stop == "more" and (piece := ahead.take()):
                    data += piece
                    found, (after, stop, _, what) = search.take(place, data)
                    yield from found
                    place, data = after, data[after - place :]
        finally:
            scan.close()
        group, position = search.next
        if stop != "closed" and (not last or group <= self.watermark):
            what = f"{what}; what says that segments before {self.there()[0]} were dropped may be there"
            raise Corrupt(what, file=segment_name(number), place=place, group=group, position=position)

    def restored(self, resume: _native.Resume, checkpoint: bytes) -> bool:
        """Whether the log, which was empty, is what it was at a checkpoint, and the segments are what it says."""
        try:
            self.log.restore(checkpoint, self.keys.data_key)
            if resume.segment not in self.numbers():
                return False
            self._attach_closed(resume.segment)
        except (ValueError, Corrupt, Unavailable):
            return False
        if not self._matches(resume):
            return False
        with contextlib.suppress(Corrupt):
            self._resumed = self._open(resume.segment, resume.place, last=resume.segment == self.numbers()[-1])
        return self._resumed is not None and self.log.reaches(self._resumed.segment)

    def start_again(self) -> None:
        """What was replayed so far, or resumed, was not to be used after all."""
        for opened in (self._resumed, self._replayed):
            if opened is not None:
                opened.file.close()
                opened.scan.close()
        self._resumed = self._replayed = self.reached = None
        self.segments = []
        self.log = self._fresh()

    def _open(self, number: int, covered: int = BLOCK, *, last: bool) -> Opened | None:
        """The segment and its file, locked and synced if it may be written; None if it is a torn beginning."""
        name = segment_name(number)
        file, scan = self.backend.open(name, "w" if self.write and last else "r"), self.backend.open(name, "s")
        opened = None
        try:
            if self.write and last:
                try:
                    file.lock()
                except BlockingIOError:
                    raise Busy(f"{name} is still being written") from None
                file.sync()
            header = self._read_block(scan, name, 0)
            try:
                opened = Opened(self.log.attach(header, file, covered), file, scan, covered)
            except ValueError as error:
                if not last:
                    raise Corrupt(str(error), file=name, place=0) from None
                self._judge_broken_header(name, scan, str(error))
            return opened
        finally:
            if opened is None:
                file.close()
                scan.close()

    def _judge_broken_header(self, name: str, scan: File, what: str) -> None:
        """A header cut off by a crash is nobody's loss, if nothing follows it and nothing in it was promised."""
        for place, length in written(scan, BLOCK, scan.size(), CHUNK):
            if read_around(scan, place, length).strip(b"\0"):
                raise Corrupt(what, file=name, place=0)
        group = self.log.sealed()[0]
        if self.watermark >= group:
            raise Corrupt(f"{what}, and group {group} was durable", file=name, place=0, group=group)

    def enter(self, segment: _native.Segment, number: int) -> None:
        what = self.log.enter(segment)
        if what is not None:
            group, position, _ = self.log.sealed()
            raise Corrupt(what, file=segment_name(number), place=0, group=group, position=position)

    def _follow(self, segment: _native.Segment, file: File, scan: File, place: int, *, last: bool) -> Ended:
        limit = NO_LIMIT
        if last and not self.write:
            limit = max(self.watermark_of(segment, scan, place), self.acknowledged)
        name = segment_name(segment.number)
        with Ahead(scan, place, CHUNK) as ahead:
            place, stop, what = self._replay_all(segment, ahead, place, limit)
            if place > BLOCK:
                self.reached = (segment.number, place, stop == "closed")
            if ahead.unreadable is not None:
                # A disk that reads nothing at all is away, and not damaged.
                self._read_block(scan, name, 0)
                what = f"{what}; the disk cannot read byte {ahead.unreadable}"
            if stop == "damaged":
                group, position, _ = self.log.sealed()
                raise Corrupt(what, file=name, place=place, group=group, position=position)
            watermark, torn = (0, None) if stop == "done" else self.rest(segment, ahead)
        scan.close()
        end = Ended(segment, file, place, stop == "closed", torn, watermark, ahead.unreadable)
        if stop == "bad":
            self._judge(end, name, what, last=last)
        elif torn is not None and not last:
            raise Corrupt("there are bytes behind the closing group", file=name, place=torn)
        if self.write and end.unreadable is not None:
            # It may have been acknowledged, and may be read again tomorrow.
            raise Unavailable(
                f"the disk cannot read {name}, byte {end.unreadable}, behind the last sound group at byte {place}: "
                "nothing may be cut off there, and the database opens only for reading"
            )
        return end

    def beyond(self, end: Ended) -> tuple[int, Ended]:
        """What follows the watermark and is sound, which a start would keep: how many groups, and where it ends. It is
        not judged: a writer may be at work."""
        if end.segment is None or end.closed:
            return 0, end
        first = self.log.sealed()[0]
        scan = self.backend.open(segment_name(end.segment.number), "s")
        try:
            with Ahead(scan, end.place, CHUNK) as ahead:
                place, stop, _ = self._replay_all(end.segment, ahead, end.place, NO_LIMIT)
                torn = self.rest(end.segment, ahead)[1]
        finally:
            scan.close()
        count = self.log.sealed()[0] - first
        return count, Ended(end.segment, end.file, place, stop == "closed", torn, end.watermark, ahead.unreadable)

    def _replay_all(self, segment: _native.Segment, ahead: Ahead, place: int, limit: int) -> tuple[int, str, str]:
        """Applies groups until there are no more; where it stopped, how and why."""
        data = b""
        while True:
            piece = ahead.take()
            data += piece
            start = place
            place, stop, _, what = self.log.replay(segment, place, data, limit, self.keys.data_key)
            self.bytes += place - start
            self.on_chunk()
            data = data[place - start :]
            if stop == "more" and not piece:
                stop, what = "bad", "the group is cut short"
            if stop != "more":
                ahead.back(data)
                return place, stop, what

    def _judge(self, end: Ended, name: str, what: str, *, last: bool) -> None:
        """No sound group is at this end: that of the log, a torn tail, or damage to what was acknowledged."""
        group, position, _ = self.log.sealed()
        if not last:
            raise Corrupt(what, file=name, place=end.place, group=group, position=position)
        end.watermark = max(end.watermark, self.watermark)
        if end.unreadable is not None:
            end.watermark = max(end.watermark, self.acknowledged)
        if end.watermark >= group:
            what = f"{what}, and groups up to {end.watermark} were durable"
            raise Corrupt(what, file=name, place=end.place, group=group, position=position)

    def _attach_closed(self, upto: int) -> None:
        """Looks at every segment before this one that was not dropped: presence, size, header and closing group."""
        numbers = [number for number in self.numbers() if number <= upto]
        headers = [self._header(number) for number in numbers]
        for number, (header, after) in zip(numbers, pairwise(headers), strict=False):
            name = segment_name(number)
            file = self.backend.open(name, "r")
            try:
                what = _native.closes(header, after, file.size(), *self._last_block(file, name))
            finally:
                file.close()
            if what is not None:
                raise Corrupt(f"segment {number} is missing or short: {what}", file=name)
            self.segments.append(self.log.attach_closed(header, opener(self.backend, name), self._index(number)))

    def _index(self, number: int) -> Callable[[], File] | None:
        """None if the segment has no index file."""
        name = index_name(number)
        if not self.backend.exists(name):
            return None
        # What is no file of its owner's is refused now, and not when it is needed.
        self.backend.open(name, "r").close()
        return opener(self.backend, name)

    def _header(self, number: int) -> bytes:
        name = segment_name(number)
        file = self.backend.open(name, "r")
        try:
            header = self._read_block(file, name, 0)
        finally:
            file.close()
        what = _native.header_damage(header, self.identity.database_id, number)
        if what is not None:
            raise Corrupt(what, file=name, place=0)
        return header

    def _read_block(self, file: File, name: str, place: int) -> bytes:
        """One without which nothing can be judged."""
        unread: list[int] = []
        block = read_around(file, place, BLOCK, unread.append)
        if unread:
            raise Unavailable(f"the disk cannot read {name}, byte {place}")
        return block

    def _last_block(self, file: File, name: str) -> tuple[int, bytes]:
        """Place and bytes of the last block that is not all zeros: a crash can leave room behind the end."""
        for start, length in reversed(list(written(file, BLOCK, file.size()))):
            for place in range((start + length - 1) // BLOCK * BLOCK, start - BLOCK, -BLOCK):
                block = self._read_block(file, name, place)
                if block.strip(b"\0"):
                    return place, block
        return 0, b""

    def _matches(self, resume: _native.Resume) -> bool:
        """Whether the group the checkpoint ends with is in its place, chain hash and all."""
        scan = self.backend.open(segment_name(resume.segment), "s")
        try:
            if not resume.last_place < resume.place <= scan.size():
                return False
            header = read_around(scan, 0, BLOCK)
            length = resume.place - resume.last_place
            group = read_around(scan, resume.last_place, length) if resume.last_place else b""
        finally:
            scan.close()
        return self.log.ends_with(resume, header, group)

    def rest(self, segment: _native.Segment, ahead: Ahead) -> tuple[int, int | None]:
        """The watermark in what is left, and where its last byte is that is not zero."""
        highest, torn = 0, None
        for place, data in ahead.rest():
            found, last = _native.Log.watermark(segment, place, data)
            highest = max(highest, found)
            torn = last if last is not None else torn
        return highest, torn

    def watermark_of(self, segment: _native.Segment, scan: File, place: int) -> int:
        """What a reader beside a writer may judge and show: no group after this."""
        with Ahead(scan, place, CHUNK) as ahead:
            return max(self.watermark, self.promised, self.rest(segment, ahead)[0])
