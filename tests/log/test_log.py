"""The handle: how it opens and ends, and in which order and at what time its appends are."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Callable, Coroutine
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import kimberlite
from kimberlite import NEW, Busy, Closed, Conflict, Invalid, Log, Receipt, Unavailable
from tests.log.simulated import START, Machine, failing, payloads

CALLS: dict[str, Callable[[Log], Coroutine[Any, Any, Any]]] = {
    "append": lambda db: db.append("s", b"x"),
    "append to a new stream": lambda db: db.append("other", b"x"),
    "append_many": lambda db: db.append_many({"s": b"x"}),
    "read": lambda db: payloads(db.read()),
    "get": lambda db: db.get(0),
    "get_many": lambda db: db.get_many([0]),
    "tail": lambda db: anext(db.tail()),
    "streams": lambda db: called(lambda: list(db.streams())),
    "info": lambda db: db.info(),
}


async def called(call: Callable[[], object]) -> None:
    call()


# ---- lifetime


async def test_await_and_async_with_open_the_same_way(machine: Machine) -> None:
    async with machine.open() as db:
        await db.append("s", b"one")
    db = await machine.open()
    assert await payloads(db.read("s")) == [b"one"]
    async with db:
        await db.append("s", b"two")
    with pytest.raises(Closed):
        await db.info()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_every_call_after_the_close_says_closed(machine: Machine, call: Callable[[Log], Any]) -> None:
    db = await machine.open()
    await db.append("s", b"x")
    await db.close()
    await db.close()
    with pytest.raises(Closed) as refused:
        await call(db)
    assert refused.value.code == "CLOSED"


async def test_two_closes_at_once_both_wait_for_the_same_end(machine: Machine) -> None:
    db = await machine.open()
    append = asyncio.ensure_future(db.append("s", b"accepted"))
    await asyncio.sleep(0)
    await asyncio.gather(db.close(), db.close())
    assert (await append).durable
    async with machine.open() as db:
        assert await payloads(db.read()) == [b"accepted"]


async def test_a_close_whose_caller_is_cancelled_is_finished(machine: Machine) -> None:
    db = await machine.open()
    await db.append("s", b"x")
    closing = asyncio.ensure_future(db.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await db.close()
    async with machine.open() as db:
        assert (await db.info())["segments"] == 1


@pytest.mark.parametrize("turns", range(1, 12))
async def test_a_close_finishes_an_append_that_still_waits_for_its_streams_key(encrypted: Machine, turns: int) -> None:
    db = await encrypted.open()
    appends = [asyncio.ensure_future(db.append(name, b"x")) for name in ("new", "other", "new")]
    for _ in range(turns):
        await asyncio.sleep(0)
    await asyncio.wait_for(db.close(), 5)
    assert [(await append).first_offset for append in appends] == [0, 0, 1]
    assert encrypted.verify().records == 5


async def test_a_close_beside_a_vault_that_fails_tells_who_waits_and_closes(encrypted: Machine) -> None:
    db = await encrypted.open()
    await db.append("s", b"x")
    encrypted.fault = failing("write", "vault.")
    append = asyncio.ensure_future(db.append("new", b"x"))
    await asyncio.sleep(0)
    await asyncio.wait_for(db.close(), 5)
    with pytest.raises(Unavailable):
        await append
    encrypted.fault = None
    assert encrypted.verify().records == 2


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_a_forked_child_is_refused_and_its_close_touches_nothing(machine: Machine) -> None:
    async with machine.open() as db:
        await db.append("s", b"x")
        child = os.fork()
        if child == 0:
            wrong = 99
            try:
                wrong = sum(not refuses(call, db) for call in CALLS.values()) + (not idles(db, machine))
            finally:
                os._exit(wrong)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0  # noqa: ASYNC222 (it ends at once)
        assert (await db.append("s", b"y")).first_offset == 1


def refuses(call: Callable[[Log], Coroutine[Any, Any, Any]], db: Log) -> bool:
    try:
        call(db).send(None)
    except Closed:
        return True
    except BaseException:
        return False
    return False


def idles(db: Log, machine: Machine) -> bool:
    """Whether a close in a child returns, having done nothing."""
    machine.disk.trace = []

    async def close() -> None:
        await asyncio.wait_for(db.close(), 5)

    try:
        asyncio.set_event_loop(None)
        asyncio.run(close())
    except BaseException:
        return False
    return machine.disk.trace == []


async def test_a_handle_opened_for_reading_refuses_to_append(machine: Machine) -> None:
    async with machine.open() as db:
        await db.append("s", b"x")
    async with machine.open(read_only=True) as reader:
        for call in (reader.append("s", b"y"), reader.append_many({"s": b"y"})):
            with pytest.raises(Invalid, match="reading only"):
                await call
        assert await payloads(reader.read()) == [b"x"]


# ---- several streams


async def test_append_many_is_one_group_or_nothing(either: Machine) -> None:
    async with either.open() as db:
        await db.append("a", b"0")
        with pytest.raises(Conflict):
            await db.append_many({"b": b"1", "a": b"1"}, expect={"a": 5, "b": NEW})
        assert await payloads(db.read()) == [b"0"]
        receipts = await db.append_many({"b": [b"1", b"2"], "a": b"3"}, expect={"a": 1, "b": NEW})
        assert list(receipts) == ["b", "a"]
        assert len({(r.group, r.chain, r.root, r.timestamp) for r in receipts.values()}) == 1
        assert [receipts["b"].first_offset, receipts["b"].last_offset, receipts["a"].first_offset] == [0, 1, 1]
        assert await payloads(db.read()) == [b"0", b"1", b"2", b"3"]


async def test_append_many_refuses_what_names_nothing(machine: Machine) -> None:
    async with machine.open() as db:
        with pytest.raises(Invalid):
            await db.append_many({})
        with pytest.raises(Invalid):
            await db.append_many({"a": b"x"}, expect={"b": 0})


# ---- receipts, order, time


async def test_a_receipt_says_where_its_records_are_and_what_the_log_was_behind_them(either: Machine) -> None:
    async with either.open() as db:
        receipt = await db.append("s", [b"a", b"b", b"c"])
        info = await db.info()
        records = [record async for record in db.read("s")]
    assert [r.offset for r in records] == list(range(receipt.first_offset, receipt.last_offset + 1))
    assert [r.position for r in records] == list(range(receipt.first_position, receipt.last_position + 1))
    assert {r.timestamp for r in records} == {receipt.timestamp} == {START}
    assert (receipt.stream, receipt.durable, receipt.incarnation) == ("s", True, 0)
    assert (receipt.tree_size, receipt.root.hex(), receipt.chain.hex()) == (4, info["root"], info["chain"])
    assert (receipt.group, len(receipt.mac)) == (info["group"], 16)
    either.verify(receipt)


async def test_200_tasks_on_one_stream_keep_the_order_of_their_calls(either: Machine) -> None:
    async with either.open(segment_bytes=256 * 1024) as db:
        receipts = await asyncio.gather(*(db.append("s", [b"%d" % i] * (1 + i % 3)) for i in range(200)))
        expected = [b"%d" % i for i in range(200) for _ in range(1 + i % 3)]
        assert await payloads(db.read("s")) == expected
        for before, after in pairwise(receipts):
            assert after.first_offset == before.last_offset + 1


async def test_appends_to_a_stream_that_is_being_created_keep_the_order_of_their_calls(encrypted: Machine) -> None:
    async with encrypted.open() as db:
        appends = []
        for i in range(40):
            appends.append(asyncio.ensure_future(db.append("new", b"%d" % i)))
            await asyncio.sleep(0)
        receipts = await asyncio.gather(*appends)
        assert [receipt.first_offset for receipt in receipts] == list(range(40))


async def test_appends_that_wait_for_room_in_the_pool_keep_the_order_of_their_calls(machine: Machine) -> None:
    async with machine.open(pool_bytes=4_096) as db:
        await db.append("s", b"0")
        appends = []
        for i in range(120):
            appends.append(asyncio.ensure_future(db.append("s", bytes(1_000))))
            if i > 20:
                await asyncio.sleep(0)
        receipts = await asyncio.gather(*appends)
        assert [receipt.first_offset for receipt in receipts] == list(range(1, 121))


async def test_cancelling_abandons_only_the_wait(machine: Machine) -> None:
    async with machine.open() as db:
        appends = [asyncio.ensure_future(db.append("s", b"%d" % i)) for i in range(5)]
        await asyncio.sleep(0)
        appends[2].cancel()
        outcomes = await asyncio.gather(*appends, return_exceptions=True)
        assert isinstance(outcomes[2], asyncio.CancelledError)
        assert [o.first_offset for o in outcomes if isinstance(o, Receipt)] == [0, 1, 3, 4]
        assert await payloads(db.read("s")) == [b"%d" % i for i in range(5)]


async def test_cancelling_what_waits_for_room_withdraws_it(machine: Machine) -> None:
    async with machine.open(pool_bytes=4_096) as db:
        first = asyncio.ensure_future(db.append("s", bytes(5_000)))
        waiting = [
            asyncio.ensure_future(db.append("s", b"late")),
            asyncio.ensure_future(db.append("s", [b"late", b"too"], sync="record")),
            asyncio.ensure_future(db.append_many({"s": b"late", "t": b"late"})),
        ]
        await asyncio.sleep(0)
        for append in waiting:
            append.cancel()
        await asyncio.wait(waiting)
        assert all(append.cancelled() for append in waiting)
        assert (await first).first_offset == 0
        assert (await db.append("s", b"next")).first_offset == 1
        assert [stream.name for stream in db.streams()] == ["s"]


@pytest.mark.parametrize("turns", [1, 2])
async def test_cancelling_what_waits_for_the_key_of_a_stream_withdraws_it(encrypted: Machine, turns: int) -> None:
    async with encrypted.open() as db:
        await db.append("s", b"0")
        waiting = [
            asyncio.ensure_future(db.append("new", b"late")),
            asyncio.ensure_future(db.append_many({"s": b"late", "new": b"late"})),
        ]
        for _ in range(turns):
            await asyncio.sleep(0)
        for append in waiting:
            append.cancel()
        await asyncio.wait(waiting)
        assert all(append.cancelled() for append in waiting)
        assert (await db.append("s", b"1")).first_offset == 1
        assert (await db.append("new", b"0")).first_offset == 0


async def test_log_time_never_goes_back_with_the_clock(machine: Machine) -> None:
    async with machine.open() as db:
        assert (await db.append("s", b"0")).timestamp == START
        machine.now = START - 10**9
        assert (await db.append("s", b"1")).timestamp == START
        machine.now = START + 5
        assert (await db.append("s", b"2")).timestamp == START + 5
        machine.now = START - 10**9
    async with machine.open() as db:
        assert (await db.append("s", b"3")).timestamp == START + 5


def test_a_handle_whose_loop_has_ended_can_be_closed_or_dropped(tmp_path: Path) -> None:
    async def left() -> Log:
        db = await kimberlite.open(tmp_path / "db", backend="threads")
        await db.append("s", b"x")
        return db

    async def refused(db: Log) -> None:
        with pytest.raises(Invalid, match="another event loop"):
            await db.append("s", b"y")
        await db.close()
        await db.close()

    async def count() -> int:
        async with kimberlite.open(tmp_path / "db", backend="threads") as db:
            return len([record async for record in db.read("s")])

    db = asyncio.run(left())
    asyncio.run(refused(db))
    assert asyncio.run(count()) == 1
    db = asyncio.run(left())
    del db
    # A thread may be about to end what it was asked for.
    until = time.monotonic() + 10
    while True:
        gc.collect()
        try:
            assert asyncio.run(count()) == 2
        except Busy:
            assert time.monotonic() < until
        else:
            return


async def test_a_handle_is_closed_by_its_own_loop_while_that_runs(tmp_path: Path) -> None:
    async def other(db: Log) -> None:
        with pytest.raises(Invalid, match="another event loop"):
            await db.close()

    async with kimberlite.open(tmp_path / "db", backend="threads") as db:
        await asyncio.to_thread(asyncio.run, other(db))
        assert (await db.append("s", b"x")).durable
