"""Databases with streams to be erased."""

from __future__ import annotations

from pathlib import Path

from kimberlite import Log, Receipt
from kimberlite.crypto.master import create_master
from kimberlite.crypto.vault import BLOCK, SLOT
from kimberlite.log.names import VAULTS
from tests.log.simulated import Machine

SEGMENT = 64 * 1024
WHY = "asked for in ticket 4711"
COUNT = 12


def payload(stream: str, i: int) -> bytes:
    return b"%s %d." % (stream.encode(), i) * 30


async def filled(machine: Machine, count: int = COUNT) -> list[Receipt]:
    """Three streams that take turns, each with a producer, and appends to all of them."""
    receipts = []
    async with machine.open(segment_bytes=SEGMENT) as db:
        for i in range(count):
            receipts += [await db.append(s, payload(s, i), producer=("p", i)) for s in ("kept", "gone", "other")]
            both = {stream: payload(stream, i) for stream in ("kept", "gone")}
            receipts += (await db.append_many(both, producer=("q", i))).values()
    return receipts


def positions(receipt: Receipt) -> range:
    return range(receipt.first_position, receipt.last_position + 1)


def places(machine: Machine, copy: int) -> list[int]:
    """Of the slots that are in use."""
    image = machine.disk.files()[VAULTS[copy]]
    return [place for place in range(BLOCK, len(image), SLOT) if any(image[place : place + SLOT])]


async def erased(machine: Machine, stream: str = "gone") -> None:
    async with machine.open(segment_bytes=SEGMENT) as db:
        await db.erase(stream, reason=WHY)


async def whole(db: Log, receipts: list[Receipt]) -> None:
    for receipt in receipts:
        for position in positions(receipt):
            assert (await db.get(position)).stream == receipt.stream


def create(machine: Machine, name: str) -> Path:
    """Another master key beside the one that is."""
    assert machine.key is not None
    path = machine.key.with_name(name)
    create_master(path)
    return path


def slots(machine: Machine) -> set[tuple[int, bytes]]:
    """What slots are bound to, of both copies."""
    images = [machine.disk.files()[name] for name in VAULTS]
    found = [image[place : place + SLOT] for image in images for place in range(BLOCK, len(image), SLOT)]
    return {(int.from_bytes(slot[4:8], "little"), slot[32:64]) for slot in found if slot[0] == 3}
