"""A receipt that was kept outside the directory, held against the log."""

from __future__ import annotations

from kimberlite import _native
from kimberlite.errors import Corrupt, Invalid, RolledBack
from kimberlite.log.names import HASHES
from kimberlite.records import Receipt


def check_anchor(log: _native.Log, anchor: Receipt, *, keyed: bool) -> None:
    """The log must reach what the receipt says, and agree with it. One whose MAC is wrong says nothing, if the key is
    known."""
    mac = mac_of(log, anchor)
    if mac not in (None, anchor.mac) and keyed:
        raise Invalid("the anchor was changed, or is a receipt of another database: its MAC is wrong")
    size, _ = log.root()
    if size < anchor.tree_size:
        raise RolledBack(f"the log has {size} records; the anchor was given at {anchor.tree_size}")
    dropped = anchor.group < log.first_group
    root = log.root_at(anchor.tree_size)
    if root is None and dropped and keyed and mac is not None:
        # It was given by this database, and nothing is left that could contradict it.
        return
    if root is None:
        what = f"no root at {anchor.tree_size} records follows from it; once it is deleted, it is made again"
        raise Corrupt(what, file=HASHES)
    if root != anchor.root:
        raise RolledBack(f"the log's root at {anchor.tree_size} records is not the anchor's")
    if not dropped and log.chain_of(anchor.group) != anchor.chain:
        raise RolledBack(f"the log's chain at group {anchor.group} is not the anchor's")
    if mac is None:
        raise Invalid(f"the anchor was changed: the log has no stream {anchor.stream!r}")


def mac_of(log: _native.Log, anchor: Receipt) -> bytes | None:
    try:
        return log.receipt_mac(anchor[:12])
    except (TypeError, UnicodeEncodeError):
        raise Invalid("the anchor names no stream") from None
