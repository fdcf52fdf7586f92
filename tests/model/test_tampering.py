"""Whoever holds the files: what is changed is refused, or has a sound twin."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import count

import pytest

from . import Batch, Keys, Mode, ModelError, Record, read_log, write_log
from .conftest import MASTER, identity_of, read, small_operations, written
from .files import decode_identity, decode_marks, decode_vault, segment_name
from .groups import (
    BLOCK,
)


def flips(data: bytes) -> Iterator[bytes]:
    """Every bit of what is not zero; far from that, one bit in every eighth byte."""
    for place, byte in enumerate(data):
        near = any(data[max(0, place - 4) : place + 5])
        bits = range(8) if near else [place // 8 % 8] if place % 8 == 0 else []
        for bit in bits:
            yield data[:place] + bytes([byte ^ 1 << bit]) + data[place + 1 :]


def test_every_flipped_bit_of_a_segment_is_refused(small: dict[str, bytes]) -> None:
    for number in (0, 1):
        name = segment_name(number)
        for data in flips(small[name]):
            with pytest.raises(ModelError):
                read({**small, name: data})


def test_every_flipped_bit_of_the_identity_is_refused(small: dict[str, bytes]) -> None:
    for data in flips(small["identity"]):
        with pytest.raises(ModelError):
            decode_identity(data)


def test_every_flipped_bit_of_a_mark_leaves_its_twin(small: dict[str, bytes]) -> None:
    identity = decode_identity(small["identity"])
    sound, _ = decode_marks(small["marks"], identity)
    for data in flips(small["marks"]):
        marks, problems = decode_marks(data, identity)
        assert len(marks) == len(problems) == 1
        assert marks[0] in sound
    assert len(read({**small, "marks": data}).doubts) == 1


def test_every_flipped_bit_of_a_vault_is_taken_from_the_other_copy() -> None:
    files = written([[Batch("a", (Record(),), Mode.ENCRYPTED)]], tagged=True)
    identity = decode_identity(files["identity"])
    header, slots, _ = decode_vault([("vault.0", files["vault.0"]), ("vault.1", files["vault.1"])], identity)
    assert len(slots) == 3
    for data in flips(files["vault.0"]):
        found = decode_vault([("vault.0", data), ("vault.1", files["vault.1"])], identity)
        assert found[:2] == (header, slots)
        assert found[2]
        with pytest.raises(ModelError):
            decode_vault([("vault.0", data), ("vault.1", data)], identity)
    assert read({**files, "vault.0": data}).doubts


def without(files: Mapping[str, bytes], *names: str) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name not in names}


@pytest.mark.parametrize("name", ["identity", "marks", segment_name(0), segment_name(1)])
def test_a_missing_file_is_refused(small: dict[str, bytes], name: str) -> None:
    with pytest.raises(ModelError):
        read(without(small, name))


def test_a_missing_tail_below_the_mark_is_refused(small: dict[str, bytes]) -> None:
    name = segment_name(1)
    with pytest.raises(ModelError, match="is missing"):
        read({**small, name: small[name][:BLOCK]})


def test_one_vault_is_enough_and_none_is_not() -> None:
    files = written([[Batch("a", (Record(b"x"),), Mode.ENCRYPTED)]], tagged=True)
    for name in ("vault.0", "vault.1"):
        log = read(without(files, name))
        assert log.doubts
        assert log.rows[-1].payload == b"x"
    with pytest.raises(ModelError, match="missing"):
        read_log(without(files, "vault.0", "vault.1"), MASTER)
    auditor = read_log(without(files, "vault.0", "vault.1"))
    assert auditor.rows[-1].sealed
    assert auditor.doubts


def test_another_master_key_opens_nothing() -> None:
    files = written([[Batch("a", (Record(b"x"),), Mode.ENCRYPTED)]], tagged=True)
    with pytest.raises(ModelError, match="another master key"):
        read_log(files, b"n" * 32)


def test_a_master_key_is_refused_where_the_identity_knows_none() -> None:
    with pytest.raises(ModelError, match="no master key"):
        read_log(written(small_operations(Mode.PLAIN), tagged=False), MASTER)


def test_segments_of_another_database_are_refused(small: dict[str, bytes]) -> None:
    tagged = "vault.0" in small
    other = write_log(
        replace(identity_of(tagged), database=bytes(16)),
        small_operations(Mode(tagged)),
        keys=Keys(bytes(32), bytes(32), MASTER if tagged else None),
        entropy=random.Random(6).randbytes,
        clock=count(1).__next__,
        segment_bytes=3 * BLOCK,
    )
    for number in (0, 1):
        name = segment_name(number)
        with pytest.raises(ModelError, match="another database"):
            read({**small, name: other[name]})


def test_swapped_segments_are_refused(small: dict[str, bytes]) -> None:
    one, two = segment_name(0), segment_name(1)
    with pytest.raises(ModelError, match="says that it is segment"):
        read({**small, one: small[two], two: small[one]})
