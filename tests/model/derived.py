"""The derived files, as they follow from the segments of a directory that reads as sound."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .cursor import u16, u32, u64, up_to
from .files import RECEIPT_KEY, decode_vault, segment_name, unwrap_slot
from .groups import BLOCK, Run, SegmentHeader, decode_group, decode_segment_header, runs_of
from .hashes import Tree, blake, domain, index_key, kept_producer
from .log import Log, Sealed
from .records import Many, decode_system

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


def checkpoint_file(files: Files, log: Log, number: int, producers: int, key: bytes) -> bytes:
    """`checkpoint` as of a group, when so many bytes of `producers` count."""
    last = files["producers"][producers - 32 : producers] if producers else bytes(32)
    group = log.groups[number - 1]
    tree = Tree()
    rows = log.rows[: group.tree_size]
    for row in rows:
        tree.grow(row.leaf)
    declared = [row.payload for row in rows if row.stream == 0 and _declares(row.payload)]
    segment, place = group.segment, up_to(_end(files, log, group), BLOCK)
    chain, last_place = group.chain, group.place
    if group.closing:
        segment, place, last_place = group.segment + 1, BLOCK, 0
        chain = header_of(files, segment).chain()
    data = b"KIMBCKP1" + log.identity.database + u64(number) + u64(group.tree_size) + chain
    data += u64(group.timestamp) + u32(group.incarnation) + u32(len(declared)) + u64(segment) + u64(place)
    data += header_of(files, segment).salt + u64(producers) + u64(sum(row.stream == 0 for row in rows))
    data += u64(len(tree.peaks)) + u64(last_place) + group.chain + last + b"".join(tree.peaks)
    for i, declaration in enumerate(declared):
        length = sum(row.stream == i + 1 for row in rows)
        data += u64(length) + u16(len(declaration)) + declaration
    return with_mac(data, key)


def _declares(payload: bytes) -> bool:
    return payload[:2] == u16(1)


def _end(files: Files, log: Log, group: Sealed) -> int:
    length = files[segment_name(group.segment)][group.place + 8 : group.place + 12]
    return group.place + int.from_bytes(length, "little")


def producer_entries(files: Files, log: Log, upto: int, master: bytes | None) -> bytes:
    """The entries of the tables up to a group, as `producers` keeps them."""
    keys = {} if master is None else slot_keys(files, log, master)
    rows = log.rows[: log.groups[upto - 1].tree_size] if upto else ()
    group_of = {at: g.number for g in log.groups for at in range(g.position, g.position + g.records)}
    entries = b""
    starts = True
    for row in rows:
        if row.stream == 0:
            system = decode_system(row.opened, "stream 0")
            if isinstance(system, Many):
                who = system.producer + system.digest + u64(system.sequence)
                entries += who + u64(group_of[row.position]) + u64(row.timestamp) + u32(0) + bytes(4)
        elif starts and row.producer is not None:
            stream = log.streams[row.stream]
            key = index_key(keys[stream.declared]) if row.encrypted else log.identity.hash()
            who = kept_producer(key, row.producer.identifier) + row.producer.digest + u64(row.producer.sequence)
            entries += who + u64(group_of[row.position]) + u64(row.timestamp) + u32(row.stream) + bytes(4)
        starts = row.last
    return entries


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
