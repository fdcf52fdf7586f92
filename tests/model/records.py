"""What is inside a run: canonical records, batch entries, system records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from .cursor import HIGHEST, Cursor, ModelError, i64, require, u8, u16, u32, u64


class Mode(IntEnum):
    PLAIN = 0
    ENCRYPTED = 1


@dataclass(frozen=True)
class Record:
    """What a client gives. An empty key is a key."""

    payload: bytes = b""
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    event_time: int | None = None


def encode_record(record: Record) -> bytes:
    key = record.key or b""
    headers = b"".join(
        u16(len(name.encode())) + u32(len(value)) + name.encode() + value for name, value in record.headers
    )
    flags = (record.key is not None) | (record.event_time is not None) << 1
    sizes = u32(len(key)) + u32(len(headers)) + u32(len(record.payload))
    return u8(flags) + sizes + i64(record.event_time or 0) + key + headers + record.payload


def decode_record(data: bytes, where: str) -> Record:
    cursor = Cursor(data, where)
    record = take_record(cursor)
    cursor.end()
    return record


def take_record(cursor: Cursor) -> Record:
    flags = cursor.flags(1, 3, "record flags")
    key_size, headers_size, payload_size = (cursor.number(4, "record lengths") for _ in range(3))
    time = cursor.signed(8, "event time")
    require(bool(flags & 1) or key_size == 0, cursor.where, "a length of a key that is not there")
    require(bool(flags & 2) or time == 0, cursor.where, "an event time that is not there")
    key = cursor.take(key_size, "key")
    headers = _headers(cursor.take(headers_size, "headers"), cursor.where)
    payload = cursor.take(payload_size, "payload")
    return Record(payload, key if flags & 1 else None, headers, time if flags & 2 else None)


def _headers(data: bytes, where: str) -> tuple[tuple[str, bytes], ...]:
    cursor = Cursor(data, where)
    headers = []
    while cursor.place < len(data):
        name_size, value_size = cursor.number(2, "header"), cursor.number(4, "header")
        headers.append((cursor.text(name_size, "header name"), cursor.take(value_size, "header value")))
    return tuple(headers)


@dataclass(frozen=True)
class Producer:
    """Who sent a batch, as its first entry says it."""

    identifier: bytes
    sequence: int
    digest: bytes


@dataclass(frozen=True)
class Entry:
    """To whom the next records of a run belong."""

    records: int
    ends: bool
    producer: Producer | None = None


def encode_batch_entry(entry: Entry) -> bytes:
    sender = entry.producer
    front = u32(entry.records) + u8(entry.ends | (sender is not None) << 1)
    if sender is None:
        return front
    require(len(sender.digest) == 16, "batch entry", "a digest has 16 bytes")
    return front + u8(len(sender.identifier)) + sender.identifier + u64(sender.sequence) + sender.digest


def take_batch_entry(cursor: Cursor) -> Entry:
    records = cursor.number(4, "batch entry")
    require(records > 0, cursor.where, "a batch entry without records")
    flags = cursor.flags(1, 3, "batch flags")
    if not flags & 2:
        return Entry(records, bool(flags & 1))
    identifier = cursor.take(cursor.number(1, "producer"), "producer")
    sender = Producer(identifier, cursor.number(8, "sequence"), cursor.take(16, "digest"))
    return Entry(records, bool(flags & 1), sender)


def encode_plaintext(entries: Sequence[Entry], canonicals: Sequence[bytes]) -> bytes:
    return u32(len(entries)) + b"".join(encode_batch_entry(entry) for entry in entries) + b"".join(canonicals)


def decode_plaintext(data: bytes, records: int, where: str) -> tuple[list[Entry], list[Record], list[bytes]]:
    """Its entries, its records and their canonical bytes."""
    cursor = Cursor(data, where)
    count = cursor.number(4, "batches")
    # an entry has at least 5 bytes: a count beyond that is refused before anything is made of it
    require(0 < count <= len(data) // 5, where, f"{count} batches")
    entries = [take_batch_entry(cursor) for _ in range(count)]
    require(sum(entry.records for entry in entries) == records, where, "its entries count other records")
    require(all(entry.ends for entry in entries[:-1]), where, "a batch that does not end before the next")
    opened, canonicals = [], []
    for _ in range(records):
        start = cursor.place
        opened.append(take_record(cursor))
        canonicals.append(data[start : cursor.place])
    cursor.end()
    return entries, opened, canonicals


@dataclass(frozen=True)
class Declaration:
    stream: int
    mode: Mode
    random: bytes
    largest: int
    name: str


@dataclass(frozen=True)
class Part:
    """What an append to several streams put into one of them."""

    stream: int
    offset: int
    records: int


@dataclass(frozen=True)
class Many:
    """The producer of an append to several streams."""

    producer: bytes
    sequence: int
    digest: bytes
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Piece:
    """Of a retention record. `whole` is the hash of all its pieces."""

    number: int
    pieces: int
    whole: bytes
    data: bytes


@dataclass(frozen=True)
class Erased:
    """A stream that has no key from here on, and no further record."""

    stream: int
    declared: bytes
    master_id: bytes
    reason: str


@dataclass(frozen=True)
class Confirmed:
    """The master key of that erasure is no more."""

    stream: int
    declared: bytes
    master_id: bytes


@dataclass(frozen=True)
class Gap:
    """A stream goes on behind offsets that no record has."""

    stream: int
    start: int
    end: int
    reason: str


@dataclass(frozen=True)
class Repaired:
    """What was given up: ranges of positions, of this log or of the one that it was salvaged from."""

    salvaged: bool
    database: bytes
    when: int
    before: int
    after: int
    kept: int
    lost: tuple[tuple[int, int], ...]
    #: Whether some of these were kept.
    coarse: bool = False


System = Declaration | Many | Piece | Erased | Confirmed | Gap | Repaired


def encode_system(system: System) -> bytes:
    if isinstance(system, Repaired):
        front = (
            u16(7) + u8(system.salvaged + 2 * system.coarse) + system.database + u64(system.when) + u32(system.before)
        )
        lost = b"".join(u64(start) + u64(end) for start, end in system.lost)
        return front + u32(system.after) + u64(system.kept) + u32(len(system.lost)) + lost
    if isinstance(system, Piece):
        return u16(3) + u32(system.number) + u32(system.pieces) + system.whole + system.data
    if isinstance(system, Erased | Confirmed):
        kind = 4 if isinstance(system, Erased) else 5
        front = u16(kind) + u32(system.stream) + system.declared + system.master_id
        if isinstance(system, Confirmed):
            return front
        reason = system.reason.encode()
        return front + u16(len(reason)) + reason
    if isinstance(system, Gap):
        return u16(6) + u32(system.stream) + u64(system.start) + u64(system.end) + system.reason.encode()
    if isinstance(system, Declaration):
        require(len(system.random) == 16, "declaration", "16 random bytes")
        name = system.name.encode()
        front = u16(1) + u32(system.stream) + u8(system.mode) + system.random
        return front + u32(system.largest) + u16(len(name)) + name
    require(len(system.producer) == len(system.digest) == 16, "append to several", "16 bytes each")
    parts = b"".join(u32(part.stream) + u64(part.offset) + u32(part.records) for part in system.parts)
    front = u16(2) + system.producer + u64(system.sequence) + system.digest
    return front + u32(len(system.parts)) + parts


def decode_system(record: Record, where: str) -> System:
    bare = record.key is None and not record.headers and record.event_time is None
    require(bare, where, "a system record with a key, headers or an event time")
    cursor = Cursor(record.payload, where)
    kind = cursor.number(2, "kind")
    if kind == 7:
        system: System = _repaired(cursor)
    elif kind == 1:
        system = _declaration(cursor)
    elif kind == 2:
        system = _many(cursor)
    elif kind == 3:
        system = _piece(cursor)
    elif kind == 4:
        system = _erased(cursor)
    elif kind == 5:
        system = Confirmed(cursor.number(4, "stream"), cursor.take(32, "declaration"), cursor.take(16, "master key"))
    elif kind == 6:
        stream, start, end = (cursor.number(size, "gap") for size in (4, 8, 8))
        require(stream > 0 and start < end <= HIGHEST, where, "a gap of nothing, or of stream 0")
        size = len(record.payload) - cursor.place
        require(size <= 255, where, "a reason of more than 255 bytes")
        system = Gap(stream, start, end, cursor.text(size, "reason"))
    else:
        raise ModelError(where, f"system record of kind {kind}, which format 1 does not describe")
    cursor.end()
    return system


def _declaration(cursor: Cursor) -> Declaration:
    stream, mode = cursor.number(4, "stream"), cursor.number(1, "mode")
    require(mode in (0, 1), cursor.where, f"mode {mode}")
    random, largest = cursor.take(16, "random"), cursor.number(4, "largest record")
    return Declaration(stream, Mode(mode), random, largest, cursor.text(cursor.number(2, "name"), "name"))


def _erased(cursor: Cursor) -> Erased:
    named = cursor.number(4, "stream"), cursor.take(32, "declaration"), cursor.take(16, "master key")
    length = cursor.number(2, "reason")
    require(1 <= length <= 1024, cursor.where, f"a reason of {length} bytes")
    return Erased(*named, cursor.text(length, "reason"))


def _many(cursor: Cursor) -> Many:
    producer, sequence = cursor.take(16, "producer"), cursor.number(8, "sequence")
    digest, count = cursor.take(16, "digest"), cursor.number(4, "parts")
    require(count * 16 == len(cursor.data) - cursor.place, cursor.where, f"{count} parts")
    parts = (Part(*(cursor.number(size, "part") for size in (4, 8, 4))) for _ in range(count))
    return Many(producer, sequence, digest, tuple(parts))


def _piece(cursor: Cursor) -> Piece:
    number, pieces, whole = cursor.number(4, "piece"), cursor.number(4, "pieces"), cursor.take(32, "hash")
    require(number < pieces, cursor.where, f"piece {number} of {pieces}")
    return Piece(number, pieces, whole, cursor.take(len(cursor.data) - cursor.place, "piece"))


def _repaired(cursor: Cursor) -> Repaired:
    flags, database = cursor.number(1, "flags"), cursor.take(16, "database")
    require(flags <= 3, cursor.where, f"flags {flags}")
    when, before, after = (cursor.number(size, "repair") for size in (8, 4, 4))
    kept, count = cursor.number(8, "records that were kept"), cursor.number(4, "ranges")
    require(count * 16 == len(cursor.data) - cursor.place, cursor.where, f"{count} ranges")
    lost = tuple((cursor.number(8, "range"), cursor.number(8, "range")) for _ in range(count))
    return Repaired(bool(flags & 1), database, when, before, after, kept, lost, bool(flags & 2))
