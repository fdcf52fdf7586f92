"""Verifies a whole directory, as far as the keys go, and returns what it says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

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
    kept_producer,
    key_id,
    leaf_hash,
    many_digest,
    many_key,
    run_seed,
    salts,
    seal_key,
)
from .log import Log, Row, Sealed, Stream, repairs_of
from .records import (
    Confirmed,
    Declaration,
    Entry,
    Erased,
    Gap,
    Many,
    Mode,
    Piece,
    Producer,
    Record,
    decode_plaintext,
    decode_system,
    encode_record,
)
from .retained import Collector, Erasure, Left, Retained, Sent, all_said, erasures_before, last_sent, open_sent


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
    numbers = check_names(files)
    for name in ("identity", "marks"):
        require(name in files, name, "is missing")
    identity = decode_identity(files["identity"])
    doubts: list[ModelError] = []
    reader = _Reader(identity, _open_keys(files, identity, master, doubts), doubts)
    if numbers[0] > 0:
        said = next((said for said in _search(files, numbers, identity) if said.segment in numbers), None)
        if said is None:
            raise ModelError(segment_name(numbers[0] - 1), "is missing, and nothing says that it was dropped")
        reader.begin(said)
        numbers = range(said.segment, numbers.stop)
    for number in numbers:
        reader.segment(files[segment_name(number)], number)
    reader.check_keys()
    marks, problems = decode_marks(files["marks"], identity)
    doubts += problems
    for mark in marks:
        reader.check_mark(mark)
    return reader.log(tuple(marks))


def _search(files: Mapping[str, bytes], numbers: range, identity: Identity) -> Iterator[Retained]:
    """What these segments say of those before them."""
    return all_said(piece for number in numbers for piece in _pieces(files[segment_name(number)], number, identity))


def _pieces(data: bytes, number: int, identity: Identity) -> Iterator[tuple[Piece, str]]:
    name = segment_name(number)
    header, place = decode_segment_header(data[:BLOCK], name), BLOCK
    quantum = PACKED_BLOCK if header.packed else BLOCK
    while not is_zero(data[place : place + 8]):
        group, _ = decode_group(data, place, header.salt, tagged=identity.tagged, where=f"{name} at {place}")
        for run, where in runs_of(group, place, name):
            if run.stream == 0 and not run.encrypted:
                for record in decode_plaintext(plaintext_of(run, where), run.records, where)[1]:
                    system = decode_system(record, where)
                    if isinstance(system, Piece):
                        yield system, where
        place = up_to(place + int.from_bytes(data[place + 8 : place + 12], "little"), quantum)


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
        self.hashes = bytearray()
        self.streams = [Stream(0, "", Mode.PLAIN, self.me)]
        #: By their streams' numbers.
        self.declarations = [b""]
        self.offsets = [0]
        self.headers: dict[int, SegmentHeader] = {}
        self.rows: list[Row] = []
        self.groups: list[Sealed] = []
        self.batch: _Batch | None = None
        self.timestamp = self.incarnation = 0
        #: Of the next group.
        self.number = 1
        self.sent: list[Sent] = []
        #: What reading began with, and whether it has not come yet.
        self.begun: Retained | None = None
        self.ahead = False
        #: Streams that the record has and that were declared again behind it.
        self.again: set[int] = set()
        self.collector = Collector()
        self.retentions: list[tuple[int, Retained]] = []
        self.erasures: dict[int, Erasure] = {}
        #: Those without a key, and where the first of their runs is.
        self.keyless: dict[int, str] = {}

    @property
    def begun_at(self) -> int:
        return 0 if self.begun is None else self.begun.position

    def begin(self, said: Retained) -> None:
        """What the log was where its first kept segment begins."""
        self.begun, self.ahead, self.collector.begun = said, True, True
        for left, declared in zip(said.streams, said.declarations("retention record"), strict=True):
            self.add_stream(declared, left.declaration, "retention record")
            self.offsets[-1] = left.offset
        self.erasures = {one.stream: one for one in said.erasures}
        self.offsets[0] = said.system
        self.tree = Tree(said.position, said.peaks)
        self.chain, self.number = said.chain, said.group
        self.timestamp, self.incarnation = said.timestamp, said.incarnation
        self.sent = sorted(self.said_sent(said, "retention record"), key=lambda sent: sent.timestamp)

    def said_sent(self, said: Retained, where: str) -> list[Sent]:
        """What it keeps of producers, as far as the keys go."""
        found = list(said.producers)
        for one in said.sealed:
            key = self.keys.data.get(self.streams[one.stream].declared)
            if key is not None:
                found += open_sent(one, index_key(key), self.identity.database, where)
        return found

    def log(self, marks: tuple[Mark, ...]) -> Log:
        said = self.retentions[-1][1] if self.retentions else None
        first, group = (0, 1) if said is None else (said.position, said.group)
        rows = tuple(self.rows[max(0, first - self.begun_at) :])
        groups = tuple(one for one in self.groups if one.number >= group)
        logged = (tuple(self.streams), rows, groups, marks, self.chain, self.tree.root(), tuple(self.doubts))
        dropped = (self.begun, tuple(self.retentions))
        return Log(self.identity, *logged, tuple(self.sent), bytes(self.hashes), *dropped, self.listed_erasures())

    def segment(self, data: bytes, number: int) -> None:
        name = segment_name(number)
        header = decode_segment_header(data[:BLOCK], name)
        require(header.database == self.identity.database, name, "is of another database")
        require(header.number == number, name, f"says that it is segment {header.number}")
        require(header.first_group == self.number, name, "first group")
        require(header.first_position == self.tree.size, name, "first position")
        require(header.chain_before == self.chain, name, "last chain of the segment before")
        self.headers[number] = header
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
        require(packed.last_group == self.number - 1, name, "last group")
        require(packed.last_chain == self.chain, name, "last chain")

    def group(self, data: bytes, place: int, segment: SegmentHeader) -> int:
        """Returns its length."""
        where = f"{segment_name(segment.number)} at {place}, group {self.number}"
        tagged = self.identity.tagged
        group, tag = decode_group(data, place, segment.salt, tagged=tagged, where=where)
        require(group.number == self.number, where, f"says that it is group {group.number}")
        require(group.position == self.tree.size, where, "position")
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
        numbers = (group.number, segment.number, place, group.position, group.records)
        said = (group.durable_upto, group.timestamp, group.incarnation, group.closing)
        self.groups.append(Sealed(*numbers, *said, self.chain, self.tree.size, self.tree.root()))
        self.check_group(group, where)
        self.number += 1
        return int.from_bytes(data[place + 8 : place + 12], "little")

    def check_group(self, group: Group, where: str) -> None:
        require(self.batch is None, where, "ends inside a batch")
        for row in self.rows[group.position - self.begun_at :]:
            at = f"{where}, position {row.position}"
            system = decode_system(row.opened, at) if row.stream == 0 else None
            if isinstance(system, Many):
                self.check_many(system, row, at)
            elif isinstance(system, Piece):
                said = self.collector.take(system, at)
                if said is not None:
                    self.follow(said, at)

    def follow(self, said: Retained, where: str) -> None:
        """A retention record is of this log, and takes back nothing."""
        before = self.retentions[-1][1] if self.retentions else None
        require(before is None or said.segment >= before.segment, where, "takes back what was dropped")
        if self.ahead and self.begun is not None:
            # of what one before it says nothing is left
            if said.segment >= self.begun.segment:
                require(said == self.begun, where, "is not what the log began with")
                self.ahead = False
        elif before is not None and said.segment == before.segment:
            require(said == before, where, "says something else than before")
        else:
            self.check_retained(said, where)
        self.retentions.append((self.number, said))

    def check_retained(self, said: Retained, where: str) -> None:
        """All that it says is known here: reading began before its first segment."""
        header = self.headers.get(said.segment)
        if header is None:
            raise ModelError(where, f"segment {said.segment} is not there yet")
        begins = (header.first_group, header.first_position, header.chain_before)
        require(begins == (said.group, said.position, said.chain), where, "first kept segment")
        [last] = [group for group in self.groups if group.number == said.group - 1]
        require((last.timestamp, last.incarnation) == (said.timestamp, said.incarnation), where, "group before")
        tree = Tree() if self.begun is None else Tree(self.begun.position, self.begun.peaks)
        kept = said.position - self.begun_at
        for row in self.rows[:kept]:
            tree.grow(row.leaf)
        require(tuple(tree.peaks) == said.peaks, where, "another tree")
        after = Counter(row.stream for row in self.rows[kept:])
        for row in self.rows[kept:]:
            system = decode_system(row.opened, where) if row.stream == 0 else None
            if isinstance(system, Gap):
                after[system.stream] += system.end - system.start
        left = [Left(end - after[i], self.declarations[i]) for i, end in enumerate(self.offsets)]
        require(said.system == left[0].offset, where, "offset of stream 0")
        require(said.streams == tuple(left[1 : len(said.streams) + 1]), where, "streams")
        require(not any(one.offset for one in left[len(said.streams) + 1 :]), where, "a stream is left out")
        require(said.erasures == erasures_before(self.listed_erasures(), said.position), where, "erasures")
        before = () if self.begun is None else self.begun.repairs
        repairs = (*before, *repairs_of(self.rows[:kept]))
        # What was damaged then may be here in another copy.
        damaged = [(at, b"") for at, _ in repairs]
        known = zip(said.repairs, repairs, damaged, strict=True) if len(said.repairs) == len(repairs) else None
        require(known is not None and all(one in rest for one, *rest in known), where, "repairs")
        self.check_sent(said, where)

    def check_sent(self, said: Retained, where: str) -> None:
        """Producers whose last batch is dropped. Some may have sent more while the record was on its way, and some may
        be forgotten."""
        found = {sent.key: sent for sent in self.said_sent(said, where)}
        dropped = last_sent(sent for sent in self.sent if sent.group < said.group)
        require(all(dropped.get(key) == sent for key, sent in found.items()), where, "producers")
        silent = [key for key, sent in last_sent(self.sent).items() if sent.group < said.group]
        require(all(key in found for key in silent), where, "a producer is left out")

    def run(self, run: Run, where: str) -> None:
        require(run.stream < len(self.streams), where, f"stream {run.stream} is not declared")
        stream = self.streams[run.stream]
        require(run.offset == self.offsets[run.stream], where, f"offset {run.offset} of {stream.name!r}")
        require(run.encrypted == (stream.mode is Mode.ENCRYPTED), where, "mode of the stream")
        require(run.stream not in self.erasures, where, f"a record of {stream.name!r} behind its erasure")
        if run.encrypted and stream.declared not in self.keys.data:
            if self.keys.opened:
                self.keyless.setdefault(run.stream, where)
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
            key = self.keys.data[stream.declared]
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
            if entry.producer is not None:
                require(stream.number > 0, where, "a producer of system records")
                self.remember(entry.producer, stream)
        else:
            require(self.batch.stream == stream.number, where, "inside a batch of another stream")
            require(entry.producer is None, where, "a producer that is not in front of its batch")
        batch = self.batch
        assert batch.canonicals is not None
        batch.canonicals += canonicals
        if entry.ends and batch.producer is not None:
            require(batch.producer.digest == batch_digest(self.key_of(stream), batch.canonicals), where, "digest")

    def key_of(self, stream: Stream) -> bytes:
        return index_key(self.keys.data[stream.declared]) if stream.mode else self.me

    def remember(self, producer: Producer, stream: Stream) -> None:
        who = kept_producer(self.key_of(stream), producer.identifier)
        front = (who, producer.digest, producer.sequence)
        self.sent.append(Sent(*front, self.number, self.timestamp, stream.number))

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
        front = (self.tree.size, stream.number, stream.name, offset, self.timestamp, run.encrypted, last)
        self.hashes += b"".join(self.tree.grow(leaf_hash(entry)))
        self.offsets[stream.number] += 1
        producer = self.batch.producer if self.batch else None
        self.rows.append(Row(*front, committed, leaf_hash(entry), record, producer))
        if stream.number == 0 and record is not None:
            system = decode_system(record, where)
            if isinstance(system, Declaration):
                self.declare(system, record.payload, where)
            elif isinstance(system, Many):
                who = (system.producer, system.digest, system.sequence)
                self.sent.append(Sent(*who, self.number, self.timestamp, 0))
            elif isinstance(system, Erased | Confirmed):
                self.erase(system, self.begun_at + len(self.rows) - 1, where)
            elif isinstance(system, Gap):
                require(system.stream < len(self.streams), where, f"a gap of stream {system.stream}, not declared")
                require(system.start == self.offsets[system.stream], where, "a gap that does not begin at the end")
                self.offsets[system.stream] = system.end

    def erase(self, said: Erased | Confirmed, position: int, where: str) -> None:
        stream = next((stream for stream in self.streams[1:] if stream.number == said.stream), None)
        known = stream is not None and stream.mode is Mode.ENCRYPTED and stream.declared == said.declared
        require(known, where, f"an erasure of stream {said.stream}, which is no encrypted one")
        before = self.erasures.get(said.stream)
        if isinstance(said, Erased):
            require(before is None, where, f"stream {said.stream} is erased again")
            self.erasures[said.stream] = Erasure(said.stream, position, self.timestamp, said.master_id, said.reason)
            self.sent = [sent for sent in self.sent if sent.stream != said.stream]
            return
        if before is None or not before.pending:
            raise ModelError(where, f"the erasure of stream {said.stream} is not pending")
        require(before.master_id != said.master_id, where, "confirmed under its own master key")
        self.erasures[said.stream] = replace(before, confirmed=(position, self.timestamp))

    def listed_erasures(self) -> tuple[Erasure, ...]:
        return tuple(erasure for _, erasure in sorted(self.erasures.items()))

    def check_keys(self) -> None:
        for number, where in self.keyless.items():
            require(number in self.erasures, where, f"no key of {self.streams[number].name!r} in the vault")

    def declare(self, said: Declaration, payload: bytes, where: str) -> None:
        if self.begun is None or not 0 < said.stream <= len(self.begun.streams):
            self.add_stream(said, payload, where)
            return
        require(self.declarations[said.stream] == payload, where, f"declares stream {said.stream} anew")
        require(self.offsets[said.stream] == 0, where, f"declares stream {said.stream} behind its records")
        require(said.stream not in self.again, where, f"declares stream {said.stream} again")
        self.again.add(said.stream)

    def add_stream(self, said: Declaration, payload: bytes, where: str) -> None:
        require(said.stream == len(self.streams), where, f"declares stream {said.stream} out of order")
        require(said.name not in {s.name for s in self.streams[1:]}, where, f"declares {said.name!r} again")
        tagged = self.identity.tagged
        require(said.mode is Mode.PLAIN or tagged, where, "an encrypted stream without a master key")
        self.streams.append(Stream(said.stream, said.name, said.mode, declaration_hash(payload), said.largest))
        self.declarations.append(payload)
        self.offsets.append(0)

    def check_many(self, many: Many, row: Row, where: str) -> None:
        """Its parts are the whole batches that follow it, in this group."""
        position = row.position + 1
        given = []
        for part in many.parts:
            rows = self.rows[position - self.begun_at : position - self.begun_at + part.records]
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
        keys = [self.key_of(self.streams[stream]) for stream, _ in given]
        records = [[encode_record(one.opened) for one in rows] for _, rows in given]
        parts = zip((stream for stream, _ in given), keys, records, strict=True)
        if many.digest == many_digest(many_key(self.keys.receipt), parts):
            return
        # a receipt key outside a vault may have been made anew since
        require(not self.identity.tagged, where, "digest")
        self.doubts.append(ModelError(where, "digest of an append to several streams, or another key"))

    def check_mark(self, mark: Mark) -> None:
        require(mark.durable_group < self.number, "marks", f"group {mark.durable_group} is missing")
        before = (1, self.me) if self.begun is None else (self.begun.group, self.begun.chain)
        if mark.durable_group < before[0] - 1:
            # an older mark, of what is dropped by now
            return
        chain = before[1] if mark.durable_group < before[0] else self.groups[mark.durable_group - before[0]].chain
        require(mark.chain == chain, "marks", f"another chain of group {mark.durable_group}")
