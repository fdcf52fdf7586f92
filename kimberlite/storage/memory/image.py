"""One file of the simulated disk, and what a power cut may leave of it.

An `Inode` has two images: the platter, which a power cut leaves, and the cache, which a running process
reads. Changes that are in the cache and not on the platter stand in the order in which they landed;
writes in flight are in neither. After a cut

* each 512-byte sector of each of those writes is there or not, by itself; of several writes to one
  sector any may be the last;
* the changes of one file's size persist as a prefix of their order; where the size persists and the
  data does not, the file reads as zeros, or as what was there.

A file's sync covers what had landed before it was submitted and the size, never the name. After a failed
sync the cache calls clean what the platter may not have, and no later sync writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random
from typing import NamedTuple

from kimberlite.storage.backend import BLOCK

SECTOR = 512
#: Behind the end of every file, and what `free` says of a disk without a capacity.
BOUNDLESS = 1 << 40

_ZEROS = bytes(BLOCK)


class Image:
    """The bytes of a file as immutable blocks, so that copies share them. What lies behind `size` is zero."""

    __slots__ = ("blocks", "shared", "size")

    def __init__(self, blocks: list[bytes], size: int) -> None:
        self.blocks = blocks
        self.size = size
        #: More than one holder: copy before a change.
        self.shared = False

    @classmethod
    def of(cls, data: bytes) -> Image:
        image = cls([], 0)
        image.resize(len(data))
        image.put(0, data)
        return image

    def own(self) -> Image:
        return Image(self.blocks.copy(), self.size) if self.shared else self

    def read(self, place: int, length: int) -> bytes:
        end = min(place + length, self.size)
        return self.padded(place, end - place) if place < end else b""

    def padded(self, place: int, length: int) -> bytes:
        """As `read`, but zeros follow the end of the file."""
        first = place // BLOCK
        data = b"".join(self.blocks[first : -(-(place + length) // BLOCK)])
        return data[place - first * BLOCK :][:length].ljust(length, b"\0")

    def extent(self, place: int) -> tuple[int, int] | None:
        """The next blocks that were written, from a place on."""
        holes = [block is _ZEROS for block in self.blocks[place // BLOCK :]]
        if place >= self.size or False not in holes:
            return None
        first = holes.index(False)
        end = holes.index(True, first) if True in holes[first:] else len(holes)
        start = place - place % BLOCK
        return max(place, start + first * BLOCK), min(start + end * BLOCK, self.size)

    def put(self, place: int, data: bytes | memoryview) -> None:
        """Write what fits into the blocks that there are; the caller keeps the end of the file zero."""
        view = memoryview(data)[: max(0, len(self.blocks) * BLOCK - place)]
        while view:
            block, offset = divmod(place, BLOCK)
            piece = view[: BLOCK - offset]
            if len(piece) == BLOCK:
                self.blocks[block] = bytes(piece)
            else:
                old = self.blocks[block]
                self.blocks[block] = b"".join((old[:offset], piece, old[offset + len(piece) :]))
            place += len(piece)
            view = view[len(piece) :]

    def resize(self, size: int) -> None:
        have, need = len(self.blocks), -(-size // BLOCK)
        self.size = size
        if need > have:
            self.blocks.extend([_ZEROS] * (need - have))
        else:
            del self.blocks[need:]
            self.trim()

    def trim(self) -> None:
        inside = self.size % BLOCK
        if inside:
            self.blocks[-1] = self.blocks[-1][:inside].ljust(BLOCK, b"\0")


class Write(NamedTuple):
    """Whole sectors: a piece of one carries what the cache had around it."""

    order: int
    place: int
    data: bytes

    @property
    def end(self) -> int:
        return self.place + len(self.data)

    @property
    def sectors(self) -> int:
        return len(self.data) // SECTOR

    def outside(self, place: int, end: int) -> list[Write]:
        if end <= self.place or self.end <= place:
            return [self]
        left = Write(self.order, self.place, self.data[: max(0, place - self.place)])
        right = Write(self.order, max(self.place, end), self.data[max(0, end - self.place) :])
        return [piece for piece in (left, right) if piece.data]


class Resize(NamedTuple):
    order: int
    size: int
    shrinks: bool


Change = Write | Resize


class Flight(NamedTuple):
    """A write that was submitted. Its buffer is the writer's, read when it lands or when the power goes."""

    place: int
    buffer: memoryview
    durable: bool


class Inode:
    """A file, whatever its name. A change is in `changes`, in the order of landing, until the platter has it."""

    __slots__ = ("cache", "changes", "flights", "handles", "holder", "landed", "platter", "split")

    def __init__(self, image: Image) -> None:
        image.shared = True
        self.platter = image
        self.cache = image
        self.changes: list[Change] = []
        self.flights: list[Flight] = []
        self.landed = 0
        #: A sync failed: the cache may have what neither the platter nor `changes` has.
        self.split = False
        self.handles = 0
        self.holder: object = None

    def clone(self) -> Inode:
        twin = Inode(self.platter)
        self.cache.shared = True
        twin.cache = self.cache
        twin.changes = self.changes.copy()
        twin.flights = [Flight(f.place, memoryview(bytes(f.buffer)), f.durable) for f in self.flights]
        twin.landed, twin.split = self.landed, self.split
        return twin

    def resize(self, size: int) -> None:
        if size == self.cache.size:
            return
        self.landed += 1
        self.changes.append(Resize(self.landed, size, size < self.cache.size))
        self.cache = self.cache.own()
        self.cache.resize(size)

    def write(self, place: int, data: bytes) -> Write:
        if place + len(data) > self.cache.size:
            self.resize(place + len(data))
        self.landed += 1
        change = self._whole(self.landed, place, data)
        self.changes.append(change)
        self.cache = self.cache.own()
        self.cache.put(place, data)
        return change

    def _whole(self, order: int, place: int, data: bytes) -> Write:
        start, end = place - place % SECTOR, place + len(data)
        if start == place and end % SECTOR == 0:
            return Write(order, place, data)
        before = self.cache.padded(start, place - start)
        return Write(order, start, before + data + self.cache.padded(end, -end % SECTOR))

    def settle(self, upto: int) -> None:
        """All that had landed by then is on the platter."""
        self.platter = self.platter.own()
        landed, self.changes = self.changes, []
        for change in landed:
            if change.order <= upto:
                self._press(change)
        self.platter.trim()
        self.changes = [change for change in landed if change.order > upto]

    def settle_write(self, write: Write) -> None:
        """This one, the last that landed, is on the platter, and of the size what reading it needs."""
        self.platter = self.platter.own()
        earlier, self.changes = [c for c in self.changes if c is not write], []
        shrunk = any(isinstance(c, Resize) and c.shrinks for c in earlier)
        for change in earlier:
            if shrunk and isinstance(change, Resize):
                self._press(change)
            else:
                self.changes.append(change)
        if (end := min(write.end, self.cache.size)) > self.platter.size:
            self.platter.resize(end)
        size = self.platter.size
        self.changes = [c for c in self.changes if isinstance(c, Write) or c.size > size]
        self._press(write)
        self.platter.trim()

    def _press(self, change: Change) -> None:
        """Onto the platter, and out of whatever in `changes` landed before it and can no longer win."""
        if isinstance(change, Resize):
            self.platter.resize(change.size)
            place, end = change.size if change.shrinks else BOUNDLESS, BOUNDLESS
        else:
            self.platter.put(change.place, change.data)
            place, end = change.place, change.end
        if self.changes:
            self.changes = [p for c in self.changes for p in _outside(c, place, end)]

    def forget(self, upto: int, rng: Random | None) -> None:
        """A sync failed: its writes count as clean, and only some of their sectors are still on their way."""
        doomed = [c for c in self.changes if isinstance(c, Write) and c.order <= upto]
        mask = scatter(rng, doomed) if rng else 0
        spared: list[Change] = []
        for write in doomed:
            spared += (Write(write.order, place, bytes(data)) for place, data in chosen(write, mask))
            mask >>= write.sectors
        spared += (c for c in self.changes if isinstance(c, Resize) or c.order > upto)
        self.changes = sorted(spared, key=lambda c: c.order)
        self.split = self.split or bool(doomed)

    def loose(self) -> list[Change]:
        """What a power cut may drop: the changes that landed, then the writes in flight."""
        if not self.flights:
            return self.changes
        loose, size, order = self.changes.copy(), self.cache.size, self.landed
        for flight in self.flights:
            end = flight.place + len(flight.buffer)
            if end > size:
                size, order = end, order + 1
                loose.append(Resize(order, size, False))
            order += 1
            loose.append(self._whole(order, flight.place, bytes(flight.buffer)))
        return loose

    def after(self, loose: Sequence[Change], resizes: int, mask: int) -> Image:
        """The platter with the first `resizes` changes of size and the sectors of `mask`."""
        image = Image(self.platter.blocks.copy(), self.platter.size)
        for change in loose:
            if isinstance(change, Resize):
                if resizes:
                    image.resize(change.size)
                    resizes -= 1
                continue
            for place, data in chosen(change, mask):
                image.put(place, data)
            mask >>= change.sectors
        image.trim()
        return image

    def device(self) -> Image:
        """What a read round the cache finds, once what is dirty was written out ahead of it."""
        return self.after(self.changes, len(self.changes), -1) if self.split else self.cache


def _outside(change: Change, place: int, end: int) -> Sequence[Change]:
    return [change] if isinstance(change, Resize) else change.outside(place, end)


def chosen(write: Write, mask: int) -> Iterator[tuple[int, memoryview]]:
    """The runs of its sectors that `mask` has, its first sector in the lowest bit."""
    view, at = memoryview(write.data), 0
    mask &= (1 << write.sectors) - 1
    while mask:
        skip = (mask & -mask).bit_length() - 1
        mask >>= skip
        run = (~mask & (mask + 1)).bit_length() - 1
        mask >>= run
        at += skip
        yield write.place + at * SECTOR, view[at * SECTOR : (at + run) * SECTOR]
        at += run


def _blocks(writes: Sequence[Write]) -> Iterator[int]:
    """The sectors that each write has in each block."""
    for write in writes:
        place = write.place
        while place < write.end:
            edge = min(write.end, place - place % BLOCK + BLOCK)
            yield (edge - place) // SECTOR
            place = edge


def _or_nothing(rng: Random, pieces: Iterable[int]) -> int:
    """Each piece whole or not at all."""
    return _join((((1 << n) - 1) * rng.getrandbits(1), n) for n in pieces)


def _torn(rng: Random, pieces: Iterable[int]) -> int:
    """Of each piece some first sectors, or all but those."""
    return _join((((1 << rng.randrange(n + 1)) - 1) ^ ((1 << n) - 1) * rng.getrandbits(1), n) for n in pieces)


def _join(pieces: Iterable[tuple[int, int]]) -> int:
    mask = at = 0
    for bits, length in pieces:
        mask |= bits << at
        at += length
    return mask


Style = Callable[[Random, Sequence[Write], int], int]

#: How a power cut may look; the third argument is the number of sectors.
STYLES: dict[str, Style] = {
    "all": lambda rng, writes, total: (1 << total) - 1,
    "none": lambda rng, writes, total: 0,
    "prefix": lambda rng, writes, total: (1 << rng.randrange(total + 1)) - 1,
    "sectors": lambda rng, writes, total: rng.getrandbits(total),
    "one missing": lambda rng, writes, total: ((1 << total) - 1) ^ (1 << rng.randrange(total)),
    "one present": lambda rng, writes, total: 1 << rng.randrange(total),
    "whole writes": lambda rng, writes, total: _or_nothing(rng, (w.sectors for w in writes)),
    "whole blocks": lambda rng, writes, total: _or_nothing(rng, _blocks(writes)),
    "torn blocks": lambda rng, writes, total: _torn(rng, _blocks(writes)),
}
_STYLES = tuple(STYLES.values())


def scatter(rng: Random, writes: Sequence[Write]) -> int:
    """Which sectors of these writes persist: one bit each, the first of the first write lowest."""
    total = sum(write.sectors for write in writes)
    return rng.choice(_STYLES)(rng, writes, total) if total else 0
