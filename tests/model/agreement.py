"""Whether the engine and the model say the same of a directory, record by record and hash by hash."""

from __future__ import annotations

import os
import re
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
from kimberlite.log.loading import load_identity, load_keys, load_marks, new_log
from kimberlite.log.log import Log as Engine
from kimberlite.log.opening import Injected, open_log
from kimberlite.log.options import Options
from kimberlite.log.recovery import Loader
from kimberlite.log.verify import verify
from kimberlite.storage.memory import Disk, MemoryBackend
from tests.model import Log, Mode, Record, Row, hashes_file, read_log
from tests.model.derived import (
    Files,
    checkpoint_file,
    index_file,
    length_of,
    pieces,
    producer_entries,
    receipt_key,
    slot_keys,
)
from tests.model.files import hashes_header, leaf_index, segment_name
from tests.model.groups import BLOCK
from tests.model.hashes import Tree, receipt_mac, tree_root
from tests.model.retained import decode_retained, decode_sent, encode_retained, last_sent


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
    begun = 0 if log.begun is None else log.begun.segment
    assert (report.groups, report.segments) == (end.number, segments_of(log) - begun)
    # What no watermark covers may be noted, that the model keeps no hashes of what was dropped, and nothing else.
    pasts = ("past: it is missing",) if "past" not in files else ()
    rest = [n for n in report.notes if not n.endswith("no watermark covers them yet") and not n.startswith(pasts)]
    orphans = orphans_of(files, log, key_of(master))
    expected = ([f"vault: {orphans}"] if orphans else []) + (["incarnations"] if unsaid(log) else [])
    assert [re.split(r" of its keys are|(?<=incarnations) ", note)[0] for note in rest] == expected
    assert (report.records, report.root, report.chain) == (end.tree_size, end.root, end.chain)
    await reading_agrees(disk.copy(), master, log, visible(log, files.get("checkpoint")))
    derived_agree(disk.files(), master, log)
    return log


def orphans_of(files: Files, log: Log, master: bytes | None) -> int:
    """Keys of streams that a repair took back, where something is left that they may open."""
    if master is None or not log.repairs or not any(name.startswith("quarantine/") for name in files):
        return 0
    known = {log.identity.hash(), *(stream.declared for stream in log.streams)}
    return len(slot_keys(files, log, master).keys() - known)


def unsaid(log: Log) -> bool:
    """Whether no record says what the incarnation was raised for."""
    return bool(log.groups) and log.groups[-1].incarnation > len(log.repairs)


def segments_of(log: Log) -> int:
    """Those that were dropped too. A last one without a group has a header all the same."""
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
    fresh = lambda: new_log(identity, keys, Options(), None)  # noqa: E731
    loader = Loader(backend, identity, keys, load_marks(backend, identity), fresh, write=True)
    end, native = loader.run(), loader.log
    assert end.torn_upto is None
    keys.check(native)
    erased = [(erasure.stream, erasure.position, erasure.timestamp, erasure.reason) for erasure in log.erasures]
    assert [(stream, position, when, why) for stream, _, when, why, position, _, _ in native.erasures] == erased
    assert [position for position, *_ in native.repairs()] == [position for position, _ in log.repairs]
    assert native.sealed()[:2] == (ended(log).number + 1, log.tree_size)
    assert native.root() == (log.tree_size, log.root)
    assert native.durable_group() == (ended(log).number, log.chain)
    assert native.first == log.first
    for group in log.groups:
        assert native.root_at(group.tree_size) == group.root
    first = 0 if log.begun is None else leaf_index(log.begun.position)
    assert native.take_hashes(sys.maxsize) == (first, log.hashes)
    drops = [] if log.retained is None else log.retained.drops
    said = [(drop.start, drop.end, drop.first, drop.last, drop.rule) for drop in drops]
    assert native.dropped == (0 if log.retained is None else log.retained.segment, said)


def inspection_agrees(disk: Disk, log: Log) -> None:
    lines = [line for line in describe(MemoryBackend(disk.copy()), None) if line["kind"] == "group"]
    first = 1 if log.retained is None else log.retained.group
    found = [line for line in lines if line["group"] >= first]
    assert len(found) == len(log.groups)
    for line, group in zip(found, log.groups, strict=True):
        assert (line["group"], line["place"], line["position"]) == (group.number, group.place, group.position)
        assert (line["records"], line["durable_upto"]) == (group.records, group.durable_upto)
        assert (line["timestamp"], line["incarnation"]) == (group.timestamp, group.incarnation)
        assert (line["closing"], line["chain"]) == (group.closing, group.chain.hex())


async def reading_agrees(disk: Disk, master: Master | None, log: Log, shown: Shown) -> None:
    rows = log.between(log.first, shown.tree_size)
    gone = {erasure.stream for erasure in log.erasures if erasure.position < shown.tree_size}
    mine = [as_read(row) for row in rows if row.stream not in gone]
    #: That something was dropped may be said, and no watermark cover it yet.
    covered = log.retained_at(shown.number) == log.retained

    def kept(found: list[Given]) -> list[Given]:
        return [one for one in found if one.position >= log.first or covered]

    async with await opened(disk, master, read_only=True) as db:
        assert kept([record async for record in db.read(system=True)]) == mine
        info = await db.info()
        assert (info["records"], info["root"], info["chain"]) == (shown.tree_size, shown.root.hex(), shown.chain.hex())
        assert info["first_position"] == log.first or not covered
        modes = {stream.name: stream for stream in log.streams}
        assert {each.name for each in db.streams() if each.erased} == {log.streams[number].name for number in gone}
        for stream in db.streams():
            if stream.erased:
                continue
            known = modes[stream.name]
            own = [as_read(row) for row in rows if row.stream == known.number]
            assert kept([record async for record in db.read(stream.name)]) == own
            said = (stream.length, stream.encrypted)
            assert said == (length_of(log, known.number, rows), known.mode is Mode.ENCRYPTED)


#: of the segment, in its index
SALT = slice(48, 80)


def derived_agree(files: dict[str, bytes], master: Master | None, log: Log) -> None:
    """Those that are there; a log that was not closed may have older ones or none."""
    key = receipt_key(files, log, key_of(master))
    if "hashes" in files:
        hashes_agree(files["hashes"], log)
    if "past" in files:
        past_agrees(files["past"], log)
    for name, data in files.items():
        # what a crash has left of a segment that was dropped
        if name.startswith("index/") and segment_name(int(name[6:-4])) in files and int(name[6:-4]) >= log.segment:
            expected = index_file(files, log, int(name[6:-4]), key)
            # or of one that was packed since: it is passed over
            assert data[SALT] != expected[SALT] or data == expected, name
    if "checkpoint" in files:
        checkpoint_agrees(files, log, key)


def hashes_agree(made: bytes, log: Log) -> None:
    """Nothing is asked of those of positions that were dropped."""
    whole, first = hashes_file(log), BLOCK + 32 * leaf_index(log.first)
    assert made[:BLOCK] == whole[:BLOCK]
    assert made[first:] == whole[first : max(first, len(made))]


def past_agrees(data: bytes, log: Log) -> None:
    """What follows from its leaves, up to a hole of what a full disk did not keep."""
    # on a full disk not even its front may be there
    tree, whole = Tree(), any(data)
    assert not whole or data[:BLOCK] == hashes_header(log.identity.database, b"KIMBPST1")
    for position in range(log.first):
        at = BLOCK + 32 * leaf_index(position)
        end = BLOCK + 32 * leaf_index(position + 1)
        # of one that was cut off while it was written the rest is not there
        whole = whole and end <= len(data) and any(data[at : at + 32])
        if whole:
            assert data[at:end] == b"".join(tree.grow(data[at : at + 32])), f"past of position {position}"
    if whole and log.retained is not None:
        assert tuple(tree.peaks) == log.retained.peaks


def checkpoint_agrees(files: dict[str, bytes], log: Log, key: bytes) -> None:
    data = files["checkpoint"]
    group, size = int.from_bytes(data[24:32], "little"), int.from_bytes(data[136:144], "little")
    said, dropped = log.retained_at(group), b""
    if said is not None:
        dropped = encode_retained(said)
    elif log.begun is not None:
        # one that was dropped itself since
        dropped = data[len(checkpoint_file(files, log, group, size, b"", key)) - 32 : -32]
        assert not dropped or decode_retained(dropped, "checkpoint").segment <= log.begun.segment
    assert data == checkpoint_file(files, log, group, size, dropped, key)
    found = b"".join(pieces(files.get("producers", b""), size, key))
    if log.begun is None and not log.erasures:
        assert found == producer_entries(log, group)
        return
    entries = decode_sent(found, "producers")
    if log.begun is None:
        # made anew when a stream was erased: the last of each producer, all of them as old as its last
        known = {(sent.key, sent.group, sent.sequence, sent.digest) for sent in log.sent}
        assert {(sent.key, sent.group, sent.sequence, sent.digest) for sent in entries} <= known
        assert last_sent(entries) == last_sent(sent for sent in log.sent if sent.group <= group)
        return
    begun = log.begun.group
    assert [sent for sent in entries if sent.group >= begun] == [s for s in log.sent if begun <= s.group <= group]
    before = last_sent(sent for sent in entries if sent.group < begun)
    for sent in log.sent:
        assert sent.group >= begun or before[sent.key] == sent


def closed_agree(disk: Disk, log: Log) -> None:
    """After a clean close every derived file is there, and of the last group."""
    files = disk.files()
    assert len(files["hashes"]) == len(hashes_file(log))
    assert int.from_bytes(files["checkpoint"][24:32], "little") == log.groups[-1].number
    closed = [f"index/{number:020d}.idx" for number in range(log.segment, segments_of(log) - 1)]
    assert [name for name in files if name.startswith("index/")] == closed


def receipts_agree(receipts: Iterable[Receipt], files: dict[str, bytes], master: Master | None, log: Log) -> None:
    key = receipt_key(files, log, key_of(master))
    for receipt in receipts:
        if receipt.last_position < log.first:
            continue
        group = log.group(receipt.group)
        assert receipt[7:12] == (group.tree_size, group.root, group.chain, group.incarnation, group.number)
        rows = log.between(receipt.first_position, receipt.last_position + 1)
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
