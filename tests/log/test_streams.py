"""New streams: numbered once, in order, with a key that is on the disk before it is used."""

from __future__ import annotations

import asyncio
import errno

import pytest

from kimberlite import NEW, Conflict, KimberliteError, LimitExceeded, NoSpace, Receipt, StreamInfo, Unavailable
from kimberlite.log.names import VAULTS
from kimberlite.storage.backend import BLOCK
from tests.log.simulated import Machine, failing, payloads


async def test_streams_are_listed_in_the_order_of_their_declarations(either: Machine) -> None:
    async with either.open() as db:
        assert list(db.streams()) == []
        await db.append("b", [b"0", b"1"])
        await db.append("a", b"0")
        sealed = either.key is not None
        expected = [StreamInfo("b", 2, sealed), StreamInfo("a", 1, sealed)]
        assert list(db.streams()) == expected
    async with either.open() as db:
        assert list(db.streams()) == expected
        assert (await db.info())["streams"] == 2


async def test_a_stream_that_was_only_refused_is_not_listed(either: Machine) -> None:
    async with either.open() as db:
        with pytest.raises(Conflict):
            await db.append("s", b"x", expect=1)
        with pytest.raises(Conflict):
            await db.append("t", b"x", producer=("p", 1))
        assert list(db.streams()) == []
        assert await payloads(db.read("t")) == []
        assert (await db.append("t", b"x", expect=NEW)).first_offset == 0


async def test_a_hundred_streams_created_at_once_each_get_their_own_records(either: Machine) -> None:
    async with either.open(segment_bytes=1 << 20) as db:
        names = [f"s{i % 100}" for i in range(300)]
        receipts = await asyncio.gather(*(db.append(name, name.encode()) for name in names))
        assert [receipt.first_offset for receipt in receipts] == [i // 100 for i in range(300)]
        for name in names[:100]:
            assert await payloads(db.read(name)) == [name.encode()] * 3
    assert either.verify().streams == 100


async def test_a_declaration_takes_a_position_of_its_own_that_readers_see_when_they_ask(either: Machine) -> None:
    async with either.open() as db:
        receipt = await db.append("s", b"x")
        assert (receipt.first_position, receipt.first_offset) == (1, 0)
        assert [record.position async for record in db.read()] == [1]
        system, record = [record async for record in db.read(system=True)]
        assert (system.position, system.stream, record.payload) == (0, "", b"x")
        assert b"s" in system.payload


async def test_a_key_is_synced_in_both_copies_before_a_group_uses_it(encrypted: Machine) -> None:
    async with encrypted.open() as db:
        trace = encrypted.watch()
        await db.append("s", b"x")
    done = [
        (verb, name)
        for verb, name, *_ in trace
        if verb in ("write", "sync", "submit") and not name.startswith("prepare/")
    ]
    first_group = next(i for i, (verb, name) in enumerate(done) if verb == "submit" and name.startswith("segments/"))
    assert done[:first_group] == [(verb, name) for name in VAULTS for verb in ("write", "sync")]


async def test_streams_that_are_created_together_share_the_writes_of_their_keys(encrypted: Machine) -> None:
    async with encrypted.open() as db:
        trace = encrypted.watch()
        await asyncio.gather(*(db.append(f"s{i}", b"x") for i in range(50)))
    syncs = [name for verb, name, *_ in trace if verb == "sync" and name in VAULTS]
    assert len(syncs) <= 4


async def test_another_streams_append_does_not_wait_for_a_new_streams_key(encrypted: Machine) -> None:
    async with encrypted.open() as db:
        await db.append("old", b"x")
        held = asyncio.Event()
        run = db._backend.run

        async def slow(call: object) -> object:
            await held.wait()
            return await run(call)  # type: ignore[arg-type]

        db._backend.run = slow  # type: ignore[method-assign, assignment]
        new = asyncio.ensure_future(db.append("new", b"x"))
        await asyncio.sleep(0)
        assert (await asyncio.wait_for(db.append("old", b"y"), 5)).first_offset == 1
        assert not new.done()
        held.set()
        db._backend.run = run  # type: ignore[method-assign]
        assert (await new).first_offset == 0


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, NoSpace), (errno.EIO, Unavailable)])
async def test_a_vault_that_cannot_be_written_refuses_the_stream_and_nothing_else(
    encrypted: Machine, number: int, kind: type[KimberliteError]
) -> None:
    async with encrypted.open() as db:
        await db.append("old", b"x")
        encrypted.fault = failing("write", "vault.", number)
        outcomes = await asyncio.gather(*(db.append(f"n{i}", b"x") for i in range(3)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [kind] * 3
        assert (await db.append("old", b"y")).first_offset == 1
        encrypted.fault = None
        assert (await db.append("n1", b"x", expect=NEW)).first_offset == 0
    async with encrypted.open() as db:
        assert await payloads(db.read("n1")) == [b"x"]
        assert [stream.name for stream in db.streams()] == ["old", "n1"]
    encrypted.verify()


@pytest.mark.parametrize("hurt", VAULTS)
async def test_what_a_failed_write_left_of_a_block_of_keys_is_written_anew_with_the_next_key(
    encrypted: Machine, hurt: str
) -> None:
    other = next(name for name in VAULTS if name != hurt)
    async with encrypted.open() as db:
        # With the keys of the database, all but one slot of a block.
        for i in range(13):
            await db.append(f"s{i}", b"%d" % i)
        encrypted.fault = failing("sync", hurt)
        with pytest.raises(Unavailable):
            await db.append("refused", b"x")
        encrypted.fault = None
        assert len(encrypted.disk.files()[hurt]) == 2 * BLOCK
        # It took along all that the disk writes at a time.
        encrypted.write(hurt, BLOCK, b"\xa5" * BLOCK)
        await db.append("next", b"x")
        assert len(encrypted.disk.files()[hurt]) == 3 * BLOCK
    encrypted.write(other, 0, bytes(3 * BLOCK))
    async with encrypted.open() as db:
        assert [await payloads(db.read(f"s{i}")) for i in range(13)] == [[b"%d" % i] for i in range(13)]
        assert await payloads(db.read("next")) == [b"x"]
    encrypted.verify()


async def test_cancelling_one_creator_leaves_the_others_theirs(encrypted: Machine) -> None:
    async with encrypted.open() as db:
        appends = [asyncio.ensure_future(db.append("s", b"%d" % i)) for i in range(4)]
        await asyncio.sleep(0)
        appends[0].cancel()
        appends[2].cancel()
        outcomes = await asyncio.gather(*appends, return_exceptions=True)
        kept = [i for i, outcome in enumerate(outcomes) if not isinstance(outcome, BaseException)]
        assert kept == [1, 3]
        found = await payloads(db.read("s"))
        assert [payload for payload in found if payload in (b"1", b"3")] == [b"1", b"3"]


async def test_append_many_creates_its_streams_behind_those_who_asked_before(encrypted: Machine) -> None:
    async with encrypted.open() as db:
        appends = []
        for i in range(12):
            batches = {"a": b"%d" % i} if i % 2 else {"a": b"%d" % i, f"b{i}": b"x"}
            appends.append(asyncio.ensure_future(db.append_many(batches)))
            await asyncio.sleep(0)
        receipts = await asyncio.gather(*appends)
        assert [receipt["a"].first_offset for receipt in receipts] == list(range(12))


async def test_a_database_without_a_master_key_declares_plain_streams_and_has_no_vault(machine: Machine) -> None:
    async with machine.open() as db:
        await db.append("s", b"x")
    assert not set(VAULTS) & set(machine.disk.files())


async def test_what_is_encrypted_is_nowhere_in_the_clear(encrypted: Machine) -> None:
    secret = b"a payload that nobody may read"
    async with encrypted.open() as db:
        await db.append("s", [secret] * 3)
        assert await payloads(db.read("s")) == [secret] * 3
    assert not any(secret in data for data in encrypted.disk.files().values())


async def test_names_that_differ_in_one_character_are_different_streams(machine: Machine) -> None:
    async with machine.open() as db:
        names = ["a", "A", "a ", "\u00e9", "e\u0301"]
        for name in names:
            assert (await db.append(name, name.encode())).first_offset == 0
        for name in names:
            assert await payloads(db.read(name)) == [name.encode()]


async def test_new_streams_that_fill_groups_with_their_declarations_wait_and_hinder_nobody(either: Machine) -> None:
    count = 900
    async with either.open(segment_bytes=64 * 1024) as db:
        await db.append("old", b"x")
        tasks = [asyncio.ensure_future(db.append(f"stream {i}" * 10, b"%d" % i)) for i in range(count)]
        # Those that nobody waits for have their number too, and their declarations go before the next ones.
        await asyncio.sleep(0)
        for task in tasks[: count // 2]:
            task.cancel()
        receipts = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(receipt) for receipt in receipts[count // 2 :]} == {Receipt}
        assert (await db.append("old", b"y")).first_offset == 1
        with pytest.raises(LimitExceeded):
            await db.append("newest", bytes(60_000))
        assert (await db.append("newest", b"z")).first_offset == 0
    either.verify()
    async with either.open(segment_bytes=64 * 1024) as db:
        for i in (count // 2, count - 1):
            assert await payloads(db.read(f"stream {i}" * 10)) == [b"%d" % i]
