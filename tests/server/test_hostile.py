"""Clients that mean harm, on real sockets, and what the others feel of it meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest

import kimberlite
from kimberlite import Closed, Receipt, _native
from kimberlite.importing import HIGHEST
from kimberlite.log.options import Options
from kimberlite.log.verify import verify
from kimberlite.server.connection import Connection
from kimberlite.server.limits import Limits
from kimberlite.storage import open_backend
from kimberlite.wire.messages import NOBODY, Kind
from tests.server.wires import Served, served, until

#: Deadlines that a test can wait for.
HASTY = Limits(handshake=0.5, frame=0.6, idle=0.8, unread=1.0)


@asynccontextmanager
async def beside(there: Served) -> AsyncIterator[list[float]]:
    """Another client that appends one record at a time meanwhile; how long each took."""
    wire = await there.greeted()
    took: list[float] = []
    ended = False

    async def append() -> None:
        while not ended:
            begun = time.perf_counter()
            wire.send(Kind.APPEND, len(took), ["beside", [b"x"], None, None, None])
            await wire.answers(1)
            took.append(time.perf_counter() - begun)
            await asyncio.sleep(0.001)

    task = asyncio.create_task(append())
    await until(lambda: len(took) > 5)
    try:
        yield took
    finally:
        ended = True
        await task


@pytest.mark.parametrize("length", [0, (16 << 20) + 1, (1 << 32) - 1])
async def test_a_length_that_no_message_has_costs_nothing(tmp_path: Path, length: int) -> None:
    async with served(tmp_path / "db") as there, beside(there):
        for greeted in (False, True):
            wire = await there.greeted() if greeted else await there.connect()
            wire.raw(Kind.APPEND, 1, b"", length)
            assert await wire.broken() == "FRAME_TOO_LARGE"


async def test_what_is_announced_and_does_not_come_is_closed_at_its_deadline(tmp_path: Path) -> None:
    async with served(tmp_path / "db", HASTY) as there:
        silent = await there.connect()
        assert await silent.broken() == "PROTOCOL_ERROR"
        half = await there.greeted()
        half.raw(Kind.APPEND, 1, b"\x95", 1000)
        assert await half.broken() == "PROTOCOL_ERROR"
        slow = await there.greeted()

        async def drip() -> None:
            slow.raw(Kind.APPEND, 1, b"", 1000)
            while True:
                slow.writer.write(b"\x00")
                await asyncio.sleep(0.1)

        # However many bytes come, they are no message.
        dripping = asyncio.create_task(drip())
        # What it sends meanwhile may reset the connection before it has read why.
        assert await slow.broken() in ("PROTOCOL_ERROR", "")
        await until(lambda: there.server.metrics.closed["PROTOCOL_ERROR"] == 3)
        dripping.cancel()
        idle = await there.greeted()
        assert await idle.broken() == "LIMIT_EXCEEDED"
        waiting = await there.greeted()
        waiting.send(Kind.TAIL, 1, {"credit": 1})
        assert (await waiting.next())[0] == Kind.RESULT
        await asyncio.sleep(1.5)
        await there.log.append("s", b"x")
        assert (await waiting.next())[0] == Kind.RECORDS
        await until(lambda: there.server.clients == 1)


HEAVY = {
    "an array that claims 2**32": b"\xdd\xff\xff\xff\xff",
    "a map that claims 2**32": b"\xdf\xff\xff\xff\xff",
    "8 MiB of empty maps": b"\xdd\x00\x80\x00\x00" + b"\x80" * (8 << 20),
    "2,000 nested arrays": b"\x91" * 2_000 + b"\xc0",
    "trailing bytes": b"\xc0\xc0",
    "an extension": msgpack.packb(msgpack.ExtType(1, b"")),
    "keys that repeat": b"\x82\xa1a\x01\xa1a\x02",
    "no number": b"\xca\x7f\xc0\x00\x00",
    "bad UTF-8": b"\xa1\xff",
    "another type": b"\xc3",
}


@pytest.mark.parametrize("body", HEAVY.values(), ids=HEAVY)
@pytest.mark.parametrize(
    "kind", [Kind.HELLO, Kind.APPEND, Kind.APPEND_MANY, Kind.READ, Kind.GET, Kind.INFO, Kind.IMPORT, 77]
)
async def test_what_is_no_message_ends_its_connection_and_delays_nobody(
    tmp_path: Path, kind: int, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path / "db") as there, beside(there) as took:
        wire = await there.connect() if kind == Kind.HELLO else await there.greeted()
        before = len(took)
        wire.raw(kind, 1, body)
        assert await wire.broken() == "PROTOCOL_ERROR"
        await until(lambda: len(took) > before + 3)
        await until(lambda: there.server.clients == 1)
    assert not [record for record in caplog.records if record.exc_info]


async def test_only_what_is_known_is_answered_before_the_hello(tmp_path: Path) -> None:
    async with served(tmp_path / "db") as there:
        for kind in (Kind.APPEND, Kind.READ, Kind.PING, 99):
            wire = await there.connect()
            wire.send(kind, 1, None)
            assert await wire.broken() == "PROTOCOL_ERROR"
        for said in ({"version": 2}, {"version": 1, "database": "another"}):
            wire = await there.connect()
            wire.send(Kind.HELLO, 0, said)
            assert await wire.broken() == "INVALID"


async def test_a_client_that_reads_no_replies_is_not_read_from_and_then_closed(tmp_path: Path) -> None:
    """A million requests are never taken: what they wait in is the client's own memory."""
    async with served(tmp_path / "db", Limits(unread=3.0)) as there, beside(there) as took:
        wire = await there.greeted()
        one = struct.pack("<III", 1, Kind.INFO, 0) + b"\xc0"
        flood = b"".join(one[:8] + struct.pack("<I", i) + one[12:] for i in range(1_000_000))
        sock = wire.writer.get_extra_info("socket").dup()
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        sock.setblocking(False)
        sent = 0
        async with asyncio.timeout(20):
            while sent < len(flood):
                try:
                    sent += sock.send(flood[sent : sent + 65536])
                except BlockingIOError:
                    await asyncio.sleep(0.02)
                except OSError:
                    break
        sock.close()
        assert sent < len(flood)
        await until(lambda: there.server.clients == 1)
        assert sorted(took)[len(took) // 2] < 0.1


FLOODS = {
    "stops of what is not open": (Kind.STOP, 7, None),
    "credit for what is not open": (Kind.CREDIT, 7, 1),
    "credit for what is": (Kind.CREDIT, 1, 1),
    "pings": (Kind.PING, 7, None),
}


@pytest.mark.parametrize(("kind", "id", "body"), FLOODS.values(), ids=FLOODS)
async def test_a_flood_of_messages_that_cost_nothing_holds_nobody_up(
    tmp_path: Path, kind: Kind, id: int, body: Any
) -> None:
    async with served(tmp_path / "db") as there, beside(there) as took:
        wire = await there.greeted()
        wire.send(Kind.TAIL, 1, {"credit": 1})
        assert (await wire.next())[0] == Kind.RESULT
        flood = _native.encode_message(kind, id, msgpack.packb(body)) * 10_000
        ended = threading.Event()
        sock = wire.writer.get_extra_info("socket").dup()
        sock.setblocking(True)

        def pour() -> None:
            with contextlib.suppress(OSError):
                while not ended.is_set():
                    sock.sendall(flood)

        reading = asyncio.create_task(wire.reader.read(-1))
        pouring = threading.Thread(target=pour)
        pouring.start()
        before = len(took)
        try:
            await until(lambda: len(took) > before + 50)
        finally:
            ended.set()
            sock.shutdown(socket.SHUT_RDWR)
            await asyncio.to_thread(pouring.join)
            sock.close()
            reading.cancel()
        await until(lambda: there.server.clients == 1)


async def test_a_subscriber_that_never_reads_is_closed_and_costs_little(tmp_path: Path) -> None:
    async with served(tmp_path / "db", Limits(unread=1.0)) as there:
        wire = await there.greeted()
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        wire.send(Kind.TAIL, 1, {"credit": 1 << 40, "start": 0})
        batch = [os.urandom(10_000)] * 100
        async with beside(there) as took:
            for _ in range(60):
                await there.log.append("s", batch)
            await until(lambda: there.server.clients == 1)
        assert len(took) > 5


async def test_whoever_reads_too_late_finds_out_why_it_ended(tmp_path: Path) -> None:
    async with served(tmp_path / "db", Limits(unread=0.5)) as there:
        await there.log.append("s", [os.urandom(10_000)] * 600)
        wire = await there.greeted()
        wire.send(Kind.READ, 1, {"credit": 1 << 40})
        await until(lambda: any(each.closing for each in there.server.connections))
        kind, id, error = 0, 0, None
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionResetError):
            while True:
                kind, id, error = await wire.next()
        assert (kind, id, error["code"] if error else None) == (Kind.ERROR, NOBODY, "SLOW_CONSUMER")
        await until(lambda: there.server.clients == 0)
        assert there.server.metrics.closed["SLOW_CONSUMER"] == 1


async def test_open_requests_are_bounded(tmp_path: Path) -> None:
    async with served(tmp_path / "db", Limits(requests=10, readings=4)) as there:
        wire = await there.greeted()
        for i in range(6):
            wire.send(Kind.TAIL, i, {"credit": 1})
        kinds = [(await wire.next())[0] for _ in range(6)]
        assert (kinds.count(Kind.RESULT), kinds.count(Kind.ERROR)) == (4, 2)
        for i in range(6, 40):
            wire.send(Kind.PING, i, None)
        wire.send(Kind.STOP, 0, None)
        seen = [await wire.next() for _ in range(35)]
        assert sorted(id for _, id, _ in seen) == [0, *range(6, 40)]
        assert there.server.connections.pop().session.open == (3, 3 * len(msgpack.packb({"credit": 1})))


async def test_the_bytes_of_open_requests_are_bounded(tmp_path: Path) -> None:
    wanted = threading.Event()

    def verify(_anchor: Receipt | None, _wanted: threading.Event) -> dict[str, Any]:
        assert wanted.wait(20)
        return {}

    one = len(msgpack.packb({"anchor": None}))
    async with served(tmp_path / "db", Limits(request_bytes=10 * one)) as there, beside(there):
        there.server._verify = verify
        wire = await there.greeted()
        for i in range(50):
            wire.send(Kind.VERIFY, i, {"anchor": None})

        def most() -> tuple[int, int]:
            return max(each.session.open for each in there.server.connections)

        await until(lambda: most()[0] >= 10)
        await asyncio.sleep(0.1)
        assert most() == (10, 10 * one)
        wanted.set()
        assert sorted([(await wire.next())[1] for _ in range(50)]) == [*range(50)]


async def test_large_messages_of_many_share_a_bounded_memory(tmp_path: Path) -> None:
    limits = Limits(inbox_bytes=32 << 20, frame=1.5)
    async with served(tmp_path / "db", limits) as there, beside(there):
        wires = [await there.greeted() for _ in range(6)]
        payload = bytes(14 << 20)
        for wire in wires:
            wire.raw(Kind.APPEND, 1, msgpack.packb(["s", [payload], None, None, None])[:-1], 14 << 20)
        shared = there.server.serving._limits
        for _ in range(20):
            await asyncio.sleep(0.05)
            assert shared.grown <= 32 << 20
        # They hold each other up until their deadlines; then there is room again.
        last = await there.greeted()
        last.send(Kind.APPEND, 1, ["s", [payload], None, None, None])
        assert not isinstance((await last.answers(1))[1], str)
    assert shared.grown == 0


@pytest.mark.parametrize("how", ["reset in a message", "half closed", "HTTP"])
async def test_whoever_leaves_in_any_way_leaves_nothing(tmp_path: Path, how: str) -> None:
    async with served(tmp_path / "db") as there, beside(there):
        before = len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())
        for _ in range(20):
            wire = await there.connect()
            if how == "HTTP":
                wire.writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert await wire.broken() == "FRAME_TOO_LARGE"
                await wire.close()
                continue
            await wire.hello()
            wire.send(Kind.TAIL, 1, {"credit": 1 << 20})
            wire.send(Kind.APPEND, 2, ["s", [b"x"], None, None, None])
            if how == "half closed":
                wire.writer.write_eof()
                # What was asked for is answered all the same, and the tail ended.
                seen = set()
                with contextlib.suppress(asyncio.IncompleteReadError):
                    while True:
                        seen.add((await wire.next())[0])
                assert {Kind.RECEIPTS, Kind.END} <= seen
            else:
                wire.raw(Kind.APPEND, 3, b"\x95", 1000)
                await wire.writer.drain()
                linger = struct.pack("ii", 1, 0)
                wire.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            await wire.close()
        await until(lambda: there.server.clients == 1)
        # The log itself opens a file now and then, and the other client has a task or two of its own.
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before[0] + 6)
        await until(lambda: len(asyncio.all_tasks()) <= before[1] + 2)


async def test_a_storm_of_connections_is_told_so_and_the_first_go_on(tmp_path: Path) -> None:
    async with served(tmp_path / "db", Limits(connections=20)) as there:
        first = await there.greeted()
        others = [await there.connect() for _ in range(60)]
        codes = await asyncio.gather(*(other.broken() for other in others[19:]))
        assert set(codes) == {"LIMIT_EXCEEDED"}
        first.send(Kind.PING, 1, None)
        assert (await first.next())[0] == Kind.RESULT


async def test_requests_of_one_id_are_an_error_of_the_connection(tmp_path: Path) -> None:
    async with served(tmp_path / "db") as there:
        wire = await there.greeted()
        wire.send(Kind.TAIL, 1, {"credit": 1})
        wire.send(Kind.TAIL, 1, {"credit": 1})
        assert await wire.broken() == "PROTOCOL_ERROR"


async def test_a_drain_answers_what_was_accepted_and_closes_everybody(tmp_path: Path) -> None:
    async with served(tmp_path / "db") as there:
        wires = [await there.greeted() for _ in range(5)]
        for wire in wires:
            wire.send(Kind.TAIL, 0, {"credit": 1})
            for i in range(1, 101):
                wire.send(Kind.APPEND, i, ["s", [b"x"], None, None, None])
        await asyncio.sleep(0.05)
        # They are read as they come: of what was there before a reset nothing is left behind it.
        rests = [asyncio.create_task(wire.rest()) for wire in wires]
        await there.server.drain(5)
        replies = [reply for rest in rests for reply in await rest]
        answered = sum(len(body[-1]) for kind, _, body in replies if kind == Kind.RECEIPTS)
        assert sum(stream.length for stream in there.log.streams() if stream.name == "s") == answered
        with pytest.raises(ConnectionRefusedError):
            await there.connect()


async def test_a_full_pool_lets_everybody_in_in_turn(tmp_path: Path) -> None:
    async with served(tmp_path / "db", every=Options(pool_bytes=65_536)) as there:
        wires = [await there.greeted() for _ in range(5)]
        for number, wire in enumerate(wires):
            wire.send(Kind.APPEND, 0, [f"s{number}", [b"."], None, None, None])
            await wire.answers(1)
        for id in range(1, 121):
            for number, wire in enumerate(wires):
                wire.send(Kind.APPEND, id, [f"s{number}", [bytes(20_000)], None, None, None])
        answered = await asyncio.wait_for(asyncio.gather(*(wire.answers(120) for wire in wires)), 40)
        assert all(set(each) == set(range(1, 121)) and "BUSY" not in each.values() for each in answered)
        assert [length for _, length, *_ in there.server.serving.streams(0, 9)] == [121] * 5
        # One that waits and goes leaves no place that nobody takes.
        for id in range(200, 260):
            wires[0].send(Kind.APPEND, id, ["s0", [bytes(20_000)], None, None, None])
            wires[1].send(Kind.APPEND, id, ["s1", [bytes(20_000)], None, None, None])
        await asyncio.sleep(0.01)
        wires[0].writer.transport.abort()
        assert len(await asyncio.wait_for(wires[1].answers(60), 40)) == 60
        await asyncio.wait_for(there.close(), 20)


async def test_an_id_that_is_used_again_is_another_reading(tmp_path: Path) -> None:
    async with served(tmp_path / "db", Limits(requests=8, readings=3)) as there:
        await there.log.append("a", [b"."] * 10)
        wire = await there.greeted()
        for id in range(100, 106):
            wire.send(Kind.PING, id, None)
        wire.send(Kind.READ, 1, {"stream": "a", "credit": 1 << 30})
        for id in range(200, 208):
            wire.send(Kind.PING, id, None)
        wire.send(Kind.TAIL, 1, {"stream": "a", "credit": 1 << 30})
        await until(lambda: 1 in connection_of(there).dispatch._readings)
        await asyncio.sleep(0.2)
        assert set(connection_of(there).dispatch._readings) == {1}
        wire.send(Kind.STOP, 1, None)
        await until(lambda: not connection_of(there).dispatch._readings)


def connection_of(there: Served) -> Connection:
    [connection] = there.server.connections
    return connection


async def test_nothing_is_appended_once_anybody_has_shown_that_the_log_was_rolled_back(tmp_path: Path) -> None:
    async with served(tmp_path / "db") as there:
        await there.log.append("s", b"1")
    shutil.copytree(tmp_path / "db", tmp_path / "copy")
    async with served(tmp_path / "db") as there:
        receipt = await there.log.append("s", b"2")
    async with served(tmp_path / "copy") as there:
        first, second = await there.greeted(), await there.greeted()
        first.send(Kind.APPEND, 1, ["s", [b"x"], None, None, None])
        await first.answers(1)
        for id in range(2, 40):
            first.send(Kind.APPEND, id, [f"new {id}", [b"x"], None, None, None])
        third = await there.greeted(anchor=list(receipt))
        refused = await first.answers(38)
        first.send(Kind.APPEND, 50, ["s", [b"x"], None, None, None])
        second.send(Kind.APPEND, 50, ["t", [b"x"], None, None, None])
        third.send(Kind.APPEND_MANY, 50, [[["s", [b"x"], None]], None, None])
        for wire in (first, second, third):
            assert await wire.answers(1) == {50: "ROLLED_BACK"}
        for id in range(51, 60):
            first.send(Kind.APPEND, id, [f"new {id - 49}", [b"x"], None, None, None])
        assert set((await first.answers(9)).values()) == {"ROLLED_BACK"}
        made = {stream.name async for stream in there.log.streams()}
        assert {f"new {id}" for id, answer in refused.items() if answer == "ROLLED_BACK"}.isdisjoint(made)


async def test_a_verify_that_nobody_waits_for_any_more_is_given_up(tmp_path: Path) -> None:
    begun, ended = threading.Event(), threading.Event()

    def verify(_anchor: Receipt | None, wanted: threading.Event) -> dict[str, Any]:
        begun.set()
        while wanted.is_set():
            time.sleep(0.005)
        ended.set()
        raise Closed("nobody wants to know any more")

    async with served(tmp_path / "db") as there:
        there.server._verify = verify
        wire = await there.greeted()
        for id in range(1, 30):
            wire.send(Kind.VERIFY, id, {"anchor": None})
        await until(begun.is_set)
        # A reset: whoever only ends its half is still answered.
        end = wire.writer.get_extra_info("socket")
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wire.writer.transport.abort()
        await until(ended.is_set)
        await until(lambda: not there.server._verifying.locked())


async def test_all_streams_are_listed_in_pieces(tmp_path: Path) -> None:
    async with served(tmp_path / "db") as there:
        await there.log.append_many({f"s{i}": b"." for i in range(2_500)})
        wire = await there.greeted()
        found: list[Any] = []
        while True:
            wire.send(Kind.STREAMS, 1, {"start": len(found)})
            kind, _, some = await wire.next()
            assert kind == Kind.RESULT
            if not some:
                break
            assert len(some) <= 1_000
            found += some
        assert [name for name, *_ in found] == [f"s{i}" for i in range(2_500)]
        wire.send(Kind.STREAMS, 1, {"start": (1 << 64) - 1})
        assert (await wire.next())[2] == []


#: Offsets, and how many records are to go there.
FAR = [
    (offset, count)
    for offset in (HIGHEST - 1, HIGHEST, HIGHEST + 1, 2 * HIGHEST, 2 * HIGHEST + 1)
    for count in range(4)
]


async def test_numbers_at_their_ends_are_refused_by_themselves(tmp_path: Path) -> None:
    """None is numbered, sealed or acknowledged that nobody could read again; what others send meanwhile is."""
    async with served(tmp_path / "db") as there, beside(there) as took:
        wire = await there.greeted()

        async def ask(kind: Kind, body: Any) -> Any:
            wire.send(kind, 1, body)
            answer, _, said = await wire.next()
            return said["code"] if answer == Kind.ERROR else answer

        for number, (offset, count) in enumerate(FAR):
            end = offset + count
            wanted = "INVALID" if offset > HIGHEST else "LIMIT_EXCEEDED" if end > HIGHEST else Kind.RESULT
            body = [f"i{number}", offset, None, [b"x"] * count or None, "g"]
            assert await ask(Kind.IMPORT, body) == wanted, body
            assert await ask(Kind.IMPORT, None) == Kind.RESULT
            if wanted == Kind.RESULT:
                full, left = f"i{number}", HIGHEST - end
                assert await ask(Kind.APPEND, [full, [b"x"] * (left + 1), None, None, None]) == "LIMIT_EXCEEDED"
                assert await ask(Kind.APPEND, [full, [b"x"] * (left + 1), end, None, None]) == "LIMIT_EXCEEDED"
                both = [[full, [b"x"] * (left + 1), None], ["keep", [b"no"], None]]
                assert await ask(Kind.APPEND_MANY, [both, None, None]) == "LIMIT_EXCEEDED"
                if left:
                    assert await ask(Kind.APPEND, [full, [b"x"] * left, None, [b"p", 0], None]) == Kind.RECEIPTS
        for far in (HIGHEST + 1, 2 * HIGHEST, 2 * HIGHEST + 1):
            refused: dict[str, tuple[Kind, Any]] = {
                "time": (Kind.IMPORT, ["j", 0, far, [b"x"], None]),
                "offset": (Kind.IMPORT, ["j", far, None, [b"x"], None]),
                "expect": (Kind.APPEND, ["keep", [b"x"], far, None, None]),
                "expect of a new one": (Kind.APPEND, ["new", [b"x"], far, None, None]),
                "expect of several": (Kind.APPEND_MANY, [[["keep", [b"x"], far]], None, None]),
                "sequence": (Kind.APPEND, ["keep", [b"x"], None, [b"p", far], None]),
                "sequence of several": (Kind.APPEND_MANY, [[["keep", [b"x"], None]], [b"p", far], None]),
                "position": (Kind.GET, {"positions": [far]}),
            }
            for name, (kind, body) in refused.items():
                assert await ask(kind, body) == "INVALID", name
            assert await ask(Kind.IMPORT, None) == Kind.RESULT
            # A group that is not there yet is of another log.
            assert await ask(Kind.APPEND, ["keep", [b"x"], None, [b"p", 0, far], None]) == "CONFLICT"
            for stream, start in ((None, far), (None, {"time": far}), ("keep", far)):
                assert await ask(Kind.READ, {"stream": stream, "start": start, "credit": far}) == Kind.END
            assert await ask(Kind.APPEND, ["keep", [b"x"], None, None, None]) == Kind.RECEIPTS
        for reverse in (False, True):
            wire.send(Kind.READ, 1, {"limit": far, "until": far, "reverse": reverse, "credit": far})
            assert len(await wire.records(1)) > 3
        wire.send(Kind.TAIL, 2, {"stream": "keep", "start": far, "credit": far})
        assert await wire.next() == (Kind.RESULT, 2, far)
        before = len(took)
        await until(lambda: len(took) > before + 3)
        expected = [(r.stream, r.offset, r.payload) async for r in there.log.read() if r.stream != "beside"]
        shutil.copytree(tmp_path / "db", tmp_path / "killed")
    for name in ("killed", "db"):
        for gone in (False, True):
            if gone:
                (tmp_path / name / "checkpoint").unlink(missing_ok=True)
            with contextlib.closing(open_backend(str(tmp_path / name), read_only=True)) as backend:
                # What was not idle yet when it was copied is told in notes.
                assert verify(backend, None).notes == [] or (name, gone) == ("killed", False)
            async with kimberlite.open(tmp_path / name) as log:
                assert [(r.stream, r.offset, r.payload) async for r in log.read() if r.stream != "beside"] == expected
