"""What a log says of the segments that it has dropped, and what it remembers of producers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

from .cursor import HIGHEST, Cursor, ModelError, require, u32, u64
from .hashes import blake, domain, xaes_open, xaes_seal
from .records import Declaration, Piece, Record, Repaired, decode_system

T = TypeVar("T")

ENTRY = 64
#: ns of log time after which an idle producer is forgotten, when the next batch of another one comes.
IDLE = 7 * 86_400_000_000_000


@dataclass(frozen=True)
class Sent:
    """A batch of a producer, as tables remember it. `stream` is 0 for appends to several."""

    producer: bytes
    digest: bytes
    sequence: int
    group: int
    timestamp: int
    stream: int

    @property
    def key(self) -> tuple[int, bytes]:
        return self.stream, self.producer


def encode_sent(sent: Sent) -> bytes:
    numbers = u64(sent.sequence) + u64(sent.group) + u64(sent.timestamp)
    return sent.producer + sent.digest + numbers + u32(sent.stream) + bytes(4)


def decode_sent(data: bytes, where: str) -> tuple[Sent, ...]:
    require(len(data) % ENTRY == 0, where, "a producer's entry is cut short")
    cursor = Cursor(data, where)
    found = []
    while cursor.place < len(data):
        who, digest = cursor.take(16, "producer"), cursor.take(16, "digest")
        found.append(Sent(who, digest, *(cursor.number(size, "entry") for size in (8, 8, 8, 4))))
        cursor.zeros_to(cursor.place + 4, "end of an entry")
    return tuple(found)


def last_sent(entries: Iterable[Sent]) -> dict[tuple[int, bytes], Sent]:
    """The last batch of each producer that is not forgotten, the longest idle first."""
    last: dict[tuple[int, bytes], Sent] = {}
    for sent in entries:
        for key in [key for key, known in last.items() if sent.timestamp >= known.timestamp + IDLE]:
            del last[key]
        last.pop(sent.key, None)
        last[sent.key] = sent
    return last


@dataclass(frozen=True)
class Left:
    """A stream as it was where the first kept segment begins."""

    offset: int
    declaration: bytes


@dataclass(frozen=True)
class SealedSent:
    """Entries of one encrypted stream, under its index key."""

    stream: int
    nonce: bytes
    text: bytes


@dataclass(frozen=True)
class Drop:
    """Positions from and up to, and when the first and the last of them was dropped by this rule."""

    start: int
    end: int
    first: int
    last: int
    rule: str


@dataclass(frozen=True)
class Erasure:
    """Where, when and why a stream was erased; position and time of the confirmation, zeros while it is pending."""

    stream: int
    position: int
    timestamp: int
    master_id: bytes
    reason: str
    confirmed: tuple[int, int] = (0, 0)

    @property
    def pending(self) -> bool:
        return self.confirmed == (0, 0)


def encode_erasures(erasures: Iterable[Erasure]) -> bytes:
    return _several(
        u32(one.stream)
        + u64(one.position)
        + u64(one.timestamp)
        + one.master_id
        + b"".join(map(u64, one.confirmed))
        + _sized(one.reason.encode())
        for one in erasures
    )


def erasures_before(erasures: Iterable[Erasure], position: int) -> tuple[Erasure, ...]:
    """What had been said of them there."""
    said = (one for one in erasures if one.position < position)
    return tuple(one if one.confirmed[0] < position else replace(one, confirmed=(0, 0)) for one in said)


@dataclass(frozen=True)
class Retained:
    """What one retention record says, and it says it for all before it."""

    segment: int
    group: int
    position: int
    chain: bytes
    timestamp: int
    incarnation: int
    #: Offset of stream 0.
    system: int
    peaks: tuple[bytes, ...]
    streams: tuple[Left, ...]
    producers: tuple[Sent, ...] = ()
    sealed: tuple[SealedSent, ...] = ()
    drops: tuple[Drop, ...] = ()
    erasures: tuple[Erasure, ...] = ()
    #: Positions and payloads of the records that say what was given up; of those that were damaged no payload.
    repairs: tuple[tuple[int, bytes], ...] = ()

    def declarations(self, where: str) -> list[Declaration]:
        found = [decode_system(Record(left.declaration), where) for left in self.streams]
        return [said for said in found if isinstance(said, Declaration)]


def _sized(data: bytes) -> bytes:
    return u32(len(data)) + data


def _several(items: Iterable[bytes]) -> bytes:
    listed = list(items)
    return u32(len(listed)) + b"".join(listed)


def encode_retained(said: Retained) -> bytes:
    data = u64(said.segment) + u64(said.group) + u64(said.position) + said.chain
    data += u64(said.timestamp) + u32(said.incarnation) + u64(said.system) + _several(said.peaks)
    data += _several(u64(left.offset) + _sized(left.declaration) for left in said.streams)
    data += _sized(b"".join(map(encode_sent, said.producers)))
    data += _several(u32(one.stream) + one.nonce + _sized(one.text) for one in said.sealed)
    data += _several(
        u64(drop.start) + u64(drop.end) + u64(drop.first) + u64(drop.last) + _sized(drop.rule.encode())
        for drop in said.drops
    )
    data += encode_erasures(said.erasures)
    return data + _several(u64(at) + _sized(payload) for at, payload in said.repairs) if said.repairs else data


def decode_retained(data: bytes, where: str) -> Retained:
    where = f"{where}, what was dropped"
    cursor = Cursor(data, where)

    def number(size: int = 8) -> int:
        return cursor.number(size, "retention record")

    def sized() -> bytes:
        return cursor.take(number(4), "retention record")

    def several(least: int, one: Callable[[], T]) -> tuple[T, ...]:
        count = number(4)
        # a count beyond what there is room for is refused before anything is made of it
        require(count <= (len(data) - cursor.place) // least, where, f"{count} of something")
        return tuple(one() for _ in range(count))

    def drop() -> Drop:
        start, end, first, last = number(), number(), number(), number()
        return Drop(start, end, first, last, cursor.text(number(4), "rule"))

    def erasure() -> Erasure:
        stream, at, when = number(4), number(), number()
        master, confirmed = cursor.take(16, "master key"), (number(), number())
        return Erasure(stream, at, when, master, cursor.text(number(4), "reason"), confirmed)

    segment, group, position = number(), number(), number()
    chain = cursor.take(32, "chain")
    timestamp, incarnation, system = number(), number(4), number()
    said = Retained(
        *(segment, group, position, chain, timestamp, incarnation, system),
        peaks=several(32, lambda: cursor.take(32, "peak")),
        streams=several(12, lambda: Left(number(), sized())),
        producers=decode_sent(sized(), where),
        sealed=several(32, lambda: SealedSent(number(4), cursor.take(24, "nonce"), sized())),
        drops=several(36, drop),
        erasures=several(56, erasure),
    )
    if cursor.place < len(data):
        said = replace(said, repairs=several(12, lambda: (number(), sized())))
        require(bool(said.repairs), where, "repairs that are none")
    cursor.end()
    _check(said, where)
    return said


def _check(said: Retained, where: str) -> None:
    """It does not contradict itself."""
    require(said.segment > 0 and said.group > 1, where, "nothing is before its first segment")
    numbers = (said.segment, said.group, said.position, said.timestamp, said.system)
    require(max(*numbers, *(left.offset for left in said.streams)) <= HIGHEST, where, "numbers that run over")
    require(len(said.peaks) == said.position.bit_count(), where, f"{len(said.peaks)} peaks")
    declared = said.declarations(where)
    require([one.stream for one in declared] == list(range(1, len(said.streams) + 1)), where, "declarations")
    require(len({one.name for one in declared}) == len(declared), where, "a name twice")
    sealed = [one.stream for one in said.sealed]
    encrypted = {one.stream for one in declared if one.mode}
    require(len(set(sealed)) == len(sealed) and set(sealed) <= encrypted, where, f"producers of streams {sealed}")
    erased = [one.stream for one in said.erasures]
    require(len(set(erased)) == len(erased) and set(erased) <= encrypted, where, f"erasures of streams {erased}")
    require(said.erasures == erasures_before(said.erasures, said.position), where, "an erasure that stands behind it")
    repaired = [decode_system(Record(payload), where) for _, payload in said.repairs if payload]
    require(all(isinstance(one, Repaired) for one in repaired), where, "repairs")
    require(all(at < said.position for at, _ in said.repairs), where, "a repair that stands behind it")
    ends = [0, *(drop.end for drop in said.drops)]
    require([drop.start for drop in said.drops] == ends[:-1], where, "a gap between what was dropped")
    require(ends[-1] == said.position, where, "droppings that end elsewhere")


def _associated(database: bytes, stream: int) -> bytes:
    return domain("kimberlite/retained/1") + database + u32(stream)


def seal_sent(entries: Iterable[Sent], stream: int, nonce: bytes, index_key: bytes, database: bytes) -> SealedSent:
    data = b"".join(map(encode_sent, entries))
    return SealedSent(stream, nonce, xaes_seal(index_key, nonce, data, _associated(database, stream)))


def open_sent(one: SealedSent, index_key: bytes, database: bytes, where: str) -> tuple[Sent, ...]:
    data = xaes_open(index_key, one.nonce, one.text, _associated(database, one.stream), where)
    found = decode_sent(data, where)
    require(all(sent.stream == one.stream for sent in found), where, "a producer of another stream")
    return found


def pieces_of(said: Retained, count: int) -> list[Piece]:
    """In about equal lengths."""
    data = encode_retained(said)
    size = -(-len(data) // count)
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    return [Piece(number, len(parts), blake(data), part) for number, part in enumerate(parts)]


@dataclass
class Collector:
    """Pieces until they are whole. One that was given up is followed by the first of another."""

    whole: bytes = b""
    pieces: int = 0
    parts: list[bytes] = field(default_factory=list)
    #: Whether the first pieces of what comes may have been dropped.
    begun: bool = False

    def take(self, piece: Piece, where: str) -> Retained | None:
        if piece.number == 0:
            self.whole, self.pieces, self.parts = piece.whole, piece.pieces, []
        elif self.begun and not self.pieces:
            return None
        fits = (piece.whole, piece.pieces, piece.number) == (self.whole, self.pieces, len(self.parts))
        require(fits, where, f"piece {piece.number} of another retention record")
        self.parts.append(piece.data)
        if len(self.parts) < piece.pieces:
            return None
        data, self.parts = b"".join(self.parts), []
        require(blake(data) == self.whole, where, "a retention record is not what its pieces say")
        return decode_retained(data, where)


def all_said(pieces: Iterable[tuple[Piece, str]]) -> Iterator[Retained]:
    """The records that are whole."""
    collector = Collector(begun=True)
    for piece, where in pieces:
        try:
            said = collector.take(piece, where)
        except ModelError:
            continue
        if said is not None:
            yield said
