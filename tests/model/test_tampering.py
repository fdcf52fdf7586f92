"""Whoever holds the files: what is changed is refused, or has a sound twin."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from . import Batch, Keys, Mark, Mode, ModelError, Producer, Record, read_log, write_log
from .conftest import MASTER, identity_of, read, small_operations, written
from .files import decode_identity, decode_marks, decode_vault, encode_marks, segment_name
from .groups import BLOCK, Group, decode_group, decode_run, decode_segment_header, encode_group, encode_run
from .records import Declaration, Entry, Many, Part, encode_plaintext, encode_record, encode_system


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


def forged(change: Callable[[Group], Group], *, tagged: bool = False) -> dict[str, bytes]:
    """A small log whose last group says something else, with every check, chain and mark made to fit."""
    files = written(small_operations(Mode(tagged)), tagged=tagged, segment_bytes=3 * BLOCK)
    identity, name = identity_of(tagged), segment_name(1)
    header = decode_segment_header(files[name][:BLOCK], name)
    group, tag = decode_group(files[name], BLOCK, header.salt, tagged=tagged, where=name)
    group = change(group)
    data = files[name][:BLOCK] + encode_group(group, BLOCK, header.salt, tag)
    mark = Mark(1, 0, group.number, group.chain(tagged))
    marks = encode_marks(mark, replace(mark, counter=2), identity)
    return {**files, name: data.ljust(2 * BLOCK, b"\0"), "marks": marks}


def with_run(**fields: Any) -> Callable[[Group], Group]:
    def change(group: Group) -> Group:
        run = replace(decode_run(group.runs[0], "run"), **fields)
        return replace(group, runs=(encode_run(run),))

    return change


def with_text(plaintext: bytes, **fields: Any) -> Callable[[Group], Group]:
    return with_run(text=plaintext, plain_length=len(plaintext), **fields)


def of_one(payload: bytes, *, ends: bool = True, producer: Producer | None = None) -> bytes:
    return encode_plaintext([Entry(1, ends, producer)], [encode_record(Record(payload))])


def declaring(stream: int, name: str, mode: Mode = Mode.PLAIN) -> Callable[[Group], Group]:
    payload = encode_system(Declaration(stream, mode, bytes(16), 0, name))
    return with_text(of_one(payload), stream=0, offset=1)


def test_a_group_made_anew_with_every_check_is_read_where_there_are_no_tags() -> None:
    log = read(forged(with_text(of_one(b"forged"))))
    assert log.rows[-1].payload == b"forged"


def test_a_group_made_anew_without_the_group_key_is_refused() -> None:
    files = forged(lambda group: replace(group, timestamp=group.timestamp + 1), tagged=True)
    assert read_log(files).tree_size == 4
    with pytest.raises(ModelError, match="tag"):
        read(files)


LIES: dict[str, tuple[Callable[[Group], Group], str]] = {
    "number": (lambda group: replace(group, number=4, durable_upto=3), "says that it is group 4"),
    "position": (lambda group: replace(group, position=9), "position"),
    "durable": (lambda group: replace(group, durable_upto=3), "durable_upto"),
    "timestamp": (lambda group: replace(group, timestamp=7), "log time goes back"),
    "previous": (lambda group: replace(group, previous=bytes(32)), "previous chain"),
    "closing": (lambda group: replace(group, closing=True), "closing groups"),
    "empty": (lambda group: replace(group, records=0, runs=()), "closing groups"),
    "records": (lambda group: replace(group, records=2), "other records"),
    "run offset": (with_run(offset=3), "offset 3"),
    "run position": (with_run(position=4), "position"),
    "stream": (with_run(stream=2), "is not declared"),
    "mode": (with_run(encrypted=True, plain_length=0, nonce=bytes(24), commitments=(bytes(32),)), "mode"),
    "length": (with_run(plain_length=7), "length of the plaintext"),
    "not zstd": (with_run(compressed=True, plain_length=999), "not a zstd frame"),
    "open batch": (with_text(of_one(b"", ends=False)), "ends inside a batch"),
    "digest": (with_text(of_one(b"", producer=Producer(b"p", 1, bytes(16)))), "digest"),
    "two in one": (with_text(of_one(b"") + encode_record(Record())), "too many"),
    "system": (with_text(of_one(b"\x09\0"), stream=0, offset=1), "kind 9"),
    "keyed system": (
        with_text(encode_plaintext([Entry(1, True)], [encode_record(Record(key=b""))]), stream=0, offset=1),
        "with a key",
    ),
    "declared late": (declaring(3, "b"), "out of order"),
    "declared twice": (declaring(2, "a"), "again"),
    "declared alone": (declaring(2, "b"), "without records"),
    "declared encrypted": (declaring(2, "b", Mode.ENCRYPTED), "without a master key"),
    "parts": (
        with_text(of_one(encode_system(Many(bytes(16), 0, bytes(16), (Part(1, 3, 1),)))), stream=0, offset=1),
        "does not follow it",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_group_that_contradicts_the_log_is_refused_whatever_its_checks_say(lie: str) -> None:
    change, what = LIES[lie]
    with pytest.raises(ModelError, match=what):
        read(forged(change))


def test_a_plaintext_beyond_64_kib_is_one_record() -> None:
    canonicals = [encode_record(Record(b"x" * 40_000))] * 2
    text = encode_plaintext([Entry(2, True)], canonicals)
    change = with_text(text, records=2)
    with pytest.raises(ModelError, match="more than 64 KiB"):
        read(forged(lambda group: replace(change(group), records=2)))


def test_a_mark_with_another_chain_is_refused(small: dict[str, bytes]) -> None:
    identity = decode_identity(small["identity"])
    mark = Mark(1, 0, 3, bytes(32))
    with pytest.raises(ModelError, match="another chain of group 3"):
        read({**small, "marks": encode_marks(mark, replace(mark, counter=2), identity)})
