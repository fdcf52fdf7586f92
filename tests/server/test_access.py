"""Who may do what: what is not permitted is refused, and nothing of it is done."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from kimberlite import Invalid, Receipt
from kimberlite.crypto.master import create_master
from kimberlite.server.access import Action
from kimberlite.wire.messages import Kind
from tests.server.wires import served


class Only:
    """Permits these, and notes what it was asked."""

    def __init__(self, *permitted: tuple[Action, str | None]) -> None:
        self._permitted = permitted
        self.asked: list[tuple[Action, str | None]] = []

    def check(self, action: Action, stream: str | None) -> None:
        self.asked.append((action, stream))
        if (action, stream) not in self._permitted:
            raise Invalid("it is not yours")


#: Every request that does something with the log, and what it has to be permitted.
REQUESTS: dict[Kind, tuple[Any, Action, str | None]] = {
    Kind.APPEND: (["s", [b"no"], None, None, None], "append", "s"),
    Kind.APPEND_MANY: ([[["s", [b"no"], None]], None, None], "append", "s"),
    Kind.READ: ({"stream": "s", "credit": 1 << 20}, "read", "s"),
    Kind.TAIL: ({"credit": 1 << 20, "start": 0}, "read", None),
    Kind.GET: ({"positions": [0]}, "read", None),
    Kind.STREAMS: ({"start": 0}, "inspect", None),
    Kind.INFO: (None, "inspect", None),
    Kind.VERIFY: ({"anchor": None}, "inspect", None),
    Kind.METRICS: (None, "inspect", None),
    Kind.RETAIN: ({"before": 0}, "maintain", None),
    Kind.ERASE: ({"stream": "s", "reason": "no"}, "maintain", "s"),
    Kind.ROTATE: (None, "maintain", None),
    Kind.IMPORT: (["s", 1, None, [b"no"], None], "maintain", "s"),
}


def test_every_request_is_here_but_those_that_are_about_the_connection() -> None:
    about = {Kind.HELLO, Kind.PING, Kind.CREDIT, Kind.STOP}
    assert {kind for kind in Kind if kind < Kind.WELCOME} == REQUESTS.keys() | about


@pytest.mark.parametrize("kind", REQUESTS)
async def test_what_is_not_permitted_is_refused_and_nothing_of_it_is_done(tmp_path: Path, kind: Kind) -> None:
    body, action, stream = REQUESTS[kind]
    access = Only()
    async with served(tmp_path / "db", access=access) as there:
        await there.log.append("t", b"x")

        def verify(_anchor: Receipt | None, _wanted: threading.Event) -> dict[str, Any]:
            pytest.fail("it was done")

        there.server._verify = verify
        wire = await there.greeted()
        # Neither are those behind the first.
        for i in range(3):
            wire.send(kind, i, body)
        wire.send(Kind.PING, 3, None)
        replies = {id: (reply, said) for reply, id, said in [await wire.next() for _ in range(4)]}
        assert replies.pop(3) == (Kind.RESULT, None)
        assert set(replies) == {0, 1, 2}
        assert {(reply, said["code"], said["message"]) for reply, said in replies.values()} == {
            (Kind.ERROR, "INVALID", "it is not yours")
        }
        assert access.asked == [(action, stream)] * 3
        assert [(each.name, each.length) async for each in there.log.streams()] == [("t", 1)]


@pytest.mark.parametrize("kind", REQUESTS)
async def test_what_is_permitted_is_done(tmp_path: Path, kind: Kind) -> None:
    body, action, stream = REQUESTS[kind]
    create_master(tmp_path / "key")
    async with served(tmp_path / "db", access=Only((action, stream)), key_file=tmp_path / "key") as there:
        await there.log.append("s", b"x")
        there.server._verify = lambda _anchor, _wanted: {}
        there.server._next_key_file = str(tmp_path / "key")
        wire = await there.greeted()
        wire.send(kind, 1, body)
        assert (await wire.next())[0] in (Kind.RECEIPTS, Kind.RECORDS, Kind.RESULT)


async def test_an_append_is_permitted_by_the_stream_and_the_client(tmp_path: Path) -> None:
    """Those to a stream that is known to be permitted are not taken by Python."""
    access = Only(("append", "ours"))
    async with served(tmp_path / "db", access=access) as there:
        wire = await there.greeted()
        [connection] = there.server.connections
        other = await there.greeted()
        [another] = there.server.connections - {connection}
        another.access = Only(("append", "ours"), ("append", "theirs"))
        for id in range(3):
            for each, stream in ((other, "theirs"), (other, "ours"), (wire, "ours"), (wire, "theirs"), (wire, "new")):
                each.send(Kind.APPEND, id, [stream, [b"x"], None, None, None])
                refused = await each.answers(1) == {id: "INVALID"}
                assert refused == (each is wire and stream != "ours")
        assert access.asked.count(("append", "ours")) == 1
        wire.send(Kind.APPEND_MANY, 9, [[["ours", [b"x"], None], ["theirs", [b"x"], None]], None, None])
        assert await wire.answers(1) == {9: "INVALID"}
        wire.send(Kind.APPEND, 10, ["ours", [b"x"], None, None, None])
        assert await wire.answers(1) != {10: "INVALID"}
        assert {each.name: each.length async for each in there.log.streams()} == {"ours": 7, "theirs": 3}
