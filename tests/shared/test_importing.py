"""Records of another log, into a directory and through a daemon: the same calls, results and errors."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

import kimberlite
from kimberlite import Conflict, Dropped, Invalid, LimitExceeded, Record
from kimberlite.arguments import LONGEST_NAME
from tests.shared.conftest import Database, database

THEN = 1_700_000_000_000_000_000
RECORDS = [
    Record(b""),
    Record(b"\0\xff", key=b""),
    Record("ä".encode(), key=b"k", headers=(("h", b"v"), ("h", b"")), event_time=-5),
]


async def rows(records: Any) -> list[tuple[Any, ...]]:
    """All but positions, which are another log's."""
    return [(*record[:6], record.timestamp) async for record in records]


async def test_offsets_and_times_are_kept(db: Database) -> None:
    names = ["s", "ключ/1", "x" * LONGEST_NAME]
    async with db.importing() as into:
        for stream in names:
            await into.add(stream, 0, THEN, RECORDS)
        await into.gap("s", 10, THEN, "lost")
        await into.add("s", 10, THEN, b"10")
        for i in range(300):
            await into.add("s", 11 + i, THEN + i, b"%d" % i)
        await into.gap("t", 7, THEN + 300, "dropped")
    kept = [tuple(record[:4]) for record in RECORDS]
    for stream in names[1:]:
        assert await rows(db.read(stream)) == [(*record, stream, i, THEN) for i, record in enumerate(kept)]
    found = await rows(db.read("s"))
    assert [(row[5], row[6]) for row in found] == [
        *((i, THEN) for i in range(3)),
        (10, THEN),
        *((11 + i, THEN + i) for i in range(300)),
    ]
    assert [(s.name, s.length) async for s in db.streams()] == [*zip(names, [311, 3, 3], strict=True), ("t", 7)]
    with pytest.raises(Dropped) as caught:
        await rows(db.read("s", start=5))
    assert caught.value.first == 10
    assert [row[5] for row in await rows(db.read("s", reverse=True, limit=302))][-1] == 2
    now = await db.append("t", b"now")
    assert now.first_offset == 7
    assert now.timestamp > THEN + 300


async def test_what_is_finished_is_durable_and_what_is_refused_ends_it(db: Database) -> None:
    into = db.importing()
    await into.add("s", 0, THEN, b"0")
    await into.finish()
    assert db.durable_position >= 1 or not isinstance(db, kimberlite.Log)
    assert [row[0] for row in await rows(db.read("s"))] == [b"0"]
    await into.add("s", 1, THEN, b"1", of="line 2")
    await into.add("s", 5, THEN, b"5", of="line 3")
    with pytest.raises(Conflict, match=r"line 3: stream \"s\" has 2 records") as caught:
        await into.finish()
    assert caught.value.expected == 2
    with pytest.raises(Conflict, match="line 3"):
        await into.add("s", 2, THEN, b"2")
    with pytest.raises(Invalid, match="line 1: the log's time is"):
        async with db.importing() as into:
            await into.add("s", 2, THEN - 1, b"2", of="line 1")
    with pytest.raises(Invalid, match="not that late yet"):
        async with db.importing() as into:
            await into.add("s", 2, time.time_ns() + 60 * 10**9, b"2")
    async with db.importing(new_times=True) as into:
        await into.add("s", 2, THEN - 1, b"2")
    assert [row[0] for row in await rows(db.read("s"))] == [b"0", b"1", b"2"]
    found = await rows(db.read("s"))
    assert abs(found[-1][6] - time.time_ns()) < 60 * 10**9


async def test_more_than_a_batch_is_refused(db: Database) -> None:
    async with db.importing() as into:
        with pytest.raises(LimitExceeded):
            await into.add("s", 0, THEN, [b""] * 65_537)
        await into.add("s", 0, THEN, [b"x"] * 65_536)
        await into.add("s", 65_536, THEN, bytes(15 << 20))
    assert [info.length async for info in db.streams()] == [65_537]


async def test_many_records_pass_from_one_to_the_other(db: Database, tmp_path: Path, options: dict[str, Any]) -> None:
    """As bytes, with no object made of any."""
    from kimberlite import _native

    async with kimberlite.open(tmp_path / "source", compression=1) as source:
        for i in range(100):
            await source.append("ab"[i % 2], [Record(b"%d" % j * 9, key=b"%d" % i) for j in range(1000)])
        async with db.importing() as into:
            async for body in source.runs():
                for stream, offset, when, batch in _native.decode_runs(body):
                    await into.add(stream, offset, when, batch)
        for stream in "ab":
            assert await rows(db.read(stream)) == await rows(source.read(stream))
    bodies = [body async for body in db.runs("a", start=10, until=49_990)]
    picked = [_native.pick_runs(body, ["a"]) for body in bodies]
    assert sum(records for _, records, _, _ in picked) == 49_980
    assert picked[-1][2] == 49_989
    assert [_native.pick_runs(body, ["b"])[1] for body in bodies] == [0] * len(bodies)


async def test_tasks_that_share_runs_share_them_out(db: Database) -> None:
    from kimberlite import _native

    for _ in range(20):
        await db.append("s", [bytes(1_000)] * 200)
    shared = db.runs("s")

    async def work() -> list[int]:
        return [
            at
            async for body in shared
            for _, offset, _, batch in _native.decode_runs(body)
            for at in range(offset, offset + len(batch))
        ]

    found = await asyncio.gather(*(work() for _ in range(5)))
    assert sorted(at for mine in found for at in mine) == list(range(4_000))
    assert all(mine == sorted(mine) for mine in found)


async def test_an_import_does_not_outlive_its_connection(tmp_path: Path) -> None:
    async with database("tcp", tmp_path / "db") as db:
        assert isinstance(db, kimberlite.Client)
        into = db.importing()
        await into.add("s", 0, THEN, b"0")
        await into.finish()
        link = db._connection.link
        assert link is not None
        link.lose("cut")
        with pytest.raises(kimberlite.Unavailable, match="go on from there"):
            await into.add("s", 1, THEN, b"1")
        async with db.importing() as into:
            await into.add("s", 1, THEN, b"1")
        assert [row[0] for row in await rows(db.read("s"))] == [b"0", b"1"]
