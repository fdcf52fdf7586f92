"""The simulated disk: names, and what a power cut may leave of them.

Changes of names persist as a prefix of their order, after those that a sync of their directory made durable.
A file that was synced is lost with its name; so is all that is in a directory whose own name is lost. A rename
belongs to the directory of its new name. What is left of a file's bytes is in `image`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import NamedTuple

from kimberlite.storage.backend import BLOCK, error
from kimberlite.storage.memory.image import (
    BOUNDLESS,
    SECTOR,
    Change,
    Flight,
    Image,
    Inode,
    Resize,
    Write,
    chosen,
    scatter,
)


class Operation(NamedTuple):
    """A change of names: `gone` is one no longer; `name` now is this file's, or a directory's if there is none."""

    gone: str | None
    name: str | None
    inode: Inode | None

    @property
    def directory(self) -> str:
        return parent(self.name or self.gone or "")


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
        if op.name and not self.is_directory(parent(op.name)):
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


def parent(name: str) -> str:
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
        above = parent(name)
        if not above or above in kept:
            kept[name] = tree[name]
    return kept


def _remove(flights: list[Flight], flight: Flight) -> None:
    """This one, not one that is equal to it."""
    del flights[next(n for n, other in enumerate(flights) if other is flight)]


def _some(rng: Random, most: int) -> int:
    """0..most, each end as likely as anything between."""
    return (0, most, rng.randrange(most + 1))[rng.randrange(3)] if most else 0
