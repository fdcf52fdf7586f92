"""Builds a whole directory from groups of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from .batches import AppendMany, Batch, Item, Operation, Said, Sender, cut, entries_of
from .cursor import require, up_to
from .files import (
    DATA_KEY,
    GROUP_KEY,
    RECEIPT_KEY,
    Identity,
    Mark,
    Slot,
    VaultHeader,
    encode_identity,
    encode_marks,
    encode_vault,
    segment_name,
    wrap_slot,
)
from .groups import (
    BLOCK,
    GROUP_HEADER,
    PACKED_BLOCK,
    Group,
    Packed,
    Run,
    SegmentHeader,
    decode_group,
    decode_segment_header,
    encode_group,
    encode_inner,
    encode_run,
    encode_segment_header,
    plain_text_of,
    seal_text,
)
from .hashes import (
    batch_digest,
    commitment,
    declaration_hash,
    group_tag,
    index_key,
    kept_producer,
    key_id,
    many_digest,
    many_key,
    run_seed,
    salts,
    seal_key,
)
from .records import (
    Declaration,
    Many,
    Mode,
    Part,
    Producer,
    Record,
    encode_plaintext,
    encode_record,
    encode_system,
)

Entropy = Callable[[int], bytes]


@dataclass(frozen=True)
class Keys:
    """Without a master key there are no tags, no vault and no encrypted streams."""

    group: bytes
    receipt: bytes
    master: bytes | None = None


@dataclass
class _Stream:
    number: int
    mode: Mode
    declared: bytes
    data_key: bytes = b""
    next_offset: int = 0

    def batch(self, canonicals: Sequence[bytes], producer: Producer | None = None) -> list[Item]:
        require(len(canonicals) > 0, "write", "an empty batch")
        start, last = self.next_offset, len(canonicals) - 1
        self.next_offset += len(canonicals)
        return [
            Item(self.number, start + i, record, i == 0, i == last, producer) for i, record in enumerate(canonicals)
        ]


@dataclass
class _Writer:
    identity: Identity
    keys: Keys
    entropy: Entropy
    clock: Callable[[], int]
    segment_bytes: int
    compress: bool
    incarnation: int
    durable_upto: Callable[[int], int]
    system: _Stream
    streams: dict[str, _Stream] = field(default_factory=dict)
    slots: list[Slot] = field(default_factory=list)
    segments: list[bytearray] = field(default_factory=list)
    salt: bytes = b""
    number: int = 0
    position: int = 0
    timestamp: int = 0
    chain: bytes = b""
    previous: bytes = b""

    def begin(self) -> None:
        me = self.identity.hash()
        self.chain = me
        if self.keys.master is not None:
            self.keep(self.keys.group, GROUP_KEY, 0, me)
            self.keep(self.keys.receipt, RECEIPT_KEY, 0, me)
        self.open_segment()

    def keep(self, key: bytes, kind: int, stream: int, declared: bytes) -> None:
        require(self.keys.master is not None, "write", "an encrypted stream without a master key")
        assert self.keys.master is not None
        slot = wrap_slot(key, kind, stream, declared, self.entropy(24), self.keys.master, self.identity)
        self.slots.append(slot)

    def open_segment(self) -> None:
        self.salt = self.entropy(32)
        numbers = (len(self.segments), self.number + 1, self.position)
        header = SegmentHeader(self.identity.database, *numbers, self.chain, self.salt)
        self.segments.append(bytearray(encode_segment_header(header)))
        self.previous = header.chain()

    def append_group(self, operations: Iterable[Operation]) -> None:
        items = [item for operation in operations for item in self.items(operation)]
        runs = tuple(encode_run(run) for run in self.runs(items))
        size = GROUP_HEADER + sum(len(run) + 8 for run in runs) + 32 + 16 * self.identity.tagged
        # room for the closing group is always kept
        if len(self.segments[-1]) + up_to(size, BLOCK) + BLOCK > self.segment_bytes:
            if len(self.segments[-1]) > BLOCK:
                self.seal((), 0, closing=True)
                self.open_segment()
            fits = BLOCK + up_to(size, BLOCK) + BLOCK <= self.segment_bytes
            require(fits, "write", f"a group of {size} bytes in segments of {self.segment_bytes}")
        self.seal(runs, len(items))

    def seal(self, runs: tuple[bytes, ...], records: int, *, closing: bool = False) -> None:
        self.number += 1
        self.timestamp = max(self.timestamp, self.clock())
        upto = self.durable_upto(self.number)
        front = (self.number, self.position, records, upto, self.timestamp, self.incarnation)
        group = Group(*front, self.previous, runs, closing)
        tagged = self.identity.tagged
        self.chain = self.previous = group.chain(tagged)
        tag = group_tag(self.keys.group, self.chain) if tagged else None
        segment = self.segments[-1]
        segment += encode_group(group, len(segment), self.salt, tag)
        segment += bytes(up_to(len(segment), BLOCK) - len(segment))
        self.position += records

    def items(self, operation: Operation) -> list[Item]:
        if isinstance(operation, Said):
            return self.system.batch([encode_record(Record(operation.payload))])
        batches = operation.batches if isinstance(operation, AppendMany) else (operation,)
        items = [item for batch in batches for item in self.declare(batch)]
        if isinstance(operation, AppendMany) and operation.producer is not None:
            items += self.system.batch([self.many(operation, operation.producer)])
        for batch in batches:
            stream = self.streams[batch.stream]
            canonicals = [encode_record(record) for record in batch.records]
            producer = None
            if batch.producer is not None:
                require(not isinstance(operation, AppendMany), "write", "a producer in a part")
                key = self.index_key(stream)
                sender = batch.producer
                producer = Producer(sender.identifier, sender.sequence, batch_digest(key, canonicals))
            items += stream.batch(canonicals, producer)
        return items

    def declare(self, batch: Batch) -> list[Item]:
        if batch.stream in self.streams:
            return []
        number = len(self.streams) + 1
        declaration = Declaration(number, batch.mode, self.entropy(16), 0, batch.stream)
        payload = encode_system(declaration)
        stream = _Stream(number, batch.mode, declaration_hash(payload))
        if batch.mode is Mode.ENCRYPTED:
            stream.data_key = self.entropy(32)
            self.keep(stream.data_key, DATA_KEY, number, stream.declared)
        self.streams[batch.stream] = stream
        return self.system.batch([encode_record(Record(payload))])

    def index_key(self, stream: _Stream) -> bytes:
        return index_key(stream.data_key) if stream.mode is Mode.ENCRYPTED else self.identity.hash()

    def many(self, operation: AppendMany, sender: Sender) -> bytes:
        """The canonical system record that stands in front of the parts."""
        key = many_key(self.keys.receipt)
        given, parts = [], []
        coming = {batch.stream: self.streams[batch.stream].next_offset for batch in operation.batches}
        for batch in operation.batches:
            stream = self.streams[batch.stream]
            number = stream.number
            given.append((number, self.index_key(stream), [encode_record(record) for record in batch.records]))
            parts.append(Part(number, coming[batch.stream], len(batch.records)))
            coming[batch.stream] += len(batch.records)
        kept = kept_producer(key, sender.identifier)
        many = Many(kept, sender.sequence, many_digest(key, given), tuple(parts))
        return encode_record(Record(encode_system(many)))

    def runs(self, items: Sequence[Item]) -> Iterable[Run]:
        by_number = {stream.number: stream for stream in (self.system, *self.streams.values())}
        position = self.position
        for run_items in cut(items, {n for n, s in by_number.items() if s.mode is Mode.ENCRYPTED}):
            stream = by_number[run_items[0].stream]
            yield self.run(stream, position, run_items)
            position += len(run_items)

    def run(self, stream: _Stream, position: int, items: Sequence[Item]) -> Run:
        canonicals = [item.canonical for item in items]
        plaintext = encode_plaintext(entries_of(items), canonicals)
        front = Run(stream.number, len(items), items[0].offset, position, b"")
        if stream.mode is Mode.PLAIN:
            text, compressed = plain_text_of(plaintext, self.compress)
            return replace(
                front,
                text=text,
                compressed=compressed,
                plain_length=len(plaintext),
                seed=self.entropy(32),
            )
        nonce = self.entropy(24)
        salted = zip(salts(run_seed(stream.data_key, nonce), len(items)), canonicals, strict=True)
        front = replace(
            front,
            encrypted=True,
            ends=items[-1].last,
            key_id=key_id(stream.data_key),
            nonce=nonce,
            commitments=tuple(commitment(stream.declared, salt, record) for salt, record in salted),
        )
        inner = encode_inner(plaintext, self.identity.quantum, self.compress)
        return replace(front, text=seal_text(front, inner, seal_key(stream.data_key), self.identity.database))


def write_log(
    identity: Identity,
    operations: Iterable[Iterable[Operation]],
    *,
    keys: Keys,
    entropy: Entropy,
    clock: Callable[[], int],
    segment_bytes: int = 256 << 20,
    compress: bool = False,
    incarnation: int = 0,
    durable_upto: Callable[[int], int] = lambda number: number - 1,
    clean: bool = True,
    zeros_behind: int = 0,
) -> dict[str, bytes]:
    """The files of a directory whose groups are `operations`.

    `zeros_behind` bytes follow the last group, as in a file that was allocated ahead.
    """
    require(identity.tagged == (keys.master is not None), "write", "a tag is for a master key")
    settings = (segment_bytes, compress, incarnation, durable_upto)
    system = _Stream(0, Mode.PLAIN, identity.hash())
    writer = _Writer(identity, keys, entropy, clock, *settings, system)
    writer.begin()
    for group in operations:
        writer.append_group(group)
    files = {segment_name(number): bytes(data) for number, data in enumerate(writer.segments)}
    files[segment_name(len(files) - 1)] += bytes(zeros_behind)
    mark = Mark(1, incarnation, writer.number, writer.chain, clean)
    files["identity"] = encode_identity(identity)
    files["marks"] = encode_marks(mark, replace(mark, counter=2), identity)
    if keys.master is None:
        files["receipt.key"] = keys.receipt
    else:
        vault = encode_vault(VaultHeader(1, key_id(keys.master)), writer.slots, identity)
        files["vault.0"] = files["vault.1"] = vault
    return files


def pack_segment(data: bytes, salt: bytes, *, tagged: bool) -> bytes:
    """The same groups at multiples of 8, under the checks of another salt."""
    old = decode_segment_header(data[:BLOCK], "segment")
    packed, place, last = b"", BLOCK, (old.first_group - 1, old.chain_before)
    while any(data[place : place + 8]):
        group, tag = decode_group(data, place, old.salt, tagged=tagged, where=f"segment at {place}")
        packed += bytes(up_to(len(packed), PACKED_BLOCK) - len(packed))
        packed += encode_group(group, BLOCK + len(packed), salt, tag)
        last = (group.number, group.chain(tagged))
        place += up_to(len(encode_group(group, place, old.salt, tag)), BLOCK)
    header = replace(old, salt=salt, packed=Packed(BLOCK + len(packed), *last))
    return encode_segment_header(header) + packed
