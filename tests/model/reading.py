"""Verifies a whole directory, as far as the keys go, and returns what it says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .cursor import ModelError, is_zero, require, up_to
from .files import (
    DATA_KEY,
    GROUP_KEY,
    RECEIPT_KEY,
    Identity,
    Mark,
    check_names,
    decode_identity,
    decode_marks,
    decode_vault,
    segment_name,
    unwrap_slot,
)
from .groups import (
    BLOCK,
    PACKED_BLOCK,
    RUN_PLAINTEXT,
    Group,
    Run,
    SegmentHeader,
    check_tag,
    decode_group,
    decode_inner,
    decode_segment_header,
    open_text,
    plaintext_of,
    runs_of,
)
from .hashes import (
    Tree,
    batch_digest,
    commitment,
    declaration_hash,
    encode_entry,
    index_key,
    key_id,
    leaf_hash,
    many_digest,
    many_key,
    run_seed,
    salts,
    seal_key,
)
from .log import Log, Row, Sealed, Stream
from .records import (
    Declaration,
    Entry,
    Many,
    Mode,
    Producer,
    Record,
    decode_plaintext,
    decode_system,
    encode_record,
)


@dataclass
class _Keys:
    """`group` is None when tags cannot be checked; `data` is by D."""

    opened: bool
    group: bytes | None = None
    receipt: bytes | None = None
    data: dict[bytes, bytes] = field(default_factory=dict)


@dataclass
class _Batch:
    """One that is not whole yet. `canonicals` is None when it is sealed."""

    stream: int
    producer: Producer | None = None
    canonicals: list[bytes] | None = field(default_factory=list)


def read_log(files: Mapping[str, bytes], master: bytes | None = None) -> Log:
    count = check_names(files)
    for name in ("identity", "marks"):
        require(name in files, name, "is missing")
    require(count > 0, segment_name(0), "is missing")
    identity = decode_identity(files["identity"])
    doubts: list[ModelError] = []
    reader = _Reader(identity, _open_keys(files, identity, master, doubts), doubts)
    for number in range(count):
        reader.segment(files[segment_name(number)], number)
    marks, problems = decode_marks(files["marks"], identity)
    doubts += problems
    for mark in marks:
        reader.check_mark(mark)
    streams = tuple(reader.streams)
    logged = (streams, tuple(reader.rows), tuple(reader.groups), tuple(marks))
    return Log(identity, *logged, reader.chain, reader.tree.root(), tuple(doubts))


def _open_keys(files: Mapping[str, bytes], identity: Identity, master: bytes | None, doubts: list[ModelError]) -> _Keys:
    copies = [(name, files[name]) for name in ("vault.0", "vault.1") if name in files]
    if not identity.tagged:
        require(master is None and not copies, "identity", "says that there is no master key")
        receipt = files.get("receipt.key")
        require(receipt is None or len(receipt) == 32, "receipt.key", "has not 32 bytes")
        return _Keys(True, receipt=receipt)
    require("receipt.key" not in files, "receipt.key", "is in the vault when there is a master key")
    if not copies:
        # an auditor of a backup or a follower has no vault; whoever brings a key wants to use it
        require(master is None, "vault.0", "is missing, and vault.1 too")
        doubts.append(ModelError("vault", "is missing"))
        return _Keys(False)
    header, slots, problems = decode_vault(copies, identity)
    doubts += problems
    if len(copies) == 1:
        doubts.append(ModelError("vault", "has one copy"))
    if master is None:
        return _Keys(False)
    require(header.master_id == key_id(master), "vault", "is wrapped by another master key")
    kinds = [slot.kind for slot in slots]
    require(kinds == [GROUP_KEY, RECEIPT_KEY, *[DATA_KEY] * len(kinds[2:])], "vault", f"slots {kinds}")
    group, receipt, *data = (unwrap_slot(slot, master, identity, "vault") for slot in slots)
    by_stream = {slot.declared: key for slot, key in zip(slots[2:], data, strict=True)}
    require(len(by_stream) == len(data), "vault", "two keys of one stream")
    return _Keys(True, group, receipt, by_stream)


class _Reader:
    def __init__(self, identity: Identity, keys: _Keys, doubts: list[ModelError]) -> None:
        self.identity, self.keys, self.doubts = identity, keys, doubts
        self.me = identity.hash()
        self.chain = self.me
        self.previous = b""
        self.tree = Tree()
        self.streams = [Stream(0, "", Mode.PLAIN, self.me)]
        self.offsets = [0]
        self.rows: list[Row] = []
        self.groups: list[Sealed] = []
        self.batch: _Batch | None = None
        self.timestamp = self.incarnation = 0

    def segment(self, data: bytes, number: int) -> None:
        name = segment_name(number)
        header = decode_segment_header(data[:BLOCK], name)
        require(header.database == self.identity.database, name, "is of another database")
        require(header.number == number, name, f"says that it is segment {header.number}")
        require(header.first_group == len(self.groups) + 1, name, "first group")
        require(header.first_position == len(self.rows), name, "first position")
        require(header.chain_before == self.chain, name, "last chain of the segment before")
        self.previous = header.chain()
        quantum = PACKED_BLOCK if header.packed else BLOCK
        place = end = BLOCK
        closed = False
        while not is_zero(data[place : place + 8]):
            require(not closed, name, f"goes on at {place} behind its closing group")
            end = place + self.group(data, place, header)
            closed = self.groups[-1].closing
            place = up_to(end, quantum)
            require(is_zero(data[end:place]), name, f"padding from {end} to {place}")
        require(is_zero(data[end:]), name, f"zeros behind its last group, from {end}")
        self.check_end(data, header, end, name)

    def check_end(self, data: bytes, header: SegmentHeader, end: int, name: str) -> None:
        packed = header.packed
        if packed is None:
            require(len(data) % BLOCK == 0, name, "ends inside a block")
            return
        require(packed.length == len(data), name, "its header says another length")
        require(len(data) <= up_to(end, PACKED_BLOCK), name, "a packed segment ends with its last group")
        require(packed.last_group == len(self.groups), name, "last group")
        require(packed.last_chain == self.chain, name, "last chain")

    def group(self, data: bytes, place: int, segment: SegmentHeader) -> int:
        """Returns its length."""
        where = f"{segment_name(segment.number)} at {place}, group {len(self.groups) + 1}"
        tagged = self.identity.tagged
        group, tag = decode_group(data, place, segment.salt, tagged=tagged, where=where)
        require(group.number == len(self.groups) + 1, where, f"says that it is group {group.number}")
        require(group.position == len(self.rows), where, "position")
        require(group.previous == self.previous, where, "previous chain")
        require(group.timestamp >= self.timestamp, where, "log time goes back")
        require(group.incarnation >= self.incarnation, where, "incarnation goes back")
        require(group.closing == (group.records == 0), where, "closing groups and only they are empty")
        self.chain = self.previous = group.chain(tagged)
        if self.keys.group is not None:
            check_tag(self.keys.group, self.chain, tag, where)
        self.timestamp, self.incarnation = group.timestamp, group.incarnation
        for run, at in runs_of(group, place, where):
            self.run(run, at)
        self.check_group(group, where)
        numbers = (group.number, segment.number, place, group.position, group.records)
        said = (group.durable_upto, group.timestamp, group.incarnation, group.closing)
        self.groups.append(Sealed(*numbers, *said, self.chain, len(self.rows), self.tree.root()))
        return int.from_bytes(data[place + 8 : place + 12], "little")

    def check_group(self, group: Group, where: str) -> None:
        require(self.batch is None, where, "ends inside a batch")
        for row in self.rows[group.position :]:
            if row.stream == 0:
                system = decode_system(row.opened, f"{where}, position {row.position}")
                if isinstance(system, Many):
                    self.check_many(system, row, f"{where}, position {row.position}")

    def run(self, run: Run, where: str) -> None:
        require(run.stream < len(self.streams), where, f"stream {run.stream} is not declared")
        stream = self.streams[run.stream]
        require(run.offset == self.offsets[run.stream], where, f"offset {run.offset} of {stream.name!r}")
        require(run.encrypted == (stream.mode is Mode.ENCRYPTED), where, "mode of the stream")
        if run.encrypted and not self.keys.opened:
            self.sealed_run(run, stream, where)
            return
        entries, records, canonicals, committed = self.open(run, stream, where)
        done = 0
        for entry in entries:
            these = range(done, done + entry.records)
            self.enter(entry, [canonicals[i] for i in these], stream, where)
            for i in these:
                last = entry.ends and i == these[-1]
                self.add(run, stream, committed[i], last=last, record=records[i], where=where)
            if entry.ends:
                self.batch = None
            done += entry.records

    def open(self, run: Run, stream: Stream, where: str) -> tuple[list[Entry], list[Record], list[bytes], list[bytes]]:
        """Its entries, records, canonical records and commitments."""
        if run.encrypted:
            key = self.keys.data.get(stream.declared)
            if key is None:
                raise ModelError(where, f"no key of {stream.name!r} in the vault")
            require(run.key_id == key_id(key), where, "key id")
            inner = open_text(run, seal_key(key), self.identity.database, where)
            plaintext, seed = decode_inner(inner, self.identity.quantum, where), run_seed(key, run.nonce)
        else:
            plaintext, seed = plaintext_of(run, where), run.seed
        require(len(plaintext) <= RUN_PLAINTEXT or run.records == 1, where, "more than 64 KiB")
        entries, records, canonicals = decode_plaintext(plaintext, run.records, where)
        salted = zip(salts(seed, run.records), canonicals, strict=True)
        committed = [commitment(stream.declared, salt, canonical) for salt, canonical in salted]
        if run.encrypted:
            require(committed == list(run.commitments), where, "commitments")
            require(len(entries) == 1, where, "several batches in an encrypted run")
            require(entries[0].ends == run.ends, where, "end of its batch")
        return entries, records, canonicals, committed

    def sealed_run(self, run: Run, stream: Stream, where: str) -> None:
        if self.batch is None:
            self.batch = _Batch(run.stream, None, None)
        require(self.batch.stream == run.stream, where, "inside a batch of another stream")
        for i, committed in enumerate(run.commitments):
            last = run.ends and i == run.records - 1
            self.add(run, stream, committed, last=last, record=None, where=where)
        if run.ends:
            self.batch = None

    def enter(self, entry: Entry, canonicals: Iterable[bytes], stream: Stream, where: str) -> None:
        """Opens or goes on with the batch of an entry, and checks the digest where it ends."""
        if self.batch is None:
            self.batch = _Batch(stream.number, entry.producer)
        else:
            require(self.batch.stream == stream.number, where, "inside a batch of another stream")
            require(entry.producer is None, where, "a producer that is not in front of its batch")
        batch = self.batch
        assert batch.canonicals is not None
        batch.canonicals += canonicals
        if entry.ends and batch.producer is not None:
            require(stream.number > 0, where, "a producer of system records")
            key = index_key(self.keys.data[stream.declared]) if stream.mode else self.me
            require(batch.producer.digest == batch_digest(key, batch.canonicals), where, "digest")

    def add(self, run: Run, stream: Stream, committed: bytes, *, last: bool, record: Record | None, where: str) -> None:
        offset = self.offsets[stream.number]
        entry = encode_entry(
            encrypted=run.encrypted,
            last=last,
            stream=stream.number,
            offset=offset,
            timestamp=self.timestamp,
            committed=committed,
            declared=stream.declared,
        )
        self.tree.grow(leaf_hash(entry))
        self.offsets[stream.number] += 1
        producer = self.batch.producer if self.batch else None
        front = (len(self.rows), stream.number, stream.name, offset, self.timestamp, run.encrypted, last)
        self.rows.append(Row(*front, committed, leaf_hash(entry), record, producer))
        if stream.number == 0 and record is not None:
            system = decode_system(record, where)
            if isinstance(system, Declaration):
                self.declare(system, record.payload, where)

    def declare(self, said: Declaration, payload: bytes, where: str) -> None:
        require(said.stream == len(self.streams), where, f"declares stream {said.stream} out of order")
        require(said.name not in {s.name for s in self.streams[1:]}, where, f"declares {said.name!r} again")
        tagged = self.identity.tagged
        require(said.mode is Mode.PLAIN or tagged, where, "an encrypted stream without a master key")
        self.streams.append(Stream(said.stream, said.name, said.mode, declaration_hash(payload), said.largest))
        self.offsets.append(0)

    def check_many(self, many: Many, row: Row, where: str) -> None:
        """Its parts are the whole batches that follow it, in this group."""
        position = row.position + 1
        given = []
        for part in many.parts:
            rows = self.rows[position : position + part.records]
            offsets = [(one.stream, one.offset) for one in rows]
            said = [(part.stream, part.offset + i) for i in range(part.records)]
            require(bool(said) and part.stream > 0, where, "an empty part, or one of stream 0")
            require(offsets == said, where, f"its part of stream {part.stream} does not follow it")
            ends = [one.last for one in rows]
            require(ends == [False] * (len(rows) - 1) + [True], where, "a part is one batch")
            given.append((part.stream, rows))
            position += part.records
        if self.keys.receipt is None or any(one.sealed for _, rows in given for one in rows):
            return
        parts = ((stream, [encode_record(one.opened) for one in rows]) for stream, rows in given)
        if many.digest == many_digest(many_key(self.keys.receipt), parts):
            return
        # a receipt key outside a vault may have been made anew since
        require(not self.identity.tagged, where, "digest")
        self.doubts.append(ModelError(where, "digest of an append to several streams, or another key"))

    def check_mark(self, mark: Mark) -> None:
        require(mark.durable_group <= len(self.groups), "marks", f"group {mark.durable_group} is missing")
        chain = self.groups[mark.durable_group - 1].chain if mark.durable_group else self.me
        require(mark.chain == chain, "marks", f"another chain of group {mark.durable_group}")
