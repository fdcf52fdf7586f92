"""Conditions of an append: the offset that it expects, and the producer that must not be heard twice."""

from __future__ import annotations

import asyncio

import pytest

from kimberlite import NEW, Conflict, Duplicate, Receipt
from tests.log.simulated import Machine, payloads


async def test_a_conflict_consumes_neither_offset_nor_position_nor_sequence(either: Machine) -> None:
    async with either.open() as db:
        first = await db.append("s", b"0", producer=("p", 0))
        for expect in (0, 2, 7):
            with pytest.raises(Conflict) as conflict:
                await db.append("s", b"no", expect=expect, producer=("p", 1))
            assert (conflict.value.expected, conflict.value.code) == (1, "CONFLICT")
        with pytest.raises(Conflict) as conflict:
            await db.append("s", b"no", expect=NEW)
        second = await db.append("s", b"1", expect=1, producer=("p", 1))
        assert second.first_position == first.last_position + 1


async def test_a_conflict_is_told_when_what_it_cites_is_durable(machine: Machine) -> None:
    async with machine.open() as db:
        await db.append("s", b"0")
        machine.disk.trace = []
        append = asyncio.ensure_future(db.append("s", b"1", sync="os"))
        await asyncio.sleep(0)
        with pytest.raises(Conflict) as conflict:
            await db.append("s", b"no", expect=1)
        assert conflict.value.expected == 2
        assert ("synced", "segments/00000000000000000000.seg", 0, 0) in machine.disk.trace
        assert await payloads(db.read("s")) == [b"0", b"1"]
        await append


@pytest.mark.parametrize("there", [False, True])
async def test_expectations_of_concurrent_appends_are_judged_in_the_order_of_the_calls(
    either: Machine, there: bool
) -> None:
    async with either.open() as db:
        if there:
            await db.append("s", b"0")
        outcomes = await asyncio.gather(
            *(db.append("s", bytes([i]), expect=there + i // 2) for i in range(10)), return_exceptions=True
        )
        assert [isinstance(outcome, Receipt) for outcome in outcomes] == [True, False] * 5


async def test_a_producer_may_send_only_the_next_sequence_or_one_it_sent(either: Machine) -> None:
    async with either.open() as db:
        with pytest.raises(Conflict) as early:
            await db.append("s", b"1", producer=("p", 1))
        assert early.value.expected == 0
        sent = [await db.append("s", bytes([i]), producer=("p", i)) for i in range(3)]
        with pytest.raises(Conflict) as gap:
            await db.append("s", b"4", producer=("p", 4))
        assert gap.value.expected == 3
        for i in (2, 0, 1):
            assert await db.append("s", bytes([i]), producer=("p", i)) == sent[i]
        with pytest.raises(Conflict):
            await db.append("s", b"another digest", producer=("p", 1))
        assert (await db.append("s", b"3", producer=(b"p", 3))).first_offset == 3


async def test_a_repetition_returns_its_receipt_though_its_expect_no_longer_holds(either: Machine) -> None:
    async with either.open() as db:
        first = await db.append("s", b"0", expect=NEW, producer=("p", 0))
        await db.append("s", b"1")
        assert await db.append("s", b"0", expect=NEW, producer=("p", 0)) == first
        assert await db.append("s", b"0", expect=77, producer=("p", 0)) == first


async def test_the_last_1024_batches_return_their_receipts_and_older_ones_are_duplicates(machine: Machine) -> None:
    async with machine.open(segment_bytes=1 << 20) as db:
        sent = await asyncio.gather(*(db.append("s", b"%d" % i, producer=("p", i)) for i in range(1_025)))
    async with machine.open() as db:
        assert await db.append("s", b"1", producer=("p", 1)) == sent[1]
        with pytest.raises(Duplicate) as forgotten:
            await db.append("s", b"0", producer=("p", 0))
        assert forgotten.value.code == "DUPLICATE"
        with pytest.raises(Conflict):
            await db.append("s", b"other", producer=("p", 1))
        assert (await db.append("s", b"next", producer=("p", 1_025))).first_offset == 1_025


async def test_producers_count_for_each_stream_and_append_many_for_itself(either: Machine) -> None:
    async with either.open() as db:
        for stream in ("a", "b"):
            await db.append(stream, b"x", producer=("p", 0))
        many = await db.append_many({"a": b"1", "b": b"1"}, producer=("p", 0))
        with pytest.raises(Conflict):
            await db.append_many({"a": b"1", "b": b"2"}, producer=("p", 0))
        with pytest.raises(Conflict):
            await db.append_many({"a": b"1", "c": b"1"}, producer=("p", 2))
        assert await db.append_many({"a": b"1", "b": b"1"}, producer=("p", 0)) == many
        assert (await db.append("a", b"2", producer=("p", 1))).first_offset == 2
        assert [stream.name for stream in db.streams()] == ["a", "b"]


async def test_a_producer_without_a_batch_for_seven_days_is_forgotten_when_another_comes(machine: Machine) -> None:
    async with machine.open() as db:
        await db.append("s", b"0", producer=("p", 0))
        machine.now += 8 * 86_400 * 10**9
        await db.append("s", b"nobody's")
        assert (await db.append("s", b"0", producer=("p", 0))).first_offset == 0
        await db.append("s", b"1", producer=("q", 0))
        assert (await db.append("s", b"0", producer=("p", 0))).first_offset == 3


async def test_a_durable_repetition_of_an_os_append_waits_for_its_sync(machine: Machine) -> None:
    async with machine.open() as db:
        assert not (await db.append("s", b"0", producer=("p", 0), sync="os")).durable
        again = await db.append("s", b"0", producer=("p", 0))
        assert again.durable
        machine.kill()
        machine.cut()
    async with machine.open() as db:
        assert await payloads(db.read("s")) == [b"0"]
