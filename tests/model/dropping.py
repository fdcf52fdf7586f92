"""What is to be said so that the oldest segments can be dropped, and a directory without them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from .derived import declarations, header_of, length_of, slot_keys
from .files import hashes_header, leaf_index, segment_name
from .hashes import Tree, index_key
from .log import Log, repairs_of
from .records import Mode
from .retained import Drop, Left, Retained, SealedSent, last_sent, seal_sent


def retained_of(
    files: Mapping[str, bytes],
    log: Log,
    segment: int,
    *,
    rule: str,
    now: int,
    master: bytes | None,
    entropy: Callable[[int], bytes],
) -> Retained:
    """All that the segments before this one say and the others need."""
    header, before = header_of(files, segment), log.retained
    tree = Tree() if before is None else Tree(before.position, before.peaks)
    dropped = log.between(log.first, header.first_position)
    for row in dropped:
        tree.grow(row.leaf)
    last = log.group(header.first_group - 1)
    offsets = [length_of(log, stream.number, dropped) for stream in log.streams]
    known = [] if before is None else [left.declaration for left in before.streams]
    declared = dict.fromkeys([*known, *declarations(log.rows)])
    silent = [sent for sent in last_sent(log.sent).values() if sent.group < header.first_group]
    keys = {} if master is None else slot_keys(files, log, master)
    sealed: list[SealedSent] = []
    for stream in log.streams:
        own = [sent for sent in silent if sent.stream == stream.number]
        if own and stream.mode is Mode.ENCRYPTED:
            index = index_key(keys[stream.declared])
            sealed.append(seal_sent(own, stream.number, entropy(24), index, log.identity.database))
    return Retained(
        *(segment, header.first_group, header.first_position, last.chain, last.timestamp, last.incarnation),
        system=offsets[0],
        peaks=tuple(tree.peaks),
        streams=tuple(Left(offset, each) for offset, each in zip(offsets[1:], declared, strict=True)),
        producers=tuple(sent for sent in silent if log.streams[sent.stream].mode is Mode.PLAIN),
        sealed=tuple(sealed),
        repairs=(() if before is None else before.repairs) + repairs_of(dropped),
        drops=_joined(() if before is None else before.drops, header.first_position, rule, now),
    )


def _joined(drops: tuple[Drop, ...], end: int, rule: str, now: int) -> tuple[Drop, ...]:
    if drops and drops[-1].rule == rule:
        return (*drops[:-1], replace(drops[-1], end=end, last=now))
    return (*drops, Drop(drops[-1].end if drops else 0, end, now, now, rule))


def past_file(log: Log, position: int) -> bytes:
    """`past` when what is before this position is dropped, of a log that was read from its beginning."""
    return hashes_header(log.identity.database, b"KIMBPST1") + log.hashes[: 32 * leaf_index(position)]


def without(files: Mapping[str, bytes], segments: range) -> dict[str, bytes]:
    gone = {segment_name(number) for number in segments}
    return {name: data for name, data in files.items() if name not in gone}
