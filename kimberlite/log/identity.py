"""Who a database is. `docs/format.md`, "Identity"."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Self

from kimberlite import _native
from kimberlite.errors import Corrupt, Misconfigured
from kimberlite.log.names import IDENTITY

MAGIC: Final = b"KIMBID01"
VERSION: Final = 1
HASHES: Final = 1
SIZE: Final = 512
CHECKED: Final = 480
DOMAIN: Final = b"kimberlite/identity/1".ljust(32, b"\0")
LAYOUT: Final = struct.Struct("<8sHBBI16sQH")
QUANTUM: Final = 128


@dataclass(frozen=True)
class Identity:
    """Written once, at creation; everything in a database is bound to it by its hash."""

    origin: str
    database_id: bytes
    tagged: bool
    quantum: int
    created: int

    @classmethod
    def new(cls, origin: str | None, *, tagged: bool, created: int, random: Callable[[int], bytes]) -> Self:
        database_id = random(16)
        if origin is None:
            origin = f"kimberlite/{database_id.hex()}"
        if wrong := origin_fault(origin):
            raise Misconfigured(wrong)
        return cls(origin, database_id, tagged, QUANTUM, created)

    def _checked(self) -> bytes:
        origin = self.origin.encode()
        fixed = LAYOUT.pack(
            MAGIC, VERSION, HASHES, self.tagged, self.quantum, self.database_id, self.created, len(origin)
        )
        return (fixed + origin).ljust(CHECKED, b"\0")

    def encode(self) -> bytes:
        checked = self._checked()
        return checked + _native.blake3(DOMAIN + checked)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        if len(data) != SIZE or _native.blake3(DOMAIN + data[:CHECKED]) != data[CHECKED:]:
            raise Corrupt("it is damaged", file=IDENTITY, place=0)
        magic, version, hashes, tagged, quantum, database_id, created, length = LAYOUT.unpack_from(data)
        if magic != MAGIC or (version, hashes) != (VERSION, HASHES):
            raise Misconfigured(f"format version {version} with hashes {hashes} is not one this version can read")
        if quantum.bit_count() != 1:
            raise Corrupt(f"a padding quantum of {quantum} is not a power of two", file=IDENTITY, place=12)
        origin = data[LAYOUT.size : LAYOUT.size + length].decode(errors="replace")
        if wrong := origin_fault(origin):
            raise Corrupt(wrong, file=IDENTITY, place=LAYOUT.size)
        identity = cls(origin, database_id, bool(tagged), quantum, created)
        if identity.encode() != data:
            raise Corrupt("unnamed bytes are not zero", file=IDENTITY)
        return identity

    @cached_property
    def hash(self) -> bytes:
        """What the chain starts from."""
        return hashlib.sha256(DOMAIN + self._checked()).digest()


def origin_fault(origin: object) -> str | None:
    """Why this cannot be the name of a database; None if it can."""
    if not isinstance(origin, str):
        return f"an origin is a str, not {type(origin).__name__}"
    if any(c.isspace() or c == "+" or not c.isprintable() for c in origin):
        return "an origin has no spaces, no + and no control characters"
    if not 1 <= len(origin.encode()) <= 255:
        return "an origin has 1 to 255 bytes"
    return None
