"""A receipt that was kept outside the directory, held against the log."""

from __future__ import annotations

import struct
from typing import Final

from kimberlite import _native
from kimberlite.errors import Corrupt, Invalid, RolledBack
from kimberlite.log.names import HASHES
from kimberlite.log.recovery import Keys
from kimberlite.records import Receipt

DOMAIN: Final = b"kimberlite/receipt/1".ljust(32, b"\0")
NO_KEY: Final = bytes(32)


def check_receipt(anchor: object) -> None:
    """Whether this can be a receipt at all."""
    if anchor is None:
        return
    if not isinstance(anchor, Receipt):
        raise Invalid(f"an anchor is a receipt, not {type(anchor).__name__}")
    numbers = (*anchor[1:6], anchor.tree_size, anchor.incarnation, anchor.group)
    hashes = ((anchor.root, 32), (anchor.chain, 32), (anchor.mac, 16))
    sound = all(type(n) is int and 0 <= n < 1 << 63 for n in numbers) and anchor.incarnation < 1 << 32
    if not sound or not all(type(data) is bytes and len(data) == length for data, length in hashes):
        raise Invalid("the anchor is not as a receipt is given")
    if anchor.durable is not True:
        raise Invalid("an anchor is a durable receipt")


def receipt_mac(receipt: Receipt, stream: int, database_id: bytes, key: bytes) -> bytes:
    """`docs/format.md`, "Receipts"."""
    r = receipt
    places = (r.first_offset, r.last_offset, r.first_position, r.last_position, r.timestamp)
    state = struct.pack("<QQ", r.group, r.tree_size) + r.root + r.chain
    rest = struct.pack("<I?I5Q", r.incarnation, r.durable, stream, *places)
    return _native.blake3(DOMAIN + database_id + state + rest, key)[:16]


def check_anchor(log: _native.Log, anchor: Receipt | None, keys: Keys) -> None:
    """The log must reach what the receipt says, and agree with it. One whose MAC is wrong says nothing."""
    if anchor is None:
        return
    stream = number_of(log, anchor)
    if stream is not None and keys.receipt != NO_KEY:
        mac = receipt_mac(anchor, stream, keys.identity.database_id, keys.receipt)
        if mac != anchor.mac:
            raise Invalid("the anchor was changed, or is a receipt of another database: its MAC is wrong")
    size, _ = log.root()
    if size < anchor.tree_size:
        raise RolledBack(f"the log has {size} records; the anchor was given at {anchor.tree_size}")
    root = log.root_at(anchor.tree_size)
    if root is None:
        what = f"no root at {anchor.tree_size} records follows from it; once it is deleted, it is made again"
        raise Corrupt(what, file=HASHES)
    if root != anchor.root:
        raise RolledBack(f"the log's root at {anchor.tree_size} records is not the anchor's")
    if log.chain_of(anchor.group) != anchor.chain:
        raise RolledBack(f"the log's chain at group {anchor.group} is not the anchor's")


def number_of(log: _native.Log, anchor: Receipt) -> int | None:
    try:
        return log.stream(anchor.stream)
    except (TypeError, UnicodeEncodeError):
        raise Invalid("the anchor names no stream") from None
