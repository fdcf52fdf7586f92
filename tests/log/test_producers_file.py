"""The file of producers: it does not grow for ever."""

from __future__ import annotations

from typing import Any

from kimberlite.log.names import PRODUCERS
from tests.log.simulated import Machine

#: Entries of 64 bytes; a file of a mebibyte is looked at again.
SEQUENCES = 17_000


async def test_the_file_of_producers_is_made_anew_when_most_of_it_is_forgotten(machine: Machine) -> None:
    # The only checkpoint is that of the close.
    never: dict[str, Any] = {"segment_bytes": 256 << 20, "checkpoint_records": 1 << 60, "checkpoint_bytes": 1 << 60}
    async with machine.open(idle=1.0, **never) as db:
        for sequence in range(SEQUENCES):
            await db.append("s", b"x", producer=("p", sequence), sync="os")
    assert len(machine.disk.files()[PRODUCERS]) > 64 * SEQUENCES
    async with machine.open() as db:
        await db.append("s", b"y", producer=("p", SEQUENCES))
    assert len(machine.disk.files()[PRODUCERS]) < 64 * 1100
    async with machine.open() as db:
        assert (await db.append("s", b"y", producer=("p", SEQUENCES))).last_offset == SEQUENCES
        assert (await db.append("s", b"z", producer=("p", SEQUENCES + 1))).last_offset == SEQUENCES + 1
