"""Every record that can still be proven, from whatever is left of a database, and what is missing.

What proves a record is told in `native/core/src/salvage/`; here is put together what that needs to know of other files.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from struct import Struct
from typing import Any, Final, NamedTuple

from kimberlite import _native
from kimberlite.arguments import checked_name
from kimberlite.errors import Invalid
from kimberlite.log import marks as marking
from kimberlite.log.description import ranged
from kimberlite.log.names import CHECKPOINT, HASHES, INDEX, MARKS, SEGMENTS, segment_name
from kimberlite.log.options import LARGEST_SEGMENT
from kimberlite.log.past import HASHES_HEADER, leaves_in, stored
from kimberlite.log.remains import Remains, find_keys, find_origin
from kimberlite.storage import BLOCK, Backend, File
from kimberlite.storage.backend import read_around, written

#: Where the salt of a segment is in what names one.
SALT_AT: Final = {INDEX: 48, CHECKPOINT: 104}
DERIVED: Final = b"kimberlite/derived/1".ljust(32, b"\0")
MAC: Final = 32
#: Of an index: first group and position, groups, runs, records and streams; and of a row of its table of streams its
#: number and length.
INDEX_HEADER: Final = Struct("<32xQQ32xIIII")
INDEX_STREAM: Final = Struct("<I12xQ")
#: How many leaves of the tree are looked at from their end.
MOST_LEAVES: Final = 4096
#: Records taken at a time.
PIECE: Final = 4096

Progress = Callable[[int, int], None]
#: Stream, offset, time and records.
Salvaged = tuple[str, int, int, _native.Batch]


@dataclass
class Missing:
    """Positions, half open, that are not there; the last may be of nobody knows how many."""

    first: int
    end: int
    why: str


@dataclass
class Jump:
    """Offsets of a stream, half open, that are not there: they were at positions from `after` to `before`."""

    stream: str
    first: int
    end: int
    after: int
    before: int
    why: str


@dataclass
class Guessed:
    """Positions, half open, of records whose time nothing says: they got the one before."""

    first: int
    end: int
    not_before: int
    not_after: int | None


@dataclass
class Report:
    """What was found, and what was not. Positions are those of the damaged log."""

    database: str
    #: Records of streams that are whole, and how many of them could be opened.
    records: int = 0
    copied: int = 0
    streams: int = 0
    #: The last group that is left, and the last that is known to have been durable.
    last_group: int = 0
    durable_group: int = 0
    missing: list[Missing] = field(default_factory=list)
    jumps: list[Jump] = field(default_factory=list)
    #: Streams that stay erased, and what repairs and salvages of before had given up, as `info` of the new log has it.
    erasures: list[dict[str, Any]] = field(default_factory=list)
    earlier: list[dict[str, Any]] = field(default_factory=list)
    times: list[Guessed] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return not self.lost()

    def lost(self) -> list[tuple[int, int]]:
        return [(each.first, each.end) for each in self.missing if each.why not in (DROPPED, ERASED)]

    def shown(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self) | {"complete": self.complete}


DROPPED: Final = "it was dropped by a rule of retention"
NO_KEY: Final = "it is whole, and there is no key that opens it"
ERASED: Final = "it was erased"
DAMAGED: Final = "no sound record of it is left"
DOUBTFUL: Final = "different records of it are left, and nothing says which of them is the log's"
BEHIND: Final = "it was durable, and nothing of it is left"
TOO_LARGE: Final = f"it is whole, and larger than the {_native.LARGEST_BATCH_BYTES:,} bytes that a batch may have"
UNKNOWN: Final = "groups {} to {}, positions unknown: they were durable, and nothing of them is left"


class Gone(NamedTuple):
    """An erasure. Times are 0 where nothing says them; `master` is the id of the master key of then."""

    stream: int
    when: int
    reason: str
    position: int
    master: bytes
    confirmed: int | None


class Ended(NamedTuple):
    """How far the log is known to have come."""

    #: The last group whose position is known, and the position behind all that are.
    group: int
    position: int
    #: The last that was durable.
    durable: int


class Finder:
    """Puts together what is left of a log, and gives its records in their order."""

    def __init__(self, backend: Backend, master: bytes | None, progress: Progress | None = None) -> None:
        self.remains = Remains(backend)
        self.origin = find_origin(self.remains, master=master is not None)
        self.keys = find_keys(self.remains, self.origin, master)
        self.master_id = b"" if master is None else _native.key_id(master)
        origin, self._progress = self.origin, progress
        self._native = _native.Salvage(
            origin.database_id, origin.hash, quantum=origin.quantum, tagged=origin.tagged, group_key=self.keys.group
        )
        self.report = Report(origin.database_id.hex(), notes=self.remains.notes)
        self.incarnation = 0
        #: Of each stream the offset behind its last record, by what is not in segments.
        self.lengths: dict[int, int] = {}
        #: Positions of records that say what was given up, by what is not in segments.
        self._told: set[int] = set()
        #: The last group that is known to have been durable with the position behind it.
        self._known = (0, 0)
        self._hashes: File | None = None
        self._open: list[File] = []
        #: Whether any segment has a header that is sound.
        self._headed = False
        self._scan()
        self._take_marks()
        self._take_derived()
        for (stream, declaration), key in self.keys.streams.items():
            self._native.adopt(stream, declaration, key)
        self._native.settle(self.keys.of)
        self.incarnation = max(self.incarnation, self._native.incarnation)
        for stream, length in (*self._native.lengths.items(), *enumerate(self._native.dropped[1], 1)):
            self._reached(stream, length)
        for gone in self.erasures:
            # Of an empty one there is nothing to erase.
            self._reached(gone.stream, 1)
        for position in sorted(self._told - {position for position, _ in self._native.repairs}):
            what = "what a repair or a salvage had given up was said there, and nothing of that is left"
            self.report.notes.append(f"position {position:,}: {what}")
        self.names = named(self._native.streams)
        self._records: Iterator[Salvaged] = self._found()

    @property
    def dropped(self) -> int:
        """Positions below this were dropped by a rule."""
        return self._native.dropped[0]

    @property
    def erased(self) -> set[int]:
        """Streams that nobody may read any more."""
        return {gone.stream for gone in self.erasures}

    def streams(self) -> list[str]:
        """All that were there, by number; first those of which nothing but a declaration is left."""
        declared = {number for number, name in self._native.streams if name is not None}
        known = (declared | self.lengths.keys()) - {0}
        return [self.name_of(number) for number in sorted(known, key=lambda each: (bool(self.lengths.get(each)), each))]

    @property
    def erasures(self) -> list[Gone]:
        return [Gone(*erasure) for erasure in self._native.erasures]

    def earlier(self, position: int = 0) -> list[bytes]:
        """What repairs and salvages before this one had given up, as the records say it that are left from there on."""
        return list(dict.fromkeys(payload for at, payload in self._native.repairs if at >= position))

    def ended(self) -> Ended:
        """By all that is left."""
        group, position = max(self._native.end, self._known)
        durable = self.report.durable_group
        if durable > group or not durable:
            # They may have been written before their group was durable: alone they tell nothing of a sound end.
            position = max(position, self._leaves())
        return Ended(group, position, durable)

    def close(self) -> None:
        while self._open:
            self._open.pop().close()

    def _scan(self) -> None:
        salts = [head[at : at + 32] for kind, at in SALT_AT.items() for _, head in self.remains.of(kind)]
        salts = [salt for salt in salts if len(salt) == 32]
        segments = self.remains.of(SEGMENTS)
        for done, (name, _) in enumerate(segments):
            if self._progress is not None:
                self._progress(done, 2 * len(segments))
            file = self._keep(name)
            number, _, foreign = self._native.scan(file, list(written(file, 0, LARGEST_SEGMENT)), salts)
            self._headed |= number is not None
            if foreign:
                self.report.notes.append(f"{name}: it is of another database")
            elif number is None:
                self.report.notes.append(f"{name}: its header is damaged")
            elif name != segment_name(number):
                self.report.notes.append(f"{name}: it is segment {number}")
            if file.extent(LARGEST_SEGMENT) is not None:
                self.report.notes.append(f"{name}: no segment is so long: byte {LARGEST_SEGMENT} and on are left out")

    def _keep(self, name: str) -> File:
        file = self.remains.backend.open(name, "r")
        self._open.append(file)
        return file

    def _take_marks(self) -> None:
        for _, data in self.remains.whole(MARKS):
            for block in (0, BLOCK):
                mark = marking.decode_mark(data[block : block + BLOCK], self.origin.database_id, self.origin.hash)
                if mark is not None:
                    self.incarnation = max(self.incarnation, mark.incarnation)
                    self._durable(mark.group, mark.chain)

    def _durable(self, group: int, chain: bytes) -> None:
        if group > 0:
            self.report.durable_group = max(self.report.durable_group, group)
            self._native.durable(chain)

    def _reached(self, stream: int, length: int) -> None:
        # Beyond that a gap cannot go.
        self.lengths[stream] = max(self.lengths.get(stream, 0), min(length, _native.HIGHEST))

    def _take_derived(self) -> None:
        """What has a right MAC says what it says; leaves prove themselves."""
        for name, head in self.remains.of(HASHES)[:1]:
            hashes = self._keep(name)
            self._native.set_hashes(hashes)
            if head[8:24] == self.origin.database_id:
                self._hashes = hashes
        if self.keys.receipt is None:
            return
        for _, data in self.remains.whole(INDEX):
            if self._is_right(data):
                self._native.indexed(data[:-MAC])
                self._take_index(data[:-MAC])
        for _, data in self.remains.whole(CHECKPOINT):
            self._take_checkpoint(data, self.keys.receipt)

    def _take_index(self, data: bytes) -> None:
        """A segment that has an index was closed, and all of it durable."""
        first, position, groups, runs, records, streams = INDEX_HEADER.unpack_from(data)
        self._known = max(self._known, (first + groups - 1, position + records))
        self.report.durable_group = max(self.report.durable_group, first + groups - 1)
        place = INDEX_HEADER.size + 16 * groups + 24 * runs
        for stream, length in INDEX_STREAM.iter_unpack(data[place : place + INDEX_STREAM.size * streams]):
            if stream:
                self._reached(stream, length)

    def _leaves(self) -> int:
        """Up to where the tree's hashes are sound: of neighbouring leaves the node follows."""
        if self._hashes is None:
            return 0
        end = leaves_in(self._hashes)
        end -= end % 2
        for size in range(end, max(0, end - MOST_LEAVES), -2):
            left, right = (read_around(self._hashes, HASHES_HEADER + 32 * stored(size - i), 64) for i in (2, 1))
            if hashlib.sha256(b"\1" + left[:32] + right[:32]).digest() == right[32:]:
                return size
        return 0

    def _take_checkpoint(self, data: bytes, receipt_key: bytes) -> None:
        """Of a log as it was then there are its last group and its streams."""
        origin = self.origin
        log = _native.Log(
            origin.database_id,
            origin.hash,
            quantum=origin.quantum,
            tagged=origin.tagged,
            group_key=self.keys.group,
            receipt_key=receipt_key,
            level=None,
            cache_bytes=0,
        )
        if log.resume(data) is None:
            return
        with contextlib.suppress(ValueError):
            log.restore(data, self.keys.of)
            self._durable(*log.durable_group())
            self._known = max(self._known, (log.durable_group()[0], log.durable))
            for payload in log.declarations:
                self._native.declared(payload, self.keys.of)
            self._native.retained(log, self.keys.of)
            for _, _, length, stream, _ in log.streams():
                self._reached(stream, length)
            for stream, _, when, reason, at, master, confirmed in log.erasures:
                self._native.erase(stream, when, reason, at, master, confirmed)
            for position, said in log.repaired:
                self._told.add(position)
                if said:
                    self._native.repaired(position, said)

    def _is_right(self, data: bytes) -> bool:
        assert self.keys.receipt is not None
        right = _native.blake3(DERIVED + data[:-MAC], self.keys.receipt) == data[-MAC:]
        return right and data[8:24] == self.origin.database_id

    def records(self) -> Iterator[Salvaged]:
        """In the order of the log; the report is about those that were taken."""
        return self._records

    def why_none(self) -> list[str]:
        """Why there is not one record, though there were some; empty if there is, or if there never were any."""
        first, report = list(islice(self._records, 1)), self.report
        self._records = chain(first, self._records)
        if first or (report.complete and (self._headed or report.last_group > 0)):
            return []
        gone = [] if self.remains.of(SEGMENTS) else ["no segment is left"]
        lost = [f"positions {ranged(each.first, each.end)}: {each.why}" for each in report.missing]
        return [*gone, *lost, *report.notes]

    def _found(self) -> Iterator[Salvaged]:
        report, latest = self.report, 0
        position, firsts = self._native.dropped
        if position > 0:
            report.missing.append(Missing(0, position, DROPPED))
        ends = {stream: (offset, position) for stream, offset in enumerate(firsts, 1)}
        copied, keyless, erased = set(), set(), self.erased
        gaps = {(stream, start): end for stream, start, end in self._native.gaps}
        for first, count, stream, offset, timestamp, batch in self._each():
            if first > position:
                self._miss(position, first)
            position = first + count
            if timestamp is None:
                self._guess(first, position, latest)
            elif report.times and report.times[-1].not_after is None:
                report.times[-1].not_after = timestamp
            latest = max(latest, timestamp or 0)
            if stream == 0:
                continue
            report.records += count
            name = self.name_of(stream)
            end, after = ends.get(stream, (0, 0))
            while (stream, end) in gaps:
                end = gaps[stream, end]
            if batch is None or offset < end or batch.size > _native.LARGEST_BATCH_BYTES:
                unopened = ERASED if stream in erased else NO_KEY
                why = unopened if batch is None else DOUBTFUL if offset < end else TOO_LARGE
                report.missing.append(Missing(first, position, why))
                if why == NO_KEY:
                    keyless.add(stream)
                continue
            if offset > end:
                report.jumps.append(Jump(name, end, offset, after, first, DAMAGED))
            ends[stream] = (offset + count, position)
            report.copied += count
            copied.add(stream)
            yield name, offset, latest, batch
        report.streams = len(copied)
        report.last_group, end = self._native.end
        end = max([end, *(stop for _, stop in self._native.doubtful)])
        if end > position:
            self._miss(position, end)
        end, ended = max(position, end), self.ended()
        if ended.position > end:
            report.missing.append(Missing(end, ended.position, BEHIND))
            end = ended.position
        if ended.durable > ended.group:
            report.missing.append(Missing(end, end, UNKNOWN.format(ended.group + 1, ended.durable)))
        report.missing.sort(key=lambda each: (each.first, each.end))
        for stream, length in sorted(self.lengths.items()):
            last, after = ends.get(stream, (0, 0))
            while (stream, last) in gaps:
                last = gaps[stream, last]
            if length > last and stream not in erased:
                why = NO_KEY if stream in keyless else DAMAGED
                report.jumps.append(Jump(self.name_of(stream), last, length, after, end, why))

    def name_of(self, stream: int) -> str:
        """Its own, or one by its number that no other has."""
        if stream not in self.names:
            name = f"unnamed/{stream}"
            while name in self.names.values():
                name += "'"
            self.names[stream] = name
        return self.names[stream]

    def _guess(self, first: int, end: int, time: int) -> None:
        times = self.report.times
        if times and times[-1].not_after is None:
            times[-1].end = end
        else:
            times.append(Guessed(first, end, time, None))

    def behind(self, position: int) -> int:
        """How many records of streams are left from a position on."""
        count = 0
        for first, records, stream, _, _, batch in self._each():
            if stream > 0 and batch is not None:
                count += max(0, first + records - max(first, position))
        return count

    def _miss(self, first: int, end: int) -> None:
        doubtful = any(start < end and first < stop for start, stop in self._native.doubtful)
        self.report.missing.append(Missing(first, end, DOUBTFUL if doubtful else DAMAGED))

    def _each(self) -> Iterator[tuple[int, int, int, int, int | None, _native.Batch | None]]:
        while found := self._native.next(PIECE):
            if self._progress is not None:
                done, total = self._native.progress
                self._progress(total + done, 2 * total)
            yield from found


def named(streams: Iterable[tuple[int, str | None]]) -> dict[int, str]:
    """Those that can be called so in another log: by a name that is one, and not the name of one before."""
    names: dict[int, str] = {}
    taken: set[str] = set()
    for number, name in streams:
        if name is not None and name not in taken and is_name(name):
            names[number] = name
            taken.add(name)
    return names


def is_name(name: str) -> bool:
    try:
        checked_name(name)
    except Invalid:
        return False
    return True
