"""The derived files, as they follow from the segments of a directory that reads as sound."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from .cursor import u16, u32, u64, up_to
from .files import RECEIPT_KEY, decode_vault, segment_name, unwrap_slot
from .groups import BLOCK, Run, SegmentHeader, decode_group, decode_segment_header, runs_of
from .hashes import Tree, blake, domain
from .log import Log, Row, Sealed, repairs_of
from .records import Gap, decode_system
from .retained import encode_erasures, encode_sent, erasures_before

Files = Mapping[str, bytes]


def receipt_key(files: Files, log: Log, master: bytes | None) -> bytes:
    if master is None:
        return files["receipt.key"]
    return slot_keys(files, log, master)[log.identity.hash()]


def slot_keys(files: Files, log: Log, master: bytes) -> dict[bytes, bytes]:
    """Data keys by D, and the receipt key by the identity hash."""
    copies = [(name, files[name]) for name in ("vault.0", "vault.1")]
    _, slots, _ = decode_vault(copies, log.identity)
    # of the two that are bound to the identity the receipt key is the one that stays
    kept = [slot for slot in slots if slot.stream or slot.kind == RECEIPT_KEY]
    return {slot.declared: unwrap_slot(slot, master, log.identity, "vault") for slot in kept}


def with_mac(data: bytes, key: bytes) -> bytes:
    return data + blake(domain("kimberlite/derived/1"), data, key=key)


def header_of(files: Files, number: int) -> SegmentHeader:
    return decode_segment_header(files[segment_name(number)][:BLOCK], segment_name(number))


def placed_runs(files: Files, log: Log, group: Sealed) -> list[tuple[int, int, Run]]:
    """Place, length and content of the runs of a group."""
    name = segment_name(group.segment)
    salt = header_of(files, group.segment).salt
    raw, _ = decode_group(files[name], group.place, salt, tagged=log.identity.tagged, where=name)
    runs = runs_of(raw, group.place, name)
    placed = zip(raw.run_places(group.place), raw.runs, runs, strict=True)
    return [(place, len(data), run) for place, data, (run, _) in placed]


def index_file(files: Files, log: Log, number: int, key: bytes) -> bytes:
    """`index/N.idx`."""
    header = header_of(files, number)
    first = header.first_position
    groups = [group for group in log.groups if group.segment == number]
    runs = [placed for group in groups for placed in placed_runs(files, log, group)]
    by_stream: dict[int, list[int]] = {}
    for i, (_, _, run) in enumerate(runs):
        by_stream.setdefault(run.stream, []).append(i)
    data = b"KIMBIDX1" + log.identity.database + u64(number) + u64(header.first_group) + u64(first) + header.salt
    data += u32(len(groups)) + u32(len(runs)) + u32(sum(group.records for group in groups)) + u32(len(by_stream))
    for group in groups:
        data += u32(group.position - first) + u32(group.place) + u64(group.timestamp)
    for place, length, run in runs:
        data += u32(run.position - first) + u32(place) + u32(length) + u32(run.stream) + u64(run.offset)
    before = 0
    for stream, own in sorted(by_stream.items()):
        last = runs[own[-1]][2]
        data += u32(stream) + u32(before) + u64(runs[own[0]][2].offset) + u64(last.offset + last.records)
        before += len(own)
    data += b"".join(u32(i) for _, own in sorted(by_stream.items()) for i in own)
    return with_mac(data, key)


def checkpoint_file(files: Files, log: Log, number: int, producers: int, dropped: bytes, key: bytes) -> bytes:
    """`checkpoint` as of a group, when so many bytes of `producers` count, and this is the last retention record."""
    last = files["producers"][producers - 32 : producers] if producers else bytes(32)
    group = log.group(number)
    said = log.retained
    tree = Tree() if said is None else Tree(said.position, said.peaks)
    rows = log.between(log.first, group.tree_size)
    for row in rows:
        tree.grow(row.leaf)
    later = declarations(log.between(group.tree_size, log.tree_size))
    known = [] if said is None else [left.declaration for left in said.streams]
    declared = [each for each in dict.fromkeys([*known, *declarations(rows)]) if each not in later]
    segment, place = group.segment, up_to(_end(files, log, group), BLOCK) if group.place else 0
    chain, last_place = group.chain, group.place
    if group.closing:
        segment, place, last_place = group.segment + 1, BLOCK, 0
        chain = header_of(files, segment).chain()
    data = b"KIMBCKP1" + log.identity.database + u64(number) + u64(group.tree_size) + chain
    data += u64(group.timestamp) + u32(group.incarnation) + u32(len(declared)) + u64(segment) + u64(place)
    gaps, repairs = gaps_of(rows), repairs_of(rows)
    data += header_of(files, segment).salt + u64(producers) + u64(length_of(log, 0, rows))
    data += (
        u32(len(tree.peaks))
        + u32(len(repairs) + len(gaps))
        + u64(last_place)
        + group.chain
        + last
        + b"".join(tree.peaks)
    )
    for i, declaration in enumerate(declared):
        data += u64(length_of(log, i + 1, rows)) + u16(len(declaration)) + declaration
    data += b"".join(u32(0) + u64(position) + u64(0) * 2 for position, _ in repairs)
    for position, gap in sorted(gaps, key=lambda each: (each[1].stream, each[0])):
        data += u32(gap.stream) + u64(position) + u64(gap.start) + u64(gap.end)
    data += encode_erasures(erasures_before(log.erasures, group.tree_size))
    return with_mac(data + dropped, key)


def gaps_of(rows: Sequence[Row]) -> list[tuple[int, Gap]]:
    """With the positions that say so."""
    said = [(row.position, decode_system(row.opened, "stream 0")) for row in rows if row.stream == 0]
    return [(position, system) for position, system in said if isinstance(system, Gap)]


def length_of(log: Log, stream: int, rows: Sequence[Row]) -> int:
    """Of a stream at the end of the first of the rows that are left."""
    ends = [row.offset + 1 for row in rows if row.stream == stream]
    ends += [gap.end for _, gap in gaps_of(rows) if gap.stream == stream]
    return max(ends, default=first_of(log, stream))


def first_of(log: Log, stream: int) -> int:
    """The first offset of a stream that is left, or is to come."""
    said = log.retained
    if said is None or stream > len(said.streams):
        return 0
    return said.streams[stream - 1].offset if stream else said.system


def declarations(rows: tuple[Row, ...]) -> list[bytes]:
    return [row.payload for row in rows if row.stream == 0 and row.payload[:2] == u16(1)]


def _end(files: Files, log: Log, group: Sealed) -> int:
    length = files[segment_name(group.segment)][group.place + 8 : group.place + 12]
    return group.place + int.from_bytes(length, "little")


def producer_entries(log: Log, upto: int) -> bytes:
    """The entries of the tables up to a group, as `producers` keeps them if it was begun when reading began."""
    return b"".join(encode_sent(sent) for sent in log.sent if sent.group <= upto)


def pieces(producers: bytes, size: int, key: bytes) -> Iterator[bytes]:
    """The entries of each piece in the first `size` bytes of `producers`."""
    place, before = 0, bytes(32)
    while place < size:
        length = int.from_bytes(producers[place : place + 8], "little")
        piece = producers[place : place + 8 + length]
        mac = with_mac(before + piece, key)[-32:]
        place += len(piece) + 32
        if producers[place - 32 : place] != mac:
            raise ValueError(f"producers before {place}: the MAC is wrong")
        yield piece[8:]
        before = mac
    if place != size:
        raise ValueError(f"producers: a piece ends at {place}, not at {size}")
