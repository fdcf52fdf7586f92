"""`kimberlite verify`: every byte of a log against everything that can be known of it."""

from __future__ import annotations

import os
import reprlib
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from kimberlite import _native
from kimberlite.arguments import check_receipt
from kimberlite.crypto.master import load_master
from kimberlite.crypto.vault import Vault
from kimberlite.errors import Corrupt, KeyUnavailable
from kimberlite.log import past
from kimberlite.log.ahead import Ahead
from kimberlite.log.anchor import check_anchor
from kimberlite.log.checkpoint import hashes_header
from kimberlite.log.creation import check_everything, read_small
from kimberlite.log.description import dropped, erasures, repairs, unsaid_repairs
from kimberlite.log.keyring import orphan_notes
from kimberlite.log.loading import load_keys, load_marks, new_log, segment_numbers, unless_overtaken
from kimberlite.log.names import CHECKPOINT, HASHES, PAST, VAULTS, segment_name
from kimberlite.log.opening import checked_path, find_identity
from kimberlite.log.options import Options
from kimberlite.log.past import HASHES_HEADER
from kimberlite.log.recovery import CHUNK, Ended, Loader
from kimberlite.log.refusals import UNFIT_TO_BEGIN, translate
from kimberlite.records import Receipt
from kimberlite.storage import Backend, open_backend
from kimberlite.storage.backend import read_around

Progress = Callable[[int, int], None]
KeyFile = str | os.PathLike[str] | None


@dataclass
class Report:
    """What was found sound, and what was found odd and could be lived with."""

    records: int
    streams: int
    groups: int
    segments: int
    #: Bytes of groups that were read.
    read: int
    #: What was dropped, when and by what rule; the first of what is left.
    first_position: int
    dropped: list[dict[str, Any]]
    tree_size: int
    root: bytes
    chain: bytes
    #: Whether encrypted records were opened and held against their commitments.
    keys_checked: bool
    #: Streams that nobody can read any more.
    erasures: list[dict[str, Any]]
    #: What was given up, and is said to be.
    repairs: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)


def shown(report: Report, *, anchored: bool) -> dict[str, Any]:
    """As plain values."""
    return asdict(report) | {"root": report.root.hex(), "chain": report.chain.hex(), "anchored": anchored}


def verify_directory(
    path: str | os.PathLike[str],
    *,
    key_file: KeyFile | Callable[[], KeyFile] = None,
    anchor: Receipt | None = None,
    progress: Progress | None = None,
) -> Report:
    """Reads everything and writes nothing; a KimberliteError says what is wrong and where. Which key file it is may be
    asked again, since a writer may rotate meanwhile."""
    name = checked_path(path)
    check_receipt(anchor)
    try:
        backend = open_backend(name, read_only=True)
    except OSError as error:
        raise translate(error, name, UNFIT_TO_BEGIN) from error
    try:
        return verify_again(backend, lambda: load_master(file_of(key_file)), anchor, progress)
    except OSError as error:
        raise translate(error, name) from error
    finally:
        backend.close()


def file_of(key_file: KeyFile | Callable[[], KeyFile]) -> KeyFile:
    return key_file() if callable(key_file) else key_file


def verify_again(
    backend: Backend, master: Callable[[], bytes | None], anchor: Receipt | None, progress: Progress | None
) -> Report:
    """From the beginning, if a writer dropped segments or erased a stream meanwhile."""
    while True:
        vault = vault_copies(backend)
        try:
            return unless_overtaken(backend, lambda: verify(backend, master(), anchor=anchor, progress=progress))
        except KeyUnavailable:
            if vault_copies(backend) == vault:
                raise


def vault_copies(backend: Backend) -> list[bytes | None]:
    return [read_small(backend, name) for name in VAULTS]


def verify(
    backend: Backend,
    master: bytes | None,
    *,
    anchor: Receipt | None = None,
    progress: Progress | None = None,
) -> Report:
    identity = find_identity(backend)
    check_everything(backend)
    copies = vault_copies(backend)
    keys = load_keys(backend, identity, master, os.urandom, read_only=True)
    marks = load_marks(backend, identity)
    notes = [f"marks: block {block} is damaged; its twin is sound" for block in marks.damaged]
    hashes = Hashes(backend, hashes_header(identity.database_id))

    def fresh() -> _native.Log:
        log = new_log(identity, keys, Options(), None)
        hashes.hold_against(log)
        return log

    loader = Loader(backend, identity, keys, marks, fresh, write=False, progress=progress)
    loader.on_chunk = hashes.compare
    loader.acknowledged = 0 if anchor is None else anchor.group
    # Before the segments: a writer may be at work, and its next checkpoint is of what is not read here.
    checkpoint, loader.promised = checkpointed(backend, loader.log)
    uncovered, end = loader.beyond(loader.run())
    log = loader.log
    keys.check(log)
    notes += orphan_notes(backend, keys.vault, log)
    hashes.compare()
    notes += hashes.notes()
    if marks.newest.clean:
        behind = behind_end(loader, end)
        # Asked last: a writer may have begun, and what it appends is no damage.
        if behind is not None and load_marks(backend, identity) == marks:
            raise behind
    group, chain = log.durable_group()
    if uncovered:
        notes.append(f"groups {group - uncovered + 1} to {group} are sound, and no watermark covers them yet")
    if end.torn_upto is not None and end.segment is not None:
        name = segment_name(end.segment.number)
        what = f"bytes {end.place} to {end.torn_upto} are no sound group, and no watermark covers them"
        if end.unreadable is not None:
            what = f"{what}; the disk cannot read byte {end.unreadable}"
        notes.append(f"{name}: {what}")
    if checkpoint is not None and not was(log, checkpoint, backend):
        what = f"it is not what the log was at group {loader.promised}; delete the file to have it made again"
        notes.append(f"{CHECKPOINT}: {what}")
    if log.first > 0:
        past.attach(backend, log)
        if (wrong := past.wrong(backend, log)) is not None:
            notes.append(f"{PAST}: {wrong}: receipts of before position {log.first} are not held against the log")
    notes += unsaid_repairs(log)
    vault = keys.vault
    if vault is not None and vault.stale and vault_copies(backend) != copies:
        # A writer was between its two copies.
        vault = load_keys(backend, identity, master, os.urandom, read_only=True).vault
    notes += [] if vault is None else vault_notes(vault)
    size, root = log.root()
    if anchor is not None:
        check_anchor(log, anchor, keyed=keys.receipts)
    return Report(
        records=log.durable,
        streams=len(log.streams()),
        groups=group,
        segments=len(loader.segments),
        read=loader.bytes,
        first_position=log.first,
        dropped=dropped(log),
        tree_size=size,
        root=root,
        chain=chain,
        keys_checked=keys.vault is not None,
        erasures=erasures(log),
        repairs=repairs(log),
        notes=notes,
    )


def vault_notes(vault: Vault) -> list[str]:
    unopened = vault.unopened()
    notes = []
    if len(vault.stale) == 2:
        notes.append("vault.0 and vault.1: neither is what both together are")
    elif vault.stale:
        sound = "" if unopened else ", which is sound"
        notes += [f"vault.{copy} differs from its twin{sound}" for copy in vault.stale]
    if unopened:
        places = reprlib.repr(unopened)[1:-1]
        notes.append(f"vault.0 and vault.1: slots that open in neither, {len(unopened)} of them, at bytes {places}")
    return notes


def behind_end(loader: Loader, end: Ended) -> Corrupt | None:
    """What is wrong with the end of a log that was closed cleanly: nothing is behind its last group."""
    if end.segment is None:
        return None
    name = segment_name(end.segment.number)
    scan = loader.backend.open(name, "s")
    try:
        with Ahead(scan, end.place, CHUNK) as ahead:
            _, last = loader.rest(end.segment, ahead)
    finally:
        scan.close()
    if last is None:
        return None
    return Corrupt("there are bytes behind the end of a log that was closed cleanly", file=name, place=last)


def checkpointed(backend: Backend, log: _native.Log) -> tuple[bytes | None, int]:
    """The checkpoint, and the group that it was taken of; none and 0 if there is none that is this database's."""
    data = read_small(backend, CHECKPOINT)
    resume = None if data is None else log.resume(data)
    return (None, 0) if resume is None else (data, resume.group)


def was(log: _native.Log, checkpoint: bytes, backend: Backend) -> bool:
    """Whether it is of this log. Of what a writer drops meanwhile nobody can say."""
    try:
        return log.was(checkpoint)
    except FileNotFoundError:
        if segment_numbers(backend)[:1] == [log.dropped[0]]:
            raise
        return True


class Hashes:
    """Holds the file of tree hashes against the hashes that follow from the records."""

    def __init__(self, backend: Backend, header: bytes) -> None:
        self._backend, self._header = backend, header
        self._file = backend.open(HASHES, "r") if backend.exists(HASHES) else None

    def hold_against(self, log: _native.Log) -> None:
        """Begins anew, with a log that is empty."""
        self._log = log
        self._first_wrong: int | None = None
        #: Whether the file ended: what follows is only in memory.
        self._ended = False
        log.set_hashes(self._file)

    def compare(self) -> None:
        """What is in the file as it should be need not be kept; what is not stays in memory for `root_at`."""
        first, hashes = self._log.take_hashes(sys.maxsize)
        if self._file is None or self._first_wrong is not None or self._ended:
            return
        found = read_around(self._file, HASHES_HEADER + 32 * first, len(hashes))
        if found != hashes[: len(found)]:
            # What is dropped meanwhile has left this file for the other.
            found = past.moved(self._backend, HASHES_HEADER + 32 * first, found)
        if found != hashes[: len(found)]:
            wrong = next(i for i in range(0, len(found), 32) if found[i : i + 32] != hashes[i : i + 32])
            self._first_wrong = first + wrong // 32
            found = found[:wrong]
        self._ended = len(found) < len(hashes)
        self._log.flushed_hashes(first + len(found) // 32)

    def notes(self) -> list[str]:
        again = "delete the file to have it made again"
        header = self._header if self._file is None else read_around(self._file, 0, HASHES_HEADER)
        if not any(header):
            return [f"{HASHES}: a writer did not believe it, and the next one that opens makes it again"]
        if header != self._header:
            return [f"{HASHES}: its header is wrong; {again}"]
        return [] if self._first_wrong is None else [f"{HASHES}: hash {self._first_wrong} is wrong; {again}"]
