"""Watermarks: what was durable when the log was last idle. `docs/format.md`, "Marks"."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from kimberlite import _native
from kimberlite.errors import Corrupt
from kimberlite.log.names import MARKS
from kimberlite.storage.backend import BLOCK

MAGIC: Final = b"KIMBMRK1"
LAYOUT: Final = struct.Struct("<8s16sQIIQ32s")
CHECK: Final = 8
#: No log comes to so many marks, or groups.
NUMBERS: Final = 1 << 63
#: No writer comes to such a counter but from one that was made up, and begins anew: so none comes to `NUMBERS`.
MADE_UP: Final = NUMBERS // 2
#: Incarnations are below.
INCARNATIONS: Final = 1 << 32


class Mark(NamedTuple):
    """One watermark: every group up to `group` is on the disk, and its chain hash is `chain`."""

    counter: int
    incarnation: int
    clean: bool
    group: int
    chain: bytes


class Marks(NamedTuple):
    newest: Mark
    #: Blocks that are not sound. A crash can tear the one that was being written.
    damaged: tuple[int, ...]


def encode_mark(mark: Mark, database_id: bytes, identity_hash: bytes) -> bytes:
    head = LAYOUT.pack(MAGIC, database_id, mark.counter, mark.incarnation, mark.clean, mark.group, mark.chain).ljust(
        BLOCK - CHECK, b"\0"
    )
    return head + _native.blake3(head, identity_hash)[:CHECK]


def decode_marks(data: bytes, database_id: bytes, identity_hash: bytes) -> Marks:
    """The newest sound mark; Corrupt if there is none."""
    if len(data) > 2 * BLOCK:
        raise Corrupt("there is something behind the watermarks", file=MARKS, place=2 * BLOCK)
    sound, damaged = [], []
    for block in (0, 1):
        mark = decode_mark(data[block * BLOCK : (block + 1) * BLOCK], database_id, identity_hash)
        if mark is None or mark.counter % 2 != block:
            damaged.append(block)
        else:
            sound.append(mark)
    if not sound:
        raise Corrupt("neither watermark is sound", file=MARKS, place=0)
    return Marks(max(sound), tuple(damaged))


def decode_mark(block: bytes, database_id: bytes, identity_hash: bytes) -> Mark | None:
    if len(block) != BLOCK or _native.blake3(block[:-CHECK], identity_hash)[:CHECK] != block[-CHECK:]:
        return None
    magic, database, counter, incarnation, flags, group, chain = LAYOUT.unpack_from(block)
    if magic != MAGIC or database != database_id or any(block[LAYOUT.size : -CHECK]):
        return None
    if flags > 1 or max(counter, group) >= NUMBERS or (group == 0 and chain != identity_hash):
        return None
    return Mark(counter, incarnation, bool(flags), group, chain)
