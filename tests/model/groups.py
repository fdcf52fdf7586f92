"""Segment headers, groups and runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate

import zstandard

from .cursor import HIGHEST, Cursor, ModelError, require, u8, u16, u32, u64, up_to
from .hashes import blake, body_hash, domain, group_chain, group_tag, segment_chain, xaes_open, xaes_seal

BLOCK = 4096
PACKED_BLOCK = 8
GROUP_HEADER = 104
RUN_HEADER = 88
RUN_PLAINTEXT = 64 << 10
ZSTD_MAGIC = bytes.fromhex("28b52ffd")


@dataclass(frozen=True)
class Packed:
    """What the header of a packed segment says about its end."""

    length: int
    last_group: int
    last_chain: bytes


@dataclass(frozen=True)
class SegmentHeader:
    database: bytes
    number: int
    first_group: int
    first_position: int
    chain_before: bytes
    salt: bytes
    packed: Packed | None = None

    def chain(self) -> bytes:
        """The previous chain of its first group."""
        return segment_chain(self.number, self.first_group, self.first_position, self.chain_before)


def encode_segment_header(header: SegmentHeader) -> bytes:
    packed = header.packed
    data = b"KIMBSEG1" + u16(1) + u16(packed is not None) + bytes(4) + header.database
    data += u64(header.number) + u64(header.first_group) + u64(header.first_position)
    data += header.chain_before + header.salt
    if packed is not None:
        data += u64(packed.length) + u64(packed.last_group) + packed.last_chain
    data = data.ljust(4088, b"\0")
    return data + blake(data, key=header.salt)[:8]


def decode_segment_header(data: bytes, where: str) -> SegmentHeader:
    cursor = Cursor(data, where)
    cursor.exactly(b"KIMBSEG1", "magic")
    cursor.exactly(u16(1), "format version")
    is_packed = cursor.flags(2, 1, "flags")
    cursor.zeros_to(16, "place 12")
    database = cursor.take(16, "database id")
    number, group, position = (cursor.number(8, "header") for _ in range(3))
    before, salt = cursor.take(32, "chain"), cursor.take(32, "salt")
    packed = None
    if is_packed:
        packed = Packed(cursor.number(8, "length"), cursor.number(8, "group"), cursor.take(32, "chain"))
    cursor.zeros_to(4088, "rest of the header")
    cursor.exactly(blake(data[:4088], key=salt)[:8], "check")
    cursor.end()
    return SegmentHeader(database, number, group, position, before, salt, packed)


@dataclass(frozen=True)
class Run:
    """A plain run has a seed, an encrypted one a nonce, commitments and `ends`."""

    stream: int
    records: int
    offset: int
    position: int
    text: bytes
    encrypted: bool = False
    compressed: bool = False
    ends: bool = False
    plain_length: int = 0
    key_id: bytes = bytes(16)
    seed: bytes = b""
    nonce: bytes = b""
    commitments: tuple[bytes, ...] = ()

    def front(self) -> bytes:
        """Its bytes up to the text."""
        front = RUN_HEADER + 32 * len(self.commitments)
        flags = self.encrypted | self.compressed << 1 | self.ends << 2
        data = u32(front + len(self.text)) + u32(self.stream) + u8(flags) + bytes(3) + u32(self.records)
        data += u64(self.offset) + u64(self.position) + u32(self.plain_length) + bytes(4) + self.key_id
        return data + (self.nonce + bytes(8) if self.encrypted else self.seed) + b"".join(self.commitments)


def encode_run(run: Run) -> bytes:
    return run.front() + run.text


def decode_run(data: bytes, where: str) -> Run:
    cursor = Cursor(data, where)
    require(cursor.number(4, "length") == len(data), where, "its length is not that of its bytes")
    stream, flags = cursor.number(4, "stream"), cursor.flags(1, 7, "run flags")
    encrypted, compressed, ends = bool(flags & 1), bool(flags & 2), bool(flags & 4)
    require(not (encrypted and compressed), where, "compressed outside the seal")
    require(encrypted or not ends, where, "a plain run cannot end a batch by a flag")
    cursor.zeros_to(12, "place 9")
    records = cursor.number(4, "records")
    require(records > 0, where, "a run without records")
    offset, position, plain_length = (cursor.number(size, "header") for size in (8, 8, 4))
    require(max(offset, position) + records <= HIGHEST, where, "offsets or positions that run over")
    cursor.zeros_to(40, "place 36")
    key_id, seed, nonce = cursor.take(16, "key id"), b"", b""
    if encrypted:
        nonce = cursor.take(24, "nonce")
        cursor.zeros_to(88, "place 80")
        require(plain_length == 0, where, "length of the plaintext of an encrypted run")
        require(cursor.place + 32 * records <= len(data), where, f"{records} commitments")
    else:
        seed = cursor.take(32, "seed")
        require(not any(key_id), where, "key id of a plain run")
    commitments = tuple(cursor.take(32, "commitment") for _ in range(records if encrypted else 0))
    text = data[cursor.place :]
    front = (stream, records, offset, position, text, encrypted, compressed, ends)
    return Run(*front, plain_length, key_id, seed, nonce, commitments)


def shrink(plaintext: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=1).compress(plaintext)


def grow(frame: bytes, length: int, where: str) -> bytes:
    """The `length` bytes that one zstd frame holds."""
    require(len(frame) < length, where, "a frame that is not shorter than what it holds")
    require(frame[:4] == ZSTD_MAGIC, where, "not a zstd frame")
    one = zstandard.ZstdDecompressor().decompressobj()
    try:
        plaintext = one.decompress(frame)
    except zstandard.ZstdError as problem:
        raise ModelError(where, f"zstd: {problem}") from None
    require(one.eof and not one.unused_data, where, "not one whole zstd frame")
    require(len(plaintext) == length, where, "its frame holds another length")
    return plaintext


def plain_text_of(plaintext: bytes, compress: bool) -> tuple[bytes, bool]:
    """The text of a plain run, and whether it is compressed."""
    frame = shrink(plaintext) if compress else plaintext
    return (frame, True) if len(frame) < len(plaintext) else (plaintext, False)


def plaintext_of(run: Run, where: str) -> bytes:
    """Of a plain run."""
    if run.compressed:
        return grow(run.text, run.plain_length, where)
    require(len(run.text) == run.plain_length, where, "length of the plaintext")
    return run.text


def encode_inner(plaintext: bytes, quantum: int, compress: bool) -> bytes:
    text, _ = plain_text_of(plaintext, compress)
    inner = u32(len(plaintext)) + u32(len(text)) + text
    return inner.ljust(up_to(len(inner), quantum), b"\0")


def decode_inner(inner: bytes, quantum: int, where: str) -> bytes:
    cursor = Cursor(inner, where)
    length, follows = cursor.number(4, "length"), cursor.number(4, "length")
    text = cursor.take(follows, "sealed plaintext")
    cursor.zeros_to(up_to(8 + follows, quantum), "padding inside the seal")
    cursor.end()
    return text if follows == length else grow(text, length, where)


def associated_data(database: bytes, run: Run) -> bytes:
    return domain("kimberlite/run/1") + database + run.front()


def seal_text(run: Run, inner: bytes, key: bytes, database: bytes) -> bytes:
    """The text of `run`. The associated data names the length, so a text of that length stands in."""
    sized = replace(run, text=bytes(len(inner) + 16))
    return xaes_seal(key, run.nonce, inner, associated_data(database, sized))


def open_text(run: Run, key: bytes, database: bytes, where: str) -> bytes:
    """The inner bytes of an encrypted run."""
    return xaes_open(key, run.nonce, run.text, associated_data(database, run), where)


@dataclass(frozen=True)
class Group:
    """`runs` are their bytes."""

    number: int
    position: int
    records: int
    durable_upto: int
    timestamp: int
    incarnation: int
    previous: bytes
    runs: tuple[bytes, ...] = ()
    closing: bool = False

    def header(self, tagged: bool) -> bytes:
        """Its bytes 0..96: what the chain is over."""
        length = GROUP_HEADER + sum(map(len, self.runs)) + 8 * len(self.runs) + 32 + 16 * tagged
        data = b"KIMBGRP1" + u32(length) + u32(self.closing) + u64(self.number) + u64(self.position)
        data += u32(self.records) + u32(len(self.runs)) + u64(self.durable_upto) + u64(self.timestamp)
        return data + u32(self.incarnation) + bytes(4) + self.previous

    def chain(self, tagged: bool) -> bytes:
        return group_chain(self.previous, self.header(tagged), body_hash(self.runs))

    def run_places(self, place: int) -> list[int]:
        sizes = [len(run) for run in self.runs]
        return list(accumulate(sizes, initial=place + GROUP_HEADER))[: len(sizes)]


def encode_group(group: Group, place: int, salt: bytes, tag: bytes | None) -> bytes:
    header = group.header(tag is not None)
    data = header + blake(header, u64(place), key=salt)[:8] + b"".join(group.runs)
    for run, at in zip(group.runs, group.run_places(place), strict=True):
        data += run_check(salt, run, at)
    return data + group.chain(tag is not None) + (tag or b"")


def run_check(salt: bytes, run: bytes, place: int) -> bytes:
    return blake(blake(run), u64(place), key=salt)[:8]


def decode_group(data: bytes, place: int, salt: bytes, *, tagged: bool, where: str) -> tuple[Group, bytes | None]:
    """The group that starts at `place` of the file `data`, and its tag if it has one."""
    header = data[place : place + GROUP_HEADER]
    front = Cursor(header, where)
    front.exactly(b"KIMBGRP1", "magic")
    length, flags = front.number(4, "length"), front.flags(4, 1, "group flags")
    number, position, records, count = (front.number(size, "header") for size in (8, 8, 4, 4))
    durable, timestamp, incarnation = (front.number(size, "header") for size in (8, 8, 4))
    front.zeros_to(64, "place 60")
    require(max(number + 1, position + records, timestamp) <= HIGHEST, where, "numbers that run over")
    previous = front.take(32, "previous chain")
    front.exactly(blake(header[:96], u64(place), key=salt)[:8], "header check")

    require(place + length <= len(data), where, "goes beyond the file")
    trailer = 8 * count + 32 + 16 * tagged
    require(GROUP_HEADER + RUN_HEADER * count + trailer <= length, where, f"{count} runs in {length} bytes")
    body = Cursor(data[place + GROUP_HEADER : place + length - trailer], where)
    runs = tuple(_take_run(body) for _ in range(count))
    body.end()
    front_of = (number, position, records, durable, timestamp, incarnation, previous)
    group = Group(*front_of, runs, bool(flags & 1))
    require(durable < number, where, "durable_upto is not below its own number")

    end = Cursor(data[place + length - trailer : place + length], where)
    for run, at in zip(runs, group.run_places(place), strict=True):
        end.exactly(run_check(salt, run, at), f"check of the run at {at}")
    end.exactly(group.chain(tagged), "chain")
    return group, end.take(16, "tag") if tagged else None


def _take_run(body: Cursor) -> bytes:
    length = int.from_bytes(body.data[body.place : body.place + 4], "little")
    require(length >= RUN_HEADER, body.where, f"a run of {length} bytes")
    return body.take(length, "run")


def check_tag(group_key: bytes, chain: bytes, tag: bytes | None, where: str) -> None:
    require(tag == group_tag(group_key, chain), where, "tag")


def runs_of(group: Group, place: int, where: str) -> list[tuple[Run, str]]:
    """Its runs and where each is, side by side and with as many records as it says."""
    runs = []
    position = group.position
    for data, at in zip(group.runs, group.run_places(place), strict=True):
        run = decode_run(data, f"{where}, run at {at}")
        require(run.position == position, f"{where}, run at {at}", "position")
        position += run.records
        runs.append((run, f"{where}, run at {at}"))
    require(position == group.position + group.records, where, "its runs have other records")
    return runs
