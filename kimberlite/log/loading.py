"""What is read before any segment is: the identity, the keys, the marks; and which segments there are."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from kimberlite import _native
from kimberlite.crypto.vault import Vault
from kimberlite.errors import Corrupt, KeyUnavailable, Misconfigured, Unavailable
from kimberlite.log.creation import read_small
from kimberlite.log.identity import Identity
from kimberlite.log.marks import Marks, decode_marks
from kimberlite.log.names import IDENTITY, MARKS, RECEIPT_KEY, REPAIR, SEGMENTS, VAULTS, segment_name, segment_number
from kimberlite.log.options import Options
from kimberlite.storage.backend import BLOCK, UNREADABLE, Backend, read_around

#: In the place of a receipt key that is not known.
NO_KEY: Final = bytes(32)

T = TypeVar("T")


@dataclass
class Keys:
    """What the master key gives, or its absence."""

    identity: Identity
    vault: Vault | None
    receipt: bytes = field(repr=False)
    #: None without a master key; then a tagged database is only read.
    group: bytes | None = field(repr=False)
    #: Reads the vault again, for a reader, if the writer beside it has added keys.
    reload: Callable[[], Vault | None] | None = None
    #: Streams whose key was asked for and is not to be had, and why: a later record may say that they were erased.
    missing: dict[int, str] = field(default_factory=dict)

    def data_key(self, stream: int, declaration_hash: bytes) -> bytes | None:
        """The key of a stream; None if this handle has no master key, or the key is `missing`."""
        if self.vault is None:
            return None
        try:
            key = self.vault.data_key(stream, declaration_hash)
            if key is None and self.reload is not None and (newer := self.reload()) is not None:
                self.vault = newer
                key = newer.data_key(stream, declaration_hash)
        except KeyUnavailable as error:
            self.missing[stream] = str(error)
            return None
        if key is None:
            self.missing[stream] = "no slot of the vault is for it"
        else:
            self.missing.pop(stream, None)
        return key

    def lost(self, log: _native.Log) -> dict[int, str]:
        """Streams without a key that no erasure in the log accounts for."""
        erased = {number for number, *_ in log.erasures} if self.missing else set()
        return {number: why for number, why in self.missing.items() if number not in erased}

    def check(self, log: _native.Log) -> None:
        """Comes when the log is read to its end."""
        if lost := self.lost(log):
            names = reprlib.repr([log.name_of(number) for number in lost])[1:-1]
            raise KeyUnavailable(f"the key of {len(lost)} streams is missing, {names}: {next(iter(lost.values()))}")

    @property
    def receipts(self) -> bool:
        """Whether the MAC of a receipt can be checked."""
        return self.receipt != NO_KEY

    @property
    def writable(self) -> bool:
        return not self.identity.tagged or self.group is not None


def load_identity(backend: Backend) -> Identity | None:
    data = read_small(backend, IDENTITY, 4096)
    if data is not None and data == UNREADABLE[: len(data)]:
        raise Unavailable(f"the disk cannot read {IDENTITY}")
    if data is not None:
        return Identity.decode(data)
    if backend.list(SEGMENTS):
        raise Corrupt("it is missing and there are segments", file=IDENTITY)
    return None


def load_keys(
    backend: Backend,
    identity: Identity,
    master: bytes | None,
    random: Callable[[int], bytes],
    *,
    read_only: bool,
) -> Keys:
    if not identity.tagged:
        if master is not None or any(backend.exists(name) for name in VAULTS):
            raise KeyUnavailable("the identity says that groups carry no tag, yet there is a master key or a vault")
        receipt = read_small(backend, RECEIPT_KEY, 64)
        if receipt == UNREADABLE[:32] and not read_only:
            # One made anew would make nothing of the receipts that were given.
            raise Unavailable(f"the disk cannot read {RECEIPT_KEY}")
        if receipt is None or len(receipt) != 32 or receipt == UNREADABLE[:32]:
            receipt = NO_KEY
        return Keys(identity, None, receipt, None)
    if master is None:
        if not read_only:
            raise KeyUnavailable("this database has a master key: without it, it opens read-only")
        return Keys(identity, None, NO_KEY, None)
    vault, reload = follow_vault(backend, identity, master, random)
    return Keys(identity, vault, vault.receipt_key, vault.group_key, reload if read_only else None)


def follow_vault(
    backend: Backend, identity: Identity, master: bytes, random: Callable[[int], bytes]
) -> tuple[Vault, Callable[[], Vault | None]]:
    """The vault; and what loads it again if keys were added since. Streams that were erased, and may be many, are asked
    for too: for each of them it is not all read."""
    seen = ends_of_vault(backend)

    def reload() -> Vault | None:
        nonlocal seen
        now = ends_of_vault(backend)
        if now == seen:
            return None
        vault, seen = load_vault(backend, identity, master, random), now
        return vault

    return load_vault(backend, identity, master, random), reload


def ends_of_vault(backend: Backend) -> tuple[int, bytes, bytes] | None:
    """What is another with every key that is added and every rotation: the length of the copy that is written last, its
    first block and its last."""
    if not backend.exists(VAULTS[1]):
        return None
    file = backend.open(VAULTS[1], "r")
    try:
        size = file.size()
        return size, read_around(file, 0, BLOCK), read_around(file, max(0, size - BLOCK), BLOCK)
    finally:
        file.close()


def load_vault(backend: Backend, identity: Identity, master: bytes, random: Callable[[int], bytes]) -> Vault:
    found = [read_small(backend, name) or b"" for name in VAULTS]
    # What cannot be read of one is in the other.
    copies = [copy.replace(UNREADABLE, bytes(BLOCK)) for copy in found]
    if any(found) and not any(copy.strip(UNREADABLE) for copy in found):
        raise Unavailable(f"the disk cannot read {' and '.join(VAULTS)}")
    return Vault.load(copies[0], copies[1], identity.database_id, identity.hash, master, random)


def load_marks(backend: Backend, identity: Identity, *, repairing: bool = False) -> Marks:
    if not repairing and backend.exists(REPAIR):
        raise Corrupt("a repair was begun, and is not over: run it again", file=REPAIR)
    data = read_small(backend, MARKS, 2 * BLOCK)
    if data is None:
        raise Corrupt("it is missing", file=MARKS)
    return decode_marks(data, identity.database_id, identity.hash)


def unless_overtaken(backend: Backend, work: Callable[[], T]) -> T:
    """What comes of it for whoever has no lock; once more, if segments were dropped meanwhile."""
    while True:
        there = segment_numbers(backend)[:1]
        try:
            return work()
        except (FileNotFoundError, Corrupt):
            if segment_numbers(backend)[:1] == there:
                raise


def segment_numbers(backend: Backend) -> list[int]:
    """The numbers of the segments up to the last, without a gap. Those before the first were dropped, or it is missing:
    a crash may have left some of them."""
    numbers: list[int] = []
    for name in backend.list(SEGMENTS):
        number = segment_number(name)
        if number is None:
            raise Misconfigured(f"{SEGMENTS}/{name} does not belong here")
        numbers.append(number)
    numbers.sort()
    there = set(numbers)
    first = next((number for number in reversed(numbers) if number - 1 not in there), 0)
    return [number for number in numbers if number >= first]


def missing(number: int) -> Corrupt:
    return Corrupt(f"segment {number} is missing", file=segment_name(number))


def new_log(identity: Identity, keys: Keys, options: Options, seed: bytes | None) -> _native.Log:
    return _native.Log(
        identity.database_id,
        identity.hash,
        quantum=identity.quantum,
        tagged=identity.tagged,
        group_key=keys.group,
        receipt_key=keys.receipt,
        level=options.compression,
        cache_bytes=options.cache_bytes,
        seed=seed,
    )
