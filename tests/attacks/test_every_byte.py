"""No byte of a closed database can change unnoticed. `python -m tests.attacks.every_byte` does this to all of them."""

from __future__ import annotations

from random import Random

import pytest

from kimberlite.storage.memory import Disk
from tests.model.groups import BLOCK

from .databases import Database
from .every_byte import Byte, attacked, small, structured, survivors, verdict
from .forging import all_groups, groups_of

SEED = 11


def chosen(database: Database) -> list[Byte]:
    """Of what has a meaning the identity, a whole group, a closing one and a tenth of the rest; and some padding."""
    rng, meant = Random(SEED), list(structured(database))
    whole, closing = next(groups_of(database, 3)), list(groups_of(database, 1))[-1]
    group = [(placed.name, placed.place + i) for placed in (whole, closing) for i in range(placed.length)]
    identity = [byte for byte in meant if byte[0] == "identity"]
    padding = rng.sample(sorted(set(attacked(database)) - set(meant)), 300)
    return sorted({*identity, *group, *rng.sample(meant, len(meant) // 10), *padding})


@pytest.mark.parametrize("kind", ["plain", "encrypted"])
def test_a_flipped_bit_in_any_byte_is_refused_and_one_of_a_mark_reported(kind: str) -> None:
    database = small(kind)
    bytes_of_all_kinds = chosen(database)
    assert len(bytes_of_all_kinds) > 1_900
    assert survivors(database, bytes_of_all_kinds, SEED) == []


@pytest.mark.parametrize("kind", ["plain", "encrypted"])
def test_the_database_is_what_is_said_of_it(kind: str) -> None:
    database = small(kind)
    assert len(database.segments) == 4
    assert sum(not placed.group.closing for placed in all_groups(database)) == 20
    assert len(set(structured(database))) > 8_000
    assert set(structured(database)) < set(attacked(database))
    assert verdict(Disk.from_files(database.files), database.master) == "sound"


@pytest.mark.parametrize("kind", ["plain", "encrypted"])
def test_two_damaged_marks_are_refused(kind: str) -> None:
    database = small(kind)
    rng = Random(SEED)
    for _ in range(100):
        marks = bytearray(database.files["marks"])
        for block in (0, 1):
            marks[block * BLOCK + rng.randrange(BLOCK)] ^= 1 << rng.randrange(8)
        disk = Disk.from_files({**database.files, "marks": bytes(marks)})
        assert verdict(disk, database.master) == "refused marks"
