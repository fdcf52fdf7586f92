"""What the vault opens with a master key, and which streams it has no key for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kimberlite import _native
from kimberlite.crypto.vault import read_header
from kimberlite.errors import Invalid, KeyUnavailable
from kimberlite.log.identity import Identity
from kimberlite.log.keyring import bound
from kimberlite.log.loading import Keys, follow_vault, load_keys, load_marks, new_log
from kimberlite.log.opening import find_identity
from kimberlite.log.options import Options
from kimberlite.log.recovery import Loader, Progress
from kimberlite.log.refusals import UNFIT_TO_BEGIN, translate
from kimberlite.log.verify import vault_copies
from kimberlite.storage import Backend, open_backend


def check_directory(path: Path, master: bytes | None, progress: Progress | None = None) -> dict[str, Any]:
    """Reads the log without any key, and asks the vault for that of every stream."""
    try:
        backend = open_backend(os.fspath(path), read_only=True)
    except OSError as error:
        raise translate(error, os.fspath(path), UNFIT_TO_BEGIN) from error
    try:
        return check(backend, master, progress)
    except OSError as error:
        raise translate(error, os.fspath(path)) from error
    finally:
        backend.close()


def check(backend: Backend, master: bytes | None, progress: Progress | None = None) -> dict[str, Any]:
    identity = find_identity(backend)
    if not identity.tagged:
        raise Invalid("this database was made without a master key")
    vault, reload, why = None, None, "no master key was given"
    if master is not None:
        try:
            vault, reload = follow_vault(backend, identity, master, os.urandom)
        except KeyUnavailable as error:
            why = str(error)
    log = read_log(backend, identity, progress)
    wanted = {
        number: (name, log.declaration_hash(number))
        for name, encrypted, _, number, erased in log.streams()
        if encrypted and not erased
    }
    missing = dict.fromkeys(wanted, why)
    if vault is not None:
        keys = Keys(identity, vault, b"", None, reload)
        for number, (_, declared) in wanted.items():
            keys.data_key(number, declared)
        vault, missing = keys.vault, keys.missing
    generation, master_id = newest(backend, identity) or (0, b"")
    return {
        "master_key": None if master is None else _native.key_id(master).hex(),
        "wrapped_by": master_id.hex() or None,
        "generation": generation,
        "streams": len(wanted),
        "refused": refused(backend, identity, master),
        "missing": [{"stream": wanted[number][0], "why": reason} for number, reason in missing.items()],
        "orphans": 0 if vault is None else vault.orphans(bound(log)),
        "erased": len(log.erasures),
        "pending": sum(confirmed is None for *_, confirmed in log.erasures),
        "unopened": [] if vault is None else vault.unopened(),
    }


def refused(backend: Backend, identity: Identity, master: bytes | None) -> str | None:
    """Why a writer with this key is refused, whatever there is of the streams' own; None if none is."""
    try:
        load_keys(backend, identity, master, os.urandom, read_only=False)
    except KeyUnavailable as error:
        return str(error)
    return None


def read_log(backend: Backend, identity: Identity, progress: Progress | None) -> _native.Log:
    keys = load_keys(backend, identity, None, os.urandom, read_only=True)
    marks, fresh = load_marks(backend, identity), lambda: new_log(identity, keys, Options(), None)
    loader = Loader(backend, identity, keys, marks, fresh, write=False, progress=progress)
    loader.beyond(loader.run())
    return loader.log


def newest(backend: Backend, identity: Identity) -> tuple[int, bytes] | None:
    """Generation and id of the master key that the vault is under."""
    copies = (copy or b"" for copy in vault_copies(backend))
    headers = (read_header(copy, identity.database_id, identity.hash) for copy in copies)
    return max(filter(None, headers), default=None)


def wrapped_by(path: Path) -> bytes | None:
    """The id of the master key that the vault of a directory is under."""
    backend = open_backend(os.fspath(path), read_only=True)
    try:
        found = newest(backend, find_identity(backend))
        return None if found is None else found[1]
    finally:
        backend.close()
