"""Short histories that the machine found, each by itself."""

from __future__ import annotations

import asyncio
import errno
from random import Random

import pytest

from kimberlite import Conflict, Receipt, Unavailable
from kimberlite.log.names import QUARANTINE
from tests.log.simulated import Machine, failing, payloads


async def test_streams_come_in_the_order_of_their_declarations(machine: Machine) -> None:
    async with machine.open() as db:
        with pytest.raises(Conflict):
            await db.append("refused first", b"x", producer=("p", 1))
        await db.append("early", b"x")
        assert [stream.name for stream in db.streams()] == ["early"]
        await db.append("refused first", b"x")
        before = [stream.name for stream in db.streams()]
    assert before == ["refused first", "early"]
    async with machine.open() as db:
        assert [stream.name for stream in db.streams()] == before


async def test_info_says_nothing_of_what_is_not_durable(machine: Machine) -> None:
    async with machine.open(idle=0.02) as db:
        durable = await db.append("s", b"x")
        await db.append("s", b"x", sync="os")
        info = await db.info()
    assert (info["records"], info["tree_size"], info["group"]) == (2, durable.tree_size, durable.group)
    assert (info["root"], info["chain"]) == (durable.root.hex(), durable.chain.hex())


async def test_info_says_what_the_disk_refused_it(machine: Machine) -> None:
    async with machine.open() as db:
        machine.fault = failing("list", number=errno.EIO)
        with pytest.raises(Unavailable):
            await db.info()
        machine.fault = None
        assert (await db.info())["records"] == 0


async def test_a_start_that_is_cut_off_behind_its_quarantine_does_not_stop_the_next_one(machine: Machine) -> None:
    db = await machine.open(idle=10, backend=machine.backend(Random(1)))
    await db.append("s", b"kept")
    await db.append("s", bytes(20_000), sync="os")
    for seed in range(50):
        left = machine.disk.crash(Random(seed))
        copy = Machine()
        copy.disk = left
        copy.fault = failing("truncate", "segments/", errno.EIO)
        with pytest.raises(Unavailable):
            await copy.open()
        if any(name.startswith(f"{QUARANTINE}/") for name in copy.disk.files()):
            break
    else:
        raise AssertionError("no cut left a torn tail")
    copy.fault = None
    async with copy.open() as again:
        assert await payloads(again.read("s")) == [b"kept"]
    assert len([name for name in copy.disk.files() if name.startswith(f"{QUARANTINE}/")]) == 1
    await db.close()


async def test_appends_to_a_new_stream_keep_their_order_when_the_pool_is_full(either: Machine) -> None:
    async with either.open(pool_bytes=1, group_bytes=1 << 20) as db:
        answers = await asyncio.gather(
            db.append("s", b"fills the pool"),
            db.append("new", b"0"),
            db.append("new", b"1", expect=1),
            db.append("new", b"2", producer=("p", 0)),
            db.append("new", b"3"),
            return_exceptions=True,
        )
        assert all(isinstance(answer, Receipt) for answer in answers), answers
        assert await payloads(db.read("new")) == [b"0", b"1", b"2", b"3"]


async def test_records_with_a_sync_each_are_not_overtaken_by_what_is_called_after_them(either: Machine) -> None:
    async with either.open() as db:
        await db.append("old", b"0")
        for stream in ("old", "new"):
            first, second, third = await asyncio.gather(
                db.append(stream, [b"1", b"2"], sync="record"),
                db.append(stream, b"3"),
                db.append(stream, [b"4", b"5"], sync="record"),
            )
            assert first.last_offset + 1 == second.first_offset == third.first_offset - 1
            assert (await payloads(db.read(stream)))[-5:] == [b"1", b"2", b"3", b"4", b"5"]


async def test_what_is_durable_is_marked_though_an_append_that_came_to_nothing_was_waiting_meanwhile(
    either: Machine,
) -> None:
    async with either.open(idle=0.002, max_delay=0.02) as db:
        await db.append("s", b"x")
        with pytest.raises(Conflict):
            await db.append("s", b"y", expect=7)
        await asyncio.sleep(0.03)
        async with either.open(read_only=True) as reader:
            assert await payloads(reader.read("s")) == [b"x"]
