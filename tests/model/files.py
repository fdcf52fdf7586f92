"""The small files: identity, marks, vault, hashes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from .cursor import HIGHEST, Cursor, ModelError, is_zero, require, u8, u16, u32, u64, up_to
from .groups import BLOCK
from .hashes import blake, domain, key_id, sha256, wrapping_key, xaes_open, xaes_seal

SLOT = 256
OTHER_NAMES = re.compile(
    r"identity|marks|vault\.[01]|receipt\.key|reserve|hashes|checkpoint|producers|clock|past|repair"
    r"|segments/\d{20}\.seg|index/\d{20}\.idx|prepare/.+|quarantine/\d+-\d+-\d+\.tail"
)


def segment_name(number: int) -> str:
    return f"segments/{number:020d}.seg"


def check_names(names: Iterable[str]) -> range:
    """The segments up to the last, without a gap; every name is one that a directory may hold."""
    segments = set()
    for name in names:
        require(OTHER_NAMES.fullmatch(name) is not None, name, "is no file of a database")
        if name.startswith("segments/"):
            segments.add(name)
    require(bool(segments), segment_name(0), "is missing")
    first = last = int(max(segments)[-24:-4])
    while segment_name(first - 1) in segments:
        first -= 1
    return range(first, last + 1)


@dataclass(frozen=True)
class Identity:
    database: bytes
    made: int
    origin: str
    tagged: bool = False
    quantum: int = 128

    def hash(self) -> bytes:
        return _identity_hash(self)


@cache
def _identity_hash(identity: Identity) -> bytes:
    return sha256(domain("kimberlite/identity/1"), encode_identity(identity)[:480])


def encode_identity(identity: Identity) -> bytes:
    origin = identity.origin.encode()
    _check_identity(identity, "identity")
    data = b"KIMBID01" + u16(1) + u8(1) + u8(identity.tagged) + u32(identity.quantum)
    data += identity.database + u64(identity.made) + u16(len(origin)) + origin
    data = data.ljust(480, b"\0")
    return data + blake(domain("kimberlite/identity/1"), data)


def decode_identity(data: bytes, where: str = "identity") -> Identity:
    cursor = Cursor(data, where)
    cursor.exactly(b"KIMBID01", "magic")
    cursor.exactly(u16(1), "format version")
    cursor.exactly(u8(1), "hashes")
    tagged = cursor.flags(1, 1, "tag")
    quantum = cursor.number(4, "padding quantum")
    database, made = cursor.take(16, "database id"), cursor.number(8, "time")
    size = cursor.number(2, "length of the origin")
    origin = cursor.text(size, "origin")
    cursor.zeros_to(480, "rest of the identity")
    cursor.exactly(blake(domain("kimberlite/identity/1"), data[:480]), "check")
    cursor.end()
    identity = Identity(database, made, origin, bool(tagged), quantum)
    _check_identity(identity, where)
    return identity


def _check_identity(identity: Identity, where: str) -> None:
    require(identity.quantum.bit_count() == 1, where, "padding quantum is not a power of two")
    require(1 <= len(identity.origin.encode()) <= 255, where, "length of the origin")
    bad = [c for c in identity.origin if c == "+" or c.isspace() or unicodedata.category(c) == "Cc"]
    require(not bad, where, f"origin with {bad!r}")


@dataclass(frozen=True)
class Mark:
    counter: int
    incarnation: int
    durable_group: int
    chain: bytes
    clean: bool = False


def encode_mark(mark: Mark, identity: Identity) -> bytes:
    data = b"KIMBMRK1" + identity.database + u64(mark.counter) + u32(mark.incarnation) + u32(mark.clean)
    data = (data + u64(mark.durable_group) + mark.chain).ljust(4088, b"\0")
    return data + blake(data, key=identity.hash())[:8]


def decode_mark(data: bytes, identity: Identity, where: str) -> Mark:
    cursor = Cursor(data, where)
    cursor.exactly(b"KIMBMRK1", "magic")
    cursor.exactly(identity.database, "database id")
    counter, incarnation = cursor.number(8, "counter"), cursor.number(4, "incarnation")
    clean = cursor.flags(4, 1, "flags")
    durable, chain = cursor.number(8, "durable group"), cursor.take(32, "chain")
    cursor.zeros_to(4088, "rest of the mark")
    cursor.exactly(blake(data[:4088], key=identity.hash())[:8], "check")
    cursor.end()
    require(max(counter, durable) <= HIGHEST, where, "numbers that run over")
    require(durable > 0 or chain == identity.hash(), where, "chain of no group")
    return Mark(counter, incarnation, durable, chain, bool(clean))


def encode_marks(older: Mark, newer: Mark, identity: Identity) -> bytes:
    require(newer.counter == older.counter + 1, "marks", "counters of two marks are neighbours")
    blocks = {mark.counter % 2: encode_mark(mark, identity) for mark in (older, newer)}
    return blocks[0] + blocks[1]


def decode_marks(data: bytes, identity: Identity) -> tuple[list[Mark], list[ModelError]]:
    """The sound marks, oldest first, and what is wrong with the other."""
    require(len(data) == 2 * BLOCK, "marks", "is not two blocks")
    marks, problems = [], []
    for block in (0, 1):
        where = f"marks, block {block}"
        try:
            mark = decode_mark(data[block * BLOCK : block * BLOCK + BLOCK], identity, where)
            require(mark.counter % 2 == block, where, "counter of the other block")
            marks.append(mark)
        except ModelError as problem:
            problems.append(problem)
    if not marks:
        raise problems[0]
    return sorted(marks, key=lambda mark: mark.counter), problems


@dataclass(frozen=True)
class VaultHeader:
    generation: int
    master_id: bytes


def encode_vault_header(header: VaultHeader, identity: Identity) -> bytes:
    data = b"KIMBVLT1" + identity.database + u64(header.generation) + header.master_id
    data = data.ljust(4088, b"\0")
    return data + blake(data, key=identity.hash())[:8]


def decode_vault_header(data: bytes, identity: Identity, where: str) -> VaultHeader:
    cursor = Cursor(data, where)
    cursor.exactly(b"KIMBVLT1", "magic")
    cursor.exactly(identity.database, "database id")
    header = VaultHeader(cursor.number(8, "generation"), cursor.take(16, "id of the master key"))
    cursor.zeros_to(4088, "rest of the header")
    cursor.exactly(blake(data[:4088], key=identity.hash())[:8], "check")
    cursor.end()
    return header


GROUP_KEY, RECEIPT_KEY, DATA_KEY = 1, 2, 3


@dataclass(frozen=True)
class Slot:
    kind: int
    stream: int
    generation: int
    key_id: bytes
    declared: bytes
    nonce: bytes
    wrapped: bytes


def encode_slot(slot: Slot, place: int, identity: Identity) -> bytes:
    data = u32(slot.kind) + u32(slot.stream) + u64(slot.generation) + slot.key_id + slot.declared
    data = (data + slot.nonce + slot.wrapped).ljust(248, b"\0")
    return data + blake(data, u64(place), key=identity.hash())[:8]


def decode_slot(data: bytes, place: int, identity: Identity, where: str) -> Slot | None:
    """None is an empty slot: 256 zeros."""
    if is_zero(data):
        return None
    cursor = Cursor(data, where)
    kind, stream, generation = (cursor.number(size, "slot") for size in (4, 4, 8))
    rest = (cursor.take(size, "slot") for size in (16, 32, 24, 48))
    slot = Slot(kind, stream, generation, *rest)
    cursor.zeros_to(248, "rest of the slot")
    cursor.exactly(blake(data[:248], u64(place), key=identity.hash())[:8], "check")
    cursor.end()
    require(kind in (GROUP_KEY, RECEIPT_KEY, DATA_KEY), where, f"kind {kind}")
    require((kind == DATA_KEY) == (stream > 0), where, f"kind {kind} of stream {stream}")
    require(kind == DATA_KEY or slot.declared == identity.hash(), where, "is not bound to the identity")
    return slot


def _slot_data(kind: int, stream: int, identified: bytes, identity: Identity) -> bytes:
    return domain("kimberlite/wrap/1") + identity.database + u32(kind) + u32(stream) + identified


def wrap_slot(
    key: bytes, kind: int, stream: int, declared: bytes, nonce: bytes, master: bytes, identity: Identity
) -> Slot:
    data = _slot_data(kind, stream, key_id(key) + declared, identity)
    wrapped = xaes_seal(wrapping_key(master, identity.database), nonce, key, data)
    return Slot(kind, stream, 1, key_id(key), declared, nonce, wrapped)


def unwrap_slot(slot: Slot, master: bytes, identity: Identity, where: str) -> bytes:
    data = _slot_data(slot.kind, slot.stream, slot.key_id + slot.declared, identity)
    key = xaes_open(wrapping_key(master, identity.database), slot.nonce, slot.wrapped, data, where)
    require(key_id(key) == slot.key_id, where, "its key has another id")
    return key


def encode_vault(header: VaultHeader, slots: Iterable[Slot], identity: Identity) -> bytes:
    data = encode_vault_header(header, identity)
    for slot in slots:
        data += encode_slot(slot, len(data), identity)
    return data.ljust(up_to(len(data), BLOCK), b"\0")


def decode_vault(
    copies: list[tuple[str, bytes]], identity: Identity
) -> tuple[VaultHeader, list[Slot], list[ModelError]]:
    """Header and slots from whichever copy has them sound, and what is wrong in the other."""
    problems: list[ModelError] = []
    headers: dict[str, VaultHeader] = {}
    for name, data in copies:
        try:
            headers[name] = decode_vault_header(data[:BLOCK], identity, name)
            require(len(data) % BLOCK == 0, name, "ends inside a block")
        except ModelError as problem:
            problems.append(problem)
    if not headers:
        raise problems[0] if problems else ModelError("vault.0", "both copies are missing")
    newest = max(headers.values(), key=lambda header: header.generation)
    # a slot that a newer header took away must not come back from the older copy
    copies = [copy for copy in copies if headers.get(copy[0], newest).generation == newest.generation]
    slots = []
    for place in range(BLOCK, max(len(data) for _, data in copies), SLOT):
        slot = _either(copies, place, identity, problems)
        if slot is not None:
            slots.append(slot)
    return newest, slots, problems


def _either(copies: list[tuple[str, bytes]], place: int, identity: Identity, problems: list[ModelError]) -> Slot | None:
    found: list[Slot | None] = []
    for name, data in copies:
        where = f"{name} at {place}"
        try:
            found.append(decode_slot(data[place : place + SLOT], place, identity, where))
        except ModelError as problem:
            problems.append(problem)
    if not found:
        raise problems[-1]
    if len(set(found)) > 1:
        problems.append(ModelError(f"vault at {place}", "the copies differ"))
    return max(found, key=lambda slot: -1 if slot is None else slot.generation)


def hashes_header(database: bytes, magic: bytes = b"KIMBTRE1") -> bytes:
    """Of the derived file `hashes`, and of `past`."""
    return (magic + database).ljust(BLOCK, b"\0")


def leaf_index(position: int) -> int:
    """Where the leaf stands in the file, in hashes after its header."""
    return 2 * position - position.bit_count()
