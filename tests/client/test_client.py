"""A client over connections that are lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgpack
import pytest

import kimberlite
from kimberlite import (
    Closed,
    Conflict,
    Invalid,
    LimitExceeded,
    Receipt,
    RolledBack,
    Unavailable,
    UnknownOutcome,
    _native,
)
from kimberlite.client.client import Client
from kimberlite.log.repair import repair_directory
from kimberlite.server.limits import Limits
from kimberlite.wire.messages import Kind
from tests.client.proxies import cutting, proxied
from tests.server.wires import served, until


async def payloads(records: Any) -> list[bytes]:
    return [record.payload async for record in records]


async def test_appends_are_made_once_through_any_number_of_cuts(tmp_path: Path) -> None:
    receipts: list[Receipt] = []
    async with served(tmp_path / "db") as there, proxied(there.port) as proxy:
        proxy.most = 60_000
        async with kimberlite.connect(f"kimberlite://127.0.0.1:{proxy.port}") as db, cutting(proxy):
            async with asyncio.timeout(60):
                while proxy.cuts < 15:
                    first = len(receipts)
                    calls: list[Any] = [
                        db.append("ab"[i % 2], [b"%d" % i] * (1 + i % 3)) for i in range(first, first + 100)
                    ]
                    calls += [db.append_many({"a": b"m", "c": b"%d" % (first // 10 + i)}) for i in range(10)]
                    receipts += (await asyncio.gather(*calls))[:100]
        for name in "ab":
            mine = [record async for record in there.log.read(name) if record.payload != b"m"]
            expected = [b"%d" % i for i in range(len(receipts)) if "ab"[i % 2] == name for _ in range(1 + i % 3)]
            assert [record.payload for record in mine] == expected
            found = {record.offset: record.payload for record in mine}
            for i, receipt in enumerate(receipts):
                if receipt.stream == name:
                    places = range(receipt.first_offset, receipt.last_offset + 1)
                    assert [found[offset] for offset in places] == [b"%d" % i] * (1 + i % 3)
        assert await payloads(there.log.read("c")) == [b"%d" % i for i in range(len(receipts) // 10)]


async def test_what_is_refused_is_refused_once_and_the_rest_made_once_through_cuts(tmp_path: Path) -> None:
    expects: list[int | None] = []
    outcomes: list[Any] = []
    async with served(tmp_path / "db") as there, proxied(there.port) as proxy:
        proxy.most = 40_000
        async with kimberlite.connect(f"kimberlite://127.0.0.1:{proxy.port}") as db, cutting(proxy):
            async with asyncio.timeout(60):
                while proxy.cuts < 15:
                    first = len(expects)
                    expects += [random.choice([None, None, None, 1 << 40]) for _ in range(100)]
                    calls = [db.append("s", b"%d" % i, expect=expects[i]) for i in range(first, first + 100)]
                    outcomes += await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(outcome, Conflict) for outcome in outcomes] == [expect is not None for expect in expects]
        made = [i for i, expect in enumerate(expects) if expect is None]
        assert await payloads(there.log.read("s")) == [b"%d" % i for i in made]
        assert [outcomes[i].first_offset for i in made] == list(range(len(made)))


async def test_records_by_themselves_are_made_once_through_cuts(tmp_path: Path) -> None:
    receipts: list[Receipt] = []
    async with served(tmp_path / "db") as there, proxied(there.port) as proxy:
        async with kimberlite.connect(f"kimberlite://127.0.0.1:{proxy.port}") as db, cutting(proxy):
            async with asyncio.timeout(60):
                while proxy.cuts < 10:
                    first = 10 * len(receipts)
                    batches = [[b"%d" % (first + 10 * i + j) for j in range(10)] for i in range(5)]
                    receipts += await asyncio.gather(*(db.append("s", batch, sync="record") for batch in batches))
        assert await payloads(there.log.read("s")) == [b"%d" % i for i in range(10 * len(receipts))]
        places = [(receipt.first_offset, receipt.last_offset) for receipt in receipts]
        assert places == [(10 * i, 10 * i + 9) for i in range(len(receipts))]


async def test_reads_and_tails_go_on_where_they_were(tmp_path: Path) -> None:
    async with served(tmp_path / "db") as there, proxied(there.port) as proxy:
        for i in range(30):
            await there.log.append("ab"[i % 2], [b"%d" % (100 * i + j) for j in range(100)])
        whole = [record async for record in there.log.read()]
        proxy.most = 150_000
        async with kimberlite.connect(f"kimberlite://127.0.0.1:{proxy.port}") as db:
            assert [record async for record in db.read()] == whole
            assert [record async for record in db.read(reverse=True)] == whole[::-1]
            a = [record for record in whole if record.stream == "a"]
            assert [record async for record in db.read("a", start=5, limit=1_200)] == a[5:1_205]
            assert [record async for record in db.read("a", reverse=True, limit=1_200)] == a[:-1_201:-1]
            tail, behind = db.tail("a", start=0), db.tail("b")
            await asyncio.sleep(0.05)
            for i in range(300):
                await there.log.append("b", b"new %d" % i)
                if i % 50 == 0:
                    proxy.cut()
                    await asyncio.sleep(0.1)
            assert [await anext(tail) for _ in a] == a
            assert [(await anext(behind)).payload for _ in range(300)] == [b"new %d" % i for i in range(300)]
            positions = [record.position for record in whole]
            proxy.most = None
            assert await db.get_many(positions) == whole
        assert proxy.cuts > 2


async def test_nobody_there_is_said_in_time(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        await kimberlite.connect("kimberlite://127.0.0.1:1", retry=0.2)
    for url in ("http://127.0.0.1:1", "kimberlite://127.0.0.1", "/tmp/db", "kimberlite+unix:x", 5):
        with pytest.raises(Invalid):
            await kimberlite.connect(url)  # type: ignore[arg-type]
    async with (
        served(tmp_path / "db") as there,
        proxied(there.port) as proxy,
        kimberlite.connect(f"kimberlite://127.0.0.1:{proxy.port}", retry=0.5) as db,
    ):
        await db.append("s", b"1")
        target, proxy.target = proxy.target, 1
        held = asyncio.create_task(db.append("s", b"2"))
        proxy.cut()
        await asyncio.sleep(0)
        begun = time.monotonic()
        with pytest.raises((Unavailable, UnknownOutcome)):
            await held
        with pytest.raises(Unavailable):
            await db.append("s", b"3")
        with pytest.raises(Unavailable):
            await db.get(1)
        assert time.monotonic() - begun < 10
        proxy.target = target
        receipt = await db.append("s", b"4")
        assert receipt.first_offset in (1, 2)


async def test_a_log_that_was_rolled_back_is_noticed_by_its_client(tmp_path: Path) -> None:
    async with served(tmp_path / "db") as there, kimberlite.connect(f"kimberlite://127.0.0.1:{there.port}") as db:
        await db.append("s", b"1")
        receipt = await db.append("s", b"2")
    async with served(tmp_path / "other") as there:
        await there.log.append("s", b"1")
        with pytest.raises(Invalid):
            await kimberlite.connect(f"kimberlite://127.0.0.1:{there.port}", anchor=receipt)
    async with served(tmp_path / "db") as there:
        native = there.log._native
        ahead = receipt._replace(tree_size=receipt.tree_size + 5, group=receipt.group + 5)
        mac = native.receipt_mac(ahead[:12])
        assert mac is not None
        async with kimberlite.connect(f"kimberlite://127.0.0.1:{there.port}", anchor=ahead._replace(mac=mac)) as db:
            with pytest.raises(RolledBack):
                await db.append("s", b"3")
            assert await payloads(db.read("s")) == [b"1", b"2"]


@pytest.mark.parametrize("stream", ["s", "made later"])
async def test_a_copy_of_an_hour_ago_in_the_place_of_the_log_is_noticed_by_a_client_that_connects_again(
    tmp_path: Path, stream: str
) -> None:
    async with served(tmp_path / "db") as there:
        await there.log.append("s", b"1")
    shutil.copytree(tmp_path / "db", tmp_path / "copy")
    async with (
        served(tmp_path / "db") as there,
        proxied(there.port) as proxy,
        kimberlite.connect(f"kimberlite://127.0.0.1:{proxy.port}") as db,
    ):
        await db.append(stream, b"2")
        async with served(tmp_path / "copy") as old:
            proxy.target = old.port
            proxy.cut()
            with pytest.raises(RolledBack):
                await db.append(stream, b"3")
            assert await payloads(db.read("s")) == [b"1"]
            async with kimberlite.connect(f"kimberlite://127.0.0.1:{old.port}") as other:
                with pytest.raises(RolledBack):
                    await other.append("s", b"4")


async def test_what_a_repair_gave_up_ends_only_the_client_that_has_a_receipt_of_it(tmp_path: Path) -> None:
    path = tmp_path / "db"
    async with served(path) as there:
        kept = await there.log.append("s", b"1")
    old = shutil.copytree(path, tmp_path / "old")
    async with served(old) as there, proxied(there.port) as proxy:
        url = f"kimberlite://127.0.0.1:{proxy.port}"
        async with kimberlite.connect(url) as db:
            lost = await db.append("s", b"2")
            # A watermark comes when it is idle; then the last group is damaged, and a daemon serves what was repaired.
            await asyncio.sleep(0.2)
            files = sorted((old / "segments").iterdir())
            data = files[-1].read_bytes()
            assert b"KIMBGRP1" in data
            shutil.copytree(old, tmp_path / "broken")
            name = tmp_path / "broken" / "segments" / files[-1].name
            name.write_bytes(data[: (place := data.rindex(b"KIMBGRP1"))] + bytes(100) + data[place + 100 :])
            loss = await repair_directory(tmp_path / "broken", lambda _loss: True)
            assert loss is not None
            assert loss.plan.position == kept.tree_size
            async with served(tmp_path / "broken") as repaired:
                proxy.target = repaired.port
                proxy.cut()
                with pytest.raises((RolledBack, Unavailable, UnknownOutcome), match="given up"):
                    await db.append("s", b"3")
                with pytest.raises(RolledBack, match="given up"):
                    await db.append("s", b"3")
                url = f"kimberlite://127.0.0.1:{repaired.port}"
                with pytest.raises(RolledBack, match="given up"):
                    await kimberlite.connect(url, anchor=lost)
                for anchor in (None, kept):
                    async with kimberlite.connect(url, anchor=anchor) as other:
                        receipt = await other.append("s", b"4")
                        assert (receipt.incarnation, receipt.first_offset > 0) == (1, True)


async def test_a_receipt_of_a_stream_that_never_was_is_refused(tmp_path: Path) -> None:
    async with served(tmp_path / "db") as there:
        receipt = await there.log.append("s", b"1")
        forged = receipt._replace(stream="t", tree_size=99, group=99)
        with pytest.raises(Invalid):
            await kimberlite.connect(f"kimberlite://127.0.0.1:{there.port}", anchor=forged)
        await there.log.append("s", b"2")


async def test_a_server_that_says_nothing_any_more_is_left_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kimberlite.client.connection.QUIET", 0.2)
    async with (
        served(tmp_path / "db") as there,
        proxied(there.port) as proxy,
        kimberlite.connect(f"kimberlite://127.0.0.1:{proxy.port}", retry=1) as db,
    ):
        await db.append("s", b"1")
        held_from_here_on = proxy.passes
        held_from_here_on.clear()
        proxy.passes = asyncio.Event()
        with pytest.raises(UnknownOutcome):
            await asyncio.wait_for(db.append("s", b"2"), 20)
        proxy.passes.set()
        assert (await asyncio.wait_for(db.append("s", b"3"), 20)).first_offset in (1, 2)
        # One that has nothing to say is heard of all the same.
        link = db._connection.link
        await asyncio.sleep(1)
        assert db._connection.link is link
        held_from_here_on.set()


async def test_a_client_that_is_one_too_many_waits_for_its_turn(tmp_path: Path) -> None:
    async with served(tmp_path / "db", Limits(connections=1)) as there:
        first = await kimberlite.connect(f"kimberlite://127.0.0.1:{there.port}")
        with pytest.raises(Unavailable):
            await kimberlite.connect(f"kimberlite://127.0.0.1:{there.port}", retry=0.2)
        second = asyncio.create_task(connected(there.port))
        await asyncio.sleep(0.2)
        await first.close()
        db = await asyncio.wait_for(second, 20)
        await db.append("s", b"1")
        await db.close()


async def connected(port: int, retry: float = 60) -> Client:
    return await kimberlite.connect(f"kimberlite://127.0.0.1:{port}", retry=retry)


async def test_of_records_by_themselves_no_more_are_on_their_way_than_are_remembered(tmp_path: Path) -> None:
    async with (
        served(tmp_path / "db") as there,
        proxied(there.port) as proxy,
        kimberlite.connect(f"kimberlite://127.0.0.1:{proxy.port}") as db,
    ):
        await db.append("s", b"first")
        many = [b"%d" % i for i in range(600)]
        calls = [asyncio.create_task(db.append("s", many, sync="record")) for _ in range(4)]
        await asyncio.sleep(0)
        [lane] = db._appends._lanes.values()
        assert (len(lane.open), len(lane.waiting)) == (1, 3)
        proxy.cut()
        receipts = await asyncio.wait_for(asyncio.gather(*calls), 60)
        assert [(each.first_offset, each.last_offset) for each in receipts] == [
            (1 + 600 * i, 600 + 600 * i) for i in range(4)
        ]
        with pytest.raises(LimitExceeded):
            await db.append("s", [b"."] * 1025, sync="record")


async def test_another_database_in_the_place_of_the_first_is_not_written_to(tmp_path: Path) -> None:
    async with served(tmp_path / "db") as there, served(tmp_path / "other") as other, proxied(there.port) as proxy:
        async with kimberlite.connect(f"kimberlite://127.0.0.1:{proxy.port}") as db:
            await db.append("s", b"1")
            proxy.target = other.port
            proxy.cut()
            with pytest.raises((Invalid, UnknownOutcome, Unavailable)):
                await asyncio.wait_for(db.append("s", b"2"), 20)
            with pytest.raises(Invalid):
                await db.append("s", b"3")
        assert [stream.name async for stream in other.log.streams()] == []


async def test_more_than_may_be_open_waits_for_room(tmp_path: Path) -> None:
    async with served(tmp_path / "db") as there, kimberlite.connect(f"kimberlite://127.0.0.1:{there.port}") as db:
        tasks = [asyncio.create_task(db.append("s", b"%d" % i)) for i in range(5_000)]
        await asyncio.sleep(0)
        assert len(db._appends) <= 1024
        receipts = await asyncio.gather(*tasks)
        assert [receipt.first_offset for receipt in receipts] == list(range(5_000))
        large = [asyncio.create_task(db.append("s", bytes(8 << 20))) for _ in range(12)]
        await asyncio.sleep(0)
        assert db._appends.weight <= 80 << 20
        assert all(type(receipt) is Receipt for receipt in await asyncio.gather(*large))


async def test_reads_and_tails_go_on_when_the_server_is_stopped_and_started_again(tmp_path: Path) -> None:
    async with served(tmp_path / "db") as first, proxied(first.port) as proxy:
        for i in range(400):
            await first.log.append("s", [b"%d" % (10 * i + j) + b"." * 2_000 for j in range(10)])
        async with kimberlite.connect(f"kimberlite://127.0.0.1:{proxy.port}") as db:
            reader, tail = db.read("s"), db.tail("s", start=0)
            begun = [(await anext(reader)).offset for _ in range(10)]
            assert (await anext(tail)).offset == 0
            await first.close()
            await first.log.close()
            async with served(tmp_path / "db") as again:
                proxy.target = again.port
                assert begun + [record.offset async for record in reader] == list(range(4_000))
                assert [(await anext(tail)).offset for _ in range(3_999)] == list(range(1, 4_000))
                await db.append("s", b"more")
                assert (await anext(tail)).payload == b"more"


async def test_a_tail_whose_place_a_repair_has_given_up_is_told(tmp_path: Path) -> None:
    path, rounds = tmp_path / "db", 20
    async with served(path) as first, proxied(first.port) as proxy:
        for i in range(rounds):
            await first.log.append("ab"[i % 2], b"old %d" % i)
        async with kimberlite.connect(f"kimberlite://127.0.0.1:{proxy.port}") as db:
            ends = [db.tail("a"), db.tail(), db.tail("b", start=9)]
            assert (await anext(ends[2])).offset == 9
            asked = [asyncio.ensure_future(anext(tail)) for tail in ends]
            await db.info()
            await first.close()
            await first.log.close()
            file = path / "segments" / f"{0:020}.seg"
            data = bytearray(file.read_bytes())
            data[data.index(b"old 12")] ^= 1
            file.write_bytes(data)
            (path / "checkpoint").unlink(missing_ok=True)
            assert await repair_directory(path, lambda _loss: True) is not None
            async with served(path) as again:
                for i in range(rounds):
                    await again.log.append("ab"[i % 2], b"new %d" % i)
                proxy.target = again.port
                for waiting in asked:
                    with pytest.raises(RolledBack, match="a repair has given up"):
                        await asyncio.wait_for(waiting, 5)
                assert (await anext(db.tail("a", start=0))).payload == b"old 0"


async def test_a_read_goes_on_after_a_repair_unless_it_had_come_to_what_was_given_up(tmp_path: Path) -> None:
    path, rounds, size = tmp_path / "db", 300, 100_000
    async with served(path) as first, proxied(first.port) as proxy:
        for i in range(rounds):
            await first.log.append("a", b"old %d." % i + bytes(size))
        async with kimberlite.connect(f"kimberlite://127.0.0.1:{proxy.port}") as db:
            reads = [
                db.read("a", limit=180),
                db.read(until=180),
                db.read("a", until=180, reverse=True),
                db.read(until=180, reverse=True, limit=120),
                db.read("a", reverse=True),
                db.read(reverse=True),
            ]
            had = [[(await anext(read)).payload] for read in reads]
            await first.close()
            await first.log.close()
            for file in sorted((path / "segments").glob("*.seg")):
                data = bytearray(file.read_bytes())
                if (at := data.find(b"old 200.")) >= 0:
                    data[at] ^= 1
                    file.write_bytes(data)
            (path / "checkpoint").unlink(missing_ok=True)
            assert await repair_directory(path, lambda _loss: True) is not None
            async with served(path) as again:
                for _ in range(10):
                    await again.log.append("a", b"new")
                proxy.target = again.port
                for read, mine in zip(reads[:4], had, strict=False):
                    mine.extend([record.payload async for record in read])
                numbers = [[int(payload[4 : payload.index(b".")]) for payload in mine] for mine in had]
                assert numbers[:3] == [[*range(180)], [*range(179)], [*reversed(range(180))]]
                assert numbers[3] == [*reversed(range(59, 179))]
                for read in reads[4:]:
                    with pytest.raises(RolledBack, match="a repair has given up positions from 201 on"):
                        async for _ in read:
                            pass


async def test_a_tail_that_had_not_come_to_what_a_repair_gave_up_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "db"
    async with served(path) as first, proxied(first.port) as proxy:
        for i in range(10):
            await first.log.append("a" if i < 6 else "b", b"old %d" % i)
        async with kimberlite.connect(f"kimberlite://127.0.0.1:{proxy.port}") as db:
            # All of its stream is kept.
            tail = db.tail("a", start=5)
            assert (await anext(tail)).payload == b"old 5"
            waiting = asyncio.ensure_future(anext(tail))
            await first.close()
            await first.log.close()
            file = path / "segments" / f"{0:020}.seg"
            data = bytearray(file.read_bytes())
            data[data.index(b"old 8")] ^= 1
            file.write_bytes(data)
            (path / "checkpoint").unlink(missing_ok=True)
            assert await repair_directory(path, lambda _loss: True) is not None
            async with served(path) as again:
                proxy.target = again.port
                await again.log.append("a", b"new")
                assert (await asyncio.wait_for(waiting, 5)).payload == b"new"


async def test_what_is_too_large_to_be_sent_is_refused_at_once_and_alone(tmp_path: Path) -> None:
    async with (
        served(tmp_path / "db") as there,
        proxied(there.port) as proxy,
        kimberlite.connect(f"kimberlite://127.0.0.1:{proxy.port}") as db,
    ):
        await db.append("w", b"0")
        target, proxy.target = proxy.target, 1
        proxy.cut()
        await asyncio.sleep(0.1)
        innocent = asyncio.create_task(db.append("w", b"1"))
        with pytest.raises(LimitExceeded):
            await db.append("w" * 100, bytes((16 << 20) - 21), producer=("p" * 120, 0))
        proxy.target = target
        assert (await asyncio.wait_for(innocent, 20)).first_offset == 1
        assert (await db.append("w", b"2")).first_offset == 2


@asynccontextmanager
async def saying(*answers: bytes) -> AsyncIterator[tuple[int, list[int]]]:
    """A server that says these to each client, one for each thing that it hears: its port, and who came."""
    came: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(len(came))
        with suppress(OSError):
            for answer in answers:
                if not await reader.read(65_536):
                    return
                writer.write(answer)
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], came
    finally:
        server.close()


def said(kind: int, id: int, body: Any) -> bytes:
    return _native.encode_message(kind, id, msgpack.packb(body))


WELCOME = said(
    Kind.WELCOME,
    0,
    {"version": 1, "database": "d", "position": 0, "group": 0, "incarnation": 0, "sync": "group", "requests": 9},
)


@pytest.mark.parametrize(
    "welcome",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        said(Kind.WELCOME, 0, {}),
        said(Kind.WELCOME, 0, [1]),
        said(Kind.WELCOME, 0, {"database": 1, "position": "x", "sync": None}),
        said(Kind.ERROR, 0xFFFFFFFF, {"code": "NO_SUCH_CODE", "message": ""}),
        said(Kind.ERROR, 0xFFFFFFFF, None),
    ],
)
async def test_a_server_that_does_not_speak_the_protocol_is_unavailable(welcome: bytes) -> None:
    async with saying(welcome) as (port, _):
        with pytest.raises(Unavailable):
            await asyncio.wait_for(connected(port, retry=0.5), 20)


@pytest.mark.parametrize(
    "answer",
    [
        said(Kind.RECEIPTS, 0xFFFFFFFF, []),
        said(Kind.RECEIPTS, 0xFFFFFFFF, [1, True, 1, bytes(32), bytes(32), 1, 1, [[1, []]]]),
        said(Kind.ERROR, 0xFFFFFFFF, {"code": "PROTOCOL_ERROR", "message": "what is this"}),
        said(Kind.ERROR, 1, {"code": 5}),
    ],
)
async def test_a_server_whose_answers_make_no_sense_is_not_asked_for_ever(answer: bytes) -> None:
    async with saying(WELCOME, answer) as (port, came), kimberlite.connect(f"kimberlite://127.0.0.1:{port}") as db:
        with pytest.raises((UnknownOutcome, Unavailable)):
            await asyncio.wait_for(db.append("s", b"."), 20)
        assert len(came) <= 5


async def test_what_no_message_can_say_is_said_as_well_as_it_can_be(tmp_path: Path) -> None:
    async with served(tmp_path / "db") as there:
        await there.log.append("s", [b"1", b"2"])
        first, last = datetime(1, 1, 1, tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
        async with kimberlite.connect(f"kimberlite://127.0.0.1:{there.port}") as db:
            assert await payloads(db.read("s", start=first, until=last)) == [b"1", b"2"]
            assert await payloads(db.read("s", start=0, until=1 << 70, limit=1 << 70)) == [b"1", b"2"]
            assert await payloads(db.read("s", start=last)) == []
            with pytest.raises(Invalid):
                await db.verify("x")  # type: ignore[arg-type]
            receipt = await db.append("s", b"3")
            with pytest.raises(Invalid):
                await db.verify(receipt._replace(group=1 << 64))
    for url in ("kimberlite://127.0.0.1:65536", "kimberlite://127.0.0.1:99999"):
        with pytest.raises(Invalid):
            await kimberlite.connect(url)
    with pytest.raises(Invalid):
        await kimberlite.connect("kimberlite://127.0.0.1:1", anchor=5)  # type: ignore[arg-type]
    with pytest.raises(Unavailable):
        await kimberlite.connect(f"kimberlite://{'x' * 70}:1", retry=0.1)


async def test_a_server_that_leaves_behind_its_welcome_is_asked_again() -> None:
    came: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(len(came))
        await reader.read(65_536)
        writer.write(WELCOME)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = Client(f"kimberlite://127.0.0.1:{server.sockets[0].getsockname()[1]}", retry=60, anchor=None)
    await until(lambda: len(came) >= 4)
    await client.close()
    server.close()


async def test_whom_it_does_not_belong_to_is_refused_and_disturbs_nobody(tmp_path: Path) -> None:
    async with served(tmp_path / "db") as there:
        db = await kimberlite.connect(f"kimberlite://127.0.0.1:{there.port}")
        await db.append("s", b"1")

        async def elsewhere() -> None:
            calls: list[Any] = [db.append("s", b"x"), db.append_many({"s": b"x"}), db.get(0), db.info(), db.close()]
            for call in calls:
                with pytest.raises(Invalid, match="another event loop"):
                    await call
            for read in (db.read, db.tail):
                with pytest.raises(Invalid, match="another event loop"):
                    read("s")

        await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
        child = os.fork()
        if child == 0:
            try:
                for call in (db.append("s", b"x"), db.info()):
                    try:
                        call.send(None)
                        os._exit(1)
                    except Closed:
                        pass
                with suppress(StopIteration):
                    db.close().send(None)
                os._exit(0)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(await asyncio.to_thread(lambda: os.waitpid(child, 0)[1])) == 0
        await db.append("s", b"2")
        assert await payloads(db.read("s")) == [b"1", b"2"]
        await db.close()


def test_a_handle_whose_loop_is_gone_is_closed_by_another(tmp_path: Path) -> None:
    async def opened() -> Client:
        async with served(tmp_path / "db") as there:
            return await kimberlite.connect(f"kimberlite://127.0.0.1:{there.port}")

    db = asyncio.run(opened())
    asyncio.run(db.close())
    with pytest.raises(Closed):
        asyncio.run(db.info())


async def test_a_server_that_takes_no_connection_is_given_up_in_time() -> None:
    with contextlib.ExitStack() as stack:
        frozen = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            # What does not fit in its queue is not answered at all.
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with suppress(BlockingIOError):
                waiting.connect(frozen.getsockname())
        begun = time.monotonic()
        with pytest.raises(Unavailable):
            await kimberlite.connect(f"kimberlite://127.0.0.1:{frozen.getsockname()[1]}", retry=0.5)
        db = Client(f"kimberlite://127.0.0.1:{frozen.getsockname()[1]}", retry=0.5, anchor=None)
        with pytest.raises(Unavailable):
            await db.append("s", b"x")
        await db.close()
        assert time.monotonic() - begun < 15


async def test_a_server_that_welcomes_and_closes_is_not_asked_for_ever() -> None:
    came = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal came
        came += 1
        await reader.read(65_536)
        writer.write(WELCOME)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    db = Client(f"kimberlite://127.0.0.1:{server.sockets[0].getsockname()[1]}", retry=0.5, anchor=None)
    with pytest.raises((Unavailable, UnknownOutcome)):
        await asyncio.wait_for(db.append("s", b"x"), 20)
    assert came < 20
    await asyncio.wait_for(db.close(), 20)
    server.close()
