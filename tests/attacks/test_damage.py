"""Blind damage up to the watermark, in closed and active segments: refused with the exact place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kimberlite import Corrupt
from kimberlite.log.repair import is_packed
from tests.model.groups import BLOCK, encode_group

from .databases import DERIVED, Database, Doors, built, packed
from .forging import Placed, groups_of, header_of

#: A damage gives the bytes of the segment and the group that is the first harmed one.
Damage = Callable[[Database, Placed, Placed], tuple[bytes, Placed]]


def segment_bytes(database: Database, placed: Placed) -> bytes:
    return database.files[placed.name]


def over(data: bytes, place: int, piece: bytes) -> bytes:
    return data[:place] + piece + data[place + len(piece) :]


def flip(at: Callable[[Placed], int]) -> Damage:
    def damage(database: Database, target: Placed, other: Placed) -> tuple[bytes, Placed]:
        data, place = segment_bytes(database, target), target.place + at(target)
        return over(data, place, bytes([data[place] ^ 1 << place % 8])), target

    return damage


def earlier(one: Placed, two: Placed) -> Placed:
    return min(one, two, key=lambda placed: placed.place)


def exchanged(data: bytes, one: int, two: int, size: int) -> bytes:
    first, second = data[one : one + size], data[two : two + size]
    return over(over(data, one, second), two, first)


def swap(database: Database, target: Placed, other: Placed) -> tuple[bytes, Placed]:
    data = segment_bytes(database, target)
    return exchanged(data, target.place, other.place, target.size), earlier(target, other)


def swap_blocks(database: Database, target: Placed, other: Placed) -> tuple[bytes, Placed]:
    data = segment_bytes(database, target)
    return exchanged(data, target.place + BLOCK, other.place + BLOCK, BLOCK), earlier(target, other)


def repeat(database: Database, target: Placed, other: Placed) -> tuple[bytes, Placed]:
    data = segment_bytes(database, target)
    return over(data, target.place, data[other.place : other.end]), target


def repeat_block(database: Database, target: Placed, other: Placed) -> tuple[bytes, Placed]:
    data = segment_bytes(database, target)
    return over(data, target.place + BLOCK, data[target.place : target.place + BLOCK]), target


def take_out(database: Database, target: Placed, other: Placed) -> tuple[bytes, Placed]:
    data = segment_bytes(database, target)
    return data[: target.place] + data[target.end :] + bytes(target.size), target


def put_before(database: Database, target: Placed, other: Placed) -> tuple[bytes, Placed]:
    """What was there moves down."""
    data = segment_bytes(database, target)
    return data[: target.place] + data[other.place : other.end] + data[target.place :], target


def zero(database: Database, target: Placed, other: Placed) -> tuple[bytes, Placed]:
    return over(segment_bytes(database, target), target.place, bytes(target.size)), target


def zero_first_block(database: Database, target: Placed, other: Placed) -> tuple[bytes, Placed]:
    return over(segment_bytes(database, target), target.place, bytes(BLOCK)), target


def zero_second_block(database: Database, target: Placed, other: Placed) -> tuple[bytes, Placed]:
    return over(segment_bytes(database, target), target.place + BLOCK, bytes(BLOCK)), target


def twin_of(database: Database) -> Database:
    """Another database with the same records."""
    make = packed if is_packed(database.files[database.segments[0]]) else built
    return make("plain" if database.master is None else "encrypted", 1)


def foreign(database: Database, target: Placed, other: Placed) -> tuple[bytes, Placed]:
    theirs = segment_bytes(twin_of(database), target)[target.place : target.end]
    assert theirs != segment_bytes(database, target)[target.place : target.end]
    return over(segment_bytes(database, target), target.place, theirs), target


def foreign_rekeyed(database: Database, target: Placed, other: Placed) -> tuple[bytes, Placed]:
    """A group of another database, its checks made with the salt of this segment."""
    [theirs] = [p for p in groups_of(twin_of(database), target.segment) if p.place == target.place]
    data = encode_group(theirs.group, theirs.place, header_of(database, target.segment).salt, theirs.tag)
    return over(segment_bytes(database, target), target.place, data.ljust(target.size, b"\0")), target


def swap_rekeyed(database: Database, target: Placed, other: Placed) -> tuple[bytes, Placed]:
    """Neighbours whose checks are made for where they are then."""
    data, header = segment_bytes(database, target), header_of(database, target.segment)
    first = place = earlier(target, other).place
    for placed in sorted((target, other), key=lambda placed: -placed.place):
        group = encode_group(placed.group, place, header.salt, placed.tag).ljust(placed.size, b"\0")
        data, place = over(data, place, group), place + placed.size
    assert place == first + target.size + other.size
    return data, earlier(target, other)


def trailer(placed: Placed) -> int:
    """Where its chain begins."""
    return placed.length - 32 - len(placed.tag or b"")


DAMAGES: dict[str, Damage] = {
    "flip in the header": flip(lambda placed: 17),
    "flip in the length": flip(lambda placed: 10),
    "flip in the check of the header": flip(lambda placed: 100),
    "flip in the front of a run": flip(lambda placed: 104 + 17),
    "flip in a record": flip(lambda placed: 104 + 88 + 700),
    "flip in the second block": flip(lambda placed: BLOCK + 5),
    "flip in the check of a run": flip(lambda placed: trailer(placed) - 3),
    "flip in the chain": flip(lambda placed: trailer(placed) + 18),
    "flip in the tag": flip(lambda placed: placed.length - 1),
    "flip in the first padding": flip(lambda placed: placed.length),
    "flip in the last padding": flip(lambda placed: placed.size - 1),
    "swap groups": swap,
    "swap groups with fitting checks": swap_rekeyed,
    "swap blocks": swap_blocks,
    "repeat a group": repeat,
    "repeat a block": repeat_block,
    "take a group out": take_out,
    "put a group in": put_before,
    "zero a group": zero,
    "zero a block": zero_first_block,
    "zero the other block": zero_second_block,
    "group of another database": foreign,
    "group of another database with fitting checks": foreign_rekeyed,
}


def site(database: Database, segment: str, which: str) -> tuple[Placed, Placed]:
    """The group that is attacked, and another one of its segment."""
    number = 1 if segment == "closed" else len(database.segments) - 1
    groups = [placed for placed in groups_of(database, number) if not placed.group.closing]
    index = {"first": 0, "middle": len(groups) // 2, "last": len(groups) - 1}[which]
    return groups[index], groups[index - 1 if index else 1]


def is_at(error: Corrupt, placed: Placed) -> bool:
    where = (placed.name, placed.place, placed.group.number, placed.group.position)
    named = all(part in str(error) for part in (placed.name, f"byte {placed.place}", f"group {placed.group.number}"))
    return named and (error.file, error.place, error.group, error.position) == where


async def is_refused(doors: Doors, first: Placed, *, audited: bool = True) -> None:
    """By `verify` with the key and without, and by `open` for writing and reading. Nothing is changed."""
    before = doors.files()
    for check in (doors.verify, doors.audit) if audited else (doors.verify,):
        with pytest.raises(Corrupt) as damaged:
            check()
        assert is_at(damaged.value, first), damaged.value
    for read_only in (False, True):
        with pytest.raises(Corrupt) as damaged:
            await doors.open(read_only=read_only)
        assert is_at(damaged.value, first), damaged.value
    assert doors.files() == before


@pytest.mark.parametrize("which", ["first", "middle", "last"])
@pytest.mark.parametrize("segment", ["closed", "active"])
@pytest.mark.parametrize("damage", DAMAGES)
async def test_damage_below_the_watermark_is_refused_with_its_place(
    database: Database, damage: str, segment: str, which: str, tmp_path: Path
) -> None:
    target, other = site(database, segment, which)
    if "padding" in damage and target.size == target.length:
        return
    data, first = DAMAGES[damage](database, target, other)
    assert data != segment_bytes(database, target)
    harmed = database.having({target.name: data})
    # A tag is nothing to somebody without the key.
    audited = damage != "flip in the tag" or target.tag is None
    await is_refused(harmed.without(*DERIVED).simulate(tmp_path), first, audited=audited)
    if which == "middle":
        await is_refused(harmed.without(*DERIVED).put(tmp_path / "db"), first, audited=audited)
    # With a checkpoint a start does not read what is before it. What is read then is true all the same.
    with pytest.raises(Corrupt) as damaged:
        harmed.simulate(tmp_path).verify()
    assert is_at(damaged.value, first)
    in_order = "fitting" not in damage  # which trusts checks that fit
    for read_only in (False, True) if which == "middle" else (which == "first",):
        await harmed.simulate(tmp_path).answers(database.records, read_only=read_only, in_order=in_order)
