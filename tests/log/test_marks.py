"""The marks file: the newest sound mark counts, and what is not sound is named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimberlite import _native
from kimberlite.errors import Corrupt
from kimberlite.log.marks import Mark, Marks, decode_marks, encode_mark

BLOCK = 4096
DATABASE, IDENTITY = bytes(range(16)), b"i" * 32
#: The bytes of a block that have a meaning, and its check; all between are zero.
FIELDS = [*range(80), *range(4088, 4096)]


def mark(counter: int) -> Mark:
    return Mark(counter, 7, counter % 3 == 0, 100 + counter, bytes([counter]) * 32)


def block(counter: int) -> bytes:
    return encode_mark(mark(counter), DATABASE, IDENTITY)


def decode(data: bytes) -> Marks:
    return decode_marks(data, DATABASE, IDENTITY)


def flipped(data: bytes, bit: int) -> bytes:
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def forged(place: int, value: int) -> bytes:
    """Mark 4 with one byte set, and the check made right again."""
    data = bytearray(block(4)[:-8])
    data[place] = value
    return bytes(data) + _native.blake3(bytes(data), IDENTITY)[:8]


@given(
    st.integers(0, 2**63 - 2).map(lambda counter: counter // 2 * 2),
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.integers(1, 2**63 - 1),
    st.binary(min_size=32, max_size=32),
)
def test_what_is_encoded_is_decoded(counter: int, incarnation: int, clean: bool, group: int, chain: bytes) -> None:
    older = Mark(counter, incarnation, clean, group, chain)
    newer = older._replace(counter=counter + 1)
    encoded = [encode_mark(each, DATABASE, IDENTITY) for each in (older, newer)]
    assert [len(each) for each in encoded] == [BLOCK, BLOCK]
    assert decode(b"".join(encoded)) == (newer, ())
    assert decode(encoded[0] + bytes(BLOCK)) == (older, (1,))


def test_its_bytes_are_those_of_the_format() -> None:
    data = encode_mark(Mark(6, 5, True, 4, b"c" * 32), DATABASE, IDENTITY)
    numbers = (6).to_bytes(8, "little"), (5).to_bytes(4, "little"), (1).to_bytes(4, "little"), (4).to_bytes(8, "little")
    assert data[:80] == b"KIMBMRK1" + DATABASE + b"".join(numbers) + b"c" * 32
    assert data[80:4088] == bytes(4008)
    assert data[4088:] == _native.blake3(data[:4088], IDENTITY)[:8]


@pytest.mark.parametrize(("first", "second"), [(0, 1), (2, 1), (4, 3), (4, 5)])
def test_the_higher_counter_is_the_newest(first: int, second: int) -> None:
    assert decode(block(first) + block(second)) == (mark(max(first, second)), ())


@pytest.mark.parametrize("hurt", [0, 1])
def test_every_flipped_bit_of_one_mark_leaves_the_other(hurt: int) -> None:
    blocks = [block(4), block(5)]
    sound = blocks[1 - hurt]
    for place in FIELDS:
        for bit in range(8):
            damaged = flipped(blocks[hurt], place * 8 + bit)
            found = decode(damaged + sound if hurt == 0 else sound + damaged)
            assert found == (mark(5 - hurt), (hurt,))


def test_a_flipped_bit_between_the_fields_is_damage() -> None:
    for place in range(80, 4088):
        assert decode(flipped(block(4), place * 8 + place % 8) + block(5)).damaged == (0,)


@pytest.mark.parametrize("place", [0, 8, 37, 36, 80, 4087])
def test_a_wrong_byte_is_damage_under_a_right_check(place: int) -> None:
    assert decode(forged(place, 2) + block(5)) == (mark(5), (0,))


def test_a_mark_in_the_place_of_the_other_is_damage() -> None:
    assert decode(block(4) + block(6)) == (mark(4), (1,))
    with pytest.raises(Corrupt):
        decode(block(5) + block(4))


@pytest.mark.parametrize("counter", [2**63, 2**64 - 2])
def test_a_counter_that_no_log_comes_to_is_damage(counter: int) -> None:
    made_up = [encode_mark(mark(4)._replace(counter=each), DATABASE, IDENTITY) for each in (counter, counter + 1)]
    assert decode(made_up[0] + block(5)) == (mark(5), (0,))
    assert decode(block(4) + made_up[1]) == (mark(4), (1,))
    with pytest.raises(Corrupt) as raised:
        decode(b"".join(made_up))
    assert (raised.value.file, raised.value.place) == ("marks", 0)


@pytest.mark.parametrize("numbers", [{"group": 2**63}, {"group": 2**64 - 1}, {"group": 0}])
def test_a_group_that_no_log_comes_to_is_damage(numbers: dict[str, int]) -> None:
    made_up = encode_mark(mark(4)._replace(**numbers), DATABASE, IDENTITY)  # type: ignore[arg-type]
    assert decode(made_up + block(5)) == (mark(5), (0,))


def test_before_the_first_group_the_chain_is_the_identity() -> None:
    first = Mark(4, 0, False, 0, IDENTITY)
    assert decode(encode_mark(first, DATABASE, IDENTITY) + bytes(BLOCK)) == (first, (1,))


def test_zeros_are_damage() -> None:
    assert decode(bytes(BLOCK) + block(1)) == (mark(1), (0,))
    assert decode(block(0) + bytes(BLOCK)) == (mark(0), (1,))


def test_a_cut_block_is_damage() -> None:
    whole = block(4) + block(5)
    for length in (BLOCK, BLOCK + 1, 2 * BLOCK - 1):
        assert decode(whole[:length]) == (mark(4), (1,))


@pytest.mark.parametrize(
    "data", [b"", bytes(BLOCK), bytes(2 * BLOCK), block(4)[:-1], b"\xff" * 2 * BLOCK, block(4) + block(5) + b"\0"]
)
def test_without_a_sound_mark_the_file_and_place_are_named(data: bytes) -> None:
    with pytest.raises(Corrupt) as raised:
        decode(data)
    assert (raised.value.file, raised.value.place) == ("marks", 0 if len(data) <= 2 * BLOCK else 2 * BLOCK)


def test_the_marks_of_another_database_are_not_taken() -> None:
    data = block(4) + block(5)
    for database, identity in ((b"x" * 16, IDENTITY), (DATABASE, b"x" * 32)):
        with pytest.raises(Corrupt):
            decode_marks(data, database, identity)
