"""The vault: what is put in is had back with the right master key, and with nothing else."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimberlite import _native
from kimberlite.crypto.vault import BLOCK, SLOT, Vault
from kimberlite.errors import KeyUnavailable

DATABASE, IDENTITY, MASTER = bytes(16), b"i" * 32, b"m" * 32


def bound(stream: int) -> bytes:
    return stream.to_bytes(32, "big")


def filled(count: int) -> tuple[Vault, dict[int, bytes]]:
    vault = Vault.create(DATABASE, IDENTITY, MASTER, os.urandom)
    return vault, {stream: vault.add(stream, bound(stream)) for stream in range(1, count + 1)}


def load(copy0: bytes | None, copy1: bytes | None, master: bytes = MASTER, database: bytes = DATABASE) -> Vault:
    return Vault.load(copy0, copy1, database, IDENTITY, master, os.urandom)


def test_keys_come_back_from_either_copy() -> None:
    vault, keys = filled(40)
    image = vault.image()
    for copies in ((image, image), (image, None), (None, image)):
        again = load(*copies)
        assert (again.group_key, again.receipt_key) == (vault.group_key, vault.receipt_key)
        assert {stream: again.data_key(stream, bound(stream)) for stream in keys} == keys


def test_the_dirty_blocks_make_a_copy_whole() -> None:
    vault = Vault.create(DATABASE, IDENTITY, MASTER, os.urandom)
    copy = bytearray(vault.image())
    for stream in range(1, 50):
        vault.add(stream, bound(stream))
        for place, block in vault.dirty():
            copy[place : place + BLOCK] = block
    assert bytes(copy) == vault.image()
    assert vault.dirty() == []


def test_an_orphan_is_never_found() -> None:
    vault, _ = filled(1)
    assert vault.data_key(1, bound(2)) is None
    assert vault.data_key(2, bound(1)) is None


def test_orphans_are_not_wrapped_anew() -> None:
    vault, keys = filled(3)
    known = {(1, bound(1)), (3, bound(30)), (4, bound(4))}
    assert vault.orphans(known) == 2
    rotated = vault.rewrapped(b"n" * 32, known)
    assert rotated.orphans(known) == 0
    again = load(rotated.image(), rotated.image(), master=b"n" * 32)
    assert {stream: again.data_key(stream, bound(stream)) for stream in keys} == {1: keys[1], 2: None, 3: None}
    assert (again.group_key, again.receipt_key) == (vault.group_key, vault.receipt_key)


def test_a_damaged_slot_is_no_orphans() -> None:
    vault, keys = filled(3)
    known = {(stream, bound(stream)) for stream in keys}
    for place in range(SLOT):
        again = load(*[flipped(vault.image(), slot(3) + place)] * 2)
        assert (again.orphans(known), again.unopened()) == (0, [slot(3)])


def test_many_streams_are_erased_at_once() -> None:
    vault, keys = filled(40)
    gone = {(stream, bound(stream)) for stream in range(2, 40, 3)}
    vault.erase(gone)
    again = load(vault.image(), vault.image())
    left = {stream: None if (stream, bound(stream)) in gone else key for stream, key in keys.items()}
    assert {stream: again.data_key(stream, bound(stream)) for stream in keys} == left
    vault.erase(gone)


def slot(number: int) -> int:
    return BLOCK + number * SLOT


def flipped(image: bytes, *places: int) -> bytes:
    """One bit of each of these bytes; a different one in neighbours."""
    damaged = bytearray(image)
    for place in places:
        damaged[place] ^= 1 << place % 8
    return bytes(damaged)


@pytest.mark.parametrize("hurt", [0, 1])
def test_a_flipped_bit_anywhere_in_one_copy_is_healed_by_the_other(hurt: int) -> None:
    vault, keys = filled(3)
    image = vault.image()
    for place in range(slot(5)):
        copies = [image, image]
        copies[hurt] = flipped(image, place)
        again = load(*copies)
        assert again.stale == {hurt}
        assert again.image() == image
        assert again.data_key(2, bound(2)) == keys[2]


def test_no_bit_of_a_slot_can_be_flipped_in_both_copies() -> None:
    vault, keys = filled(3)
    for bit in range(slot(3) * 8, slot(4) * 8):
        damaged = bytearray(vault.image())
        damaged[bit // 8] ^= 1 << bit % 8
        again = load(bytes(damaged), bytes(damaged))
        try:
            found = again.data_key(2, bound(2))
        except KeyUnavailable:
            found = None
        assert found is None
        assert again.data_key(3, bound(3)) == keys[3]


def test_the_first_two_slots_must_open() -> None:
    image = filled(1)[0].image()
    for number, name in ((0, "group_key"), (1, "receipt_key")):
        damaged = flipped(image, slot(number) + 90)
        with pytest.raises(KeyUnavailable, match=f"byte {slot(number)}"):
            getattr(load(damaged, damaged), name)


def test_a_slot_that_both_copies_have_damaged_is_kept_and_not_used_again() -> None:
    vault, keys = filled(2)
    damaged = [flipped(vault.image(), slot(3) + 200), flipped(vault.image(), slot(3) + 201)]
    again = load(*damaged)
    again.add(3, bound(3))
    assert again.image()[slot(3) : slot(4)] == damaged[0][slot(3) : slot(4)]
    with pytest.raises(KeyUnavailable, match="damaged in both"):
        again.data_key(2, bound(2))
    assert again.data_key(1, bound(1)) == keys[1]


def test_slots_that_open_in_neither_copy_are_named_by_their_places() -> None:
    vault, _ = filled(20)
    image = vault.image()
    assert load(image, image).unopened() == vault.unopened() == []
    assert load(flipped(image, slot(3) + 9), image).unopened() == []
    assert load(flipped(image, slot(3) + 9), flipped(image, slot(4) + 9)).unopened() == []
    assert load(flipped(image, slot(3) + 9), flipped(image, slot(3) + 10)).unopened() == [slot(3)]
    behind = len(image)
    longer = [image + os.urandom(SLOT), image + bytes(SLOT) + os.urandom(2 * SLOT)]
    assert load(*longer).unopened() == [behind, behind + SLOT, behind + 2 * SLOT]


def test_a_slot_that_the_master_key_does_not_open_is_named_though_its_check_is_right() -> None:
    image = filled(3)[0].image()
    wrong = checked(image, 3, flipped(image, slot(3) + 100)[slot(3) : slot(4)])
    assert load(wrong, wrong).unopened() == [slot(3)]


def test_a_damaged_slot_is_kept_where_the_other_copy_has_nothing() -> None:
    image = filled(1)[0].image()
    emptied = image[: slot(2)] + bytes(len(image) - slot(2))
    damaged = flipped(image, slot(2) + 200)
    for copies in ((emptied, damaged), (damaged, emptied)):
        assert load(*copies).image() == damaged


def test_a_strange_second_copy_gives_nothing() -> None:
    vault, keys = filled(1)
    stranger = Vault.create(b"y" * 16, b"j" * 32, MASTER, os.urandom)
    for stream in range(1, 60):
        stranger.add(stream, bound(stream))
    for other in (stranger.image(), os.urandom(5 * BLOCK), b"short"):
        for copies, stale in (((vault.image(), other), {1}), ((other, vault.image()), {0})):
            again = load(*copies)
            assert again.stale == stale
            assert again.image() == vault.image()
            assert again.data_key(1, bound(1)) == keys[1]


def test_an_older_copy_takes_the_newer_ones_slots() -> None:
    vault, _ = filled(1)
    older = vault.image()
    keys = {stream: vault.add(stream, bound(stream)) for stream in range(2, 40)}
    for copies, stale in (((older, vault.image()), {0}), ((vault.image(), older), {1})):
        again = load(*copies)
        assert again.stale == stale
        assert {stream: again.data_key(stream, bound(stream)) for stream in keys} == keys


def test_two_slots_cannot_change_places() -> None:
    image = bytearray(filled(2)[0].image())
    first, second = image[slot(2) : slot(3)], image[slot(3) : slot(4)]
    image[slot(2) : slot(4)] = second + first
    again = load(bytes(image), bytes(image))
    for stream in (1, 2):
        with pytest.raises(KeyUnavailable):
            again.data_key(stream, bound(stream))


def checked(image: bytes, number: int, contents: bytes) -> bytes:
    """The image with another slot, whose check is right."""
    body = contents[:-8] + slot(number).to_bytes(8, "little")
    contents = contents[:-8] + _native.blake3(body, IDENTITY)[:8]
    return image[: slot(number)] + contents + image[slot(number + 1) :]


@pytest.mark.parametrize("place", [4, 16, 32, 64, 88, 135, 136, 247])
def test_a_changed_slot_does_not_open_under_a_right_check(place: int) -> None:
    image = filled(1)[0].image()
    contents = bytearray(image[slot(2) : slot(3)])
    contents[place] ^= 2
    stream = int.from_bytes(contents[4:8], "little")
    forged = checked(image, 2, bytes(contents))
    with pytest.raises(KeyUnavailable):
        load(forged, forged).data_key(stream, bytes(contents[32:64]))


def test_a_key_that_is_not_the_one_its_slot_names_is_refused() -> None:
    image = filled(1)[0].image()
    domain = b"kimberlite/wrap/1" + bytes(15)
    wrapping = _native.derive(MASTER, domain + DATABASE)
    contents = bytearray(image[slot(2) : slot(3)])
    aad = domain + DATABASE + contents[:8] + contents[16:64]
    key = _native.xaes_open(wrapping, bytes(contents[64:88]), bytes(aad), bytes(contents[88:136]))
    assert key is not None
    contents[16:32] = bytes(16)
    aad = domain + DATABASE + contents[:8] + contents[16:64]
    contents[88:136] = _native.xaes_seal(wrapping, bytes(contents[64:88]), bytes(aad), key)
    forged = checked(image, 2, bytes(contents))
    with pytest.raises(KeyUnavailable):
        load(forged, forged).data_key(1, bound(1))


def test_a_byte_without_a_name_in_the_header_is_refused_under_a_right_check() -> None:
    image = filled(1)[0].image()
    head = image[:100] + b"\1" + image[101 : BLOCK - 8]
    forged = head + _native.blake3(head, IDENTITY)[:8] + image[BLOCK:]
    with pytest.raises(KeyUnavailable):
        load(forged, forged)
    assert load(forged, image).stale == {0}


@pytest.mark.parametrize("length", [slot(3), slot(3) + 1, slot(3) + SLOT - 1])
def test_cut_copies_become_whole_blocks_again(length: int) -> None:
    vault, keys = filled(1)
    cut = vault.image()[:length]
    again = load(cut, cut)
    assert again.stale == {0, 1}
    assert again.image() == vault.image()
    assert again.data_key(1, bound(1)) == keys[1]


def test_blocks_that_were_not_written_are_taken_along() -> None:
    vault = Vault.create(DATABASE, IDENTITY, MASTER, os.urandom)
    vault.add(1, bound(1))
    [(place, _)] = vault.dirty()
    vault.unwritten([place])
    vault.add(2, bound(2))
    assert vault.dirty() == [(place, vault.image()[place : place + BLOCK])]


@given(st.lists(st.tuples(st.integers(1, 2**32 - 1), st.binary(min_size=32, max_size=32)), unique=True, max_size=40))
def test_every_key_comes_back_for_its_stream_alone(streams: list[tuple[int, bytes]]) -> None:
    vault = Vault.create(DATABASE, IDENTITY, MASTER, os.urandom)
    keys = {each: vault.add(*each) for each in streams}
    assert len(vault.image()) % BLOCK == 0
    again = load(vault.image(), vault.image())
    assert again.stale == set()
    assert {each: again.data_key(*each) for each in streams} == keys
    assert len({*keys.values(), again.group_key, again.receipt_key}) == len(streams) + 2


def test_another_master_or_database_opens_nothing() -> None:
    image = filled(2)[0].image()
    with pytest.raises(KeyUnavailable):
        load(image, image, master=b"x" * 32)
    with pytest.raises(KeyUnavailable):
        load(image, image, database=b"y" * 16)
    with pytest.raises(KeyUnavailable):
        load(None, None)


def test_a_slot_damaged_in_both_copies_is_a_missing_key() -> None:
    vault, keys = filled(2)
    damaged = bytearray(vault.image())
    damaged[BLOCK + 2 * SLOT + 100] ^= 1
    again = load(bytes(damaged), bytes(damaged))
    with pytest.raises(KeyUnavailable):
        again.data_key(1, bound(1))
    assert again.data_key(2, bound(2)) == keys[2]


def test_keys_that_only_one_copy_has_are_all_kept_though_their_slots_are_in_one_place() -> None:
    base, keys = filled(3)
    forks = [load(base.image(), base.image()) for _ in range(2)]
    added = [fork.add(4, bound(40 + i)) for i, fork in enumerate(forks)]
    for order in (1, -1):
        copies = [fork.image() for fork in forks][::order]
        merged = load(*copies)
        assert merged.stale == {0, 1}
        again = load(merged.image(), merged.image())
        assert not again.stale
        for vault in (merged, again):
            assert [vault.data_key(4, bound(40 + i)) for i in range(2)] == added
            assert {stream: vault.data_key(stream, bound(stream)) for stream in keys} == keys
        # Put back again, a copy brings nothing new.
        for again in (load(merged.image(), copies[0]), load(copies[1], merged.image())):
            assert len(again.image()) == len(merged.image())
        assert merged.add(5, bound(5)) == merged.data_key(5, bound(5))


@pytest.mark.parametrize("hurt", [0, 1])
def test_a_slot_that_does_not_open_is_taken_from_the_copy_in_which_it_does(hurt: int) -> None:
    vault, keys = filled(3)
    copies = [vault.image(), vault.image()]
    image = bytearray(copies[hurt])
    place = slot(3)
    image[place + 100] ^= 1
    image[place + SLOT - 8 : place + SLOT] = _native.blake3(
        bytes(image[place : place + SLOT - 8]) + place.to_bytes(8, "little"), IDENTITY
    )[:8]
    copies[hurt] = bytes(image)
    merged = load(*copies)
    assert {stream: merged.data_key(stream, bound(stream)) for stream in keys} == keys
    assert merged.stale == {hurt}


@pytest.mark.parametrize("erased", [1, 2, 3])
def test_of_a_copy_from_before_a_rotation_nothing_is_used(erased: int) -> None:
    vault, keys = filled(3)
    before = vault.image()
    vault.erase({(erased, bound(erased))})
    vault.erase({(erased, bound(erased))})
    rotated = vault.rewrapped(b"n" * 32, {(stream, bound(stream)) for stream in keys})
    for copies, stale in (((before, rotated.image()), {0}), ((rotated.image(), before), {1})):
        again = load(*copies, master=b"n" * 32)
        assert (again.image(), again.stale, again.unopened()) == (rotated.image(), stale, [])
        found = {stream: again.data_key(stream, bound(stream)) for stream in keys}
        assert found == keys | {erased: None}
        assert (again.group_key, again.receipt_key) == (vault.group_key, vault.receipt_key)
        with pytest.raises(KeyUnavailable, match="finishes it"):
            load(*copies)
    with pytest.raises(KeyUnavailable, match=r"wrapped with, [0-9a-f]{32}$"):
        load(rotated.image(), rotated.image())


def test_a_damaged_slot_that_may_be_of_an_erased_stream_is_emptied_and_no_other() -> None:
    vault, keys = filled(3)
    image = vault.image()
    for place in (0, 4, 20, 40, 70, 100, 250):
        hurt = flipped(image, slot(3) + place)
        again = load(hurt, hurt)
        again.erase({(2, bound(2))})
        assert again.image()[slot(3) : slot(4)] == bytes(SLOT)
        assert {stream: again.data_key(stream, bound(stream)) for stream in (1, 3)} == {1: keys[1], 3: keys[3]}
    strange = vault.image() + bytes(BLOCK)
    fork = Vault.load(strange, strange, DATABASE, IDENTITY, MASTER, os.urandom)
    other = fork.add(2, bound(20))
    fork.erase({(2, bound(2)), (4, bound(20))})
    assert fork.data_key(2, bound(20)) == other
