"""Whoever makes every check, chain and mark fit: what contradicts the log is refused all the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from . import Mark, Mode, ModelError, Producer, Record, pack_segment, read_log
from .conftest import MASTER, identity_of, read, small_operations, written
from .cursor import HIGHEST
from .files import decode_identity, decode_vault, encode_marks, segment_name, unwrap_slot
from .groups import (
    BLOCK,
    Group,
    decode_group,
    decode_run,
    decode_segment_header,
    encode_group,
    encode_inner,
    encode_run,
    encode_segment_header,
    seal_text,
    shrink,
)
from .hashes import commitment, group_tag, run_seed, salts, seal_key
from .records import Declaration, Entry, Many, Part, encode_plaintext, encode_record, encode_system


def forged(
    change: Callable[[Group], Group], *, tagged: bool = False, group_key: bytes | None = None
) -> dict[str, bytes]:
    """A small log whose last group says something else, with every check, chain and mark made to fit.

    The tag fits only with the group key.
    """
    files = written(small_operations(Mode(tagged)), tagged=tagged, segment_bytes=3 * BLOCK)
    identity, name = identity_of(tagged), segment_name(1)
    header = decode_segment_header(files[name][:BLOCK], name)
    group, tag = decode_group(files[name], BLOCK, header.salt, tagged=tagged, where=name)
    group = change(group)
    if group_key is not None:
        tag = group_tag(group_key, group.chain(tagged))
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
    "high number": (lambda group: replace(group, number=HIGHEST), "run over"),
    "high position": (lambda group: replace(group, position=HIGHEST), "run over"),
    "late": (lambda group: replace(group, timestamp=HIGHEST + 1), "run over"),
    "high offset": (with_run(offset=HIGHEST), "run over"),
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


def two_streams(group: Group) -> Group:
    """A batch of "a" that goes on behind a system record."""
    first = decode_run(with_text(of_one(b"", ends=False))(group).runs[0], "run")
    second = replace(first, stream=0, offset=1, position=first.position + 1)
    return replace(group, records=2, runs=(encode_run(first), encode_run(second)))


def test_a_batch_is_not_interrupted() -> None:
    with pytest.raises(ModelError, match="inside a batch of another stream"):
        read(forged(two_streams))


ZSTD = {
    "longer": (shrink(b"ab"), 2, "not shorter"),
    "torn": (shrink(b"a" * 999)[:-1], 999, "not one whole"),
    "two": (shrink(b"a" * 999) * 2, 999, "not one whole"),
    "other length": (shrink(b"a" * 999), 998, "another length"),
    "damaged": (shrink(bytes(range(256)) * 9)[:4] + b"\xff" * 30, 2_304, "zstd"),
}


@pytest.mark.parametrize("kind", ZSTD)
def test_a_compressed_run_is_one_frame_of_the_length_it_says(kind: str) -> None:
    frame, length, what = ZSTD[kind]
    with pytest.raises(ModelError, match=what):
        read(forged(with_run(text=frame, compressed=True, plain_length=length)))


def resealed(entries: list[Entry], *, committed: bool = True, **fields: Any) -> dict[str, bytes]:
    """The last run of an encrypted log, written by somebody who has all keys."""
    files = written(small_operations(Mode.ENCRYPTED), tagged=True, segment_bytes=3 * BLOCK)
    identity = decode_identity(files["identity"])
    _, slots, _ = decode_vault([("vault.0", files["vault.0"])], identity)
    group_key, _, data_key = (unwrap_slot(slot, MASTER, identity, "vault") for slot in slots)
    canonical = encode_record(Record(b"z"))
    count = sum(entry.records for entry in entries)

    def change(group: Group) -> Group:
        run = replace(decode_run(group.runs[0], "run"), records=count, **fields)
        salted = salts(run_seed(data_key, run.nonce), count)
        told = [commitment(slots[2].declared, salt if committed else bytes(32), canonical) for salt in salted]
        run = replace(run, commitments=tuple(told))
        inner = encode_inner(encode_plaintext(entries, [canonical] * count), identity.quantum, False)
        run = replace(run, text=seal_text(run, inner, seal_key(data_key), identity.database))
        return replace(group, records=count, runs=(encode_run(run),))

    return forged(change, tagged=True, group_key=group_key)


def test_an_encrypted_run_of_its_own_keys_is_read() -> None:
    assert read(resealed([Entry(2, True)])).tree_size == 5


def test_a_ciphertext_that_contradicts_its_commitments_is_seen_only_with_keys() -> None:
    files = resealed([Entry(1, True)], committed=False)
    assert read_log(files).tree_size == 4
    with pytest.raises(ModelError, match="commitments"):
        read(files)


def test_what_is_sealed_does_not_contradict_its_clear_header() -> None:
    with pytest.raises(ModelError, match="several batches"):
        read(resealed([Entry(1, True), Entry(1, True)]))
    with pytest.raises(ModelError, match="end of its batch"):
        read(resealed([Entry(1, False)]))
    with pytest.raises(ModelError, match="ends inside a batch"):
        read_log(resealed([Entry(1, False)], ends=False))
    with pytest.raises(ModelError, match="key id"):
        read(resealed([Entry(1, True)], key_id=bytes(16)))


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("number", 2, "says that it is segment 2"),
        ("first_group", 2, "first group"),
        ("first_position", 9, "first position"),
        ("chain_before", bytes(32), "last chain of the segment before"),
    ],
)
def test_a_segment_header_that_contradicts_the_log_is_refused(
    small: dict[str, bytes], field: str, value: object, what: str
) -> None:
    name = segment_name(1)
    header = decode_segment_header(small[name][:BLOCK], name)
    lying = encode_segment_header(replace(header, **{field: value}))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=what):
        read({**small, name: lying + small[name][BLOCK:]})


@pytest.mark.parametrize(("field", "value"), [("length", BLOCK), ("last_group", 3), ("last_chain", bytes(32))])
def test_a_packed_segment_names_its_end(small: dict[str, bytes], field: str, value: object) -> None:
    name = segment_name(0)
    data = pack_segment(small[name], b"s" * 32, tagged="vault.0" in small)
    header = decode_segment_header(data[:BLOCK], name)
    assert header.packed is not None
    lying = replace(header, packed=replace(header.packed, **{field: value}))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=field.replace("_", " ")):
        read({**small, name: encode_segment_header(lying) + data[BLOCK:]})


def test_nothing_follows_a_closing_group() -> None:
    files = written(small_operations(Mode.PLAIN), tagged=False, segment_bytes=3 * BLOCK)
    name = segment_name(0)
    header = decode_segment_header(files[name][:BLOCK], name)
    closing, _ = decode_group(files[name], 2 * BLOCK, header.salt, tagged=False, where=name)
    again = replace(closing, number=3, previous=closing.chain(False))
    more = encode_group(again, 3 * BLOCK, header.salt, None).ljust(BLOCK, b"\0")
    with pytest.raises(ModelError, match="behind its closing group"):
        read({**files, name: files[name] + more})


def test_a_mark_with_another_chain_is_refused(small: dict[str, bytes]) -> None:
    identity = decode_identity(small["identity"])
    mark = Mark(1, 0, 3, bytes(32))
    with pytest.raises(ModelError, match="another chain of group 3"):
        read({**small, "marks": encode_marks(mark, replace(mark, counter=2), identity)})
