"""The embedded engine through its public names, over every backend."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

import kimberlite
import kimberlite.sync
from kimberlite import Record
from kimberlite.crypto.master import create_master
from kimberlite.log.opening import Opening
from kimberlite.log.verify import verify_directory

Open = Callable[..., Opening]


@pytest.fixture(params=["threads", "uring"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the same directory each time, with small segments."""

    def again(**settings: object) -> Opening:
        wanted = {"backend": request.param, "segment_bytes": 1 << 20, **settings}
        return kimberlite.open(tmp_path / "db", **wanted)

    return again


@pytest.fixture(params=["plain", "encrypted"])
def key(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    if request.param == "plain":
        return None
    create_master(tmp_path / "key")
    return tmp_path / "key"


async def test_records_come_back_as_they_were(opened: Open, key: Path | None) -> None:
    sent: list[bytes | Record] = [
        Record(b"one", key=b"k", headers={"a": b"1"}, event_time=datetime(2020, 1, 2, tzinfo=UTC)),
        b"two",
        Record(b"", headers=[("a", b"1"), ("a", b"2")], event_time=-5),
    ]
    async with opened(key_file=key) as db:
        receipt = await db.append("orders", sent)
        assert (receipt.first_offset, receipt.last_offset, receipt.durable) == (0, 2, True)
    async with opened(key_file=key) as db:
        found = [record async for record in db.read("orders")]
        assert [r.payload for r in found] == [b"one", b"two", b""]
        assert [r.offset for r in found] == [0, 1, 2]
        assert [r.position for r in found] == [receipt.first_position + i for i in range(3)]
        assert found[0].key == b"k"
        assert found[0].headers == (("a", b"1"),)
        assert found[0].event_time == 1_577_923_200_000_000_000
        assert found[2].headers == (("a", b"1"), ("a", b"2"))
        assert found[2].event_time == -5
        assert {r.timestamp for r in found} == {receipt.timestamp}
        assert await db.get(receipt.last_position) == found[2]


async def test_many_rotations_and_a_reopen_keep_order_and_root(opened: Open, key: Path | None, tmp_path: Path) -> None:
    async with opened(key_file=key) as db:
        for _ in range(40):
            await asyncio.gather(*(db.append(f"s{i}", [os.urandom(900)] * 10) for i in range(10)))
        before = await db.info()
    assert before["segments"] > 3
    async with opened(key_file=key) as db:
        after = await db.info()
        assert (after["records"], after["root"], after["chain"]) == (before["records"], before["root"], before["chain"])
        assert [r.offset async for r in db.read("s7", start=395)] == [395, 396, 397, 398, 399]
        assert [r.offset async for r in db.read("s7", reverse=True, limit=3)] == [399, 398, 397]
        assert (await db.append("s7", b"more", expect=400)).first_offset == 400
    report = verify_directory(tmp_path / "db", key_file=key)
    assert report.keys_checked == (key is not None)
    assert report.notes == []


@pytest.mark.parametrize("records", ["text", [], [b"x", "text"], None, 7, [Record("text")]])  # type: ignore[arg-type]
async def test_what_is_no_record_is_invalid_and_consumes_nothing(opened: Open, records: object) -> None:
    async with opened() as db:
        with pytest.raises(kimberlite.Invalid):
            await db.append("s", records)  # type: ignore[arg-type]
        assert (await db.append("s", b"x", expect=kimberlite.NEW)).first_offset == 0


async def test_expect_is_the_length_or_a_conflict(opened: Open) -> None:
    async with opened() as db:
        with pytest.raises(kimberlite.Conflict) as missing:
            await db.append("s", b"x", expect=3)
        assert missing.value.expected == 0
        await db.append("s", [b"x", b"y"], expect=kimberlite.NEW)
        with pytest.raises(kimberlite.Conflict) as late:
            await db.append("s", b"z", expect=1)
        assert late.value.expected == 2
        assert late.value.code == "CONFLICT"


async def test_a_repeated_producer_gets_its_first_receipt(opened: Open, key: Path | None) -> None:
    async with opened(key_file=key) as db:
        one = await db.append("s", [b"a", b"b"], producer=("p", 0))
        many = await db.append_many({"s": b"c", "t": [b"d", b"e"]}, producer=("p", 0))
        assert await db.append("s", [b"a", b"b"], producer=("p", 0)) == one
    async with opened(key_file=key) as db:
        assert await db.append("s", [b"a", b"b"], producer=("p", 0)) == one
        assert await db.append_many({"s": b"c", "t": [b"d", b"e"]}, producer=("p", 0)) == many
        with pytest.raises(kimberlite.Conflict):
            await db.append("s", b"other", producer=("p", 0))
        with pytest.raises(kimberlite.Conflict) as gap:
            await db.append("s", b"f", producer=("p", 2))
        assert gap.value.expected == 1
        assert (await db.append("s", b"f", producer=("p", 1))).first_offset == 3


async def test_appends_to_several_streams_are_one(opened: Open) -> None:
    async with opened() as db:
        await db.append("a", b"0")
        with pytest.raises(kimberlite.Conflict):
            await db.append_many({"a": b"1", "b": b"1"}, expect={"a": 5})
        receipts = await db.append_many({"a": b"1", "b": [b"1", b"2"]}, expect={"a": 1, "b": 0})
        assert receipts["a"].group == receipts["b"].group
        assert receipts["b"].last_offset == 1


async def test_os_appends_are_seen_only_when_they_are_synced(opened: Open) -> None:
    async with opened() as db:
        receipt = await db.append("s", b"soon", sync="os")
        assert not receipt.durable
        assert (await db.append("s", b"now")).durable
        assert [r.payload async for r in db.read("s")] == [b"soon", b"now"]


async def test_a_tail_starts_at_the_end_and_waits(opened: Open) -> None:
    async with opened() as db:
        await db.append("s", b"old")
        tail, unknown = db.tail("s"), db.tail("later")
        waiting = asyncio.ensure_future(anext(tail))
        first = asyncio.ensure_future(anext(unknown))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await db.append("s", b"new")
        await db.append("later", b"first")
        assert (await waiting).payload == b"new"
        assert (await first).payload == b"first"


async def test_cancelling_abandons_only_the_wait(opened: Open) -> None:
    async with opened() as db:
        append = asyncio.ensure_future(db.append("s", b"x"))
        await asyncio.sleep(0)
        append.cancel()
        await asyncio.gather(append, return_exceptions=True)
        assert (await db.append("s", b"y")).first_offset in (0, 1)


async def test_there_is_one_writer_and_any_number_of_readers(opened: Open) -> None:
    async with opened() as db:
        await db.append("s", b"x")
        with pytest.raises(kimberlite.Busy):
            await opened()
        await asyncio.sleep(0.05)
        async with opened(read_only=True) as reader:
            assert [r.payload async for r in reader.read("s")] == [b"x"]
            with pytest.raises(kimberlite.Invalid):
                await reader.append("s", b"y")
            await db.append("s", b"y")
            await asyncio.sleep(0.05)
            assert [r.payload async for r in reader.read("s")] == [b"x", b"y"]


async def test_a_closed_handle_says_so(opened: Open) -> None:
    db = await opened()
    await db.close()
    await db.close()
    with pytest.raises(kimberlite.Closed):
        await db.append("s", b"x")


async def test_the_wrong_key_or_none_is_told_from_damage(opened: Open, tmp_path: Path) -> None:
    create_master(tmp_path / "right")
    create_master(tmp_path / "wrong")
    async with opened(key_file=tmp_path / "right") as db:
        await db.append("s", b"secret")
    for wanted in (tmp_path / "wrong", None):
        with pytest.raises(kimberlite.KeyUnavailable):
            await opened(key_file=wanted)
    async with opened(read_only=True) as reader:
        assert (await reader.info())["records"] == 2
        with pytest.raises(kimberlite.KeyUnavailable):
            await anext(reader.read("s"))


async def test_an_anchor_ahead_of_the_log_is_a_rollback(opened: Open, tmp_path: Path) -> None:
    async with opened() as db:
        await db.append("s", b"x")
    saved = {p: p.read_bytes() for p in (tmp_path / "db").rglob("*") if p.is_file()}
    async with opened() as db:
        anchor = await db.append("s", b"y")
    for path in (tmp_path / "db").rglob("*"):
        if path.is_file():
            path.unlink()
    for path, data in saved.items():
        path.write_bytes(data)
        path.chmod(0o600)
    with pytest.raises(kimberlite.RolledBack):
        await opened(anchor=anchor)
    async with opened() as db:
        assert [r.payload async for r in db.read("s")] == [b"x"]


def test_the_blocking_face_does_the_same(tmp_path: Path) -> None:
    with kimberlite.sync.open(tmp_path / "db") as db:
        assert db.append("s", [b"a", b"b"]).last_offset == 1
        assert [r.payload for r in db.read("s")] == [b"a", b"b"]
        assert next(db.tail("s", start=1)).payload == b"b"
        assert [s.name for s in db.streams()] == ["s"]
        assert db.get(1).payload == b"a"


@pytest.mark.parametrize("planted", ["link", "fifo", "loose"])
async def test_what_is_planted_in_the_directory_is_refused(opened: Open, tmp_path: Path, planted: str) -> None:
    async with opened() as db:
        await db.append("s", b"x")
    victim = tmp_path / "db" / "marks"
    if planted == "loose":
        victim.chmod(0o666)
    else:
        victim.rename(tmp_path / "moved")
        if planted == "link":
            victim.symlink_to(tmp_path / "moved")
        else:
            os.mkfifo(victim, 0o600)
    with pytest.raises(kimberlite.Misconfigured) as refused:
        await opened()
    assert refused.value.exit_code == 78
