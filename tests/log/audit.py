"""What is on the disk, held by the second implementation of the format against what was seen and acknowledged."""

from __future__ import annotations

from itertools import chain

from kimberlite import Receipt
from kimberlite.log.verify import Report, verify
from kimberlite.storage.memory import Disk, MemoryBackend
from tests.log.expected import Expected
from tests.model import Log, read_log
from tests.model.agreement import Master, as_read, mac_of, past_agrees
from tests.model.derived import receipt_key


def verified(disk: Disk, master: Master | None, anchor: Receipt | None = None) -> Report:
    return verify(MemoryBackend(disk.copy()), None if master is None else master.key, anchor=anchor)


def audit(disk: Disk, master: Master | None, expected: Expected, *, whole: bool) -> Log:
    """`whole`: nothing but what has been seen is there."""
    files = disk.files()
    log = read_log(files, None if master is None else master.key)
    assert log.doubts == ()
    seen = len(expected.rows)
    assert log.first == expected.first
    assert [as_read(row) for row in log.between(log.first, seen)] == [tuple(row) for row in expected.rows[log.first :]]
    report = verified(disk, master)
    lived_with = ("no watermark covers", "past: ") if expected.full else ("no watermark covers",)
    assert all(any(text in note for text in lived_with) for note in report.notes), report.notes
    if "past" in files:
        past_agrees(files["past"], log)
    assert report.records == log.tree_size
    if whole:
        assert (log.tree_size, report.records) == (seen, seen)
        assert report.root == log.root
        numbers = [int(name.partition("/")[2][:20]) for name in files if name.startswith(("segments/", "index/"))]
        assert min(numbers) >= log.segment
    check_receipts(files, log, master, expected)
    return log


def check_receipts(files: dict[str, bytes], log: Log, master: Master | None, expected: Expected) -> None:
    key = receipt_key(files, log, None if master is None else master.key)
    for receipt in chain(expected.joined, *(unit.receipts for unit in expected.units.values())):
        check_receipt(receipt, log, key)


def check_receipt(receipt: Receipt, log: Log, key: bytes) -> None:
    """It names its group, the tree and the chain at its end, and is this database's."""
    if receipt.last_position < log.first:
        return
    group = log.group(receipt.group)
    assert (receipt.chain, receipt.root, receipt.tree_size) == (group.chain, group.root, group.tree_size)
    assert (receipt.incarnation, receipt.timestamp) == (group.incarnation, group.timestamp)
    assert group.position <= receipt.last_position < group.position + group.records
    for position, offset in zip(receipt[3:5], receipt[1:3], strict=True):
        assert (log.row(position).name, log.row(position).offset) == (receipt.stream, offset)
    stream = log.row(receipt.last_position).stream
    assert receipt.mac == mac_of(receipt, stream, log.identity.database, key)
