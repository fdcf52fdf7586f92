"""Whether the engine and the model say the same of a directory, record by record and hash by hash."""

from __future__ import annotations

import os
import sys
from base64 import b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kimberlite import Receipt
from kimberlite import Record as Given
from kimberlite.cli.inspect import describe
from kimberlite.crypto.master import PREFIX
from kimberlite.log.log import Log as Engine
from kimberlite.log.opening import Injected, open_log
from kimberlite.log.options import Options
from kimberlite.log.recovery import Loader, load_identity, load_keys, load_marks, new_log
from kimberlite.log.verify import verify
from kimberlite.storage.memory import Disk, MemoryBackend
from tests.model import Log, Record, Row, hashes_file, read_log
from tests.model.derived import checkpoint_file, index_file, pieces, producer_entries, receipt_key
from tests.model.groups import BLOCK
from tests.model.hashes import receipt_mac, tree_root


@dataclass(frozen=True)
class Master:
    """A master key, and the file that it is in."""

    key: bytes
    file: Path

    @classmethod
    def kept(cls, directory: Path, key: bytes) -> Master:
        file = directory / "master"
        file.write_text(f"{PREFIX}{b64encode(key).decode()}\n")
        file.chmod(0o600)
        return cls(key, file)


def key_of(master: Master | None) -> bytes | None:
    return None if master is None else master.key


OPTIONS = Options(segment_bytes=1 << 20, idle=0.0005)
REAL = Injected()


async def opened(
    disk: Disk,
    master: Master | None,
    *,
    options: Options = OPTIONS,
    injected: Injected = REAL,
    read_only: bool = False,
    backend: MemoryBackend | None = None,
) -> Engine:
    return await open_log(
        "simulated",
        create=True,
        read_only=read_only,
        key_file=None if master is None else master.file,
        backend=backend or MemoryBackend(disk),
        origin=None,
        anchor=None,
        options=options,
        injected=injected,
    )


def given(record: Record) -> Given:
    return Given(record.payload, record.key, record.headers, record.event_time)


def as_read(row: Row) -> tuple[Any, ...]:
    """A record as the engine's readers give it."""
    said = (row.name, row.offset, row.position, row.timestamp)
    return (row.payload, row.key, row.headers, row.event_time, *said)


async def agree(disk: Disk, master: Master | None) -> Log:
    """Returns what the model reads. Nothing on the disk is changed."""
    files = disk.files()
    log = read_log(files, key_of(master))
    assert log.doubts == ()
    replay_agrees(disk.copy(), master, log)
    inspection_agrees(disk, log)
    end = ended(log)
    report = verify(MemoryBackend(disk.copy()), key_of(master))
    assert (report.groups, report.segments) == (end.number, segments_of(log))
    # What no watermark covers may be noted, and nothing else.
    assert [note for note in report.notes if not note.endswith("no watermark covers them yet")] == []
    assert (report.records, report.root, report.chain) == (end.tree_size, end.root, end.chain)
    await reading_agrees(disk.copy(), master, log, visible(log, files.get("checkpoint")))
    derived_agree(disk.files(), master, log)
    return log


def segments_of(log: Log) -> int:
    """A last segment without a group has a header all the same."""
    last = log.groups[-1]
    return last.segment + 1 + last.closing


@dataclass(frozen=True)
class Shown:
    number: int
    tree_size: int
    root: bytes
    chain: bytes


def visible(log: Log, checkpoint: bytes | None) -> Shown:
    """The end of the log as a reader without a lock may show: in the last segment it goes by the watermarks."""
    last_segment = segments_of(log) - 1
    marked = max([mark.durable_group for mark in log.marks] + [group.durable_upto for group in log.groups])
    marked = max(marked, 0 if checkpoint is None else int.from_bytes(checkpoint[24:32], "little"))
    shown = [group for group in log.groups if group.segment < last_segment or group.number <= marked]
    if not shown:
        return Shown(0, 0, tree_root([]), log.identity.hash())
    return Shown(shown[-1].number, shown[-1].tree_size, shown[-1].root, shown[-1].chain)


def ended(log: Log) -> Shown:
    """The end of the log."""
    if not log.groups:
        return Shown(0, 0, tree_root([]), log.identity.hash())
    last = log.groups[-1]
    return Shown(last.number, last.tree_size, last.root, last.chain)


def replay_agrees(disk: Disk, master: Master | None, log: Log) -> None:
    """Every leaf, every node, the root after every group, and the end."""
    backend = MemoryBackend(disk)
    identity = load_identity(backend)
    assert identity is not None
    assert identity.hash == log.identity.hash()
    keys = load_keys(backend, identity, key_of(master), os.urandom, read_only=True)
    native = new_log(identity, keys, Options(), None)
    end = Loader(backend, identity, keys, load_marks(backend, identity), native, write=True).run()
    assert end.torn_upto is None
    assert native.sealed()[:2] == (len(log.groups) + 1, len(log.rows))
    assert native.root() == (len(log.rows), log.root)
    assert native.durable_group() == (len(log.groups), log.chain)
    for group in log.groups:
        assert native.root_at(group.tree_size) == group.root
    assert native.take_hashes(sys.maxsize) == (0, hashes_file(log)[BLOCK:])


def inspection_agrees(disk: Disk, log: Log) -> None:
    found = [line for line in describe(MemoryBackend(disk.copy()), None) if line["kind"] == "group"]
    assert len(found) == len(log.groups)
    for line, group in zip(found, log.groups, strict=True):
        assert (line["group"], line["place"], line["position"]) == (group.number, group.place, group.position)
        assert (line["records"], line["durable_upto"]) == (group.records, group.durable_upto)
        assert (line["timestamp"], line["incarnation"]) == (group.timestamp, group.incarnation)
        assert (line["closing"], line["chain"]) == (group.closing, group.chain.hex())


async def reading_agrees(disk: Disk, master: Master | None, log: Log, shown: Shown) -> None:
    mine = [as_read(row) for row in log.rows[: shown.tree_size]]
    async with await opened(disk, master, read_only=True) as db:
        assert [record async for record in db.read(system=True)] == mine
        info = await db.info()
        assert (info["records"], info["root"], info["chain"]) == (len(mine), shown.root.hex(), shown.chain.hex())
        for stream in db.streams():
            own = [row for row in mine if row[4] == stream.name]
            assert [record async for record in db.read(stream.name)] == own
            assert (stream.length, stream.encrypted) == (len(own), log.rows[own[0][6]].encrypted)


def derived_agree(files: dict[str, bytes], master: Master | None, log: Log) -> None:
    """Those that are there; a log that was not closed may have older ones or none."""
    key = receipt_key(files, log, key_of(master))
    if "hashes" in files:
        made, whole = files["hashes"], hashes_file(log)
        assert made == whole[: len(made)]
    for name, data in files.items():
        if name.startswith("index/"):
            assert data == index_file(files, log, int(name[6:-4]), key), name
    if "checkpoint" not in files:
        return
    data = files["checkpoint"]
    group, size = int.from_bytes(data[24:32], "little"), int.from_bytes(data[136:144], "little")
    assert data == checkpoint_file(files, log, group, size, key)
    entries = b"".join(pieces(files.get("producers", b""), size, key))
    assert entries == producer_entries(files, log, group, key_of(master))


def closed_agree(disk: Disk, log: Log) -> None:
    """After a clean close every derived file is there, and of the last group."""
    files = disk.files()
    assert files["hashes"] == hashes_file(log)
    assert int.from_bytes(files["checkpoint"][24:32], "little") == len(log.groups)
    closed = [f"index/{number:020d}.idx" for number in range(segments_of(log) - 1)]
    assert [name for name in files if name.startswith("index/")] == closed


def receipts_agree(receipts: Iterable[Receipt], files: dict[str, bytes], master: Master | None, log: Log) -> None:
    key = receipt_key(files, log, key_of(master))
    for receipt in receipts:
        group = log.groups[receipt.group - 1]
        assert receipt[7:12] == (group.tree_size, group.root, group.chain, group.incarnation, group.number)
        rows = log.rows[receipt.first_position : receipt.last_position + 1]
        assert {(row.name, row.timestamp) for row in rows} == {(receipt.stream, receipt.timestamp)}
        assert [row.offset for row in rows] == list(range(receipt.first_offset, receipt.last_offset + 1))
        assert [row.last for row in rows] == [False] * (len(rows) - 1) + [True]
        assert group.position <= receipt.first_position <= receipt.last_position < group.tree_size
        assert receipt.mac == mac_of(receipt, rows[0].stream, log.identity.database, key)


def mac_of(receipt: Receipt, stream: int, database: bytes, key: bytes) -> bytes:
    return receipt_mac(
        key,
        database=database,
        group=receipt.group,
        tree_size=receipt.tree_size,
        root=receipt.root,
        chain=receipt.chain,
        incarnation=receipt.incarnation,
        durable=receipt.durable,
        stream=stream,
        offsets=(receipt.first_offset, receipt.last_offset),
        positions=(receipt.first_position, receipt.last_position),
        timestamp=receipt.timestamp,
    )


def batches(log: Log) -> Iterator[tuple[Row, ...]]:
    """The batches of clients, in the order of the log."""
    batch: list[Row] = []
    for row in log.rows:
        if row.stream:
            batch.append(row)
        if batch and row.last:
            yield tuple(batch)
            batch = []
