"""The vault: data keys wrapped by the master key. `docs/format.md`, "Keys and the vault"."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Set
from typing import Final

from kimberlite import _native
from kimberlite.errors import KeyUnavailable

BLOCK: Final = 4096
SLOT: Final = 256
CHECK: Final = 8
MAGIC: Final = b"KIMBVLT1"
HEADER: Final = struct.Struct("<8s16sQ16s")
SLOT_HEAD: Final = struct.Struct("<IIQ16s32s24s48s")
WRAP: Final = b"kimberlite/wrap/1".ljust(32, b"\0")
GROUP, RECEIPT, STREAM = 1, 2, 3
#: The last generation that there can be, which nobody comes to but from a header that was made up.
LAST_GENERATION: Final = (1 << 64) - 1


class Vault:
    """Two copies of the same slots, which this holds as one image.

    * Keys are in memory only when asked for; the image holds them wrapped.
    * A slot is written once, and emptied if its stream is erased. Slots 0 and 1 are the group and the receipt key.
    * A slot that no copy has sound stays as it is: its key may still be in it. It opens nothing and is never reused.
    * `dirty` are the blocks that neither copy has yet: the caller writes and syncs copy 0, then copy 1.
    """

    def __init__(
        self,
        image: bytearray,
        database_id: bytes,
        identity_hash: bytes,
        master: bytes,
        random: Callable[[int], bytes],
    ) -> None:
        self._image = image
        self._database_id, self._identity_hash, self._random = database_id, identity_hash, random
        self._wrapping = _native.derive(master, WRAP + database_id)
        self.master_id = _native.key_id(master)
        self._dirty: set[int] = set()
        #: Copies that must be written anew.
        self.stale: set[int] = set()
        self.generation = 0
        self._places: dict[tuple[int, bytes], int] = {}

    @classmethod
    def create(cls, database_id: bytes, identity_hash: bytes, master: bytes, random: Callable[[int], bytes]) -> Vault:
        vault = cls(bytearray(), database_id, identity_hash, master, random)
        vault._begin(1)
        for kind in (GROUP, RECEIPT):
            vault._append(kind, 0, identity_hash, random(32))
        vault._dirty.clear()
        return vault

    def _begin(self, generation: int) -> None:
        head = HEADER.pack(MAGIC, self._database_id, generation, self.master_id).ljust(BLOCK - CHECK, b"\0")
        self._image[:] = head + _native.blake3(head, self._identity_hash)[:CHECK]
        self.generation = generation

    def rewrapped(self, master: bytes, bound: Set[tuple[int, bytes]]) -> Vault:
        """The keys of the database and of what is `bound` under another master key, one generation on. Orphans are left
        out, and what does not open: it is no key."""
        vault = Vault(bytearray(), self._database_id, self._identity_hash, master, self._random)
        vault._begin(self.generation + 1)
        for place in range(BLOCK, len(self._image), SLOT):
            slot = bytes(self._image[place : place + SLOT])
            key = self._key_in(slot) if self._sound(place, slot) else None
            if key is not None:
                kind, stream, _, _, declared, _, _ = SLOT_HEAD.unpack_from(slot)
                if kind != STREAM or (stream, declared) in bound:
                    vault._append(kind, stream, declared, key)
        vault._dirty.clear()
        vault._index()
        return vault

    @classmethod
    def load(
        cls,
        copy0: bytes | None,
        copy1: bytes | None,
        database_id: bytes,
        identity_hash: bytes,
        master: bytes,
        random: Callable[[int], bytes],
    ) -> Vault:
        copies = [copy0 or b"", copy1 or b""]
        headers = [read_header(copy, database_id, identity_hash) for copy in copies]
        sound = [header for header in headers if header is not None]
        if not sound:
            if any(copy.startswith(MAGIC + database_id) for copy in copies):
                raise KeyUnavailable("the first block of the vault is damaged in both copies")
            raise KeyUnavailable("no copy of the vault is this database's")
        generation, master_id = max(sound)
        if master_id != _native.key_id(master):
            what = f"this is not the master key that the vault was wrapped with, {master_id.hex()}"
            if _native.key_id(master) in (before for _, before in sound):
                what = f"{what}: a rotation to that one was cut off, and opening with it finishes it"
            raise KeyUnavailable(what)
        best = next(i for i in (0, 1) if headers[i] == (generation, master_id))
        image = bytearray(copies[best])
        vault = cls(image, database_id, identity_hash, master, random)
        vault.generation = generation
        other = headers[1 - best]
        # All that a copy from before a rotation has was wrapped anew, or erased since.
        older = other is not None and other[0] < generation
        merge = copies[0] != copies[1] and not older
        others = vault._merge(copies[1 - best], known=other is not None) if merge else []
        image.extend(bytes(-len(image) % BLOCK))
        vault._index()
        for slot in others:
            vault._keep(slot)
        vault.stale = {i for i in (0, 1) if copies[i] != image}
        return vault

    def _merge(self, other: bytes, *, known: bool) -> list[bytes]:
        """Takes from the other copy each slot that opens there and not here. Returned are those that open in both and
        differ, as they do when one copy is of a fork: only the log knows which of them it needs.

        Of a copy with a header of ours (`known`) a damaged slot is kept too, if there is nothing here.
        """
        size = max(len(self._image), len(other))
        size += -size % SLOT
        self._image.extend(bytes(size - len(self._image)))
        other, both = other.ljust(size, b"\0"), []
        for place in range(BLOCK, size, SLOT):
            ours, theirs = self._image[place : place + SLOT], other[place : place + SLOT]
            if ours == theirs:
                continue
            if self._opens(place, ours):
                if self._opens(place, theirs):
                    both.append(theirs)
            elif self._opens(place, theirs) or (known and not any(ours)):
                self._image[place : place + SLOT] = theirs
        while len(self._image) > BLOCK and not any(self._image[-SLOT:]):
            del self._image[-SLOT:]
        return both

    def _keep(self, slot: bytes) -> None:
        """Behind all others, unless its key is there already."""
        _, stream, _, _, bound, _, _ = SLOT_HEAD.unpack_from(slot)
        place = self._places.get((stream, bound))
        if place is None or self._key_in(bytes(self._image[place : place + SLOT])) != self._key_in(slot):
            place = self._places[stream, bound] = self._free()
            self._put(place, slot)

    def _sound(self, place: int, slot: bytes | bytearray) -> bool:
        check = _native.blake3(bytes(slot[:-CHECK]) + place.to_bytes(8, "little"), self._identity_hash)
        return check[:CHECK] == slot[-CHECK:] and not any(slot[SLOT_HEAD.size : -CHECK])

    def _index(self) -> None:
        """Where each stream's slot is, by what it is bound to; nothing is checked or unwrapped yet."""
        for place in range(BLOCK, len(self._image), SLOT):
            kind, stream = struct.unpack_from("<II", self._image, place)
            if kind == STREAM:
                self._places[stream, bytes(self._image[place + 32 : place + 64])] = place

    @property
    def group_key(self) -> bytes:
        return self._unwrap(BLOCK, GROUP)

    @property
    def receipt_key(self) -> bytes:
        return self._unwrap(BLOCK + SLOT, RECEIPT)

    def data_key(self, stream: int, declaration_hash: bytes) -> bytes | None:
        """The key bound to this declaration; None if there is none. Orphans are never found here."""
        place = self._places.get((stream, declaration_hash))
        return None if place is None else self._unwrap(place, STREAM)

    def add(self, stream: int, declaration_hash: bytes) -> bytes:
        """A new data key for a stream, which is dirty until it is written."""
        place = self._append(STREAM, stream, declaration_hash, self._random(32))
        self._places[stream, declaration_hash] = place
        return self._unwrap(place, STREAM)

    def erase(self, gone: Set[tuple[int, bytes]]) -> None:
        """Empties the slots of streams, by their numbers and their declarations' hashes, and those that are damaged and
        may be such."""
        for place in self.slots_of(gone, self._image):
            self._image[place : place + SLOT] = bytes(SLOT)
            self._dirty.add(place // BLOCK * BLOCK)
        for each in gone:
            self._places.pop(each, None)

    def slots_of(self, gone: Set[tuple[int, bytes]], image: bytes | bytearray) -> list[int]:
        """Those of an image, or of a copy of whatever age, that `erase` empties."""
        numbers, hashes = {number for number, _ in gone}, {declared for _, declared in gone}
        found = []
        for place in range(BLOCK, len(image) - SLOT + 1, SLOT):
            slot = image[place : place + SLOT]
            (kind, stream), bound = struct.unpack_from("<II", slot), bytes(slot[32:64])
            numbered = kind == STREAM and stream in numbers
            if (numbered and (stream, bound) in gone) or (
                (numbered or bound in hashes) and not self._sound(place, slot)
            ):
                found.append(place)
        return found

    def orphans(self, bound: Set[tuple[int, bytes]]) -> int:
        """How many streams have keys and are not `bound`, by their numbers and their declarations' hashes. A slot that
        does not open is none's."""
        places = (self._places[each] for each in self._places.keys() - bound)
        return sum(self._opens(place, self._image[place : place + SLOT]) for place in places)

    def unopened(self) -> list[int]:
        """Places of the slots that have something in them and open in neither copy."""
        slots = ((place, self._image[place : place + SLOT]) for place in range(BLOCK, len(self._image), SLOT))
        return [place for place, slot in slots if any(slot) and not self._opens(place, slot)]

    def dirty(self) -> list[tuple[int, bytes]]:
        """Takes the blocks to be written to each copy, with their places."""
        places, self._dirty = sorted(self._dirty), set()
        return [(place, bytes(self._image[place : place + BLOCK])) for place in places]

    def unwritten(self, places: Iterable[int]) -> None:
        """These blocks may be in one copy, both or neither: the next write takes them along."""
        self._dirty.update(places)

    def image(self) -> bytes:
        return bytes(self._image)

    def _append(self, kind: int, stream: int, bound: bytes, key: bytes) -> int:
        place, nonce = self._free(), self._random(24)
        head = struct.pack("<II", kind, stream)
        identified = _native.key_id(key) + bound
        wrapped = _native.xaes_seal(self._wrapping, nonce, self._aad(head, identified), key)
        slot = SLOT_HEAD.pack(kind, stream, self.generation, identified[:16], bound, nonce, wrapped).ljust(SLOT, b"\0")
        self._put(place, slot)
        self._dirty.add(place // BLOCK * BLOCK)
        return place

    def _put(self, place: int, slot: bytes) -> None:
        check = _native.blake3(slot[:-CHECK] + place.to_bytes(8, "little"), self._identity_hash)[:CHECK]
        self._image[place : place + SLOT] = slot[:-CHECK] + check

    def _free(self) -> int:
        """The first slot behind all that are used; blocks are added whole."""
        place = len(self._image)
        while place % BLOCK == 0 and place > BLOCK and not any(self._image[place - SLOT : place]):
            place -= SLOT
        while place % BLOCK and not any(self._image[place - SLOT : place]):
            place -= SLOT
        if place == len(self._image):
            self._image.extend(bytes(BLOCK))
        return place

    def _aad(self, head: bytes, identified: bytes) -> bytes:
        return WRAP + self._database_id + head + identified

    def _unwrap(self, place: int, kind: int) -> bytes:
        slot = bytes(self._image[place : place + SLOT])
        if len(slot) != SLOT or not self._sound(place, slot) or slot[:4] != kind.to_bytes(4, "little"):
            raise KeyUnavailable(f"the vault's slot at byte {place} is damaged in both copies")
        key = self._key_in(slot)
        if key is None:
            raise KeyUnavailable(f"the vault's slot at byte {place} does not open with the master key")
        return key

    def _key_in(self, slot: bytes) -> bytes | None:
        _, _, _, identity, bound, nonce, wrapped = SLOT_HEAD.unpack_from(slot)
        key = _native.xaes_open(self._wrapping, nonce, self._aad(slot[:8], identity + bound), wrapped)
        return key if key is not None and _native.key_id(key) == identity else None

    def _opens(self, place: int, slot: bytes | bytearray) -> bool:
        return self._sound(place, slot) and self._key_in(bytes(slot)) is not None


def read_header(copy: bytes, database_id: bytes, identity_hash: bytes) -> tuple[int, bytes] | None:
    """Generation and master key id of a copy whose header is sound and this database's."""
    block = copy[:BLOCK]
    if len(block) != BLOCK or _native.blake3(block[:-CHECK], identity_hash)[:CHECK] != block[-CHECK:]:
        return None
    magic, database, generation, master_id = HEADER.unpack_from(block)
    if magic != MAGIC or database != database_id or any(block[HEADER.size : -CHECK]):
        return None
    return generation, master_id
