"""What a power cut, or the end of a process, leaves of a simulated disk."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Final

from kimberlite.storage.backend import BLOCK
from kimberlite.storage.memory import Disk
from kimberlite.storage.memory.image import Image, Inode, Write

SECTOR: Final = 512
#: Derived files, appended to through the page cache: whole pages are written, and what is in them is written again.
CACHED: Final = ("hashes", "producers")


class Physical:
    """What the disk writes at a time, whatever it is asked to: an interrupted write can take all of that with it."""

    block = BLOCK


def power_cut(disk: Disk, rng: Random) -> Disk:
    """Some of what was on its way; in some cuts, what shares a block with it is noise."""
    left = disk.crash(rng)
    if rng.random() < 0.3:
        for name, place, end in list(neighbours(disk, Physical.block)):
            inode = left.tree.get(name)
            if inode is not None and rng.random() < 0.5 and place < inode.platter.size:
                data = bytearray(inode.platter.read(0, inode.platter.size))
                end = min(end, len(data))
                data[place:end] = rng.randbytes(end - place)
                replace(left, name, bytes(data))
    return left


def neighbours(disk: Disk, block: int) -> Iterator[tuple[str, int, int]]:
    """What shares a block with a write that is not synced: name, place, end."""
    for name, inode in disk.tree.items():
        if inode is None or name in CACHED or not (inode.changes or inode.flights):
            continue
        for change in inode.loose():
            if isinstance(change, Write) and change.place % block:
                yield name, change.place // block * block, change.place
            if isinstance(change, Write) and change.end % block:
                yield name, change.end, -(-change.end // block) * block


def killed(disk: Disk, rng: Random) -> Disk:
    """The process is gone and the machine goes on: what it had written is in the cache; of what was in flight, some."""
    left = disk.copy()
    for inode in {i: None for i in left.tree.values() if i is not None}:
        for flight in inode.flights.copy():
            if rng.random() < 0.5:
                left.land(inode, flight)
            else:
                left.lose(inode, flight, None)
    return left


def flying(disk: Disk) -> frozenset[str]:
    """The segments that a write is on its way to."""
    return frozenset(n for n, inode in disk.tree.items() if inode and inode.flights and n.startswith("segments/"))


def replace(disk: Disk, name: str, data: bytes | None) -> None:
    """Other bytes, on the platter and in the cache; None for no file at all."""
    if data is None:
        del disk.tree[name], disk.durable[name]
    else:
        disk.tree[name] = disk.durable[name] = Inode(Image.of(data))
