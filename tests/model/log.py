"""What a verified directory says."""

from __future__ import annotations

from dataclasses import dataclass

from .cursor import ModelError
from .files import Identity, Mark, encode_hashes
from .records import Mode, Producer, Record


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
    """`doubts` are damages that the format forgives: they have a sound twin, or nothing hangs on them."""

    identity: Identity
    streams: tuple[Stream, ...]
    rows: tuple[Row, ...]
    groups: tuple[Sealed, ...]
    marks: tuple[Mark, ...]
    chain: bytes
    root: bytes
    doubts: tuple[ModelError, ...]

    @property
    def tree_size(self) -> int:
        return len(self.rows)

    @property
    def durable_upto(self) -> tuple[int, ...]:
        return tuple(group.durable_upto for group in self.groups)


def hashes_file(log: Log) -> bytes:
    return encode_hashes(log.identity.database, (row.leaf for row in log.rows))
