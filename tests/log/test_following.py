"""A reader beside a writer: it takes no lock, writes nothing, and shows what a watermark covers."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

import kimberlite
from kimberlite import Invalid, Log, RolledBack
from kimberlite.log.following import PIECE
from kimberlite.log.names import segment_name
from kimberlite.storage.backend import BLOCK
from kimberlite.storage.memory.backend import MemoryFile
from tests.log.simulated import Machine, failing, payloads, until

SEGMENT = segment_name(0)
LOOKS = {"open", "exists", "check", "list", "read", "size", "extent"}


async def sees(reader: Log, records: int) -> bool:
    return len(await payloads(reader.read())) == records


async def test_a_reader_sees_what_the_writer_appends_after_it_opened(either: Machine) -> None:
    async with either.open() as db:
        await db.append("s", b"0")
        async with either.open(read_only=True) as reader:
            await until(lambda: sees(reader, 1))
            for i in range(1, 5):
                await db.append(f"s{i}", b"x")
                await until(lambda i=i: sees(reader, 1 + i))  # type: ignore[misc]
            assert [stream.name for stream in reader.streams()] == ["s", "s1", "s2", "s3", "s4"]
            assert (await reader.get(1)).payload == b"0"
            assert (await reader.info())["records"] == (await db.info())["records"]


async def test_a_reader_goes_with_the_writer_from_segment_to_segment(either: Machine) -> None:
    async with either.open(segment_bytes=64 * 1024) as db, either.open(read_only=True) as reader:
        tail = reader.tail(start=0)
        for i in range(40):
            await db.append("s", [b"%d" % i * 500] * 3)
        found = [(await asyncio.wait_for(anext(tail), 5)).offset for _ in range(120)]
        assert found == list(range(120))
        assert (await reader.info())["segments"] > 2
        read = [record async for record in reader.read("s", reverse=True)]
        assert [record.offset for record in read] == list(range(119, -1, -1))


async def test_a_reader_goes_on_beside_a_writer_that_is_never_idle_long_enough_for_a_mark(either: Machine) -> None:
    async with either.open(segment_bytes=64 * 1024, idle=3600.0) as db, either.open(read_only=True) as reader:
        tail = reader.tail(start=0)
        for i in range(200):
            receipt = await db.append("s", bytes(3000))
            if i % 10 == 9:
                await until(lambda receipt=receipt: sees_position(reader, receipt.first_position - 1))  # type: ignore[misc]
        assert (await db.info())["segments"] > 10
        found = [(await asyncio.wait_for(anext(tail), 5)).offset for _ in range(199)]
        assert found == list(range(199))


async def sees_position(reader: Log, position: int) -> bool:
    await reader.info()
    return reader.durable_position >= position


async def test_a_reader_takes_no_lock_and_writes_nothing(either: Machine) -> None:
    async with either.open(segment_bytes=64 * 1024) as db:
        for _ in range(20):
            await db.append("s", bytes(5_000))
    before = either.disk.files()
    trace = either.watch()
    async with either.open(read_only=True) as reader, either.open(read_only=True) as another:
        await payloads(reader.read())
        await another.get(3)
        await reader.info()
    assert {verb for verb, *_ in trace} <= LOOKS
    assert either.disk.files() == before
    async with either.open(read_only=True), either.open() as db:
        await db.append("s", b"a reader keeps nobody out")


async def test_a_reader_shows_nothing_that_is_not_durable(machine: Machine) -> None:
    async with machine.open(idle=1) as db, machine.open(read_only=True) as reader:
        await db.append("s", b"held by the kernel", sync="os")
        for _ in range(5):
            assert await payloads(reader.read()) == []
            await asyncio.sleep(0.001)


async def test_a_reader_does_not_judge_what_no_watermark_covers(machine: Machine) -> None:
    async with machine.open() as db:
        await db.append("s", b"x")
    machine.write("segments/00000000000000000000.seg", machine.end(), b"half a group" * 400)
    async with machine.open(read_only=True) as reader:
        assert await payloads(reader.read()) == [b"x"]


async def test_a_reader_whose_disk_fails_says_unavailable_and_goes_on(machine: Machine) -> None:
    async with machine.open() as db:
        await db.append("s", b"x")
    async with machine.open(read_only=True) as reader:
        machine.fault = failing("read", "marks", errno.ENOMEM)
        with pytest.raises(kimberlite.Unavailable):
            await payloads(reader.read())
        machine.fault = None
        assert await payloads(reader.read()) == [b"x"]


async def test_there_is_nothing_to_follow_where_there_is_no_database(machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(Invalid):
        await machine.open(read_only=True)
    with pytest.raises(Invalid):
        await kimberlite.open(tmp_path / "nothing", read_only=True)
    assert not (tmp_path / "nothing").exists()


async def test_a_tail_of_a_reader_starts_at_the_end_as_of_the_call(machine: Machine) -> None:
    async with machine.open() as db, machine.open(read_only=True) as reader:
        await db.append("s", b"old")
        await asyncio.sleep(0.02)
        tails = [reader.tail("s"), reader.tail()]
        waiting = [asyncio.ensure_future(anext(tail)) for tail in tails]
        await asyncio.sleep(0.08)
        await db.append("s", b"new")
        assert [(await asyncio.wait_for(task, 5)).payload for task in waiting] == [b"new", b"new"]


async def test_the_newest_receipt_is_no_rollback_to_a_reader_that_opens_at_once(either: Machine) -> None:
    async with either.open(idle=1) as db:
        for _ in range(3):
            receipt = await db.append("s", b"x")
        async with either.open(read_only=True, anchor=receipt) as reader:
            assert len(await payloads(reader.read())) == 3
        dead = either.image()
        assert dead.verify(receipt).records == 4
        with pytest.raises(RolledBack):
            await either.open(read_only=True, anchor=either.forge(receipt, tree_size=9, group=99))


async def test_many_tasks_may_read_through_one_reader_while_it_follows(tmp_path: Path) -> None:
    path = tmp_path / "db"
    async with kimberlite.open(path, backend="threads", segment_bytes=1 << 20) as db:
        await db.append("s", b"x")
        async with kimberlite.open(path, read_only=True) as reader:

            async def write() -> None:
                for _ in range(150):
                    await db.append("s", [bytes(2_000)] * 5)
                    await asyncio.sleep(0.001)

            writing = asyncio.ensure_future(write())
            counts: list[int] = []

            async def look() -> None:
                while not writing.done():
                    counts.append((await reader.info())["records"])

            await asyncio.gather(*(look() for _ in range(6)))
            await writing
            assert counts
            await until(lambda: sees(reader, 751))
            assert [record.offset async for record in reader.read("s")] == list(range(751))


async def test_a_read_that_is_not_one_step_is_no_damage(either: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    read, torn = MemoryFile.read, 0
    async with either.open(idle=3600.0) as db:
        await db.append("s", b"0")
        before = either.disk.files()
        await db.append("s", b"1")
        async with either.open(read_only=True) as reader:
            for i in range(2, 7):
                await db.append("s", b"%d" % i, sync="batch")

            def slow(self: MemoryFile, place: int, length: int) -> bytes:
                nonlocal torn
                data = read(self, place, length)
                if length != PIECE or torn:
                    return data
                torn += 1
                return before[SEGMENT][place : place + BLOCK].ljust(BLOCK, b"\0") + data[BLOCK:]

            monkeypatch.setattr(MemoryFile, "read", slow)
            await until(lambda: sees(reader, 6))
    assert torn
