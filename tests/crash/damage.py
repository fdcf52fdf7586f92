"""Damage at or below a watermark of a crash state: it must be refused, whatever it is.

Where a checkpoint covers the damaged group, an open need not read it: then everything acknowledged is still served or
refused as damaged, and `verify` finds it.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Final, NamedTuple

from kimberlite.crypto.master import load_master
from kimberlite.errors import Corrupt, KimberliteError
from kimberlite.log.identity import Identity
from kimberlite.log.marks import decode_marks
from kimberlite.log.verify import verify
from kimberlite.storage.backend import BLOCK
from kimberlite.storage.memory import Disk, MemoryBackend
from tests.crash.cuts import SECTOR, replace
from tests.crash.judging import Wrong, compare
from tests.crash.workload import HEAD, NO_END, Forgotten, History, State, World, everything

GROUP: Final = struct.Struct("<8sIIQQIIQ")
MAGIC: Final = b"KIMBGRP1"


class Group(NamedTuple):
    """Where a group is, its padding included."""

    name: str
    place: int
    length: int
    number: int
    durable_upto: int
    #: Without its padding.
    size: int
    position: int


class Found(NamedTuple):
    """The groups of an image, and how far its mark and all its watermarks reach."""

    groups: list[Group]
    mark: int
    watermark: int


#: Changes some of these groups in these files; False if there is nothing to change.
Kind = Callable[[Random, dict[str, bytearray], list[Group]], bool]


def groups_of(name: str, data: bytes) -> list[Group]:
    """Those that follow one another from the start of a segment, as their headers say."""
    found: list[Group] = []
    place = BLOCK
    # Of a packed segment they follow each other closely.
    quantum = 8 if data[10:11] == b"\1" else BLOCK
    while place + GROUP.size <= len(data):
        magic, length, _, number, position, _, _, durable_upto = GROUP.unpack_from(data, place)
        if magic != MAGIC or (found and number != found[-1].number + 1):
            break
        padded = min(-(-length // quantum) * quantum, len(data) - place)
        found.append(Group(name, place, padded, number, durable_upto, length, position))
        place += padded
    return found


def find(disk: Disk) -> Found | None:
    """None before there is anything that could be promised."""
    files = {name: inode.cache.read(0, inode.cache.size) for name, inode in disk.tree.items() if inode is not None}
    if "identity" not in files or "marks" not in files:
        return None
    try:
        identity = Identity.decode(files["identity"])
        mark = decode_marks(files["marks"], identity.database_id, identity.hash).newest.group
    except Corrupt:
        # Whoever judges this state says so.
        return None
    segments = sorted(name for name in files if name.startswith("segments/"))
    groups = [group for name in segments for group in groups_of(name, files[name])]
    return Found(groups, mark, max([mark, *(group.durable_upto for group in groups)]))


def _flip(rng: Random, files: dict[str, bytearray], groups: list[Group]) -> bool:
    """One to eight bits, padding included."""
    for _ in range(rng.randrange(1, 9)):
        group = rng.choice(groups)
        files[group.name][group.place + rng.randrange(group.length)] ^= 1 << rng.randrange(8)
    return True


def _fill(rng: Random, files: dict[str, bytearray], groups: list[Group]) -> bool:
    """Sectors, blocks or whole groups become zeros or noise."""
    for group in groups:
        size = min(rng.choice((SECTOR, BLOCK, group.length)), group.length)
        place = group.place + rng.randrange(group.length // size) * size
        files[group.name][place : place + size] = bytes(size) if rng.random() < 0.5 else rng.randbytes(size)
    return True


def _swap(rng: Random, files: dict[str, bytearray], groups: list[Group]) -> bool:
    """Two blocks change places, or two groups of one length."""
    one, other = rng.choice(groups), rng.choice(groups)
    size = one.length if one.length == other.length else min(BLOCK, one.length, other.length)
    here = one.place + rng.randrange(one.length // size) * size
    there = other.place + rng.randrange(other.length // size) * size
    first, second = files[one.name][here : here + size], files[other.name][there : there + size]
    files[one.name][here : here + size], files[other.name][there : there + size] = second, first
    return first != second


def _repeat(rng: Random, files: dict[str, bytearray], groups: list[Group]) -> bool:
    """The blocks of one group stand in the place of another's too."""
    one, other = rng.choice(groups), rng.choice(groups)
    size = min(one.length, other.length)
    before = files[other.name][other.place : other.place + size]
    files[other.name][other.place : other.place + size] = files[one.name][one.place : one.place + size]
    return files[other.name][other.place : other.place + size] != before


def _cut(rng: Random, files: dict[str, bytearray], groups: list[Group]) -> bool:
    """A file ends in the middle of a group, or is gone."""
    group = rng.choice(groups)
    if rng.random() < 0.2:
        del files[group.name]
    else:
        del files[group.name][group.place + rng.randrange(-(-group.size // SECTOR)) * SECTOR :]
    return True


KINDS: Final[dict[str, Kind]] = {"flip": _flip, "fill": _fill, "swap": _swap, "repeat": _repeat, "cut": _cut}


def damaged(rng: Random, disk: Disk, found: Found, covered: int, first: int) -> tuple[Disk, str] | None:
    """A copy with up to three groups damaged that a watermark covers, or should; None if there are none. What is before
    position `first` may be dropped."""
    name = rng.choice(tuple(KINDS))
    # What is cut off takes the watermarks behind it along.
    upto = max(covered, found.mark if name == "cut" else found.watermark)
    under = [group for group in found.groups if group.number <= upto and group.position >= first]
    if not under:
        return None
    start = max(0, len(under) - 3) if rng.random() < 0.5 else rng.randrange(len(under))
    groups = under[start : start + 3]
    names = sorted({group.name for group in groups})
    before = {n: i.cache.read(0, i.cache.size) for n in names if (i := disk.tree[n]) is not None}
    files = {n: bytearray(data) for n, data in before.items()}
    if not KINDS[name](rng, files, groups) or all(bytes(files[n]) == before[n] for n in names if n in files):
        return None
    copy = disk.copy()
    for each in names:
        replace(copy, each, bytes(files[each]) if each in files else None)
    what = f"{name} of {', '.join(f'group {g.number} in {g.name} at {g.place}' for g in groups)}; watermark {upto}"
    return copy, what


async def outcome(disk: Disk, state: State, history: History, world: World) -> str:
    """`open` or `later`, for where it was refused; otherwise what became of it."""
    trusting = "checkpoint" in disk.tree
    untouched = disk.copy()
    try:
        db = await world.open(state, None, disk=disk)
    except Corrupt:
        return "open"
    except (KimberliteError, ValueError, IndexError) as error:
        return f"refused in another way: {error!r}"
    try:
        compare(await everything(db), state, history)
    except Corrupt:
        pass
    except Wrong as wrong:
        return f"opened, {wrong}"
    finally:
        await db.close()
    if not trusting:
        return "opened, and nothing is missing"
    try:
        verify(MemoryBackend(untouched), None if world.key is None else load_master(world.key))
    except Corrupt:
        return "later"
    return "verified"


async def trial(state: State, history: History, world: World, rng: Random) -> tuple[Counter[str], list[str]]:
    """Damages a copy of one state; whether that was tried and refused, and what was not."""
    counts, missed = Counter[str](), list[str]()
    found = find(state.disk)
    made = None if found is None else damaged(rng, state.disk, found, state.covered, state.asked)
    if made is None:
        return counts, missed
    disk, what = made
    if rng.random() < 0.5 and "checkpoint" in disk.tree:
        replace(disk, "checkpoint", None)
    result = await outcome(disk, state, history, world)
    counts["tried"] += 1
    counts[f"refused {result}" if result in ("open", "later") else "missed"] += 1
    if result not in ("open", "later"):
        missed.append(f"{what}: {result}")
    return counts, missed


async def twins(world: World, rng: Random) -> tuple[Counter[str], list[str]]:
    """Two logs go on from one clean close: groups of one in the places of the other's are sound but for the chain."""
    base, history = Disk(), History()
    sizes = [rng.randrange(1, 4) for _ in range(6)]
    await _append_each(base, world, history, sizes)
    now, ours, theirs = world.clock.now, base.copy(), base.copy()
    # With the marks of a clean close, or with headers alone to say what was durable.
    running = await _append_each(ours, world, history, sizes)
    ours = rng.choice((ours, running))
    world.clock.now = now
    await _append_each(theirs, world, History(first=1000), sizes)
    one, other = find(ours), find(theirs)
    assert one is not None
    assert other is not None
    counts, missed = Counter[str](), list[str]()
    same = [
        (a, b)
        for a, b in zip(one.groups, other.groups, strict=False)
        if a[:4] == b[:4] and len(sizes) < a.number <= one.watermark
    ]
    for group, _ in rng.sample(same, min(2, len(same))):
        disk, source = ours.copy(), theirs.lookup(group.name).cache
        data = bytearray(disk.lookup(group.name).cache.read(0, NO_END))
        data[group.place : group.place + group.length] = source.read(group.place, group.length)
        replace(disk, group.name, bytes(data))
        replace(disk, "checkpoint", None)
        state = State(disk, history.promised, {}, NO_END, one.watermark, forgotten=Forgotten(keys=(world.key,)))
        result = await outcome(disk, state, history, world)
        counts["tried"] += 1
        counts["refused open" if result == "open" else "missed"] += 1
        if result != "open":
            missed.append(f"group {group.number} of {one.watermark} is a twin's: {result}")
    return counts, missed


async def _append_each(disk: Disk, world: World, history: History, sizes: list[int]) -> Disk:
    """One group each, of the same lengths every time; the disk as it was before the close."""
    db = await world.open(State(disk, 0, {}, NO_END, 0, forgotten=Forgotten(keys=(world.key,))), None)
    for size in sizes:
        sent = history.batch(world.rng, ["twin"])
        sent.parts[0][1][:] = [HEAD.pack(sent.number, i) + world.rng.randbytes(200) for i in range(size)]
        history.answer(sent, [await db.append("twin", sent.parts[0][1])])
    running = disk.copy()
    await db.close()
    return running
