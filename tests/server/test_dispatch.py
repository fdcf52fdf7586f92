"""What every request does."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from kimberlite import Receipt
from kimberlite.crypto.master import create_master
from kimberlite.wire.messages import Kind
from tests.server.wires import served


@pytest.fixture(params=["plain", "encrypted"])
def options(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    if request.param == "plain":
        return {}
    create_master(tmp_path / "key")
    return {"key_file": tmp_path / "key"}


async def test_appends_are_answered_in_the_order_in_which_they_came(tmp_path: Path, options: dict[str, Any]) -> None:
    async with served(tmp_path / "db", **options) as there:
        wire = await there.greeted()
        for i in range(300):
            # New streams, known ones, several at once and each record by itself, mixed.
            if i % 7 == 3:
                wire.send(Kind.APPEND_MANY, i, [[["s", [b"%d" % i], None], [f"t{i}", [b"x"], 0]], None, None])
            elif i % 50 == 9:
                wire.send(Kind.APPEND, i, ["s", [b"%d" % i, b"%d" % i], None, None, "record"])
            else:
                wire.send(Kind.APPEND, i, ["s", [b"%d" % i], None, None, None])
        answers = await wire.answers(300)
        places = [answers[i][1][0][:1] for i in range(300)]
        assert places == sorted(places)
        payloads = [int(record.payload) async for record in there.log.read("s")]
        assert payloads == sorted(payloads)


async def test_what_an_append_says_is_stored_and_its_receipt_is_sound(tmp_path: Path, options: dict[str, Any]) -> None:
    async with served(tmp_path / "db", **options) as there:
        wire = await there.greeted()
        wire.send(Kind.APPEND, 1, ["s", [b"a", [b"b", b"k", [["h", b"v"], ["h", b""]], -5]], 0, [b"me", 0], "group"])
        ending, [[first, last, position, end, mac]] = (await wire.answers(1))[1]
        timestamp, durable, size, root, chain, incarnation, group = ending
        receipt = Receipt("s", first, last, position, end, timestamp, durable, size, root, chain,
                          incarnation, group, mac)  # fmt: skip
        assert (durable, last, end) == (True, 1, position + 1)
        records = [record async for record in there.log.read()]
        assert [record[:4] for record in records] == [
            (b"a", None, (), None),
            (b"b", b"k", (("h", b"v"), ("h", b"")), -5),
        ]
        there.server.serving.check_anchor(receipt)
        # Shown with the next hello.
        other = await there.greeted(anchor=list(receipt), database=(await there.log.info())["database_id"])
        other.send(Kind.APPEND, 1, ["s", [b"a", [b"b", b"k", [["h", b"v"], ["h", b""]], -5]], 0, [b"me", 0], "group"])
        assert (await other.answers(1))[1] == (ending, [[first, last, position, end, mac]])


async def test_what_cannot_be_appended_is_refused_and_the_rest_is_not(tmp_path: Path) -> None:
    async with served(tmp_path / "db") as there:
        wire = await there.greeted()
        wire.send(Kind.APPEND, 0, ["s", [b"x"], None, None, None])
        await wire.answers(1)
        bodies = {
            1: ["s", [b"x"], 5, None, None],
            2: ["new", [b"x"], 5, None, None],
            3: ["s", [], None, None, None],
            4: ["s", [b""] * 65_537, None, None, None],
            5: ["s", [b"x"], None, None, "soon"],
            6: ["s", [b"x"], None, [b"", 0], None],
            7: ["s", [b"x"], None, [b"p", 1], None],
            8: ["", [b"x"], None, None, None],
            9: ["a\nb", [b"x"], None, None, None],
            10: ["s", [b"x"], 1 << 63, None, None],
            11: ["s", [b"x", b"y"], 5, None, "record"],
            12: ["s", [b"x"] * 1025, None, [b"p", 0], "record"],
            13: ["s", [b"ok"], 1, None, None],
        }
        for id, body in bodies.items():
            wire.send(Kind.APPEND, id, body)
        wire.send(Kind.APPEND_MANY, 20, [[["s", [b"x"], None], ["s", [b"x"], None]], None, None])
        wire.send(Kind.APPEND_MANY, 21, [[], None, None])
        wire.send(Kind.APPEND_MANY, 22, [[["s", [b"x"], None]], None, "record"])
        answers = await wire.answers(len(bodies) + 3)
        codes = {id: answer for id, answer in answers.items() if isinstance(answer, str)}
        limits, conflicts = (4, 12), (1, 2, 7)
        assert codes == {
            id: "LIMIT_EXCEEDED" if id in limits else "CONFLICT" if id in conflicts else "INVALID"
            for id in answers
            if id != 13
        }
        assert [record.payload async for record in there.log.read("s")] == [b"x", b"ok"]


async def test_records_are_read_up_and_down_by_offset_position_and_time(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    async with served(tmp_path / "db", **options) as there:
        for i in range(50):
            await there.log.append("ab"[i % 2], [b"%d" % (2 * i), b"%d" % (2 * i + 1)])
        expected = [(r.stream, r.offset, r.position, r.payload) async for r in there.log.read()]
        times = [record.timestamp async for record in there.log.read()]
        wire = await there.greeted()
        questions: list[tuple[dict[str, Any], Any]] = [
            ({}, expected),
            ({"start": 10, "until": 20}, [each for each in expected if 10 <= each[2] < 20]),
            ({"stream": "a"}, [each for each in expected if each[0] == "a"]),
            ({"stream": "a", "start": 10, "limit": 7}, [each for each in expected if each[0] == "a"][10:17]),
            ({"stream": "unheard of"}, []),
            ({"start": {"time": times[40]}}, expected[times.index(times[40]) :]),
            ({"limit": 0}, []),
        ]  # fmt: skip
        for id, (question, answer) in enumerate(questions):
            wire.send(Kind.READ, id, {"credit": 1 << 30} | question)
            assert await wire.records(id) == answer, question
        wire.send(Kind.READ, 99, {"credit": 1 << 30, "reverse": True, "stream": "b"})
        _, _, body = await wire.next()
        down = [(offset - i, record) for _, offset, _, _, records in body for i, record in enumerate(records)]
        assert down == [(offset, record) for stream, offset, _, record in reversed(expected) if stream == "b"]
        assert (await wire.next())[0] == Kind.END


async def test_a_read_goes_no_further_than_its_credit(tmp_path: Path) -> None:
    async with served(tmp_path / "db") as there:
        payload = os.urandom(1000)
        for _ in range(5):
            await there.log.append("s", [payload] * 1000)
        wire = await there.greeted()
        wire.send(Kind.READ, 1, {"credit": 1})
        found = 0
        kind, _, body = await wire.next()
        while kind == Kind.RECORDS:
            found += sum(len(records) for *_, records in body)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(wire.reader.readexactly(1), 0.05)
            # What was sent beyond the credit is owed.
            wire.send(Kind.CREDIT, 1, wire.length)
            kind, _, body = await wire.next()
        assert (kind, found) == (Kind.END, 5000)


async def test_a_tail_gives_what_comes_until_it_is_stopped(tmp_path: Path, options: dict[str, Any]) -> None:
    async with served(tmp_path / "db", **options) as there:
        await there.log.append("s", b"before")
        wire = await there.greeted()
        wire.send(Kind.TAIL, 1, {"credit": 1 << 20, "stream": "s"})
        wire.send(Kind.TAIL, 2, {"credit": 1 << 20, "start": 0})
        wire.send(Kind.PING, 3, None)
        begun: dict[int, Any] = {}
        seen: dict[int, list[bytes]] = {1: [], 2: []}
        while len(begun) < 3:
            kind, id, body = await wire.next()
            if kind == Kind.RESULT:
                begun[id] = body
            else:
                seen[id] += [record for *_, records in body for record in records]
        assert begun == {1: 1, 2: 0, 3: None}
        for i in range(20):
            await there.log.append("st"[i % 2], b"%d" % i)
        while len(seen[2]) < 21 or len(seen[1]) < 10:
            kind, id, body = await wire.next()
            assert kind == Kind.RECORDS
            seen[id] += [record for *_, records in body for record in records]
        assert seen[1] == [b"%d" % i for i in range(0, 20, 2)]
        assert seen[2] == [b"before", *(b"%d" % i for i in range(20))]
        wire.send(Kind.STOP, 2, None)
        assert (await wire.next())[:2] == (Kind.END, 2)
        await there.log.append("s", b"more")
        kind, id, body = await wire.next()
        assert (kind, id) == (Kind.RECORDS, 1)


async def test_records_by_position_streams_and_info(tmp_path: Path) -> None:
    async with served(tmp_path / "db") as there:
        await there.log.append("a", [b"%d" % i for i in range(10)])
        await there.log.append("b", b"x")
        first = (await anext(there.log.read("a"))).position
        wire = await there.greeted()
        wire.send(Kind.GET, 1, {"positions": [first + 5, first, first + 5]})
        assert [each[3] for each in await wire.records(1)] == [b"5", b"0", b"5"]
        wire.send(Kind.GET, 2, {"positions": [10_000]})
        assert (await wire.answers(1))[2] == "INVALID"
        wire.send(Kind.STREAMS, 3, {"start": 0})
        assert await wire.next() == (Kind.RESULT, 3, [["a", 10, False, False], ["b", 1, False, False]])
        wire.send(Kind.STREAMS, 4, {"start": 1})
        assert await wire.next() == (Kind.RESULT, 4, [["b", 1, False, False]])
        wire.send(Kind.INFO, 5, None)
        assert await wire.next() == (Kind.RESULT, 5, await there.log.info())


async def test_a_receipt_that_the_log_does_not_reach_ends_all_appending(tmp_path: Path) -> None:
    async with served(tmp_path / "db") as there:
        before = await there.greeted()
        before.send(Kind.APPEND, 1, ["s", [b"1"], None, None, None])
        await before.answers(1)
        receipt = await there.log.append("s", b"2")
        ahead = there.ahead(receipt)
        forged = await there.connect()
        forged.send(Kind.HELLO, 0, {"version": 1, "anchor": [*ahead[:-1], receipt.mac]})
        assert await forged.broken() == "INVALID"
        before.send(Kind.APPEND, 2, ["s", [b"3"], None, None, None])
        assert not isinstance((await before.answers(1))[2], str)
        sound = await there.greeted(anchor=ahead)
        for wire in (before, sound):
            wire.send(Kind.APPEND, 3, ["s", [b"4"], None, None, None])
            assert (await wire.answers(1))[3] == "ROLLED_BACK"
        sound.send(Kind.READ, 4, {"credit": 1 << 20, "stream": "s"})
        assert [each[3] for each in await sound.records(4)] == [b"1", b"2", b"3"]


async def test_appends_to_new_and_old_streams_keep_the_order_in_which_they_came(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    async with served(tmp_path / "db", **options) as there:
        wire = await there.greeted()
        wire.send(Kind.APPEND, 0, ["old", [b"x"], None, None, None])
        await wire.answers(1)
        for i in range(1, 61):
            if i % 3 == 0:
                wire.send(
                    Kind.APPEND_MANY, i, [[["old", [b"x"], None], [f"m{i}", [b"x"], None]], [b"p", i // 3 - 1], None]
                )
            else:
                wire.send(Kind.APPEND, i, ["old" if i % 3 == 1 else f"new{i}", [b"x"], None, None, None])
        wire.send(Kind.APPEND, 61, ["refused", [b"x"], 7, None, None])
        wire.send(Kind.APPEND, 62, ["old", [b"x"], None, None, None])
        answers = await wire.answers(62)
        assert answers.pop(61) == "CONFLICT"
        positions = [answers[i][1][0][2] for i in sorted(answers)]
        assert positions == sorted(positions)


async def test_what_is_stopped_at_once_is_answered_and_closed(tmp_path: Path) -> None:
    async with served(tmp_path / "db") as there:
        wire = await there.greeted()
        for i in range(1_100):
            wire.send((Kind.TAIL, Kind.READ)[i % 2], i, {"credit": 1 << 20})
            wire.send(Kind.STOP, i, None)
        wire.send(Kind.PING, 5_000, None)
        ended: set[int] = set()
        while len(ended) < 1_101:
            kind, id, _ = await wire.next()
            if kind != Kind.RESULT or id == 5_000:
                ended.add(id)
        assert ended == {*range(1_100), 5_000}


async def test_records_by_position_come_in_messages_of_a_bounded_size(tmp_path: Path) -> None:
    async with served(tmp_path / "db") as there:
        for _ in range(40):
            await there.log.append("s", os.urandom(1 << 20))
        positions = [record.position async for record in there.log.read("s")]
        wire = await there.greeted()
        wire.send(Kind.GET, 1, {"positions": [*positions, *positions]})
        found, longest = 0, 0
        while (message := await wire.next())[0] == Kind.RECORDS:
            found += sum(len(records) for *_, records in message[2])
            longest = max(longest, wire.length)
        assert (found, longest < 3 << 20) == (80, True)


async def test_a_receipt_of_a_stream_that_is_not_there_proves_nothing(tmp_path: Path) -> None:
    async with served(tmp_path / "db") as there:
        await there.log.append("s", b"1")
        forged = await there.connect()
        anchor = ["nosuch", 0, 0, 1, 1, 1, True, 99, bytes(32), bytes(32), 0, 99, bytes(16)]
        forged.send(Kind.HELLO, 0, {"version": 1, "anchor": anchor})
        assert await forged.broken() == "INVALID"
        wire = await there.greeted()
        wire.send(Kind.APPEND, 1, ["s", [b"2"], None, None, None])
        assert not isinstance((await wire.answers(1))[1], str)


async def test_whoever_has_said_all_is_closed_when_all_is_answered(tmp_path: Path) -> None:
    async with served(tmp_path / "db") as there:
        wire = await there.greeted()
        for i in range(20):
            wire.send(Kind.APPEND, i, ["s", [b"x"], None, None, None])
            await wire.answers(1)
        wire.send(Kind.APPEND, 99, ["s", [b"x"], None, None, None])
        wire.writer.write_eof()
        await wire.answers(1)
        assert await asyncio.wait_for(wire.broken(), 5) == ""


async def test_costly_requests_of_one_client_leave_the_loop_to_the_others(tmp_path: Path) -> None:
    async with served(tmp_path / "db") as there:
        for start in range(0, 4_000, 500):
            await there.log.append_many({f"{i:05}" + "n" * 250: b"x" for i in range(start, start + 500)})
        busy, other = await there.greeted(), await there.greeted()
        busy.writer.transport.pause_reading()  # type: ignore[attr-defined]
        for i in range(200):
            busy.send(Kind.STREAMS, i, {"start": 0})
        await asyncio.sleep(0.05)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for i in range(20):
            other.send(Kind.PING, i, None)
            await other.next()
        assert loop.time() - begun < 3
        [connection] = [each for each in there.server.connections if each.session.open[0] > 1]
        assert connection._transport.get_write_buffer_size() < 6 << 20


async def test_a_hello_comes_once(tmp_path: Path) -> None:
    async with served(tmp_path / "db") as there:
        wire = await there.greeted()
        wire.send(Kind.HELLO, 0, {"version": 1})
        assert await wire.broken() == "PROTOCOL_ERROR"
