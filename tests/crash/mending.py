"""A native log that does not check the chain, by giving it groups that are chained anew."""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import Any, Final

from kimberlite import _native
from kimberlite.storage.backend import BLOCK

DOMAIN: Final = b"kimberlite/chain/1".ljust(32, b"\0")


class Mending:
    """A native log that believes every chain it is given; for logs whose groups have no tag."""

    def __init__(self, native: _native.Log) -> None:
        self._native = native

    def __getattr__(self, name: str) -> Any:
        return getattr(self._native, name)

    def replay(self, segment: _native.Segment, place: int, data: bytes, *rest: Any) -> Any:
        previous = None if place == BLOCK else self._native.sealed()[2]
        return self._native.replay(segment, place, mended(segment.salt, place, data, previous), *rest)


def mended(salt: bytes, place: int, data: bytes, previous: bytes | None) -> bytes:
    """These groups, chained anew behind the first, or behind `previous`."""
    out, at = bytearray(data), 0
    while out[at : at + 8] == b"KIMBGRP1":
        length, runs = struct.unpack_from("<I24xI", out, at + 8)
        if previous is not None:
            out[at + 64 : at + 96] = previous
            check = _native.blake3(bytes(out[at : at + 96]) + (place + at).to_bytes(8, "little"), salt)[:8]
            out[at + 96 : at + 104] = check
        hashes, run = b"", at + 104
        for _ in range(runs):
            size = int.from_bytes(out[run : run + 4], "little")
            hashes += _native.blake3(bytes(out[run : run + size]))
            run += size
        head = DOMAIN + out[at + 64 : at + 96] + out[at : at + 96]
        previous = sha256(head + _native.blake3(hashes)).digest()
        out[run + 8 * runs : run + 8 * runs + 32] = previous
        at += -(-length // BLOCK) * BLOCK
    return bytes(out)
