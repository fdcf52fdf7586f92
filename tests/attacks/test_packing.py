"""Packing gives nobody a way in: what is wrong in a segment stays as it is, and no byte of a packed one can change."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from kimberlite import Corrupt, Log
from kimberlite.log.packing import pack
from kimberlite.log.repair import is_packed
from kimberlite.storage.memory import MemoryBackend
from tests.model.files import segment_name
from tests.model.groups import BLOCK, Packed, encode_segment_header

from .databases import DERIVED, Simulated, built, grown, on_disk, packed, packed_anew, until_packed
from .every_byte import survivors
from .forging import groups_of, header_of
from .test_damage import DAMAGES, is_at, site

KINDS = ["plain", "encrypted"]
SEED = 7


def packs(doors: Simulated, harmed: str) -> list[str]:
    """What a writer says who packs everything but that segment; it stays as it is."""
    before = doors.files()[harmed]
    with on_disk(doors.disk, doors.key, pack=1) as db:
        until_packed(db, doors.disk, 1)
        notes = db.info()["notes"]
    assert doors.files()[harmed] == before
    return [str(note) for note in notes]


@pytest.mark.parametrize("which", ["first", "middle", "last"])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_segment_that_is_damaged_is_not_packed(kind: str, damage: str, which: str, tmp_path: Path) -> None:
    database = built(kind)
    target, other = site(database, "closed", which)
    data, first = DAMAGES[damage](database, target, other)
    doors = database.having({target.name: data}).simulate(tmp_path)
    with suppress(Corrupt):  # of a start, which looks at where a segment ends
        [note] = packs(doors, target.name)
        assert note.startswith(f"{target.name}, byte {first.place}, group {first.group.number}"), note
    assert doors.files()[target.name] == data
    with pytest.raises(Corrupt) as damaged:
        doors.verify()
    assert is_at(damaged.value, first), damaged.value


@pytest.mark.parametrize("where", ["header", "salt", "rest of the header", "behind the closing group", "at the end"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_changed_since_the_start_is_not_packed_away(kind: str, where: str, tmp_path: Path) -> None:
    """Beside the groups: the new file has neither."""
    database, name = built(kind), segment_name(1)
    closing = list(groups_of(database, 1))[-1]
    end = max(closing.end, len(database.files[name]))
    places = {"header": 40, "salt": 90, "rest of the header": 1_000}
    place = places.get(where, closing.end if where == "behind the closing group" else end + 5_000)
    doors = database.simulate(tmp_path)
    backend = MemoryBackend(doors.disk)
    with on_disk(doors.disk, doors.key) as db:
        file = backend.open(name, "w")
        file.write(place, b"x")
        file.close()
        harmed = doors.files()[name]
        at, what = (0, "the header is not the one") if where in places else (place, "there are bytes behind")
        assert isinstance(db._log, Log)
        with pytest.raises(Corrupt, match=what) as damaged:
            list(pack(backend, db._log._native, 1, bytes(32)))
        assert (damaged.value.file, damaged.value.place) == (name, at)
        # The writer prepares its own files meanwhile.
        assert doors.files()[name] == harmed
        assert "prepare/00000000000000000001.pack" not in doors.files()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_segment_of_before_it_was_packed_says_the_same(kind: str, tmp_path: Path) -> None:
    written = built(kind)
    now = packed_anew(written)
    for number in (0, 1):
        name = segment_name(number)
        assert written.files[name] != now.files[name]
        for database, of in ((now, written), (written, now)):
            mixed = database.having({name: of.files[name]})
            for read_only in (True, False):
                doors = mixed.simulate(tmp_path)
                assert await doors.answers(written.records, read_only=read_only) == []
                assert doors.verify(written.receipts[-1]).root == written.receipts[-1].root
            again = packed_anew(mixed)
            assert all(is_packed(again.files[segment_name(each)]) for each in (0, 1))
            assert again.simulate(tmp_path).verify(written.receipts[-1]).notes == []


LIES: dict[str, Callable[[Packed], Packed | None]] = {
    "longer": lambda packed: replace(packed, length=packed.length + 8),
    "shorter": lambda packed: replace(packed, length=packed.length - 8),
    "another last group": lambda packed: replace(packed, last_group=packed.last_group - 1),
    "another last chain": lambda packed: replace(packed, last_chain=bytes(32)),
    "not packed": lambda packed: None,
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("kind", KINDS)
async def test_what_a_packed_segment_says_of_its_end_is_held_against_it(kind: str, lie: str, tmp_path: Path) -> None:
    """Its check is made to fit."""
    database, name = packed(kind), segment_name(1)
    header = header_of(database, 1)
    assert header.packed is not None
    lying = encode_segment_header(replace(header, packed=LIES[lie](header.packed)))
    harmed = database.having({name: lying + database.files[name][BLOCK:]})
    for doors in (harmed.simulate(tmp_path), harmed.without(*DERIVED).simulate(tmp_path)):
        with pytest.raises(Corrupt) as refused:
            doors.verify()
        assert refused.value.file == name
    for read_only in (True, False):
        with pytest.raises(Corrupt) as refused:
            await doors.open(read_only=read_only)
        assert refused.value.file == name
        await harmed.simulate(tmp_path).answers(database.records, read_only=read_only)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_packed_segment_of_another_branch_is_refused(kind: str, tmp_path: Path) -> None:
    """Of a copy that went on by itself."""
    ours, theirs = (packed_anew(grown(built(kind), range(17, 35), what)) for what in (b"payload", b"another"))
    for name in (segment_name(2), segment_name(3)):
        doors = ours.having({name: theirs.files[name]}).simulate(tmp_path)
        assert is_packed(doors.files()[name])
        with pytest.raises(Corrupt) as refused:
            doors.verify()
        assert refused.value.file in (name, segment_name(3), segment_name(4))


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_in_any_byte_of_a_packed_segment_is_refused(kind: str) -> None:
    database, rng = packed(kind), Random(SEED)
    chosen = []
    for number in (0, 1):
        name, size = segment_name(number), len(database.files[segment_name(number)])
        closing = list(groups_of(database, number))[-1]
        meant = [*range(168), *range(BLOCK - 8, BLOCK), *range(closing.place, size)]
        chosen += [(name, place) for place in {*meant, *rng.sample(range(size), 300)}]
    assert survivors(database, chosen, SEED) == []
