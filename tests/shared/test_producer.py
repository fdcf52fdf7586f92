"""A producer over either kind of database."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kimberlite import Closed, Invalid, LimitExceeded, Producer, Record
from tests.shared.conftest import Database
from tests.shared.test_database import payloads


async def test_records_are_appended_in_their_order_in_batches(db: Database) -> None:
    async with Producer(db, "s", buffer=3_000) as out:
        for i in range(20_000):
            await out.send(b"%d" % i if i % 3 else Record(b"%d" % i, key=b"k"))
            assert out._open <= 3_000
        receipt = await out.flush()
        assert receipt is not None
        assert (receipt.last_offset, receipt.durable) == (19_999, True)
        await out.send(b"last")
    assert await payloads(db.read("s")) == [*(b"%d" % i for i in range(20_000)), b"last"]
    groups = len({record.timestamp async for record in db.read("s")})
    assert groups < 10_000
    with pytest.raises(Closed):
        await out.send(b"more")


async def test_a_lone_record_waits_for_nobody(db: Database) -> None:
    async with Producer(db, "s") as out:
        await out.send(b"1")
        async with asyncio.timeout(5):
            while out.receipt is None:
                await out._change()
        assert await payloads(db.read("s")) == [b"1"]
        assert await out.flush() == out.receipt


async def test_an_error_ends_it_and_nothing_is_lost_silently(db: Database) -> None:
    out = Producer(db, "s")
    await out.send(b"good")
    await out.flush()
    await out.send(bytes(17 << 20))
    with pytest.raises(LimitExceeded):
        await out.flush()
    for call in (out.send(b"later"), out.flush()):
        with pytest.raises(LimitExceeded):
            await call
    assert [len(record) for record in out.unsent] == [17 << 20]
    assert await payloads(db.read("s")) == [b"good"]
    wrong: list[Any] = ["text", 5, None]
    for record in wrong:
        with pytest.raises((Invalid, TypeError)):
            async with Producer(db, "s") as other:
                await other.send(record)
    many = Producer(db, "t")

    async def send_all() -> None:
        for i in range(3_000):
            await many.send(b"%d" % i if i != 20 else bytes(17 << 20))
        await many.flush()

    with pytest.raises(LimitExceeded):
        await send_all()
    appended = await payloads(db.read("t"))
    assert appended
    assert many.receipt is not None
    assert many.receipt.last_offset == len(appended) - 1
    unsent = [record for record in many.unsent if isinstance(record, bytes)]
    assert bytes(17 << 20) in unsent
    assert not set(appended) & set(unsent)
    for buffer in (0, "1", True):
        with pytest.raises(Invalid):
            Producer(db, "s", buffer=buffer)  # type: ignore[arg-type]
    with pytest.raises(Invalid):
        Producer(db, "")
