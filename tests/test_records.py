"""What goes in and what comes out."""

from __future__ import annotations

from collections import OrderedDict
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kimberlite
from kimberlite import Record
from kimberlite.records import EPOCH, nanoseconds


def test_a_moment_is_exact_to_the_microsecond_on_both_sides_of_1970() -> None:
    assert nanoseconds(EPOCH) == 0
    assert nanoseconds(EPOCH + timedelta(microseconds=1)) == 1_000
    assert nanoseconds(EPOCH - timedelta(microseconds=1)) == -1_000
    assert nanoseconds(datetime(2262, 4, 11, 23, 47, 16, 854775, tzinfo=UTC)) == 9_223_372_036_854_775_000
    assert nanoseconds(datetime(2020, 1, 1, 5, tzinfo=timezone(timedelta(hours=5)))) == 1_577_836_800 * 10**9


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_moment_comes_back_from_its_nanoseconds(moment: datetime) -> None:
    assert EPOCH + timedelta(microseconds=nanoseconds(moment) // 1_000) == moment


def test_a_record_of_a_payload_alone_has_nothing_else() -> None:
    record = Record(b"x")
    assert (record.key, tuple(record.headers), record.event_time) == (None, (), None)
    assert (record.stream, record.offset, record.position, record.timestamp) == ("", -1, -1, -1)


SENT: dict[str, tuple[Any, tuple[tuple[str, bytes], ...]]] = {
    "none": ((), ()),
    "pairs": ([("b", b"1"), ("a", b"2")], (("b", b"1"), ("a", b"2"))),
    "a name twice": ([("a", b"1"), ("a", b"1")], (("a", b"1"), ("a", b"1"))),
    "a dict": ({"b": b"1", "a": b""}, (("b", b"1"), ("a", b""))),
    "another mapping": (OrderedDict(z=b"1", y=b"2"), (("z", b"1"), ("y", b"2"))),
    "a generator": (((name, b"v") for name in "ab"), (("a", b"v"), ("b", b"v"))),
    "not ascii": ({"é\0": b"\xff\0"}, (("é\0", b"\xff\0"),)),
}


@pytest.mark.parametrize(("headers", "read"), SENT.values(), ids=SENT)
async def test_headers_keep_their_order_and_repetitions(tmp_path: Path, headers: Any, read: Any) -> None:
    async with kimberlite.open(tmp_path / "db", backend="threads") as db:
        await db.append("s", Record(b"x", headers=headers))
        assert (await db.get(1)).headers == read


async def test_an_empty_key_is_not_a_missing_one_and_zero_not_a_missing_time(tmp_path: Path) -> None:
    async with kimberlite.open(tmp_path / "db", backend="threads") as db:
        await db.append("s", [Record(b"", key=b"", event_time=0), Record(b"")])
        first, second = [record async for record in db.read("s")]
    assert (first.key, first.event_time) == (b"", 0)
    assert (second.key, second.event_time) == (None, None)


async def test_what_the_log_fills_in_is_not_taken_from_the_client(tmp_path: Path) -> None:
    async with kimberlite.open(tmp_path / "db", backend="threads") as db:
        await db.append("s", b"first")
        claimed = Record(b"x", stream="other", offset=7, position=7, timestamp=7)
        receipt = await db.append("s", claimed)
        found = await db.get(receipt.first_position)
        assert (found.stream, found.offset, found.position) == ("s", 1, 2)
        assert found.timestamp == receipt.timestamp > 10**18
        again = await db.append("copy", found)
        assert (await db.get(again.first_position))[:4] == found[:4]
