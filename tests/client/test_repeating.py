"""Appends that are sent again, and what may have become of them the first time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import kimberlite
from kimberlite import (
    Closed,
    Conflict,
    Corrupt,
    Duplicate,
    Invalid,
    KeyUnavailable,
    KimberliteError,
    LimitExceeded,
    NoSpace,
    RolledBack,
    Unavailable,
    UnknownOutcome,
    _native,
)
from kimberlite.client.appends import Appends, Part
from kimberlite.log.options import Options
from kimberlite.wire.messages import HEADER, NOBODY, Kind
from tests.client.proxies import Proxy, proxied
from tests.client.test_client import payloads
from tests.server.wires import Served, served, until

BEHIND = Conflict("the next sequence is 0", 0, "producer")
TAKEN = Conflict("other records have it", None, "producer")
AGONE = Conflict("it is forgotten", 50, "forgotten")


class Sent(NamedTuple):
    id: int
    producer: tuple[bytes, int, int]


class Asking:
    """Appends without a socket, and what comes of them."""

    def __init__(self) -> None:
        self.appends = Appends(itertools.count(1))
        self.sent: list[Sent] = []
        self.outcomes: dict[bytes, Any] = {}
        self.connect(5)

    def connect(self, group: int) -> None:
        self.appends.disconnected()
        self.appends.connected(self._send, "group", group)

    def _send(self, message: bytes) -> None:
        kind, id = (int.from_bytes(message[at : at + 4], "little") for at in (4, 8))
        _, producer, _ = _native.decode_append(kind, message[HEADER:])
        assert producer is not None
        assert len(producer) == 3, "the group is always named"
        self.sent.append(Sent(id, producer))

    def append(self, payload: bytes, producer: tuple[bytes, int] | None = None) -> int:
        """Its id."""

        def answer(outcome: list[kimberlite.Receipt] | KimberliteError) -> None:
            self.outcomes[payload] = outcome

        parts: list[Part] = [("s", _native.encode([payload]), None)]
        return self.appends.begin(parts, producer, "group", answer, several=False).id

    def receipt(self, id: int) -> None:
        ending: list[Any] = [1, True, 9, bytes(32), bytes(32), 0, 60]
        body = _native.pack([*ending, [[id, [[0, 0, 0, 0, bytes(16)]]]]])
        self.appends.receipts(body)


#: What the server says to one that was sent once; to one that was sent before, on a connection that is gone. None: it
#: is sent again.
SAID: list[tuple[KimberliteError, type[KimberliteError] | None, type[KimberliteError] | None]] = [
    (NoSpace("full"), NoSpace, NoSpace),
    (LimitExceeded("large"), LimitExceeded, LimitExceeded),
    (Unavailable("disk"), Unavailable, Unavailable),
    (RolledBack("short"), RolledBack, RolledBack),
    (Conflict("it has 3 records", 3, "stream"), Conflict, Conflict),
    (KeyUnavailable("gone"), KeyUnavailable, UnknownOutcome),
    (Corrupt("damaged", file="x"), Corrupt, UnknownOutcome),
    (BEHIND, None, None),
    (TAKEN, None, None),
    (AGONE, None, UnknownOutcome),
    (Duplicate("long ago"), None, Duplicate),
]


@pytest.mark.parametrize(("said", "once", "before"), SAID, ids=lambda each: getattr(each, "code", ""))
@pytest.mark.parametrize("doubtful", [False, True])
def test_what_a_refusal_says_depends_on_whether_it_was_sent_before(
    said: KimberliteError,
    once: type[KimberliteError] | None,
    before: type[KimberliteError] | None,
    doubtful: bool,
) -> None:
    asking = Asking()
    id = asking.append(b"a")
    if doubtful:
        asking.connect(6)
    first = asking.sent[-1]
    assert first == asking.sent[0], "and then it is what it was"
    assert asking.appends.refused(id, said)
    outcome = before if doubtful else once
    if outcome is None:
        assert len(asking.sent) == 2 + doubtful
        asking.receipt(id)
    assert type(asking.outcomes[b"a"]) is (outcome or list)
    # Whatever it was, the next one is not refused for it.
    asking.append(b"b")
    id_used, sequence, _ = asking.sent[-1].producer
    uncertain = said in (TAKEN, AGONE) or isinstance(said, Duplicate) or outcome is UnknownOutcome
    assert (id_used != first.producer[0]) == uncertain
    assert sequence == (1 if outcome is None else 0)


def test_what_the_server_does_not_know_is_asked_again() -> None:
    asking = Asking()
    id = asking.append(b"a")
    for said in (UnknownOutcome("the disk failed"), Closed("it is stopping")):
        assert not asking.appends.refused(id, said)
    assert not asking.outcomes


def test_whoever_is_late_names_the_group_that_was_forgotten_and_goes_on() -> None:
    asking = Asking()
    id = asking.append(b"a")
    assert asking.sent[-1].producer[2] == 5
    asking.appends.refused(id, AGONE)
    assert asking.sent[-1].producer[1:] == (0, 50)
    # A server that says so for ever is not asked for ever.
    asking.appends.refused(id, AGONE)
    assert isinstance(asking.outcomes[b"a"], UnknownOutcome)
    # A log that was put back to an earlier state is where it is.
    id = asking.append(b"c")
    asking.appends.refused(id, Conflict("it is forgotten", 3, "forgotten"))
    assert asking.sent[-1].producer[1:] == (0, 3)
    own = asking.append(b"b", (b"me", 7))
    asking.appends.refused(own, Conflict("it is forgotten", 70, "forgotten"))
    assert asking.sent[-1].producer == (b"me", 7, 70)
    asking.receipt(own)
    assert isinstance(asking.outcomes[b"b"], list)


@asynccontextmanager
async def doubted(
    tmp_path: Path, size: int = 1, **options: Any
) -> AsyncIterator[tuple[Served, Proxy, kimberlite.Client, asyncio.Task[Any]]]:
    """An append is in the log, and its client, which does not know, cannot ask."""
    async with proxied(1) as proxy, served(tmp_path / "db", **options) as there:
        proxy.target = there.port
        async with kimberlite.connect(f"kimberlite://127.0.0.1:{proxy.port}") as db:
            await db.append("s", b"before")
            proxy.mute = True
            append = asyncio.create_task(db.append("s", b"A" * size))
            await until(lambda: there.log.durable_position == 3)
            proxy.target = 1
            proxy.cut()
            proxy.mute = False
            yield there, proxy, db, append


async def test_on_a_full_disk_what_is_appended_is_told_so_and_what_is_not_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(_: int) -> None:
        raise NoSpace("no room")

    async with doubted(tmp_path) as (there, proxy, db, append):
        committer = there.server.serving.committer
        monkeypatch.setattr(committer.tail, "has_room", lambda _: False)
        monkeypatch.setattr(committer.tail, "make_room", full)
        proxy.target = there.port
        assert (await append).first_offset == 1
        with pytest.raises(NoSpace):
            await db.append("s", b"B")
        monkeypatch.undo()
        assert (await db.append("s", b"C")).first_offset == 2
        assert await payloads(db.read("s")) == [b"before", b"A", b"C"]


async def test_in_a_log_that_was_rolled_back_what_is_there_is_told_so(tmp_path: Path) -> None:
    async with doubted(tmp_path) as (there, proxy, db, append):
        receipt = await there.log.append("t", b"x")
        await there.greeted(anchor=there.ahead(receipt))
        proxy.target = there.port
        assert (await append).first_offset == 1
        with pytest.raises(RolledBack):
            await db.append("s", b"B")


async def test_with_smaller_segments_what_fitted_before_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with doubted(tmp_path, 20_000) as (there, proxy, db, append):
        monkeypatch.setattr(type(there.server.serving.committer.tail), "most", property(lambda _: 16_384))
        proxy.target = there.port
        assert (await append).first_offset == 1
        with pytest.raises(LimitExceeded):
            await db.append("s", b"B" * 20_000)
        assert (await db.append("s", b"C")).first_offset == 2


async def test_what_is_appended_and_cannot_be_read_is_no_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with doubted(tmp_path) as (there, proxy, db, append):
        committer = there.server.serving.committer
        log = committer.log

        class Unreadable:
            def __getattr__(self, name: str) -> Any:
                return getattr(log, name)

            def answer_again(self, group: int, request: _native.Request) -> None:
                raise OSError(24, "too many open files")

        monkeypatch.setattr(committer, "log", Unreadable())
        proxy.target = there.port
        with pytest.raises(Duplicate, match="it is appended"):
            await append
        monkeypatch.undo()
        assert (await db.append("s", b"C")).first_offset == 2


def test_the_log_is_where_the_last_welcome_says() -> None:
    asking = Asking()
    asking.append(b"a")
    asking.connect(2)
    asking.append(b"b")
    assert [sent.producer[2] for sent in asking.sent] == [5, 5, 2]


def test_a_batch_of_single_records_leaves_no_sequence_to_others(tmp_path: Path) -> None:
    asking = Asking()
    parts: list[Part] = [("s", _native.encode([b"x"] * 5), None)]
    call = asking.appends.begin(parts, None, "record", lambda _: None, several=False)
    first = asking.sent[-1].producer
    asking.appends.refused(call.id, NoSpace("at the fourth"))
    asking.append(b"y")
    assert asking.sent[-1].producer[0] != first[0]


def test_a_named_producers_append_means_the_same_when_it_is_sent_again() -> None:
    asking = Asking()
    sent: list[str | None] = []

    def send(message: bytes) -> None:
        sent.append(_native.decode_append(int(Kind.APPEND), message[HEADER:])[2])

    parts: list[Part] = [("s", _native.encode([b"x", b"y"]), None)]
    asking.appends.connected(send, "group", 5)
    asking.appends.begin(parts, (b"me", 0), None, lambda _: None, several=False)
    asking.appends.disconnected()
    asking.appends.connected(send, "record", 5)
    assert sent == ["group", "group"]


def test_a_named_producers_batch_is_one_whatever_the_servers_policy() -> None:
    asking = Asking()
    outcomes: list[Any] = []
    parts: list[Part] = [("s", _native.encode([b"x", b"y"]), None)]
    asking.appends.disconnected()
    asking.appends.begin(parts, (b"me", 0), None, outcomes.append, several=False)
    asking.appends.connected(asking._send, "record", 5)
    assert [type(outcome) for outcome in outcomes] == [Invalid]
    with pytest.raises(Invalid, match="record"):
        asking.appends.begin(parts, (b"me", 0), None, outcomes.append, several=False)
    one: list[Part] = [("s", _native.encode([b"x"]), None)]
    asking.appends.begin(one, (b"me", 0), None, outcomes.append, several=False)
    assert len(asking.sent) == 1
    assert len(asking.appends) == 1


async def test_what_waits_when_the_log_turns_out_to_be_rolled_back_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with doubted(tmp_path) as (there, proxy, _, append):
        committer = there.server.serving.committer
        wire = await there.greeted()
        monkeypatch.setattr(committer, "_may_seal", lambda: False)
        wire.send(Kind.APPEND, 1, ["s", [b"waits"], None, [b"p", 0, 0], None])
        await until(lambda: len(committer.pool) == 1)
        there.server.serving.forbid(RolledBack("it was rolled back"))
        assert await wire.answers(1) == {1: "ROLLED_BACK"}
        monkeypatch.undo()
        proxy.target = there.port
        # It is there, whatever else is not.
        assert (await append).first_offset == 1
        assert await payloads(there.log.read("s")) == [b"before", b"A"]


async def test_what_an_earlier_connection_has_in_hand_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    me, released = bytes(range(16)), asyncio.Event()
    async with served(tmp_path / "db") as there:
        serving = there.server.serving
        prepare, waited = serving.prepare, 0

        async def slow(parts: Any) -> None:
            nonlocal waited
            waited += 1
            if waited == 1:
                await released.wait()
            await prepare(parts)

        monkeypatch.setattr(serving, "prepare", slow)
        early = await there.greeted(client=[me, 1])
        early.send(Kind.APPEND, 1, ["s", [b"A"], None, [b"p", 0, 0], None])
        early.send(Kind.APPEND, 2, ["s", [b"B"], None, [b"p", 1, 0], None])
        await until(lambda: waited)
        later = await there.greeted(client=[me, 2])
        released.set()
        later.send(Kind.APPEND, 1, ["s", [b"C"], None, [b"q", 0, 0], None])
        await later.answers(1)
        await asyncio.sleep(0.1)
        assert await payloads(there.log.read("s")) == [b"C"]
        assert "failed" not in caplog.text


async def test_of_an_earlier_connection_nothing_more_is_taken(tmp_path: Path) -> None:
    me = bytes(range(16))
    async with served(tmp_path / "db") as there:
        early = await there.greeted(client=[me, 1])
        early.send(Kind.APPEND, 1, ["s", [b"taken"], None, [b"p", 0, 0], None])
        await early.answers(1)
        # More than is taken at a time: some of it has arrived and waits.
        for i in range(1, 1000):
            early.send(Kind.APPEND, 1 + i, ["s", [b"%d" % i], None, [b"p", i, 0], None])
        later = await there.greeted(client=[me, 2])
        appended = there.log.durable_position
        later.send(Kind.APPEND, 1, ["s", [b"later"], None, [b"q", 0, 0], None])
        await later.answers(1)
        early.send(Kind.APPEND, 2000, ["s", [b"late"], None, [b"r", 0, 0], None])
        assert await early.broken() == ""
        found = await payloads(there.log.read("s"))
        assert found[0] == b"taken"
        assert found[-1] == b"later"
        assert len(found) <= appended + 1024
        # Not even its hello may come late; others' may.
        late = await there.connect()
        late.send(Kind.HELLO, 0, {"version": 1, "client": [me, 1]})
        kind, id, body = await late.next()
        assert (kind, id, body["code"]) == (Kind.ERROR, NOBODY, "CLOSED")
        await there.greeted(client=[bytes(16), 1])
        later.send(Kind.APPEND, 2, ["s", [b"on"], None, [b"q", 1, 0], None])
        await later.answers(1)


@pytest.mark.parametrize("client", [[bytes(15), 1], [bytes(16)], [bytes(16), -1], [bytes(16), True], ["x" * 16, 1]])
async def test_a_client_says_who_it_is_or_nothing(tmp_path: Path, client: list[Any]) -> None:
    async with served(tmp_path / "db") as there:
        wire = await there.connect()
        wire.send(Kind.HELLO, 0, {"version": 1, "client": client})
        assert await wire.broken() == "PROTOCOL_ERROR"


@pytest.mark.parametrize(("others", "restarts"), [(2_000, False), (10_050, False), (10_050, True)])
async def test_what_the_server_has_forgotten_is_not_appended_again(tmp_path: Path, others: int, restarts: bool) -> None:
    """Its answer is lost, and before it is asked again so many other producers come."""
    options: dict[str, Any] = {"every": Options(checkpoint_records=1_000)}

    async def outcomes(there: Served) -> None:
        proxy.target = there.port
        found: list[Any] = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 30)
        if others > 10_000:
            assert [type(each) for each in found] == [UnknownOutcome] * 3
        else:
            assert [each.first_offset for each in found] == [0, 1, 0]
        assert (await db.append("s", b"4")).first_offset == 2
        assert await payloads(there.log.read("s")) == [b"1", b"2", b"4"]
        assert await payloads(there.log.read("u")) == [b"3"]

    async with proxied(1) as proxy:
        async with served(tmp_path / "db", **options) as there:
            proxy.target = there.port
            await there.log.append("t", b"before")
            db = await kimberlite.connect(f"kimberlite://127.0.0.1:{proxy.port}")
            proxy.mute = True
            appends: list[Any] = [db.append("s", b"1"), db.append("s", b"2"), db.append("u", b"3", producer=("me", 0))]
            calls = [asyncio.create_task(append) for append in appends]
            await until(lambda: sum(stream.length for stream in there.log.streams()) == 4)
            proxy.target = 1
            proxy.cut()
            proxy.mute = False
            for first in range(0, others, 500):
                ids = [(f"p{i}", 0) for i in range(first, first + 500)]
                await asyncio.gather(*(there.log.append("t", b"x", producer=each) for each in ids))
            if not restarts:
                await outcomes(there)
        if restarts:
            async with served(tmp_path / "db", **options) as again:
                await outcomes(again)
        await db.close()
