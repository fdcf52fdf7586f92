"""The vault: what is put in is had back with the right master key, and with nothing else."""

from __future__ import annotations

import os

import pytest

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


def test_every_flipped_bit_of_one_copy_is_healed_by_the_other() -> None:
    vault, keys = filled(3)
    image = vault.image()
    for place in range(0, BLOCK + 5 * SLOT):
        damaged = bytearray(image)
        damaged[place] ^= 1 << place % 8
        again = load(bytes(damaged), image)
        assert again.data_key(2, bound(2)) == keys[2]
        assert again.group_key == vault.group_key
        assert again.stale == {0}


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
