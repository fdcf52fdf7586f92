"""What a database does, in a directory and behind a daemon: the same calls, results and errors."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kimberlite import (
    NEW,
    Client,
    Closed,
    Conflict,
    Dropped,
    Dropping,
    Invalid,
    KimberliteError,
    LimitExceeded,
    Receipt,
    Record,
    StreamInfo,
)
from tests.shared.conftest import Database, database


async def payloads(records: Any) -> list[bytes]:
    return [record.payload async for record in records]


async def test_what_is_appended_is_read_as_it_was(db: Database) -> None:
    event = datetime(2026, 5, 1, 12, tzinfo=UTC)
    receipt = await db.append(
        "s",
        [
            b"",
            b"x",
            Record(b"y", key=b"", headers={"a": b"1"}, event_time=-1),
            Record(b"z", key=b"k", event_time=event),
        ],
    )
    assert type(receipt) is Receipt
    assert (receipt.stream, receipt.first_offset, receipt.last_offset, receipt.durable) == ("s", 0, 3, True)
    found = [record async for record in db.read("s")]
    assert [record[:4] for record in found] == [
        (b"", None, (), None),
        (b"x", None, (), None),
        (b"y", b"", (("a", b"1"),), -1),
        (b"z", b"k", (), int(event.timestamp()) * 10**9),
    ]
    assert [record.offset for record in found] == [0, 1, 2, 3]
    assert [record.position for record in found] == list(range(receipt.first_position, receipt.last_position + 1))
    assert {record.timestamp for record in found} == {receipt.timestamp}
    assert db.durable_position == receipt.last_position + 1


async def test_appends_that_do_not_wait_are_made_in_their_order(db: Database) -> None:
    receipts = await asyncio.gather(*(db.append("ab"[i % 2], b"%d" % i) for i in range(500)))
    assert [receipt.first_position for receipt in receipts] == sorted(receipt.first_position for receipt in receipts)
    assert await payloads(db.read("a")) == [b"%d" % i for i in range(0, 500, 2)]


async def test_one_that_is_refused_holds_up_none_behind_it(db: Database) -> None:
    expects = [NEW, 5, 1, 1, 2, None, 0, 4]
    outcomes = await asyncio.gather(
        *(db.append("s", b"%d" % i, expect=expect) for i, expect in enumerate(expects)), return_exceptions=True
    )
    refused = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, Conflict)]
    assert refused == [1, 3, 6]
    assert [outcomes[i].expected for i in refused] == [1, 2, 4]  # type: ignore[union-attr]
    assert await payloads(db.read("s")) == [b"0", b"2", b"4", b"5", b"7"]


async def test_appends_to_several_streams_are_made_together_or_not_at_all(db: Database) -> None:
    receipts = await db.append_many({"a": b"1", "b": [b"2", b"3"]}, expect={"a": NEW})
    assert list(receipts) == ["a", "b"]
    assert receipts["a"].group == receipts["b"].group
    with pytest.raises(Conflict):
        await db.append_many({"a": b"4", "b": b"5"}, expect={"b": 0})
    outcomes = await asyncio.gather(
        *(db.append_many({"a": b"%d" % i, "b": b"%d" % i}, expect={"a": i}) for i in (1, 7, 2)), return_exceptions=True
    )
    assert [isinstance(outcome, Conflict) for outcome in outcomes] == [False, True, False]
    assert await payloads(db.read("a")) == [b"1", b"1", b"2"]
    assert await payloads(db.read("b")) == [b"2", b"3", b"1", b"2"]


async def test_a_producers_repeat_gets_its_first_receipt(db: Database) -> None:
    first = await db.append("s", b"1", producer=("p", 0))
    assert await db.append("s", b"1", producer=(b"p", 0)) == first
    with pytest.raises(Conflict) as refused:
        await db.append("s", b"2", producer=("p", 5))
    assert (refused.value.expected, refused.value.about) == (1, "producer")
    with pytest.raises(Conflict):
        await db.append("s", b"another", producer=("p", 0))
    assert await payloads(db.read("s")) == [b"1"]


@pytest.mark.parametrize("sync", ["record", "batch", "group", "os"])
async def test_every_policy(db: Database, sync: Any) -> None:
    receipt = await db.append("s", [b"1", b"2", b"3"], sync=sync)
    assert receipt.durable == (sync != "os")
    assert (receipt.first_offset, receipt.last_offset) == (0, 2)
    more = await asyncio.gather(*(db.append("s", [b"4", b"5"], sync=sync) for _ in range(10)))
    assert more[-1].last_offset == 22
    durable = await db.append("s", b"6")
    assert durable.durable
    assert len(await payloads(db.read("s"))) == 24


async def test_what_cannot_be_appended(db: Database) -> None:
    nothing: list[Any] = ["text", [], ["text"], 5, None, {"a": b"1"}, [Record("text")]]  # type: ignore[arg-type]
    for records in nothing:
        with pytest.raises(Invalid):
            await db.append("s", records)
    for stream in ("", "a\nb", "x" * 256, "\ud800", 5):
        with pytest.raises(Invalid):
            await db.append(stream, b"x")  # type: ignore[arg-type]
    calls: list[dict[str, Any]] = [
        {"expect": -1},
        {"expect": "0"},
        {"sync": "soon"},
        {"producer": ("p",)},
        {"producer": ("", 0)},
        {"producer": ("p", -1)},
        {"producer": ("p" * 129, 0)},
    ]
    for more in calls:
        with pytest.raises(Invalid):
            await db.append("s", b"x", **more)
    with pytest.raises(LimitExceeded):
        await db.append("s", [b""] * 65_537)
    with pytest.raises(LimitExceeded):
        await db.append("s", bytes(16 << 20))
    with pytest.raises(Invalid):
        await db.append("s", [b"x", b"y"], sync="record", expect=0)
    several: list[Any] = [{}, {"a": []}, [("a", b"x")]]
    for batches in several:
        with pytest.raises(Invalid):
            await db.append_many(batches)
    with pytest.raises(Invalid):
        await db.append_many({"a": b"x"}, expect={"b": 0})
    with pytest.raises(Invalid):
        await db.append_many({"a": b"x"}, sync="record")
    await db.append("s", b"still here")
    assert await payloads(db.read("s")) == [b"still here"]


async def test_a_record_of_many_bytes(db: Database) -> None:
    payload = bytes(range(256)) * ((15 << 20) // 256)
    await db.append("s", payload)
    assert await payloads(db.read("s")) == [payload]


async def test_reads_of_every_kind(db: Database) -> None:
    for i in range(50):
        await db.append("ab"[i % 2], [b"%d" % (2 * i), b"%d" % (2 * i + 1)])
    records = [record async for record in db.read()]
    assert [int(record.payload) for record in records] == list(range(100))
    a = [record for record in records if record.stream == "a"]
    assert [record async for record in db.read("a")] == a
    assert [record async for record in db.read("a", reverse=True)] == a[::-1]
    assert [record async for record in db.read("a", start=3, until=9)] == a[3:9]
    assert [record async for record in db.read("a", start=3, until=9, reverse=True, limit=2)] == a[3:9][:-3:-1]
    assert [record async for record in db.read(start=records[5].position, limit=7)] == records[5:12]
    assert [record async for record in db.read("a", limit=0)] == []
    assert [record async for record in db.read("nobody")] == []
    after = datetime.fromtimestamp(records[60].timestamp / 1e9, UTC) + timedelta(microseconds=2)
    late = [record async for record in db.read(start=after)]
    assert late == records[-len(late) :]
    assert 30 < len(late) <= 40
    system = [record async for record in db.read(system=True)]
    assert len(system) == 102
    batches = [batch async for batch in db.read("a").batches()]
    assert [record for batch in batches for record in batch] == a
    for bad in ({"start": -1}, {"limit": -1}, {"limit": 1.5}, {"start": datetime(2026, 1, 1)}, {"stream": ""}):
        with pytest.raises(Invalid):
            db.read(**bad)
    assert await db.get(a[7].position) == a[7]
    wanted = [record.position for record in reversed(records)]
    assert await db.get_many(wanted) == records[::-1]
    assert await db.get_many([]) == []
    for nowhere in (10_000, -1, "1"):
        with pytest.raises(Invalid):
            await db.get(nowhere)  # type: ignore[arg-type]


async def test_a_long_read_in_batches(db: Database) -> None:
    for _ in range(20):
        await db.append("s", [b"x" * 300] * 1000)
    assert sum([len(batch) async for batch in db.read("s").batches()]) == 20_000
    reader = db.read("s")
    assert (await anext(reader)).offset == 0
    await reader.aclose()
    assert [record async for record in reader] == []


async def test_tails_give_what_comes(db: Database) -> None:
    await db.append("s", b"before")
    live, whole, later = db.tail("s"), db.tail(start=0), db.tail("unheard of")
    await asyncio.sleep(0.05)
    for i in range(20):
        await db.append("s", b"%d" % i)
    await db.append("unheard of", b"now")
    assert [(await anext(live)).payload for _ in range(20)] == [b"%d" % i for i in range(20)]
    assert [(await anext(whole)).payload for _ in range(22)] == [b"before", *(b"%d" % i for i in range(20)), b"now"]
    assert (await anext(later)).payload == b"now"
    waiting = asyncio.create_task(anext(live))
    await asyncio.sleep(0.02)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await db.append("s", b"after the wait")
    assert (await anext(live)).payload == b"after the wait"
    ending = asyncio.create_task(payloads(whole))
    await asyncio.sleep(0.02)
    await whole.aclose()
    assert await asyncio.wait_for(ending, 10) in ([], [b"after the wait"])


async def test_streams_and_info(db: Database, options: dict[str, Any]) -> None:
    await db.append("b", [b"1", b"2"])
    await db.append("a", b"3")
    encrypted = bool(options)
    streams = [stream async for stream in db.streams()]
    assert streams == [StreamInfo("b", 2, encrypted), StreamInfo("a", 1, encrypted)]
    info = await db.info()
    assert (info["records"], info["streams"], info["encrypted"]) == (5, 2, encrypted)
    assert {"tree_size", "root", "chain", "segments", "bytes", "backend", "durable_position"} <= info.keys()


async def test_cancelling_an_append_abandons_only_the_wait(db: Database) -> None:
    await db.append("s", b"0")
    for i in range(20):
        task = asyncio.create_task(db.append("s", b"%d" % i))
        for _ in range(i % 5):
            await asyncio.sleep(0)
        task.cancel()
        # It may have been quicker.
        with contextlib.suppress(asyncio.CancelledError):
            await task
    last = await db.append("s", b"last")
    assert (await payloads(db.read("s")))[-1] == b"last"
    assert last.first_offset <= 21


async def test_nothing_is_done_on_a_handle_that_is_closed(db: Database) -> None:
    await db.append("s", b"x")
    tail = db.tail("s")
    waiting = asyncio.create_task(payloads(tail))
    await asyncio.sleep(0.02)
    appends = [asyncio.create_task(db.append("s", b"%d" % i)) for i in range(50)]
    await asyncio.sleep(0)
    await db.close()
    assert all(type(receipt) is Receipt for receipt in await asyncio.gather(*appends))
    with pytest.raises(Closed):
        await asyncio.wait_for(waiting, 10)
    await db.close()
    calls: list[Any] = [
        lambda: db.append("s", b"x"),
        lambda: db.append_many({"s": b"x"}),
        lambda: db.get(0),
        lambda: db.get_many([0]),
        lambda: db.info(),
    ]
    for call in calls:
        with pytest.raises(Closed):
            await call()
    with pytest.raises(Closed):
        db.read("s")
    with pytest.raises(Closed):
        db.tail("s")


async def test_errors_are_of_one_tree(db: Database) -> None:
    with pytest.raises(KimberliteError) as refused:
        await db.append("s", b"x", expect=7)
    assert refused.value.code == "CONFLICT"
    assert isinstance(db, Client) or refused.value.__cause__ is None


@pytest.mark.parametrize("how", ["embedded", "tcp"])
async def test_the_oldest_segments_are_dropped(how: str, tmp_path: Path) -> None:
    async with database(how, tmp_path / "db", segment_bytes=64 * 1024, pack=0) as db:
        for i in range(60):
            receipt = await db.append("s", b"%d" % i)
        would = await db.retain(before=receipt.last_position, dry_run=True)
        assert type(would) is Dropping
        assert would.segments > 1
        assert (await anext(db.read("s"))).offset == 0
        assert await db.retain(before=receipt.last_position) == would
        with pytest.raises(Dropped) as caught:
            await db.get(0)
        assert caught.value.first == would.first
        with pytest.raises(Dropped) as caught:
            await anext(db.tail("s", start=0))
        assert (await anext(db.read("s"))).offset == caught.value.first
        kept = caught.value.first
        assert kept is not None
        for stream, there in (("s", kept), (None, would.first)):
            wanted: list[dict[str, Any]] = [{"start": there - 1}, {"until": there - 1}, {"start": 0, "until": 1}]
            for bounds in wanted:
                with pytest.raises(Dropped) as caught:
                    await payloads(db.read(stream, **bounds))
                assert caught.value.first == there
            assert await payloads(db.read(stream, start=1, until=1)) == []
            assert await payloads(db.read(stream, until=there)) == []
            early = datetime(1971, 1, 1, tzinfo=UTC)
            assert (await anext(db.read(stream, start=early, system=True))).position >= would.first
        assert (await db.retain(age=timedelta(days=1), size=1 << 40, confirm_clock=True)).segments == 0
        for wrong in ({"before": -1}, {"age": -1}, {"size": "1"}):
            with pytest.raises(Invalid):
                await db.retain(**wrong)
        assert (await db.info())["dropped"][0]["to"] == would.first
