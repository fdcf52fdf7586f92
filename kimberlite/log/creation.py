"""Making a database: what it is, its keys, its marks, and only then its first segment."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from kimberlite.crypto.vault import Vault
from kimberlite.errors import Misconfigured
from kimberlite.log.identity import Identity
from kimberlite.log.marks import Mark, encode_mark
from kimberlite.log.names import (
    DIRECTORIES,
    FILES,
    IDENTITY,
    MARKS,
    PREPARE,
    RECEIPT_KEY,
    VAULTS,
    belongs,
)
from kimberlite.storage.backend import Backend, File, read_around


def write_small(backend: Backend, name: str, data: bytes) -> None:
    """Replaces a small file: temporary, fsync, rename, fsync directory."""
    replace(backend, name, lambda file: file.write(0, data))


def replace(backend: Backend, name: str, fill: Callable[[File], None]) -> None:
    put_in_place(backend, prepare(backend, name, fill), name)


def prepare(backend: Backend, name: str, fill: Callable[[File], None]) -> str:
    """The temporary that is to become the file."""
    temporary = f"{PREPARE}/{name.replace('/', '-')}"
    if backend.exists(temporary):
        backend.unlink(temporary)
    file = backend.open(temporary, "x")
    try:
        fill(file)
        file.sync()
    except OSError:
        # Keys may be in it, and the next start is far away.
        with contextlib.suppress(OSError):
            backend.unlink(temporary)
            backend.sync_directory(PREPARE)
        raise
    finally:
        file.close()
    return temporary


def put_in_place(backend: Backend, temporary: str, name: str) -> None:
    backend.rename(temporary, name)
    backend.sync_directory(name.rpartition("/")[0])


def discard(backend: Backend, name: str) -> None:
    """If it is there."""
    if backend.exists(name):
        backend.unlink(name)


def read_small(backend: Backend, name: str, limit: int = 1 << 30) -> bytes | None:
    """The whole of a small file; None if it is not there. What the disk cannot read of it is as if it were damaged."""
    if not backend.exists(name):
        return None
    file = backend.open(name, "r")
    try:
        return read_around(file, 0, min(file.size(), limit))
    finally:
        file.close()


def check_kinds(backend: Backend) -> None:
    """Refuses what is not of the kind that its name says, or not its owner's alone, also where nothing is read."""
    for name in (*FILES, *DIRECTORIES):
        check_kind(backend, name)


def check_everything(backend: Backend, directory: str = "") -> None:
    """As `check_kinds`, of what is in the directories too; and no other name may be there."""
    for leaf in backend.list(directory):
        name = f"{directory}/{leaf}" if directory else leaf
        if not belongs(name):
            raise Misconfigured(f"{name!r} does not belong here")
        check_kind(backend, name)
        if name in DIRECTORIES:
            check_everything(backend, name)


def check_kind(backend: Backend, name: str) -> None:
    # A writer beside takes its temporaries away.
    with contextlib.suppress(FileNotFoundError):
        backend.check(name, directory=name in DIRECTORIES)


def make_directories(backend: Backend) -> None:
    for name in DIRECTORIES:
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


def discard_prepared(backend: Backend) -> None:
    """What was cut off before it had its name."""
    for name in backend.list(PREPARE):
        backend.unlink(f"{PREPARE}/{name}")
