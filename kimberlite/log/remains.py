"""What is left of a database directory, whatever its files are called: who it was, and which of its keys open.

Files are known by how they begin; what they say is believed where a check, a MAC or the master key proves it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from struct import Struct
from typing import Final

from kimberlite import _native
from kimberlite.crypto.vault import BLOCK as VAULT_HEADER
from kimberlite.crypto.vault import GROUP, RECEIPT, SLOT, SLOT_HEAD, STREAM, WRAP, read_header
from kimberlite.errors import Invalid, KeyUnavailable, KimberliteError
from kimberlite.log.creation import read_small
from kimberlite.log.identity import QUANTUM, Identity
from kimberlite.log.names import (
    CHECKPOINT,
    DIRECTORIES,
    FILES,
    HASHES,
    IDENTITY,
    INDEX,
    MARKS,
    PREPARE,
    QUARANTINE,
    RECEIPT_KEY,
    SEGMENTS,
    VAULTS,
    segment_number,
)
from kimberlite.storage.backend import BLOCK, Backend, read_around

VAULT: Final = "vault"
#: How files begin, and what they are.
BEGINNINGS: Final = {
    b"KIMBID01": IDENTITY,
    b"KIMBMRK1": MARKS,
    b"KIMBVLT1": VAULT,
    b"KIMBSEG1": SEGMENTS,
    b"KIMBTRE1": HASHES,
    b"KIMBIDX1": INDEX,
    b"KIMBCKP1": CHECKPOINT,
}
#: Where the database's id is in each.
ID_AT: Final = {IDENTITY: 16, MARKS: 8, VAULT: 8, SEGMENTS: 16, HASHES: 8, INDEX: 8, CHECKPOINT: 8}
#: `docs/format.md`, "Segment".
SEGMENT: Final = Struct("<8sHH4x16sQQQ32s32s")
CHECK: Final = 8
#: Of what is odd, in an error.
MOST_SAID: Final = 5


class Remains:
    """What is left of a directory, by what each file is."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.notes: list[str] = []
        #: What can be read, by kind, each with its beginning.
        self.files: dict[str, list[tuple[str, bytes]]] = {}
        for name, head in self._look():
            kind = kind_of(name, head)
            if kind is not None:
                self.files.setdefault(kind, []).append((name, head))
            elif name in DIRECTORIES:
                self.notes.append(f"{name}: it is no directory")

    def _look(self) -> Iterator[tuple[str, bytes]]:
        """Every file, and how it begins, but for what is no part of the log. What is in the way of one is noted."""
        names = deque(self.backend.list())
        while names:
            name = names.popleft()
            try:
                try:
                    yield name, self._beginning(name)
                except IsADirectoryError:
                    names += self._below(name)
            except OSError as error:
                self.notes.append(f"{name}: it cannot be read: {error.strerror}")

    def _below(self, name: str) -> list[str]:
        if name in (PREPARE, QUARANTINE):
            return []
        leaves = self.backend.list(name)
        if name not in DIRECTORIES and {IDENTITY, SEGMENTS} <= set(leaves):
            self.notes.append(f"{name}: it is a database by itself, and is left out")
            return []
        return [f"{name}/{leaf}" for leaf in leaves]

    def _beginning(self, name: str) -> bytes:
        file = self.backend.open(name, "r")
        try:
            return read_around(file, 0, BLOCK)
        finally:
            file.close()

    def of(self, kind: str) -> list[tuple[str, bytes]]:
        return self.files.get(kind, [])

    def whole(self, kind: str) -> Iterator[tuple[str, bytes]]:
        for name, _ in self.of(kind):
            data = read_small(self.backend, name)
            if data is not None:
                yield name, data

    def ids(self) -> Iterator[bytes]:
        for kind, place in ID_AT.items():
            for _, head in self.of(kind):
                if BEGINNINGS.get(head[:8]) == kind:
                    yield head[place : place + 16]

    def headers(self, database_id: bytes) -> Iterator[tuple[int, bytes]]:
        """Number and chain before, of every segment of this database whose header is sound."""
        for _, head in self.of(SEGMENTS):
            if len(head) == BLOCK:
                _, _, _, database, number, _, _, before, salt = SEGMENT.unpack_from(head)
                if database == database_id and _native.blake3(head[:-CHECK], salt)[:CHECK] == head[-CHECK:]:
                    yield number, before


def kind_of(name: str, head: bytes) -> str | None:
    """By how it begins; else by its name. Elsewhere than where a database has its files segments are known, too."""
    directory, _, leaf = name.rpartition("/")
    kind = BEGINNINGS.get(head[:8])
    if name not in FILES and directory not in (SEGMENTS, INDEX):
        return SEGMENTS if kind == SEGMENTS or segment_number(leaf) is not None else None
    return kind or (VAULT if name in VAULTS else name.partition("/")[0])


@dataclass(frozen=True)
class Origin:
    """Who the database was."""

    database_id: bytes
    #: Zeros if nothing says it: then nothing that is bound to it opens.
    hash: bytes
    tagged: bool
    quantum: int


def find_origin(remains: Remains, *, master: bool) -> Origin:
    """From the identity; without one from what others say of it."""
    ids = Counter(remains.ids())
    if not ids:
        raise Invalid("; ".join(["nothing that is left says what database this was", *remains.notes[:MOST_SAID]]))
    database_id = max(ids, key=lambda id: (ids[id], id))
    for name, head in remains.of(IDENTITY):
        try:
            identity = Identity.decode(head)
        except KimberliteError as error:
            remains.notes.append(str(error))
            continue
        if ids[identity.database_id] < ids[database_id]:
            remains.notes.append(f"{name}: it is of another database than most of what is left")
            continue
        if name != IDENTITY:
            remains.notes.append(f"{name}: it is the {IDENTITY} of the database")
        return Origin(identity.database_id, identity.hash, identity.tagged, identity.quantum)
    remains.notes.append(f"{IDENTITY}: it is lost; what is left is of database {database_id.hex()}")
    hash = next((before for number, before in remains.headers(database_id) if number == 0), None)
    for _, copy in remains.whole(VAULT):
        hash = hash or bound_to(copy)
    return Origin(database_id, hash or bytes(32), master or bool(remains.of(VAULT)), QUANTUM)


def bound_to(copy: bytes) -> bytes | None:
    """The identity hash that the first slots of a copy of the vault name, if their checks are keyed with it."""
    for place in (VAULT_HEADER, VAULT_HEADER + SLOT):
        slot = copy[place : place + SLOT]
        if len(slot) == SLOT:
            hash = slot[32:64]
            if _native.blake3(slot[:-CHECK] + place.to_bytes(8, "little"), hash)[:CHECK] == slot[-CHECK:]:
                return hash
    return None


@dataclass
class FoundKeys:
    """What opens with the master key, whatever became of the rest of the vault."""

    group: bytes | None = field(default=None, repr=False)
    receipt: bytes | None = field(default=None, repr=False)
    streams: dict[tuple[int, bytes], bytes] = field(default_factory=dict, repr=False)

    def of(self, stream: int, declaration: bytes) -> bytes | None:
        return self.streams.get((stream, declaration))


def find_keys(remains: Remains, origin: Origin, master: bytes | None) -> FoundKeys:
    keys = FoundKeys()
    for _, data in remains.whole(RECEIPT_KEY):
        keys.receipt = data if len(data) == 32 else None
    if not origin.tagged:
        return keys
    if master is None:
        raise KeyUnavailable("the records of this database are encrypted: without its master key none can be salvaged")
    wrapping = _native.derive(master, WRAP + origin.database_id)
    others = set()
    for _, copy in remains.whole(VAULT):
        header = read_header(copy, origin.database_id, origin.hash)
        if header is not None and header[1] != _native.key_id(master):
            others.add(header[1])
        for place in range(VAULT_HEADER, len(copy) - SLOT + 1, SLOT):
            kind, stream, _, identity, bound, nonce, wrapped = SLOT_HEAD.unpack_from(copy, place)
            aad = WRAP + origin.database_id + copy[place : place + 8] + identity + bound
            key = _native.xaes_open(wrapping, nonce, aad, wrapped) if any(nonce) else None
            if key is None:
                continue
            if kind == STREAM:
                keys.streams[stream, bound] = key
            elif kind == GROUP:
                keys.group = key
            elif kind == RECEIPT:
                keys.receipt = key
    if not keys.streams and others:
        raise KeyUnavailable("this is not the master key that the vault was wrapped with")
    if not keys.streams:
        remains.notes.append(f"{' and '.join(VAULTS)}: no key of a stream is left")
    return keys
