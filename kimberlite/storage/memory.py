"""A disk that can lose power, and the backend over it.

An `Inode` has two images: the platter, which a power cut leaves, and the cache, which a running process
reads. Changes that are in the cache and not on the platter stand in the order in which they landed;
writes in flight are in neither. After a cut

* each 512-byte sector of each of those writes is there or not, by itself; of several writes to one
  sector any may be the last;
* the changes of one file's size persist as a prefix of their order; where the size persists and the
  data does not, the file reads as zeros, or as what was there;
* changes of names persist as a prefix of their order, after those that a sync of their directory made
  durable. A file that was synced is lost with its name; so is all that is in a directory whose own name
  is lost. A rename belongs to the directory of its new name.

A file's sync covers what had landed before it was submitted and the size, never the name. After a failed
sync the cache calls clean what the platter may not have, and no later sync writes it.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from kimberlite.storage.backend import BLOCK, Done, File, Mode

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")

SECTOR = 512
#: What `free` says of a disk without a capacity.
BOUNDLESS = 1 << 40

_ZEROS = bytes(BLOCK)


def error(number: int, name: str) -> OSError:
    return OSError(number, os.strerror(number), name)


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


def _some(rng: Random, most: int) -> int:
    """0..most, each end as likely as anything between."""
    return (0, most, rng.randrange(most + 1))[rng.randrange(3)] if most else 0


class Operation(NamedTuple):
    """A change of names: `gone` is one no longer; `name` now is this file's, or a directory's if there is none."""

    gone: str | None
    name: str | None
    inode: Inode | None

    @property
    def directory(self) -> str:
        return _parent(self.name or self.gone or "")


class Unsynced(NamedTuple):
    """What a power cut may drop; the arguments of `Disk.persist` run from 0 to these, the last as bits of a mask."""

    operations: int
    resizes: list[int]
    sectors: int


#: None is a directory; the root has no entry.
Tree = dict[str, Inode | None]


class Disk:
    """`tree` is what a process sees, `durable` the names on the platter; `journal` leads from these to those."""

    def __init__(self, capacity: int | None = None) -> None:
        self.capacity = capacity
        self.tree: Tree = {}
        self.durable: Tree = {}
        self.journal: list[Operation] = []
        #: Who has locked the directory.
        self.holder: object = None
        #: Called after every change: each is a point where the power could go.
        self.on_step: Callable[[], None] | None = None
        #: A list here collects (verb, name, place, length) of what was done.
        self.trace: list[tuple[str, str, int, int]] | None = None
        #: Without a name and still open: their blocks are not free.
        self._orphans: set[Inode] = set()

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], capacity: int | None = None) -> Disk:
        """All of it on the platter."""
        disk = cls(capacity)
        for name, data in files.items():
            above = accumulate(name.split("/")[:-1], lambda a, b: f"{a}/{b}")
            disk.durable.update(dict.fromkeys(above))
            disk.durable[name] = Inode(Image.of(data))
        disk.tree = disk.durable.copy()
        return disk

    @classmethod
    def load(cls, path: str | os.PathLike[str], capacity: int | None = None) -> Disk:
        """A real directory, all of it taken to be on the platter."""
        found = {p.relative_to(path).as_posix(): p for p in sorted(Path(path).rglob("*"))}
        disk = cls.from_files({name: p.read_bytes() for name, p in found.items() if p.is_file()}, capacity)
        disk.durable.update(dict.fromkeys(name for name, p in found.items() if p.is_dir()))
        disk.tree = disk.durable.copy()
        return disk

    def dump(self, path: str | os.PathLike[str]) -> None:
        """What a process sees, into a real directory."""
        for name in self.directories():
            (Path(path) / name).mkdir(parents=True, exist_ok=True)
        for name, data in self.files().items():
            (Path(path) / name).write_bytes(data)

    def files(self) -> dict[str, bytes]:
        """What a process sees."""
        return {name: i.cache.read(0, i.cache.size) for name, i in sorted(self.tree.items()) if i}

    def directories(self) -> list[str]:
        return sorted(name for name, inode in self.tree.items() if inode is None)

    def free(self) -> int:
        if self.capacity is None:
            return BOUNDLESS
        inodes = self._orphans.union(i for i in self.tree.values() if i)
        return max(0, self.capacity - BLOCK * sum(len(i.cache.blocks) for i in inodes))

    def flip(self, name: str, bit: int) -> None:
        """Damage one bit, on the platter and in the cache; bit 0 is the lowest of the first byte."""
        inode = self.lookup(name)
        if not 0 <= bit < inode.cache.size * 8:
            raise IndexError(f"{name} has no bit {bit}")
        place, one = bit // 8, 1 << bit % 8
        inode.platter, inode.cache = inode.platter.own(), inode.cache.own()
        for image in (inode.platter, inode.cache):
            if place < image.size:
                image.put(place, bytes([image.read(place, 1)[0] ^ one]))

    def copy(self) -> Disk:
        """The same disk with the same changes on their way; nothing is open or locked, and what flies stays up."""
        twins: dict[Inode | None, Inode | None] = {i: i.clone() for i in self._inodes()}
        twins[None] = None
        twin = Disk(self.capacity)
        twin.tree = {name: twins[i] for name, i in self.tree.items()}
        twin.durable = {name: twins[i] for name, i in self.durable.items()}
        twin.journal = [op._replace(inode=twins[op.inode]) for op in self.journal]
        return twin

    def _inodes(self) -> list[Inode]:
        """Every file that has a name, or may have it back after a cut."""
        found = dict.fromkeys(self.durable.values())
        found.update(dict.fromkeys(op.inode for op in self.journal))
        return [inode for inode in found if inode is not None]

    def _loose(self) -> list[tuple[Inode, list[Change]]]:
        return [(i, i.loose()) for i in self._inodes() if i.changes or i.flights]

    def unsynced(self) -> Unsynced:
        loose = [changes for _, changes in self._loose()]
        return Unsynced(
            len(self.journal),
            [sum(isinstance(c, Resize) for c in changes) for changes in loose],
            sum(c.sectors for changes in loose for c in changes if isinstance(c, Write)),
        )

    def crash(self, rng: Random) -> Disk:
        """A disk that a power cut now may leave; this one goes on."""
        loose = self._loose()
        resizes = [_some(rng, sum(isinstance(c, Resize) for c in changes)) for _, changes in loose]
        mask = scatter(rng, [c for _, changes in loose for c in changes if isinstance(c, Write)])
        return self._left(loose, _some(rng, len(self.journal)), resizes, mask)

    def persist(self, operations: int, resizes: Sequence[int], sectors: int) -> Disk:
        """The disk after a cut that exactly this got through: so many operations on names, so many changes of
        each unsynced file's size, and the sectors of this mask."""
        return self._left(self._loose(), operations, resizes, sectors)

    def _left(
        self, loose: Sequence[tuple[Inode, list[Change]]], operations: int, resizes: Sequence[int], mask: int
    ) -> Disk:
        images: dict[Inode, Image] = {}
        for (inode, changes), through in zip(loose, resizes, strict=True):
            images[inode] = inode.after(changes, through, mask)
            mask >>= sum(c.sectors for c in changes if isinstance(c, Write))
        tree = self.durable.copy()
        _apply(tree, self.journal[:operations])
        if any(op.name and op.inode is None for op in self.journal[operations:]):
            tree = _reachable(tree)
        left = Disk(self.capacity)
        left.durable = {name: i and Inode(images.get(i) or i.platter) for name, i in tree.items()}
        left.tree = left.durable.copy()
        return left

    def lookup(self, name: str) -> Inode:
        inode = self.tree.get(name)
        if inode is None:
            raise error(errno.EISDIR if self.is_directory(name) else errno.ENOENT, name)
        return inode

    def is_directory(self, name: str) -> bool:
        return not name or (name in self.tree and self.tree[name] is None)

    def create(self, name: str) -> Inode:
        if name in self.tree:
            raise error(errno.EEXIST, name)
        inode = Inode(Image([], 0))
        self._operate(Operation(None, name, inode))
        return inode

    def mkdir(self, name: str) -> None:
        if self.is_directory(name):
            return
        if name in self.tree:
            raise error(errno.EEXIST, name)
        self._operate(Operation(None, name, None))

    def rename(self, old: str, new: str) -> None:
        inode = self.lookup(old)
        if self.is_directory(new):
            raise error(errno.EISDIR, new)
        if old != new:
            self._operate(Operation(old, new, inode))

    def unlink(self, name: str) -> None:
        self.lookup(name)
        self._operate(Operation(name, None, None))

    def _operate(self, op: Operation) -> None:
        if op.name and not self.is_directory(_parent(op.name)):
            raise error(errno.ENOENT, op.name)
        dropped = self.tree.get(op.name or op.gone or "")
        _apply(self.tree, [op])
        self.journal.append(op)
        if dropped is not None and dropped.handles:
            self._orphans.add(dropped)
        self._step()

    def sync_directory(self, name: str) -> None:
        """Its own operations, and what happened to their names before, wherever that was."""
        if not self.is_directory(name):
            raise error(errno.ENOENT, name)
        names: set[str] = set()
        taken: list[Operation] = []
        kept: list[Operation] = []
        for op in reversed(self.journal):
            touched = {n for n in (op.gone, op.name) if n is not None}
            if op.directory == name or touched & names:
                names |= touched
                taken.append(op)
            else:
                kept.append(op)
        _apply(self.durable, reversed(taken))
        self.journal = kept[::-1]
        self._step()

    def release(self, inode: Inode) -> None:
        inode.handles -= 1
        if not inode.handles:
            self._orphans.discard(inode)

    def write(self, inode: Inode, place: int, data: bytes) -> Write:
        """Into the cache. On a full disk what fits is written before the error."""
        reach = (len(inode.cache.blocks) + self.free() // BLOCK) * BLOCK
        fits = data[: max(0, reach - place)]
        write = inode.write(place, fits) if fits else None
        self._step()
        if write is None or len(fits) < len(data):
            raise error(errno.ENOSPC, "")
        return write

    def resize(self, inode: Inode, size: int) -> None:
        if -(-size // BLOCK) - len(inode.cache.blocks) > self.free() // BLOCK:
            raise error(errno.ENOSPC, "")
        inode.resize(size)
        self._step()

    def settle(self, inode: Inode, upto: int) -> None:
        inode.settle(upto)
        self._step()

    def forget(self, inode: Inode, upto: int, rng: Random | None) -> None:
        inode.forget(upto, rng)
        self._step()

    def launch(self, inode: Inode, flight: Flight) -> None:
        inode.flights.append(flight)
        self._step()

    def land(self, inode: Inode, flight: Flight) -> None:
        _remove(inode.flights, flight)
        write = self.write(inode, flight.place, bytes(flight.buffer))
        if flight.durable:
            inode.settle_write(write)
            self._step()

    def lose(self, inode: Inode, flight: Flight, rng: Random | None) -> None:
        """It failed: any sectors of it that are inside the file may be there all the same."""
        _remove(inode.flights, flight)
        inside = max(0, inode.cache.size - flight.place) // SECTOR * SECTOR
        whole = Write(0, flight.place, bytes(flight.buffer)[:inside])
        for place, data in chosen(whole, scatter(rng, [whole]) if rng else 0):
            inode.write(place, bytes(data))
        self._step()

    def _step(self) -> None:
        if self.on_step is not None:
            self.on_step()


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _apply(tree: Tree, operations: Iterable[Operation]) -> None:
    for op in operations:
        if op.gone is not None:
            tree.pop(op.gone, None)
        if op.name is not None:
            tree[op.name] = op.inode


def _reachable(tree: Tree) -> Tree:
    """Without what is in directories whose own name is lost."""
    kept: Tree = {}
    for name in sorted(tree):
        above = _parent(name)
        if not above or above in kept:
            kept[name] = tree[name]
    return kept


def _remove(flights: list[Flight], flight: Flight) -> None:
    """This one, not one that is equal to it."""
    del flights[next(n for n, other in enumerate(flights) if other is flight)]


#: (verb, name, place, length), asked before every verb but `close` and `run`: an error to raise or to hand to `done`,
#: or how much of a `write` or `submit` to take this time. A rename's name is "old -> new".
Fault = Callable[[str, str, int, int], OSError | int | None]

#: Verbs for which no name is the directory itself.
_OF_THE_ROOT = frozenset(("exists", "list", "sync_directory", "lock_directory", "free"))

#: What is called when its turn comes: the error, or the next part of a short write.
Landing = Callable[[], "OSError | Landing | None"]


class MemoryFile:
    fd = -1

    def __init__(self, backend: MemoryBackend, name: str, inode: Inode, mode: Mode) -> None:
        self.name = name
        self.inode = inode
        self.writable = mode in "wx"
        self._unbuffered = mode == "s"
        self._backend = backend
        self._disk = backend.disk
        self._open = True
        inode.handles += 1

    def read(self, place: int, length: int) -> bytes:
        self._enter("read", place, length)
        image = self.inode.device() if self._unbuffered else self.inode.cache
        return image.read(place, length)

    def write(self, place: int, data: Buffer) -> None:
        rest = bytes(data)
        while rest:
            taken = self._enter("write", place, len(rest), writes=True)
            self._disk.write(self.inode, place, rest[:taken])
            place += taken
            rest = rest[taken:]

    def sync(self) -> None:
        upto = self.inode.landed
        try:
            self._enter("sync")
        except OSError:
            if self._open:
                self._disk.forget(self.inode, upto, self._backend.rng)
            raise
        self._disk.settle(self.inode, upto)

    def size(self) -> int:
        self._enter("size")
        return self.inode.cache.size

    def allocate(self, place: int, length: int) -> None:
        self._enter("allocate", place, length, writes=True)
        self._disk.resize(self.inode, max(self.inode.cache.size, place + length))

    def truncate(self, length: int) -> None:
        self._enter("truncate", length, writes=True)
        self._disk.resize(self.inode, length)

    def lock(self) -> None:
        self._enter("lock")
        if self.inode.holder not in (None, self):
            raise error(errno.EWOULDBLOCK, self.name)
        self.inode.holder = self

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        if self.inode.holder is self:
            self.inode.holder = None
        self._disk.release(self.inode)

    def usable(self, *, writes: bool) -> None:
        if not self._open or (writes and not self.writable):
            raise error(errno.EBADF, self.name)

    def _enter(self, verb: str, place: int = 0, length: int = 0, *, writes: bool = False) -> int:
        self.usable(writes=writes)
        return self._backend.enter(verb, self.name, place, length)


class MemoryBackend:
    """One process's view of a `Disk`. With an `rng`, what was submitted lands in an order drawn from it and not in
    every turn of the loop, and any part of what failed may be on the disk; without one, in the order of submission,
    one a turn, and nothing of what failed."""

    name = "memory"
    reason = "a simulated disk"
    direct = True

    def __init__(self, disk: Disk, rng: Random | None = None, fault: Fault | None = None) -> None:
        self.disk = disk
        self.rng = rng
        self.fault = fault
        self._waiting: list[tuple[Landing, Done]] = []
        #: The loop that has been asked for a turn; a database may be used by one loop after another.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def open(self, name: str, mode: Mode) -> MemoryFile:
        self._enter("open", name)
        inode = self.disk.create(name) if mode == "x" else self.disk.lookup(name)
        return MemoryFile(self, name, inode, mode)

    def exists(self, name: str) -> bool:
        self._enter("exists", name)
        return name in self.disk.tree

    def list(self, name: str = "") -> list[str]:
        self._enter("list", name)
        return sorted(n.rpartition("/")[2] for n in self.disk.tree if _parent(n) == name)

    def mkdir(self, name: str) -> None:
        self._enter("mkdir", name)
        self.disk.mkdir(name)

    def rename(self, old: str, new: str) -> None:
        self._enter("rename", f"{old} -> {new}", old, new)
        self.disk.rename(old, new)

    def unlink(self, name: str) -> None:
        self._enter("unlink", name)
        self.disk.unlink(name)

    def sync_directory(self, name: str = "") -> None:
        self._enter("sync_directory", name)
        self.disk.sync_directory(name)

    def lock_directory(self) -> None:
        self._enter("lock_directory")
        if self.disk.holder not in (None, self):
            raise error(errno.EWOULDBLOCK, "")
        self.disk.holder = self

    def free(self) -> int:
        self._enter("free")
        return self.disk.free()

    def submit(self, file: File, place: int, buffer: Buffer, durable: bool, done: Done) -> None:
        view = memoryview(buffer).cast("B")
        if place < 0 or place % BLOCK or not len(view) or len(view) % BLOCK:
            raise ValueError(f"{len(view)} bytes at {place} are not whole blocks of {BLOCK}")
        self._begin(partial(self._write, _mine(file), place, view, durable), done)

    def submit_sync(self, file: File, done: Done) -> None:
        self._begin(partial(self._sync, _mine(file)), done)

    async def run(self, call: Callable[[], T]) -> T:
        await asyncio.sleep(0)
        return call()

    def close(self) -> None:
        if self._closed:
            return
        while self._waiting:
            self._land_one()
        self._closed = True
        if self.disk.holder is self:
            self.disk.holder = None

    def _enter(self, verb: str, name: str = "", *names: str) -> None:
        for each in names or (name,):
            root = not each and verb in _OF_THE_ROOT
            if not root and any(part in ("", ".", "..") for part in each.split("/")):
                raise ValueError(f"not a name in the directory: {each!r}")
        if self._closed:
            raise error(errno.EBADF, name)
        self.enter(verb, name, 0, 0)

    def enter(self, verb: str, name: str, place: int, length: int) -> int:
        """How many of the bytes this verb is to take."""
        fault = self.fault(verb, name, place, length) if self.fault else None
        if isinstance(fault, OSError):
            raise fault
        if fault is not None and (verb not in ("write", "submit") or not 0 < fault <= length):
            raise ValueError(f"{verb} of {length} bytes cannot take {fault}")
        taken = length if fault is None else fault
        if self.disk.trace is not None:
            self.disk.trace.append((verb, name, place, taken))
        return taken

    def _begin(self, verb: Callable[[], Landing], done: Done) -> None:
        if self._closed:
            raise error(errno.EBADF, "")
        loop = asyncio.get_running_loop()
        self._waiting.append((verb(), done))
        self._ask(loop)

    def _ask(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._waiting and self._loop is not loop:
            self._loop = loop
            loop.call_soon(self._tick)

    def _write(self, file: MemoryFile, place: int, view: memoryview, durable: bool) -> Landing:
        file.usable(writes=False)
        problem = None if file.writable else error(errno.EBADF, file.name)
        taken = len(view)
        try:
            taken = self.enter("submit", file.name, place, len(view))
        except OSError as failed:
            problem = problem or failed
        flight = Flight(place, view[:taken], durable)
        if file.writable:
            self.disk.launch(file.inode, flight)

        def land() -> OSError | Landing | None:
            if problem is not None:
                if file.writable:
                    self.disk.lose(file.inode, flight, self.rng)
                return problem
            try:
                self.disk.land(file.inode, flight)
            except OSError as full:
                return full
            self._finished("durable" if durable else "written", file.name, place, taken)
            if taken < len(view):
                return self._write(file, place + taken, view[taken:], durable)
            return None

        return land

    def _sync(self, file: MemoryFile) -> Landing:
        file.usable(writes=False)
        upto = file.inode.landed
        problem: OSError | None = None
        try:
            self.enter("submit_sync", file.name, 0, 0)
        except OSError as failed:
            problem = failed

        def land() -> OSError | None:
            if problem is not None:
                self.disk.forget(file.inode, upto, self.rng)
                return problem
            self.disk.settle(file.inode, upto)
            self._finished("synced", file.name, 0, 0)
            return None

        return land

    def _finished(self, verb: str, name: str, place: int, length: int) -> None:
        if self.disk.trace is not None:
            self.disk.trace.append((verb, name, place, length))

    def _tick(self) -> None:
        self._loop = None
        try:
            if self._waiting and not (self.rng and self.rng.randrange(3) == 0):
                self._land_one()
        finally:
            self._ask(asyncio.get_running_loop())

    def _land_one(self) -> None:
        landing, done = self._waiting.pop(self.rng.randrange(len(self._waiting)) if self.rng else 0)
        outcome = landing()
        if callable(outcome):
            self._waiting.append((outcome, done))
        else:
            done(outcome)


def _mine(file: File) -> MemoryFile:
    if not isinstance(file, MemoryFile):
        raise TypeError(f"{file.name} is another backend's")
    return file
