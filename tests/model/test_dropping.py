"""Logs whose oldest segments were dropped: what the record must say, and who notices when it says something else."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import count

import pytest

from kimberlite.errors import Corrupt, KeyUnavailable
from kimberlite.log.verify import verify
from kimberlite.storage.memory import Disk, MemoryBackend

from . import (
    AppendMany,
    Batch,
    Keys,
    Log,
    Mode,
    ModelError,
    Operation,
    Record,
    Retained,
    Said,
    Sender,
    encode_system,
    pack_segment,
    pieces_of,
    read_log,
    retained_of,
    without,
    write_log,
)
from .conftest import MASTER, identity_of
from .files import segment_name
from .groups import BLOCK
from .hashes import blake
from .records import Declaration, Piece
from .retained import encode_retained

KEPT = 3
Change = Callable[[Retained], Retained]


def batch(stream: str, number: int, mode: Mode, *, sent: bool = True) -> Batch:
    payload = Record(b"%s %d." % (stream.encode(), number) * 3)
    return Batch(stream, (payload, payload), mode, Sender(stream.encode() * 2, number) if sent else None)


def operations(tagged: bool) -> list[list[Operation]]:
    """Groups of two a segment. "early" is dropped whole, "late" begins behind."""
    mode = Mode(tagged)
    parts = (batch("a", 0, mode, sent=False), batch("plain", 0, Mode.PLAIN, sent=False))
    several: list[list[Operation]] = [[batch("a", number, mode)] for number in range(1, 8)]
    return [
        [batch("early", 0, Mode.PLAIN), batch("hidden", 0, mode)],
        [batch("a", 0, mode), AppendMany(parts, Sender(b"many", 0))],
        *several,
        [batch("late", 0, mode), batch("late too", 0, Mode.PLAIN)],
        [AppendMany(parts, Sender(b"many too", 0))],
    ]


def written(groups: list[list[Operation]], *, tagged: bool) -> dict[str, bytes]:
    draw = random.Random(5)
    return write_log(
        identity_of(tagged),
        groups,
        keys=Keys(draw.randbytes(32), draw.randbytes(32), MASTER if tagged else None),
        entropy=draw.randbytes,
        clock=count(1_000).__next__,
        segment_bytes=4 * BLOCK,
    )


def key_of(tagged: bool) -> bytes | None:
    return MASTER if tagged else None


def said_of(groups: list[list[Operation]], segment: int, *, tagged: bool, rule: str = "a rule") -> Retained:
    files = written(groups, tagged=tagged)
    log = read_log(files, key_of(tagged))
    now, draw = 77, random.Random(6).randbytes
    return retained_of(files, log, segment, rule=rule, now=now, master=key_of(tagged), entropy=draw)


def pieces(data: bytes, many: int = 1) -> list[Operation]:
    size = -(-len(data) // many)
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    return [Said(encode_system(Piece(i, len(parts), blake(data), part))) for i, part in enumerate(parts)]


def telling(groups: list[list[Operation]], data: bytes, *, tagged: bool, gone: bool = True) -> dict[str, bytes]:
    """A log in which this stands for a retention record; what it drops is gone, or still there."""
    files = written([*groups, pieces(data), [batch("a", 8, Mode(tagged))]], tagged=tagged)
    return without(files, range(KEPT)) if gone else files


def dropped(tagged: bool, *, gone: bool = True) -> dict[str, bytes]:
    groups = operations(tagged)
    return telling(groups, encode_retained(said_of(groups, KEPT, tagged=tagged)), tagged=tagged, gone=gone)


def read(files: dict[str, bytes], tagged: bool) -> Log:
    return read_log(files, key_of(tagged))


def refused(files: dict[str, bytes], tagged: bool, refusals: tuple[type[Exception], ...] = (Corrupt,)) -> bool:
    """By the engine."""
    try:
        verify(MemoryBackend(Disk.from_files(files)), key_of(tagged))
    except refusals:
        return True
    return False


each_mode = pytest.mark.parametrize("tagged", [False, True], ids=["plain", "encrypted"])


@each_mode
def test_what_is_left_is_what_it_was(tagged: bool) -> None:
    before, after = read(written(operations(tagged), tagged=tagged), tagged), read(dropped(tagged), tagged)
    assert 0 < after.first < before.tree_size
    assert after.between(after.first, before.tree_size) == before.rows[after.first :]
    number = after.groups[0].number
    assert after.groups[: len(before.groups) - number + 1] == before.groups[number - 1 :]
    assert after.streams == before.streams
    assert read(dropped(tagged, gone=False), tagged).rows == after.rows
    assert not refused(dropped(tagged), tagged)


@each_mode
@pytest.mark.parametrize("many", [1, 2, 7])
@pytest.mark.parametrize("together", [True, False])
def test_a_record_in_pieces_is_read_behind_one_that_was_given_up(tagged: bool, many: int, together: bool) -> None:
    groups = operations(tagged)
    whole = said_of(groups, KEPT, tagged=tagged)
    found: list[Operation] = [Said(encode_system(piece)) for piece in pieces_of(whole, many)]
    given_up: list[Operation] = [Said(encode_system(piece)) for piece in pieces_of(replace(whole, segment=2), 3)[:2]]
    apart: list[list[Operation]] = [[batch("a", 8 + i, Mode(tagged)), piece] for i, piece in enumerate(found)]
    ways = [found] if together else apart
    files = written([*groups, given_up, *ways], tagged=tagged)
    for left in (0, 1, KEPT):
        log = read(without(files, range(left)), tagged)
        assert log.retained == whole
        assert not refused(without(files, range(left)), tagged)


@each_mode
def test_a_later_record_stands_for_those_before(tagged: bool) -> None:
    groups = operations(tagged)
    groups += [pieces(encode_retained(said_of(groups, 1, tagged=tagged)))]
    groups += [pieces(encode_retained(said_of(groups, KEPT, tagged=tagged)), 2)]
    last = said_of(groups, KEPT + 1, tagged=tagged, rule="another")
    assert [(drop.start, drop.rule) for drop in last.drops] == [(0, "a rule"), (last.drops[0].end, "another")]
    files = written([*groups, pieces(encode_retained(last))], tagged=tagged)
    logs = [read(without(files, range(gone)), tagged) for gone in range(KEPT + 2)]
    assert {log.first for log in logs} == {last.position}
    assert {log.rows for log in logs} == {logs[0].rows}
    # Those that a crash has left need not follow each other.
    for gone in (*map(range, range(KEPT + 2)), range(1, 2), range(KEPT, KEPT + 1)):
        assert not refused(without(files, gone), tagged)
    for gone in (range(KEPT + 2), range(KEPT, KEPT + 2)):
        with pytest.raises(ModelError, match="is missing"):
            read(without(files, gone), tagged)
        assert refused(without(files, gone), tagged)


@each_mode
def test_of_a_record_whose_first_pieces_were_dropped_the_rest_says_nothing(tagged: bool) -> None:
    groups = operations(tagged)
    groups += [[piece] for piece in pieces(encode_retained(said_of(groups, 1, tagged=tagged)), 6)]
    for segment in range(1, read(written(groups, tagged=tagged), tagged).groups[-1].segment + 1):
        said = said_of(groups, segment, tagged=tagged)
        files = without(written([*groups, pieces(encode_retained(said))], tagged=tagged), range(segment))
        assert read(files, tagged).retained == said
        assert not refused(files, tagged)


@each_mode
def test_what_is_left_may_be_packed(tagged: bool) -> None:
    files = dropped(tagged)
    name = segment_name(KEPT)
    packed = {**files, name: pack_segment(files[name], b"s" * 32, tagged=tagged)}
    assert read(packed, tagged).rows == read(files, tagged).rows
    assert not refused(packed, tagged)


@each_mode
def test_without_a_record_what_is_gone_is_missing(tagged: bool) -> None:
    files = written(operations(tagged), tagged=tagged)
    for gone in (range(1), range(KEPT)):
        with pytest.raises(ModelError, match="nothing says that it was dropped"):
            read(without(files, gone), tagged)
        assert refused(without(files, gone), tagged)


def changed(**fields: object) -> Change:
    return lambda said: replace(said, **fields)  # type: ignore[arg-type]


def in_stream(index: int, **fields: object) -> Change:
    def change(said: Retained) -> Retained:
        streams = list(said.streams)
        streams[index] = replace(streams[index], **fields)  # type: ignore[arg-type]
        return replace(said, streams=tuple(streams))

    return change


def another_name(said: Retained) -> Retained:
    declared = said.declarations("test")[0]
    other = Declaration(declared.stream, declared.mode, declared.random, declared.largest, "other")
    return in_stream(0, declaration=encode_system(other))(said)


#: What somebody who forges the record may say; `gone` are those that are noticed although nothing before is left.
LIES: dict[str, tuple[Change, bool]] = {
    "segment": (changed(segment=KEPT + 1), True),
    "no segment": (changed(segment=99), True),
    "group": (lambda said: replace(said, group=said.group + 1), True),
    "chain": (changed(chain=bytes(32)), True),
    "position": (lambda said: replace(said, position=said.position ^ 6), True),
    "peaks": (lambda said: replace(said, peaks=(*said.peaks[:-1], bytes(32))), False),
    "too few peaks": (lambda said: replace(said, peaks=said.peaks[:-1]), True),
    "later": (lambda said: replace(said, timestamp=said.timestamp + 10**6), True),
    "earlier": (lambda said: replace(said, timestamp=said.timestamp - 1), False),
    "incarnation": (changed(incarnation=1), True),
    "stream 0": (lambda said: replace(said, system=said.system + 1), True),
    "offset": (in_stream(2, offset=3), True),
    "offset of what is gone": (in_stream(0, offset=3), False),
    "fewer streams": (lambda said: replace(said, streams=said.streams[:2]), True),
    "a stream twice": (lambda said: replace(said, streams=(*said.streams, said.streams[0])), True),
    "a name": (another_name, False),
    "producers": (changed(producers=()), False),
    "sequence": (lambda said: replace(said, producers=(replace(said.producers[0], sequence=5),)), False),
    "no drops": (changed(drops=()), True),
}


@each_mode
@pytest.mark.parametrize("lie", LIES)
def test_a_record_that_contradicts_what_is_left_is_refused_whatever_its_checks_say(tagged: bool, lie: str) -> None:
    change, noticed = LIES[lie]
    groups = operations(tagged)
    data = encode_retained(change(said_of(groups, KEPT, tagged=tagged)))
    for gone in (False, True):
        files = telling(groups, data, tagged=tagged, gone=gone)
        expected = noticed or not gone
        mine = True
        try:
            read(files, tagged)
        except ModelError:
            pass
        else:
            mine = False
        assert mine is expected, f"{gone=}"
        # The engine asks nothing of what is to be gone.
        assert not gone or refused(files, tagged) is expected


@each_mode
def test_every_byte_of_a_record_is_as_it_was_or_nothing_that_is_left_tells(tagged: bool) -> None:
    """Whoever makes every check, chain and tag fit: the engine refuses what the second implementation refuses."""
    groups = operations(tagged)
    said = said_of(groups, KEPT, tagged=tagged)
    data = encode_retained(said)
    untold = set[int]()
    for place, byte in enumerate(data):
        changed = data[:place] + bytes([byte ^ 1 << place % 8]) + data[place + 1 :]
        files = telling(groups, changed, tagged=tagged)
        try:
            read(files, tagged)
        except ModelError:
            assert refused(files, tagged, (Corrupt, KeyUnavailable)), f"byte {place} of {len(data)}"
        else:
            # The key of a stream of another declaration is nowhere.
            if not refused(files, tagged, (KeyUnavailable,)):
                untold.add(place)
    # Segment, group, position, chain.
    fixed = 3 * 8 + 32
    assert not untold & set(range(fixed))
    # The time of a group that is gone, and the tree before it.
    assert untold & set(range(fixed, fixed + 8))
    assert untold > set(range(fixed + 24, fixed + 24 + 32 * len(said.peaks)))
    # A declaration that comes again says what it said.
    again = [left.declaration for left in said.streams if left.offset == 0]
    assert len(again) == 2
    assert not untold & {data.index(each) + at for each in again for at in range(len(each))}
