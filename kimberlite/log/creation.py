"""Making a database: what it is, its keys, its marks, and only then its first segment."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from kimberlite.crypto.vault import Vault
from kimberlite.log.identity import Identity
from kimberlite.log.marks import Mark, encode_mark
from kimberlite.log.names import (
    IDENTITY,
    INDEX,
    MARKS,
    PREPARE,
    QUARANTINE,
    RECEIPT_KEY,
    RESERVE,
    SEGMENTS,
    VAULTS,
)
from kimberlite.log.tail import FULL
from kimberlite.storage.backend import Backend, File

RESERVED = 256 * 1024
#: What a creation that was interrupted can have left.
NAMES = frozenset((SEGMENTS, INDEX, PREPARE, QUARANTINE))


def write_small(backend: Backend, name: str, data: bytes) -> None:
    """Replaces a small file: temporary, fsync, rename, fsync directory."""
    replace(backend, name, lambda file: file.write(0, data))


def replace(backend: Backend, name: str, fill: Callable[[File], None]) -> None:
    temporary = f"{PREPARE}/{name.replace('/', '-')}"
    if backend.exists(temporary):
        backend.unlink(temporary)
    file = backend.open(temporary, "x")
    try:
        fill(file)
        file.sync()
    finally:
        file.close()
    backend.rename(temporary, name)
    backend.sync_directory(name.rpartition("/")[0])


def read_small(backend: Backend, name: str, limit: int = 1 << 30) -> bytes | None:
    """The whole of a small file; None if it is not there."""
    if not backend.exists(name):
        return None
    file = backend.open(name, "r")
    try:
        return file.read(0, min(file.size(), limit))
    finally:
        file.close()


def make_directories(backend: Backend) -> None:
    for name in (SEGMENTS, INDEX, PREPARE, QUARANTINE):
        backend.mkdir(name)
    backend.sync_directory()


def create_identity(
    backend: Backend, origin: str | None, *, tagged: bool, clock: Callable[[], int], random: Callable[[int], bytes]
) -> Identity:
    """The identity file comes first: whatever is missing after it is made by `complete`."""
    make_directories(backend)
    identity = Identity.new(origin, tagged=tagged, created=clock(), random=random)
    write_small(backend, IDENTITY, identity.encode())
    return identity


def complete(backend: Backend, identity: Identity, master: bytes | None, random: Callable[[int], bytes]) -> None:
    """Everything that must be there before the first segment. Done again after a crash in its middle."""
    make_directories(backend)
    if master is not None:
        if not all(backend.exists(name) for name in VAULTS):
            vault = Vault.create(identity.database_id, identity.hash, master, random)
            for name in VAULTS:
                write_small(backend, name, vault.image())
    elif not backend.exists(RECEIPT_KEY):
        write_small(backend, RECEIPT_KEY, random(32))
    if not backend.exists(MARKS):
        marks = [Mark(counter, 0, False, 0, identity.hash) for counter in (0, 1)]
        blocks = [encode_mark(mark, identity.database_id, identity.hash) for mark in marks]
        write_small(backend, MARKS, b"".join(blocks))


def keep_reserve(backend: Backend) -> None:
    """It is only room, which a full disk does not have: then a later open makes it."""
    if backend.exists(RESERVE):
        return
    try:
        replace(backend, RESERVE, lambda file: file.allocate(0, RESERVED))
    except OSError as error:
        if error.errno not in FULL:
            raise
        with contextlib.suppress(OSError):
            backend.unlink(f"{PREPARE}/{RESERVE}")
