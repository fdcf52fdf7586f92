"""The identity file: it comes back as it was, or is refused."""

from __future__ import annotations

import hashlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimberlite import _native
from kimberlite.errors import Corrupt, Misconfigured
from kimberlite.log.identity import Identity

DOMAIN = b"kimberlite/identity/1" + bytes(11)
U64 = st.integers(0, 2**64 - 1)
ORIGINS = st.text(
    st.characters(blacklist_categories=["Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs"], blacklist_characters="+"),
    min_size=1,
    max_size=60,
)


def example(**fields: object) -> Identity:
    values: dict[str, object] = {
        "origin": "example.com/log",
        "database_id": bytes(range(16)),
        "tagged": True,
        "quantum": 128,
        "created": 1_700_000_000_000_000_000,
    }
    return Identity(**(values | fields))  # type: ignore[arg-type]


@given(ORIGINS, st.binary(min_size=16, max_size=16), st.booleans(), st.integers(0, 31), U64)
def test_what_is_encoded_is_decoded(origin: str, database_id: bytes, tagged: bool, exponent: int, created: int) -> None:
    identity = Identity(origin, database_id, tagged, 1 << exponent, created)
    again = Identity.decode(identity.encode())
    assert again == identity
    assert again.hash == identity.hash


def test_its_bytes_are_those_of_the_format() -> None:
    data = example().encode()
    assert len(data) == 512
    assert data[:16] == b"KIMBID01" + bytes([1, 0, 1, 1, 128, 0, 0, 0])
    assert data[16:32] == bytes(range(16))
    assert int.from_bytes(data[32:40], "little") == 1_700_000_000_000_000_000
    assert data[40:57] == bytes([15, 0]) + b"example.com/log"
    assert data[57:480] == bytes(423)
    assert example().hash == hashlib.sha256(DOMAIN + data[:480]).digest()


def test_every_flipped_bit_is_damage() -> None:
    data = example().encode()
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Corrupt) as raised:
            Identity.decode(bytes(damaged))
        assert raised.value.file == "identity"


@pytest.mark.parametrize("length", [0, 42, 480, 511, 513, 4096])
def test_another_length_is_damage(length: int) -> None:
    with pytest.raises(Corrupt):
        Identity.decode(example().encode().ljust(4096, b"\0")[:length])


@pytest.mark.parametrize("quantum", [0, 3, 127, 2**32 - 1])
def test_a_quantum_that_is_no_power_of_two_is_refused_under_a_right_check(quantum: int) -> None:
    with pytest.raises(Corrupt, match="power of two"):
        Identity.decode(example(quantum=quantum).encode())


@pytest.mark.parametrize("origin", ["", "a b", "a+b", "a\n", "a\x7f", "a\u2028b", "x" * 256, "é" * 128])
def test_an_origin_that_is_not_allowed_is_refused_at_both_doors(origin: str) -> None:
    with pytest.raises(Misconfigured):
        Identity.new(origin, tagged=True, created=1, random=os.urandom)
    with pytest.raises(Corrupt):
        Identity.decode(example(origin=origin).encode())


def test_an_origin_that_is_no_text_is_refused() -> None:
    with pytest.raises(Misconfigured):
        Identity.new("a\udc80", tagged=True, created=1, random=os.urandom)


def test_the_longest_origin_fits() -> None:
    identity = example(origin="é" * 127 + "x")
    assert Identity.decode(identity.encode()) == identity


def forged(place: int, value: int) -> bytes:
    """One byte set, and the check made right again."""
    data = bytearray(example().encode()[:480])
    data[place] = value
    return bytes(data) + _native.blake3(DOMAIN + bytes(data))


@pytest.mark.parametrize("place", [11, 57, 479])
def test_a_byte_without_a_name_is_refused_under_a_right_check(place: int) -> None:
    with pytest.raises(Corrupt):
        Identity.decode(forged(place, 2))


@pytest.mark.parametrize("place", [0, 8, 10])
def test_another_version_is_not_read(place: int) -> None:
    with pytest.raises(Misconfigured):
        Identity.decode(forged(place, 2))


def test_a_new_one_is_named_after_its_random_id() -> None:
    first, second = (Identity.new(None, tagged=False, created=5, random=os.urandom) for _ in range(2))
    assert first.origin == f"kimberlite/{first.database_id.hex()}"
    assert first.database_id != second.database_id
    assert first.hash != second.hash
    assert (first.tagged, first.quantum, first.created) == (False, 128, 5)
    assert Identity.new("mine", tagged=True, created=5, random=os.urandom).origin == "mine"
