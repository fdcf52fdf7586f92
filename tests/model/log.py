"""What a verified directory says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .cursor import ModelError
from .files import Identity, Mark, hashes_header, leaf_index
from .hashes import root_of
from .records import Mode, Producer, Record
from .retained import Erasure, Retained, Sent


@dataclass(frozen=True)
class Stream:
    """`declared` is D."""

    number: int
    name: str
    mode: Mode
    declared: bytes
    largest: int = 0


@dataclass(frozen=True)
class Row:
    """A record with what the log says of it. Without its key an encrypted one is `sealed`."""

    position: int
    stream: int
    name: str
    offset: int
    timestamp: int
    encrypted: bool
    last: bool
    commitment: bytes
    leaf: bytes
    record: Record | None
    producer: Producer | None

    @property
    def sealed(self) -> bool:
        return self.record is None

    @property
    def opened(self) -> Record:
        if self.record is None:
            raise ModelError(f"position {self.position}", "is sealed")
        return self.record

    @property
    def payload(self) -> bytes:
        return self.opened.payload

    @property
    def key(self) -> bytes | None:
        return self.opened.key

    @property
    def headers(self) -> tuple[tuple[str, bytes], ...]:
        return self.opened.headers

    @property
    def event_time(self) -> int | None:
        return self.opened.event_time


@dataclass(frozen=True)
class Sealed:
    """A group, and the log at its end."""

    number: int
    segment: int
    place: int
    position: int
    records: int
    durable_upto: int
    timestamp: int
    incarnation: int
    closing: bool
    chain: bytes
    tree_size: int
    root: bytes


@dataclass(frozen=True)
class Log:
    """`rows` and `groups` are those that were not dropped. `doubts` are damages that the format forgives: they have a
    sound twin, or nothing hangs on them."""

    identity: Identity
    streams: tuple[Stream, ...]
    rows: tuple[Row, ...]
    groups: tuple[Sealed, ...]
    marks: tuple[Mark, ...]
    chain: bytes
    root: bytes
    doubts: tuple[ModelError, ...]
    #: Batches of producers: those that the first record left, and what came since.
    sent: tuple[Sent, ...]
    #: From the first leaf on that was read, in the order in which they come to be.
    hashes: bytes
    #: What reading began with, if not with segment 0.
    begun: Retained | None
    #: What was said of what was dropped, each with the group by which it was said whole.
    retentions: tuple[tuple[int, Retained], ...]
    erasures: tuple[Erasure, ...]

    @property
    def repairs(self) -> tuple[tuple[int, bytes], ...]:
        return (() if self.retained is None else self.retained.repairs) + repairs_of(self.rows)

    @property
    def retained(self) -> Retained | None:
        return self.retentions[-1][1] if self.retentions else None

    @property
    def first(self) -> int:
        """Of the positions that were not dropped."""
        return 0 if self.retained is None else self.retained.position

    @property
    def segment(self) -> int:
        """The first that was not dropped."""
        return 0 if self.retained is None else self.retained.segment

    @property
    def tree_size(self) -> int:
        return self.first + len(self.rows)

    @property
    def durable_upto(self) -> tuple[int, ...]:
        return tuple(group.durable_upto for group in self.groups)

    def row(self, position: int) -> Row:
        return self.between(position, position + 1)[0]

    def between(self, start: int, end: int) -> tuple[Row, ...]:
        """The records of these positions."""
        if start < self.first:
            raise IndexError(f"position {start} was dropped")
        return self.rows[start - self.first : end - self.first]

    def group(self, number: int) -> Sealed:
        """Of the group before the first one that is left the record says what there is to say."""
        said = self.retained
        if said is None or number >= said.group:
            return self.groups[number - (1 if said is None else said.group)]
        if number < said.group - 1:
            raise IndexError(f"group {number} was dropped")
        front = (number, said.segment - 1, 0, said.position, 0, 0, said.timestamp, said.incarnation, True)
        return Sealed(*front, said.chain, said.position, root_of(said.peaks))

    def retained_at(self, group: int) -> Retained | None:
        """What had been said by this group."""
        return max((said for at, said in self.retentions if at <= group), key=lambda said: said.segment, default=None)


def repairs_of(rows: Iterable[Row]) -> tuple[tuple[int, bytes], ...]:
    """Positions and payloads of the records that say what was given up."""
    return tuple((row.position, row.payload) for row in rows if row.stream == 0 and row.payload[:2] == b"\7\0")


def hashes_file(log: Log) -> bytes:
    """With zeros in the place of what was dropped before it was read."""
    dropped = 0 if log.begun is None else leaf_index(log.begun.position)
    return hashes_header(log.identity.database) + bytes(32 * dropped) + log.hashes
