"""That no nonce was used for two plaintexts: what encrypted runs and wrapped keys look like in every image of a log.

An image may be torn, so a run may be seen with sectors of zeros in it. Two sightings of one (key, nonce) agree if
no sector is something else in each.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

BLOCK, SECTOR = 4096, 512
GROUP_HEADER, RUN_HEADER = 104, 88
VAULT_SLOT: Final = 256
DATA_KEY: Final = 3
#: What a torn image is filled with.
ZEROS: Final = bytes(SECTOR)


class Sealed(NamedTuple):
    """Where something sealed starts within its sector, and its bytes."""

    shift: int
    data: bytes

    def agrees(self, other: Sealed) -> bool:
        if self.data == other.data:
            return True
        if len(self.data) != len(other.data):
            return False
        # In a packed segment it stands otherwise in its sectors.
        cuts = sorted({*self._places(), *other._places()})
        return all(
            self.data[a:b] == other.data[a:b] or not self._is_there(a) or not other._is_there(a)
            for a, b in pairwise(cuts)
        )

    def _places(self) -> list[int]:
        """Where sectors begin in it, and its ends."""
        return [0, *range(SECTOR - self.shift, len(self.data), SECTOR), len(self.data)]

    def _is_there(self, at: int) -> bool:
        """Whether the sector that this byte is in is."""
        start = max(0, at - (at + self.shift) % SECTOR)
        return bool(self.data[start : at - (at + self.shift) % SECTOR + SECTOR].strip(b"\0"))


class Nonces:
    """Everything sealed that was ever seen, by (id of its key, nonce)."""

    def __init__(self) -> None:
        self.seen: dict[tuple[bytes, bytes], list[Sealed]] = {}
        self.twice: list[str] = []

    def look(self, files: Mapping[str, bytes]) -> None:
        """At one image of a directory."""
        keys = set(self._keys(files))
        for name, data in files.items():
            if name.startswith(("segments/", "quarantine/", "prepare/")):
                for place in runs(data, keys):
                    self._run(data, place, name, keys)

    def _keys(self, files: Mapping[str, bytes]) -> Iterator[bytes]:
        """The ids of all data keys, while the wrapped keys are looked at too."""
        for name in ("vault.0", "vault.1"):
            data = files.get(name, b"")
            for place in range(BLOCK, len(data) - VAULT_SLOT + 1, VAULT_SLOT):
                slot = data[place : place + VAULT_SLOT]
                kind = struct.unpack_from("<I", slot)[0]
                if kind:
                    # Of the slot, what the seal is over and the sealed key; not its generation.
                    self.add(
                        b"master", slot[64:88], Sealed(0, slot[:8] + slot[16:64] + slot[88:136]), f"{name} {place}"
                    )
                if kind == DATA_KEY:
                    yield slot[16:32]

    def _run(self, data: bytes, place: int, name: str, keys: set[bytes]) -> None:
        length = struct.unpack_from("<I", data, place)[0]
        run = data[place : place + length]
        nonce = run[56:80]
        if len(run) == length >= RUN_HEADER and run[8] & 1 and run[40:56] in keys and len(nonce.strip(b"\0")) > 12:
            self.add(run[40:56], nonce, Sealed(place % SECTOR, run), f"{name} {place}")

    def add(self, key: bytes, nonce: bytes, sealed: Sealed, where: str) -> None:
        seen = self.seen.setdefault((key, nonce), [])
        if sealed in seen:
            return
        if not all(sealed.agrees(other) for other in seen):
            self.twice.append(f"{where}: nonce {nonce.hex()} of key {key.hex()} was used for something else too")
        seen.append(sealed)


def find_slots(files: Mapping[str, bytes], erased: Iterable[bytes]) -> Iterator[str]:
    """Where the key of a stream still is that should have none; `erased` is how their slots begin, without what differs
    from copy to copy: kind and number, and the hash that they are bound to."""
    for slot in erased:
        for name, data in files.items():
            if name.startswith("segments/"):
                continue
            at = data.find(slot[8:])
            while at >= 0:
                if data[max(0, at - 32) : at - 24] == slot[:8]:
                    yield f"{name} has at byte {at - 32} the key of an erased stream"
                at = data.find(slot[8:], at + 1)


def runs(data: bytes, keys: Iterable[bytes]) -> list[int]:
    """Where encrypted runs are, as far as a torn image shows it: by their groups, then by the ids of their keys."""
    found: set[int] = set()
    place = 0
    while place < len(data):
        end = place + BLOCK
        stopped = place
        if data[place : place + 8] == b"KIMBGRP1":
            length = struct.unpack_from("<I", data, place + 8)[0]
            end = max(end, place + -(-length // BLOCK) * BLOCK)
            stopped = _walk(data, place, found)
        if data[stopped:end].strip(b"\0"):
            for key in keys:
                found.update(_search(data, key, stopped, end))
        place = end
    return sorted(found)


def _walk(data: bytes, place: int, found: set[int]) -> int:
    """Follows a group from run to run; where that ended."""
    count = struct.unpack_from("<I", data, place + 36)[0]
    at = place + GROUP_HEADER
    for i in range(count):
        length = struct.unpack_from("<I", data, at)[0] if at + RUN_HEADER <= len(data) else 0
        if length < RUN_HEADER or at + length > len(data):
            return at
        if data[at + 8] & 1:
            found.add(at)
        at += length
        if i == count - 1:
            # The trailer has no keys in it.
            return place + int(struct.unpack_from("<I", data, place + 8)[0])
    return at


def _search(data: bytes, key: bytes, start: int, end: int) -> Iterator[int]:
    at = data.find(key, start, end)
    while at >= 0:
        if at >= 40:
            yield at - 40
        at = data.find(key, at + 1, end)


def read_files(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}
