"""Bodies of messages, held against another implementation of msgpack."""

from __future__ import annotations

import math
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimberlite import _native
from kimberlite.errors import Conflict, Corrupt, Invalid, KimberliteError, NoSpace, ProtocolError
from kimberlite.records import Receipt, Time
from kimberlite.wire.messages import BY_CODE, Hello, Kind, Parts, Reading, in_parts, unpack_error

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
    | st.binary(max_size=300)
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=20) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=40,
)


@given(values)
def test_values_are_those_of_another_implementation(value: Any) -> None:
    assert _native.unpack(msgpack.packb(value)) == value
    assert msgpack.unpackb(_native.pack(value), strict_map_key=False) == value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\xc0\xc0",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 2_000 + b"\xc0",
        b"\xdd\x00\x80\x00\x00" + b"\x80" * (8 << 20),
        msgpack.packb(math.nan),
        msgpack.packb(msgpack.ExtType(5, b"x")),
        msgpack.packb({1: 2}),
        b"\x82\xa1a\x01\xa1a\x02",
        b"\xa2\xff\xff",
    ],
    ids=lambda body: body[:6].hex(),
)
def test_what_no_message_may_be_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        _native.unpack(body)


def answered(said: dict[str, Any]) -> dict[str, Any]:
    parts, messages = Parts(), list(in_parts(said))
    for kind, body in messages[:-1]:
        assert kind == Kind.PART
        parts.take(body)
    assert messages[-1][0] == Kind.RESULT
    return parts.before(_native.unpack(messages[-1][1]))


RANGES = [[1 << 62, 1 << 63] for _ in range(257)]


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 128, 129, 10_000])
def test_lists_of_any_length_arrive_in_messages_that_are_read(count: int) -> None:
    erasures = [{"stream": f"s{i}", "when": i, "reason": "r", "position": i, "pending": True} for i in range(count)]
    drops = [{"from": i, "to": i, "first": i, "last": i, "rule": "r"} for i in range(count)]
    said = {"records": 5, "dropped": drops, "erasures": erasures, "root": "ab", "notes": ["n"] * count}
    assert answered(said) == said
    assert [*answered(said)] == [*said]
    # Of all that `info` has a list of, this has the most in it.
    repair = dict.fromkeys(("salvaged", "database_id", "when", "position", "incarnation", "before", "kept"), 1)
    said["repairs"] = [repair | {"exact": False, "lost": RANGES}] * min(count, 300)
    assert answered(said) == said


def test_a_short_answer_is_one_message() -> None:
    said = {"records": 5, "dropped": [{"from": 1}], "erasures": [{"stream": "s"}] * 64, "notes": []}
    [(kind, body)] = in_parts(said)
    assert (kind, msgpack.unpackb(body)) == (Kind.RESULT, said)


def test_parts_that_are_of_nothing_are_refused() -> None:
    wrong: list[Any] = [None, {}, ["erasures"], ["erasures", 1], [1, []], ["erasures", [], []], ["erasures", {}]]
    for said in wrong:
        with pytest.raises(ProtocolError):
            Parts().take(msgpack.packb(said))
    parts = Parts()
    parts.take(msgpack.packb(["erasures", [1]]))
    results: list[Any] = [None, [], {}, {"erasures": None}, {"erasures": {}}, {"repairs": []}]
    for result in results:
        with pytest.raises(ProtocolError):
            parts.before(result)
    assert parts.before({"erasures": [2]}) == {"erasures": [1, 2]}
    with pytest.raises(ProtocolError):
        Parts().before([])


def test_what_is_said_first_arrives_as_it_was_said() -> None:
    receipt = Receipt("s", 0, 1, 2, 3, 4, True, 5, bytes(32), bytes(32), 6, 7, bytes(16))
    for hello in (Hello(1, None, None), Hello(1, receipt, "ab" * 16)):
        assert Hello.unpack(hello.pack()) == hello
    for body in (
        {"version": 1.0},
        {"version": True},
        {},
        {"version": 1, "more": 2},
        {"version": 1, "anchor": [1]},
        [1],
    ):
        with pytest.raises(ProtocolError):
            Hello.unpack(msgpack.packb(body))


def test_what_is_to_be_read_arrives_as_it_was_asked() -> None:
    for reading in (
        Reading(None, None, None, None, False, False, 0),
        Reading("s", 5, Time(7), 7, True, True, 1 << 20),
    ):
        assert Reading.unpack(reading.pack()) == reading
    for change in ({"start": -1}, {"start": {"at": 1}}, {"start": {"time": "1"}}, {"credit": None}, {"limit": 1.5}):
        with pytest.raises(ProtocolError):
            Reading.unpack(msgpack.packb({"credit": 1} | change))


@pytest.mark.parametrize(
    "error",
    [
        Conflict("no", 5, "producer"),
        Corrupt("bad", file="segments/0", place=4096, group=None, position=7),
        NoSpace("full"),
    ],
    ids=lambda error: error.code,
)
def test_an_error_is_raised_elsewhere_as_it_was_here(error: KimberliteError) -> None:
    again = unpack_error(_native.pack({"code": error.code, "message": str(error), **vars(error)}))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_every_code_has_its_error_and_a_stranger_has_none() -> None:
    assert BY_CODE["INVALID"] is Invalid
    for body in ({"code": "NEW", "message": "x"}, {"code": "INVALID"}, {"code": "INVALID", "message": "", "x": 1}, [1]):
        with pytest.raises(ProtocolError):
            unpack_error(msgpack.packb(body))
