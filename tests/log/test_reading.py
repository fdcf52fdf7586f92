"""Iterators: what they show, where they begin and end, and what a live one waits for."""

from __future__ import annotations

import asyncio
import errno
import itertools
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from kimberlite import Closed, Corrupt, Invalid, Log, Record, Unavailable
from kimberlite.log.names import index_name, segment_name
from kimberlite.records import Time
from kimberlite.storage.backend import BLOCK
from tests.log.simulated import START, Machine, failing, payloads, until

SECOND = 10**9


async def filled(machine: Machine, db: Log) -> None:
    """a0 b0 a1 b1 …, ten of each, a second apart: positions 2 to 21 behind two declarations."""
    await db.append_many({"a": b"a0", "b": b"b0"})
    for i in range(1, 10):
        machine.now += SECOND
        for stream in "ab":
            await db.append(stream, f"{stream}{i}".encode())


def at(seconds: float) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=START // 1000 + int(seconds * 10**6))


async def offsets(records: AsyncIterator[Record]) -> list[int]:
    return [record.offset async for record in records]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, range(10)),
        ({"start": 3}, range(3, 10)),
        ({"start": 0, "until": 0}, []),
        ({"start": 3, "until": 5}, [3, 4]),
        ({"until": 99}, range(10)),
        ({"start": 10}, []),
        ({"start": 1 << 70}, []),
        ({"start": 5, "until": 3}, []),
        ({"limit": 2}, [0, 1]),
        ({"limit": 0}, []),
        ({"start": 8, "limit": 9}, [8, 9]),
        ({"reverse": True}, range(9, -1, -1)),
        ({"reverse": True, "limit": 3}, [9, 8, 7]),
        ({"reverse": True, "start": 4, "until": 7}, [6, 5, 4]),
        ({"reverse": True, "until": 2, "limit": 1}, [1]),
        ({"start": at(7)}, [7, 8, 9]),
        ({"start": at(6.5)}, [7, 8, 9]),
        ({"until": at(2)}, [0, 1]),
        ({"start": at(2), "until": at(4), "reverse": True}, [3, 2]),
        ({"start": at(7).astimezone(timezone(timedelta(hours=5)))}, [7, 8, 9]),
        ({"start": datetime(1, 1, 1, tzinfo=UTC)}, range(10)),
        ({"start": datetime(9999, 1, 1, tzinfo=UTC)}, []),
        ({"until": datetime(9999, 1, 1, tzinfo=UTC)}, range(10)),
    ],
)
async def test_a_stream_is_read_from_start_to_until_exclusive(
    either: Machine, wanted: dict[str, Any], expected: Any
) -> None:
    async with either.open() as db:
        await filled(either, db)
        assert await offsets(db.read("b", **wanted)) == list(expected)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"limit": 3}, [b"a0", b"b0", b"a1"]),
        ({"start": 18}, [b"a8", b"b8", b"a9", b"b9"]),
        ({"start": 4, "until": 6}, [b"a1", b"b1"]),
        ({"until": 3}, [b"a0"]),
        ({"reverse": True, "limit": 3}, [b"b9", b"a9", b"b8"]),
        ({"reverse": True, "until": 4}, [b"b0", b"a0"]),
        ({"start": at(9)}, [b"a9", b"b9"]),
    ],
)
async def test_the_whole_log_is_read_by_position(
    either: Machine, wanted: dict[str, Any], expected: list[bytes]
) -> None:
    async with either.open() as db:
        await filled(either, db)
        assert await payloads(db.read(**wanted)) == expected


async def test_all_records_come_in_the_order_of_their_positions_across_segments(either: Machine) -> None:
    async with either.open(segment_bytes=64 * 1024) as db:
        for i in range(60):
            await db.append(f"s{i % 3}", [bytes(700)] * 5)
        assert (await db.info())["segments"] > 3
        everything = [record async for record in db.read(system=True)]
        assert [record.position for record in everything] == list(range(len(everything)))
        backwards = [record async for record in db.read(system=True, reverse=True)]
        assert backwards == everything[::-1]
        some = [record.position for record in everything[::7]]
        assert await db.get_many(some) == everything[::7]


async def test_system_records_are_shown_only_to_those_who_ask(machine: Machine) -> None:
    async with machine.open() as db:
        await filled(machine, db)
        assert [r.stream async for r in db.read(system=True, limit=3)] == ["", "", "a"]
        assert "" not in [record.stream async for record in db.read()]
        tail = db.tail(start=0, system=True)
        assert [(await anext(tail)).stream for _ in range(3)] == ["", "", "a"]
        shown = db.tail(start=0)
        assert (await anext(shown)).stream == "a"


async def test_an_unknown_stream_reads_as_empty(machine: Machine) -> None:
    async with machine.open() as db:
        await db.append("a", b"x")
        assert await payloads(db.read("unknown")) == []
        assert await payloads(db.read("unknown", start=5, reverse=True)) == []
        assert await payloads(db.read("unknown", until=at(0))) == []


@pytest.mark.parametrize("bound", [-1, datetime(2020, 1, 1), "0", 1.0, True])
async def test_a_bound_that_is_neither_an_offset_nor_an_aware_time_is_invalid(machine: Machine, bound: Any) -> None:
    async with machine.open() as db:
        for stream in ("s", None):
            with pytest.raises(Invalid):
                db.read(stream, start=bound)
            with pytest.raises(Invalid):
                db.read(stream, until=bound)
            with pytest.raises(Invalid):
                db.tail(stream, start=bound)


@pytest.mark.parametrize("limit", [-1, "1", 1.0])
async def test_a_limit_that_is_no_number_of_records_is_invalid(machine: Machine, limit: Any) -> None:
    async with machine.open() as db:
        with pytest.raises(Invalid):
            db.read("s", limit=limit)


@pytest.mark.parametrize("position", [-1, 2, 1 << 70, "0", 1.0, None])
async def test_a_position_without_a_record_is_invalid(machine: Machine, position: Any) -> None:
    async with machine.open() as db:
        await db.append("s", b"x")
        with pytest.raises(Invalid):
            await db.get(position)
        with pytest.raises(Invalid):
            await db.get_many([1, position])


async def test_get_many_keeps_the_order_asked_for_and_repetitions(machine: Machine) -> None:
    async with machine.open() as db:
        await db.append("s", [b"0", b"1", b"2"])
        assert [r.payload for r in await db.get_many(iter([3, 1, 3]))] == [b"2", b"0", b"2"]
        assert await db.get_many([]) == []
        many = [1 + i % 3 for i in range(3000)]
        assert [r.position for r in await db.get_many(many)] == many


async def test_batches_are_the_same_records_as_lists(either: Machine) -> None:
    async with either.open(segment_bytes=1 << 20) as db:
        sent = [b"%d" % i * 20 for i in range(20_000)]
        for start in range(0, 20_000, 5_000):
            await db.append("s", sent[start : start + 5_000])
        batches = [batch async for batch in db.read("s").batches()]
        assert [record.payload for batch in batches for record in batch] == sent
        assert all(batches)
        assert 1 < len(batches) < 100
        limited = [batch async for batch in db.read("s", limit=12_000).batches()]
        assert sum(map(len, limited)) == 12_000
        backwards = [record.offset async for record in db.read("s", reverse=True)]
        assert backwards == list(range(19_999, -1, -1))


async def test_a_reader_shows_the_log_as_it_was_when_it_began(machine: Machine) -> None:
    async with machine.open() as db:
        await db.append("s", b"0")
        made_before = db.read("s")
        await db.append("s", b"1")
        begun = db.read("s")
        assert (await anext(begun)).payload == b"0"
        await db.append("s", b"2")
        assert await payloads(begun) == [b"1"]
        assert await payloads(made_before) == [b"0", b"1", b"2"]


async def test_a_reader_that_is_closed_ends(machine: Machine) -> None:
    async with machine.open() as db:
        await db.append("s", [b"0", b"1", b"2"])
        reader = db.read("s")
        assert (await anext(reader)).payload == b"0"
        await reader.aclose()
        await reader.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(reader)


async def test_an_iterator_of_a_database_that_was_closed_raises_and_does_not_end(machine: Machine) -> None:
    db = await machine.open(segment_bytes=4 << 20)
    await db.append("s", [bytes(100)] * 10_000)
    begun, fresh = db.read("s").batches(), db.read("s")
    await anext(begun)
    tail = db.tail("s")
    waiting = asyncio.ensure_future(anext(tail))
    await asyncio.sleep(0)
    await db.close()
    for pull in (lambda: anext(begun), lambda: anext(fresh), lambda: waiting, lambda: anext(tail)):
        with pytest.raises(Closed):
            await pull()


async def test_what_the_disk_refuses_to_a_reader_is_unavailable_and_the_handle_goes_on(machine: Machine) -> None:
    async with machine.open(cache_bytes=0) as db:
        receipt = await db.append("s", b"x")
        machine.fault = failing("read", "segments/", errno.ENOMEM)
        with pytest.raises(Unavailable):
            await db.get(receipt.first_position)
        with pytest.raises(Unavailable):
            await payloads(db.read("s"))
        machine.fault = None
        assert await payloads(db.read("s")) == [b"x"]
        assert (await db.append("s", b"y")).durable


async def test_a_stream_does_not_end_where_the_disk_refuses_its_index(machine: Machine) -> None:
    async with machine.open(segment_bytes=64 * 1024) as db:
        for _ in range(6):
            await db.append("s", bytes(30_000))
        await db.append("t", b"x")
    for name in [name for name in machine.disk.files() if name.startswith("index/")]:
        machine.backend().unlink(name)
    first = datetime.fromtimestamp(machine.now / 1e9, UTC)
    async with machine.open(segment_bytes=64 * 1024) as db:
        machine.fault = failing("read", "segments/", errno.ENOMEM)
        for read in (db.read("s"), db.read("s", reverse=True), db.read("t"), db.read("s", start=first)):
            with pytest.raises(Unavailable):
                await payloads(read)
        machine.fault = None
        assert len(await payloads(db.read("s"))) == 6


async def test_a_flipped_bit_under_a_reader_is_named_and_never_shown(either: Machine) -> None:
    async with either.open(cache_bytes=0) as db:
        receipt = await db.append("s", b"p" * 500)
        inode = either.disk.tree["segments/00000000000000000000.seg"]
        assert inode is not None
        block = bytearray(inode.cache.read(4096, 4096))
        block[600] ^= 1
        file = either.backend().open("segments/00000000000000000000.seg", "w")
        file.write(4096, bytes(block))
        with pytest.raises(Corrupt) as damaged:
            await db.get(receipt.first_position)
        assert damaged.value.file == "segments/00000000000000000000.seg"
        block[600] ^= 1
        file.write(4096, bytes(block))


@pytest.mark.parametrize("indexed", [True, False])
async def test_a_time_is_looked_for_around_what_is_damaged(either: Machine, *, indexed: bool) -> None:
    async with either.open(segment_bytes=64 * 1024, pack=0, scrub=0) as db:
        for i in range(60):
            await db.append(f"s{i % 4 // 3}", b"%d" % i)
            either.wait(SECOND)
    async with either.open(read_only=True) as db:
        records = [record async for record in db.read()]
    either.flip(segment_name(1), 6 * BLOCK + 20)
    if not indexed:
        either.backend().unlink(index_name(1))

    async def got(db: Log, stream: str | None, **bounds: Any) -> tuple[list[int], bool]:
        found = []
        with suppress(Corrupt):
            async for record in db.read(stream, **bounds):
                found.append(record.position)  # noqa: PERF401 (what comes before the damage counts)
            return found, False
        return found, True

    different = set()
    async with either.open(read_only=True) as db:
        for record in records:
            for stream in (None, record.stream):
                at = record.position if stream is None else record.offset
                for bound, reverse in itertools.product(("start", "until"), (False, True)):
                    by_number = await got(db, stream, reverse=reverse, **{bound: at})
                    by_time = await got(db, stream, reverse=reverse, **{bound: Time(record.timestamp)})
                    if by_number != by_time:
                        different.add(record.position)
    # Of a segment that leads to none of its records nobody knows whether they are as old as what is next to them.
    next_to = set()
    for number, stream in itertools.product((1, 2), ("s0", "s1")):
        first = int.from_bytes(either.disk.files()[segment_name(number)][48:56], "little")
        next_to.add(min(record.position for record in records if record.position >= first and record.stream == stream))
    assert different <= (set() if indexed else next_to)


@pytest.mark.parametrize("batches", [False, True])
async def test_a_wait_that_was_cancelled_is_no_end(either: Machine, batches: bool) -> None:
    count = 30_000
    async with either.open(segment_bytes=8 << 20) as db:
        for _ in range(count // 1000):
            await db.append("s", [bytes(100)] * 1000)
        reader = db.read("s")
        source = reader.batches() if batches else reader
        found: list[int] = []

        async def pull() -> None:
            async for item in source:
                found.extend(record.offset for record in (item if isinstance(item, list) else [item]))

        for turns in (1, 2, 3, 5, 8):
            pulling = asyncio.ensure_future(pull())
            for _ in range(turns):
                await asyncio.sleep(0)
            pulling.cancel()
            await asyncio.wait([pulling])
        await pull()
        assert found == list(range(count))


async def test_tasks_that_share_an_iterator_share_its_records_out(machine: Machine) -> None:
    async with machine.open() as db:
        for source in (db.tail(start=0), db.tail(start=0).batches(), db.tail("s", start=0)):
            found: list[int] = []

            async def work(source: Any = source, found: list[int] = found) -> None:
                async for item in source:
                    for record in item if isinstance(item, list) else [item]:
                        found.append(record.offset)
                        await asyncio.sleep(0.0002)

            workers = [asyncio.ensure_future(work()) for _ in range(3)]
            done = 0
            while done < 40:
                await db.append("s", [b"x"] * 4)
                done += 4
                await asyncio.sleep(0.0001)

            async def all_found(found: list[int] = found) -> bool:
                return len(found) == db.durable_position - 1

            await until(all_found)
            for worker in workers:
                worker.cancel()
            await asyncio.wait(workers)
            assert sorted(found) == list(range(len(found)))


# ---- live


async def test_a_tail_starts_at_the_end_as_of_the_call(machine: Machine) -> None:
    async with machine.open() as db:
        await db.append("s", b"old")
        tails = [db.tail("s"), db.tail()]
        await db.append("s", b"new")
        for tail in tails:
            assert (await anext(tail)).payload == b"new"


async def test_a_tail_that_catches_up_does_not_hold_up_the_loop(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with machine.open(segment_bytes=8 << 20) as db:
        for _ in range(20):
            await db.append("s", [bytes(10)] * 1000)
        made: list[str] = []
        run: Any = db._backend.run

        async def watched(call: Any) -> Any:
            made.append("in the background")
            return await run(call)

        monkeypatch.setattr(db._backend, "run", watched)
        tail = db.tail("s", start=0)
        assert [(await anext(tail)).offset for _ in range(20_000)] == list(range(20_000))
        assert made
        made.clear()
        await db.append("s", b"x")
        assert (await anext(tail)).offset == 20_000
        assert made == []


async def test_a_tail_starts_where_it_is_told(machine: Machine) -> None:
    async with machine.open() as db:
        await filled(machine, db)
        assert (await anext(db.tail("a", start=3))).payload == b"a3"
        assert (await anext(db.tail(start=5))).payload == b"b1"
        assert (await anext(db.tail("b", start=at(8)))).payload == b"b8"
        beyond = asyncio.ensure_future(anext(db.tail("a", start=11)))
        await db.append("a", b"a10")
        await asyncio.sleep(0.005)
        assert not beyond.done()
        await db.append("a", b"a11")
        assert (await beyond).payload == b"a11"


async def test_a_tail_of_an_unknown_stream_waits_for_its_first_record(machine: Machine) -> None:
    async with machine.open() as db:
        waiting = [asyncio.ensure_future(anext(db.tail("later", start=start))) for start in (None, 0, at(-1))]
        await db.append("other", b"x")
        await asyncio.sleep(0.005)
        assert not any(task.done() for task in waiting)
        await db.append("later", b"first")
        assert [(await task).payload for task in waiting] == [b"first"] * 3


async def test_a_tail_from_a_time_that_is_to_come_shows_nothing_before_it(either: Machine) -> None:
    async with either.open() as db, either.open(read_only=True) as reader:
        await db.append("a", b"old")
        tails = [log.tail(stream, start=at(10)) for log in (db, reader) for stream in (None, "a", "later")]
        waiting = [asyncio.ensure_future(anext(tail)) for tail in tails]
        either.now += 5 * SECOND
        for stream in ("a", "later"):
            await db.append(stream, b"before")
        await asyncio.sleep(0.15)
        assert not any(task.done() for task in waiting)
        either.now += 5 * SECOND
        for stream in ("later", "a"):
            await db.append(stream, b"at")
        found = [await asyncio.wait_for(task, 5) for task in waiting]
        assert [(r.stream, r.payload) for r in found] == [("later", b"at"), ("a", b"at"), ("later", b"at")] * 2
        # A clock that is set back takes the log's time nowhere.
        either.now -= 8 * SECOND
        await db.append_many({"a": b"after", "later": b"after"})
        rest = [(await asyncio.wait_for(anext(tail), 5)).payload for tail in tails]
        assert rest == [b"at", b"after", b"after"] * 2


async def test_a_tail_shows_nothing_that_is_not_durable(machine: Machine) -> None:
    async with machine.open(idle=1) as db:
        waiting = asyncio.ensure_future(anext(db.tail("s")))
        await db.append("s", b"soon", sync="os")
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await db.append("s", b"now")
        assert (await waiting).payload == b"soon"


async def test_a_slow_tail_across_rotations_misses_and_repeats_nothing(either: Machine) -> None:
    async with either.open(segment_bytes=64 * 1024) as db:
        tail, everything = db.tail("s0"), db.tail()
        found: list[int] = []

        async def follow() -> None:
            while len(found) < 200:
                found.append((await anext(tail)).offset)
                if len(found) % 20 == 0:
                    await asyncio.sleep(0.003)

        following = asyncio.ensure_future(follow())
        for _ in range(100):
            await asyncio.gather(*(db.append(f"s{j}", [bytes(500)] * 2) for j in range(3)))
        assert (await db.info())["segments"] > 3
        await asyncio.wait_for(following, 10)
        assert found == list(range(200))
        positions = [(await anext(everything)).position for _ in range(600)]
        assert positions == sorted(set(positions))


async def test_batches_of_a_tail_are_what_has_become_durable(machine: Machine) -> None:
    async with machine.open() as db:
        await db.append("s", [b"0", b"1"])
        batches = db.tail("s", start=0).batches()
        assert [r.payload for r in await anext(batches)] == [b"0", b"1"]
        waiting = asyncio.ensure_future(anext(batches))
        await db.append("s", [b"2", b"3"])
        assert [r.payload for r in await waiting] == [b"2", b"3"]


async def test_a_tail_whose_wait_was_cancelled_goes_on_where_it_was(machine: Machine) -> None:
    async with machine.open() as db:
        tail = db.tail("s")
        for i in range(5):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(tail), 0.001)
            await db.append("s", b"%d" % i)
            assert (await anext(tail)).payload == b"%d" % i


async def test_a_tail_that_is_closed_ends_and_so_does_whoever_waits_on_it(machine: Machine) -> None:
    async with machine.open() as db:
        tail = db.tail("s")
        waiting = asyncio.ensure_future(anext(tail))
        await asyncio.sleep(0)
        await tail.aclose()
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(waiting, 1)
        with pytest.raises(StopAsyncIteration):
            await anext(tail)


async def test_only_what_is_at_hand_is_read_on_the_loop(machine: Machine) -> None:
    async with machine.open() as db:
        for i in range(8):
            await db.append("old" if i < 6 else "new", [bytes(30_000)] * 2)
    async with machine.open() as db:
        native, last = db._native, db.durable_position
        run, calls = db._backend.run, []

        async def counted(call: Any) -> Any:
            if getattr(call, "func", None) in (db._read, db._resolve):
                calls.append(call)
            return await run(call)

        db._backend.run = counted  # type: ignore[method-assign]

        async def read(*stream: str, **bounds: Any) -> tuple[int, int]:
            calls.clear()
            found = [record async for record in db.read(*stream, limit=1, **bounds)]
            return len(found), len(calls)

        assert native.at_hand(None, 0, last, False) is None
        assert await read(start=last - 1) == (1, 0)
        assert await read("new", start=3) == (1, 0)
        # Its index is read once, and then it is there.
        assert await read(start=1) == (1, 1)
        assert await read(start=1) == (1, 0)
        assert await read("old", start=0) == (1, 1)
        assert (await read(start=datetime.now(UTC)))[1] >= 1
        first, end = native.at_hand(None, 1, last, False) or (0, 0)
        assert first == 1
        assert 1 < end < last
        assert [record.position async for record in db.read(start=last - 3)] == [last - 3, last - 2, last - 1]
        backwards = [record.position async for record in db.read(reverse=True)]
        assert backwards == [record.position async for record in db.read()][::-1]
