"""Whole directories: what is written is read, and nothing else is."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from . import (
    AppendMany,
    Batch,
    Keys,
    Log,
    Mode,
    ModelError,
    Record,
    Row,
    Sender,
    hashes_file,
    pack_segment,
    read_log,
    write_log,
)
from .conftest import Operations, identity_of, read, written
from .files import leaf_index, segment_name
from .groups import BLOCK, RUN_PLAINTEXT, decode_group, decode_run, decode_segment_header
from .hashes import tree_root
from .records import Many, decode_system


def batches_of(operations: Operations) -> Iterator[tuple[Batch, bool]]:
    """Every batch, and whether it was a part of an append to several streams."""
    for group in operations:
        for operation in group:
            if isinstance(operation, AppendMany):
                yield from ((batch, True) for batch in operation.batches)
            elif isinstance(operation, Batch):
                yield operation, False


def by_clients(log: Log) -> list[Row]:
    return [row for row in log.rows if row.stream > 0]


def agree(log: Log, operations: Operations) -> None:
    rows = iter(by_clients(log))
    offsets: dict[str, int] = {}
    for batch, part in batches_of(operations):
        for i, record in enumerate(batch.records):
            row = next(rows)
            assert (row.name, row.offset) == (batch.stream, offsets.get(batch.stream, 0))
            assert (row.record, row.last) == (record, i == len(batch.records) - 1)
            sender = row.producer and Sender(row.producer.identifier, row.producer.sequence)
            assert sender == (None if part else batch.producer)
            offsets[batch.stream] = row.offset + 1
    assert next(rows, None) is None
    assert [row.position for row in log.rows] == list(range(log.tree_size))


texts = st.binary(max_size=40) | st.builds(lambda size: b"a" * size, st.integers(0, 3_000))
records = st.builds(
    Record,
    payload=texts,
    key=st.none() | st.binary(max_size=8),
    headers=st.lists(st.tuples(st.text(max_size=5), st.binary(max_size=5)), max_size=2).map(tuple),
    event_time=st.none() | st.integers(-(1 << 63), (1 << 63) - 1),
)
senders = st.builds(Sender, st.binary(min_size=1, max_size=20), st.integers(0, (1 << 64) - 1))


@st.composite
def logs(draw: st.DrawFn) -> tuple[Operations, bool]:
    tagged = draw(st.booleans())
    modes = {name: Mode(tagged and draw(st.integers(0, 1))) for name in ("", "a", "tenant/é", "\0")}

    def batches(*, sent: bool) -> st.SearchStrategy[Batch]:
        return st.builds(
            lambda name, given, producer: Batch(name, tuple(given), modes[name], producer),
            st.sampled_from(sorted(modes)),
            st.lists(records, min_size=1, max_size=6),
            st.none() | senders if sent else st.none(),
        )

    parts = st.lists(batches(sent=False), min_size=1, max_size=3).map(tuple)
    many = st.builds(AppendMany, parts, st.none() | senders)
    groups = st.lists(st.lists(batches(sent=True) | many, min_size=1, max_size=4), max_size=5)
    return draw(groups), tagged


@settings(deadline=None, max_examples=60)
@given(logs(), st.booleans(), st.sampled_from([160_000, 1 << 20]), st.sampled_from([0, BLOCK, 3 * BLOCK]))
def test_what_is_written_is_read(made: tuple[Operations, bool], compress: bool, segment_bytes: int, zeros: int) -> None:
    operations, tagged = made
    files = written(operations, tagged=tagged, segment_bytes=segment_bytes, compress=compress, zeros=zeros)
    log = read(files)
    agree(log, operations)
    assert not log.doubts
    assert log.root == tree_root([row.leaf for row in log.rows])
    assert sum(not group.closing for group in log.groups) == len(operations)
    for group in log.groups:
        assert group.root == tree_root([row.leaf for row in log.rows[: group.tree_size]])
    hashes = hashes_file(log)
    assert len(hashes) == BLOCK + 32 * leaf_index(log.tree_size)
    for row in log.rows:
        place = BLOCK + 32 * leaf_index(row.position)
        assert hashes[place : place + 32] == row.leaf


@settings(deadline=None, max_examples=30)
@given(logs(), st.booleans())
def test_an_auditor_without_keys_finds_the_same_tree_and_chain(made: tuple[Operations, bool], compress: bool) -> None:
    operations, tagged = made
    files = written(operations, tagged=tagged, compress=compress)
    owner, auditor = read(files), read_log(files)
    assert (auditor.root, auditor.chain, auditor.groups) == (owner.root, owner.chain, owner.groups)
    for mine, theirs in zip(owner.rows, auditor.rows, strict=True):
        assert theirs.sealed == mine.encrypted
        assert theirs.leaf == mine.leaf


@settings(deadline=None, max_examples=30)
@given(logs())
def test_packing_keeps_everything_but_places(made: tuple[Operations, bool]) -> None:
    operations, tagged = made
    files = written(operations, tagged=tagged, segment_bytes=160_000)
    name = segment_name(0)
    packed = {**files, name: pack_segment(files[name], b"s" * 32, tagged=tagged)}
    assert len(packed[name]) <= len(files[name])
    before, after = read(files), read(packed)
    assert (after.rows, after.root, after.chain) == (before.rows, before.root, before.chain)
    places = [replace(group, place=0) for group in before.groups]
    assert [replace(group, place=0) for group in after.groups] == places


def runs_of_first_segment(files: Mapping[str, bytes], tagged: bool) -> list[list[tuple[int, int, int]]]:
    """(stream, records, length of the plaintext) of every run, by group."""
    data = files[segment_name(0)]
    salt = decode_segment_header(data[:BLOCK], "segment").salt
    groups, place = [], BLOCK
    while place < len(data):
        group, _ = decode_group(data, place, salt, tagged=tagged, where="group")
        runs = [decode_run(run, "run") for run in group.runs]
        groups.append([(run.stream, run.records, run.plain_length) for run in runs])
        place += -(-int.from_bytes(data[place + 8 : place + 12], "little") // BLOCK) * BLOCK
    return groups


def test_neighbours_share_runs_of_at_most_64_kib() -> None:
    small = Batch("a", (Record(b"x" * 100),) * 3)
    large = Batch("a", (Record(b"y" * 1_000),) * 200, producer=Sender(b"p", 0))
    huge = Batch("a", (Record(b"z" * (RUN_PLAINTEXT + 1)),))
    operations = [[small, small, large, huge, Batch("b", (Record(),)), small]]
    files = written(operations, tagged=False)
    agree(read(files), operations)
    (runs,) = runs_of_first_segment(files, tagged=False)
    streams = [stream for stream, _, _ in runs]
    # the declarations of "a" and "b" stand in front of their first batches
    assert streams == [0, 1, 1, 1, 1, 1, 0, 2, 1]
    assert all(length <= RUN_PLAINTEXT or held == 1 for _, held, length in runs)
    # 64 KiB less 4 of the count, 2 small batches and the first entry with its producer
    left = RUN_PLAINTEXT - 4 - 2 * (5 + 3 * 121) - (5 + 1 + 1 + 8 + 16)
    assert runs[1][1] == 6 + left // 1_021


def test_an_encrypted_run_holds_one_batch() -> None:
    small = Batch("a", (Record(b"x"),) * 3, Mode.ENCRYPTED)
    large = Batch("a", (Record(b"y" * 1_000),) * 100, producer=Sender(b"p", 0))
    operations = [[small, small, large, small]]
    files = written(operations, tagged=True)
    agree(read(files), operations)
    (runs,) = runs_of_first_segment(files, tagged=True)
    assert [held for _, held, _ in runs] == [1, 3, 3, 64, 36, 3]


@pytest.mark.parametrize("tagged", [False, True], ids=["plain", "encrypted"])
def test_compression_shows_in_the_size_and_nowhere_else(tagged: bool) -> None:
    operations = [[Batch("a", (Record(b"{}" * 2_000),) * 40, Mode(tagged))]]
    loose = written(operations, tagged=tagged)
    tight = written(operations, tagged=tagged, compress=True)
    assert len(tight[segment_name(0)]) < len(loose[segment_name(0)]) // 8
    assert [row.record for row in read(tight).rows] == [row.record for row in read(loose).rows]


def test_a_full_segment_ends_with_an_empty_closing_group() -> None:
    operations = [[Batch("a", (Record(b"x" * 3_000),))]] * 5
    log = read(written(operations, tagged=False, segment_bytes=4 * BLOCK))
    assert [(group.segment, group.records, group.closing) for group in log.groups] == [
        (0, 2, False),
        (0, 1, False),
        (0, 0, True),
        (1, 1, False),
        (1, 1, False),
        (1, 0, True),
        (2, 1, False),
    ]
    assert log.durable_upto == (0, 1, 2, 3, 4, 5, 6)


def test_a_group_that_no_segment_holds_is_not_written() -> None:
    with pytest.raises(ModelError, match="in segments of"):
        written([[Batch("a", (Record(b"x" * 9_000),))]], tagged=False, segment_bytes=4 * BLOCK)


def test_log_time_never_goes_back() -> None:
    times = iter([50, 40, 60])
    files = write_log(
        identity_of(False),
        [[Batch("a", (Record(),))]] * 3,
        keys=Keys(bytes(32), bytes(32)),
        entropy=random.Random(1).randbytes,
        clock=times.__next__,
    )
    assert [group.timestamp for group in read(files).groups] == [50, 50, 60]


def test_an_append_to_several_says_who_sent_it_in_front_of_its_parts() -> None:
    one, two = Batch("a", (Record(b"1"), Record(b"2"))), Batch("b", (Record(b"3"),))
    log = read(written([[one, AppendMany((one, two, one), Sender(b"p", 4))]], tagged=False))
    row = log.rows[4]
    said = decode_system(row.opened, "record")
    assert isinstance(said, Many)
    assert (row.stream, said.sequence) == (0, 4)
    assert [(part.stream, part.offset, part.records) for part in said.parts] == [
        (1, 2, 2),
        (2, 0, 1),
        (1, 4, 2),
    ]


def test_an_encrypted_stream_needs_a_master_key() -> None:
    with pytest.raises(ModelError, match="without a master key"):
        written([[Batch("a", (Record(),), Mode.ENCRYPTED)]], tagged=False)
