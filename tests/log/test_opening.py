"""From a path to a handle: who may open what, and what an open leaves when it does not succeed."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
from pathlib import Path
from typing import Any

import pytest

import kimberlite
import kimberlite.sync
from kimberlite import Busy, Invalid, KimberliteError, Misconfigured, NoSpace, Receipt, RolledBack, Unavailable
from kimberlite.log.refusals import translate
from kimberlite.log.verify import verify_directory
from kimberlite.storage.memory import Disk
from tests.log.simulated import Machine, failing, payloads


async def test_create_false_on_nothing_is_invalid_and_makes_nothing(machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="no database"):
        await machine.open(create=False)
    assert machine.disk.files() == {}
    with pytest.raises(Invalid, match="no database"):
        await kimberlite.open(tmp_path / "nothing", create=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(Invalid, match="no database"):
        await kimberlite.open(tmp_path / "empty", create=False)
    assert (os.listdir(tmp_path), os.listdir(tmp_path / "empty")) == (["empty"], [])


async def test_create_false_opens_what_is_there(machine: Machine) -> None:
    async with machine.open() as db:
        await db.append("s", b"x")
    async with machine.open(create=False) as db:
        assert await payloads(db.read()) == [b"x"]


async def test_a_second_writer_is_busy_until_the_first_has_closed(machine: Machine, tmp_path: Path) -> None:
    async with machine.open() as db:
        with pytest.raises(Busy) as refused:
            await machine.open()
        assert (refused.value.code, refused.value.exit_code) == ("BUSY", 75)
        assert (await db.append("s", b"x")).durable
    await (await machine.open()).close()
    async with kimberlite.open(tmp_path / "db", backend="threads"):
        with pytest.raises(Busy):
            await kimberlite.open(tmp_path / "db", backend="threads")
    await (await kimberlite.open(tmp_path / "db", backend="threads")).close()


async def test_of_two_opens_at_once_one_is_busy(tmp_path: Path) -> None:
    path = tmp_path / "db"

    async def attempt() -> Any:
        return await kimberlite.open(path, backend="threads")

    outcomes = await asyncio.gather(attempt(), attempt(), return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Busy", "Log"]
    for outcome in outcomes:
        if not isinstance(outcome, BaseException):
            await outcome.close()


async def test_an_open_that_is_cancelled_lets_the_directory_go(tmp_path: Path) -> None:
    path = tmp_path / "db"

    async def attempt() -> Any:
        return await kimberlite.open(path, backend="threads")

    for turns in range(4):
        opening = asyncio.ensure_future(attempt())
        for _ in range(turns):
            await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
    async with kimberlite.open(path, backend="threads") as db:
        assert (await db.append("s", b"x")).durable


async def test_an_open_that_fails_lets_the_directory_go(either: Machine) -> None:
    async with either.open() as db:
        await db.append("s", b"x")
    for verb, name in (("lock", "segments/"), ("read", "identity"), ("read", "segments/"), ("write", "marks")):
        either.fault = failing(verb, name, errno.ENOMEM)
        with pytest.raises(Unavailable):
            async with either.open():
                pass
        either.fault = None
    async with either.open() as db:
        assert await payloads(db.read()) == [b"x"]


async def test_a_directory_with_something_else_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(Misconfigured, match=r"notes\.txt") as refused:
        await kimberlite.open(tmp_path, backend="threads")
    assert refused.value.exit_code == 78
    assert os.listdir(tmp_path) == ["notes.txt"]


async def test_a_path_that_is_a_file_is_misconfigured(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Misconfigured):
        await kimberlite.open(tmp_path / "file", backend="threads")


async def test_a_database_made_here_is_for_its_owner_only(tmp_path: Path) -> None:
    async with kimberlite.open(tmp_path / "db", backend="threads") as db:
        await db.append("s", b"x")
    for path in [tmp_path / "db", *(tmp_path / "db").rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


async def test_an_origin_is_given_once_and_must_be_the_same_after(machine: Machine) -> None:
    async with machine.open(origin="example.com/ledger") as db:
        assert (await db.info())["origin"] == "example.com/ledger"
    with pytest.raises(Misconfigured, match="ledger"):
        await machine.open(origin="example.com/other")
    for origin in (None, "example.com/ledger"):
        async with machine.open(origin=origin) as db:
            assert (await db.info())["origin"] == "example.com/ledger"


@pytest.mark.parametrize("origin", ["", "a b", "a+b", "a\nb", "o" * 256])
async def test_an_origin_that_cannot_be_is_invalid_and_makes_nothing(tmp_path: Path, origin: str) -> None:
    with pytest.raises(Invalid):
        await kimberlite.open(tmp_path / "db", backend="threads", origin=origin)
    async with kimberlite.open(tmp_path / "db", backend="threads", origin="o" * 255) as db:
        assert (await db.info())["origin"] == "o" * 255


async def test_an_anchor_that_the_log_reaches_lets_it_open_and_one_ahead_does_not(either: Machine) -> None:
    async with either.open() as db:
        receipts = [await db.append("s", b"%d" % i) for i in range(4)]
        old = either.image()
        ahead = await db.append("s", b"ahead")
    for receipt in [*receipts, ahead]:
        await (await either.open(anchor=receipt)).close()
    for read_only in (False, True):
        with pytest.raises(RolledBack) as refused:
            await old.open(anchor=ahead, read_only=read_only)
        assert refused.value.exit_code == 79
    before = old.disk.files()
    with pytest.raises(RolledBack):
        await old.open(anchor=ahead)
    assert {name for name in before if name.startswith("segments/")} <= old.disk.files().keys()


async def test_an_anchor_of_a_stream_that_is_not_there_was_changed(either: Machine) -> None:
    async with either.open() as db:
        receipt = await db.append("s", b"x")
    for changed in (receipt._replace(stream="t"), receipt._replace(stream="t", last_offset=9, mac=bytes(16))):
        for read_only in (False, True):
            with pytest.raises(Invalid, match="no stream"):
                await either.open(anchor=changed, read_only=read_only)
        with pytest.raises(Invalid, match="no stream"):
            either.verify(changed)
    either.verify(receipt)


async def test_an_anchor_of_another_history_is_a_rollback_and_one_not_durable_is_invalid(machine: Machine) -> None:
    async with machine.open() as db:
        receipt = await db.append("s", b"x")
        await db.append("s", bytes(90_000))
        await db.append("s", bytes(90_000))
    for other in ({"root": bytes(32)}, {"chain": bytes(32)}, {"group": receipt.group + 1}, {"group": 1 << 40}):
        for read_only in (False, True):
            with pytest.raises(RolledBack):
                await machine.open(anchor=machine.forge(receipt, **other), read_only=read_only)
        with pytest.raises(RolledBack):
            machine.verify(machine.forge(receipt, **other))
    with pytest.raises(Invalid):
        await machine.open(anchor=receipt._replace(durable=False))


@pytest.mark.parametrize("verb", ["write", "allocate", "open"])
async def test_a_disk_too_full_to_recover_opens_for_reading_and_says_so(either: Machine, verb: str) -> None:
    async with either.open() as db:
        await db.append("s", b"x")
        dead = either.image()
    await asyncio.sleep(0)
    dead.fault = failing(verb, {"open": "prepare/"}.get(verb, ""), errno.ENOSPC)
    async with dead.open() as db:
        notes = (await db.info())["notes"]
        assert any("reading only" in note for note in notes)
        with pytest.raises(NoSpace, match="reading only"):
            await db.append("s", b"y")
        assert len(await payloads(db.read())) <= 1
    with pytest.raises(NoSpace):
        await dead.open(or_read=False)
    dead.fault = None
    async with dead.open() as db:
        assert await payloads(db.read()) == [b"x"]
        assert (await db.append("s", b"y")).first_offset == 1


async def test_a_disk_too_full_to_make_a_database_says_no_space_and_can_be_tried_again(either: Machine) -> None:
    either.fault = failing("write", "", errno.ENOSPC)
    with pytest.raises(NoSpace):
        await either.open()
    either.fault = None
    async with either.open() as db:
        assert (await db.append("s", b"x")).durable


async def test_info_says_what_is_open_and_where_it_stands(either: Machine) -> None:
    async with either.open(origin="o") as db:
        receipt = await db.append("s", [b"x", b"y"])
        info = await db.info()
    assert info["origin"] == "o"
    assert len(bytes.fromhex(info["database_id"])) == 16
    assert (info["records"], info["tree_size"], info["durable_position"], info["streams"]) == (3, 3, 3, 1)
    assert (info["root"], info["chain"], info["group"]) == (receipt.root.hex(), receipt.chain.hex(), receipt.group)
    assert (info["segments"], info["encrypted"], info["notes"]) == (1, either.key is not None, [])
    assert (info["backend"], info["backend_reason"]) == ("memory", "a simulated disk")
    assert info["bytes"] > 8_192


async def test_a_handle_that_was_closed_leaves_no_descriptors(tmp_path: Path) -> None:
    def held() -> list[str]:
        names = (os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
        return [name for name in names if name.startswith(str(tmp_path))]

    gc.disable()
    try:
        for _ in range(2):
            async with kimberlite.open(tmp_path / "db", backend="threads", segment_bytes=64 * 1024) as db:
                for _ in range(4):
                    await db.append("s", bytes(30_000))
                await payloads(db.read())
            assert held() == []
            async with kimberlite.open(tmp_path / "db", read_only=True) as reader:
                await payloads(reader.read())
            assert held() == []
    finally:
        gc.enable()


@pytest.mark.parametrize("clean", [True, False])
async def test_closed_segments_cost_no_more_than_a_few_descriptors(tmp_path: Path, clean: bool) -> None:
    def held() -> int:
        return sum(str(tmp_path) in os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))

    async with kimberlite.open(tmp_path / "db", segment_bytes=64 * 1024) as db:
        positions = [(await db.append(f"s{i % 3}", bytes(40_000))).first_position for i in range(200)]
        assert (await db.info())["segments"] == 200
        assert held() < 150
        assert len(await db.get_many(positions)) == 200
        assert held() < 150
    if not clean:
        (tmp_path / "db" / "checkpoint").unlink()
    for read_only in (True, False):
        async with kimberlite.open(tmp_path / "db", segment_bytes=64 * 1024, read_only=read_only) as db:
            assert held() < 150
            assert len(await payloads(db.read("s1"))) == 67
            assert [r.position for r in await db.get_many(positions)] == positions
            assert held() < 150


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, NoSpace),
        (errno.EDQUOT, NoSpace),
        (errno.ELOOP, Misconfigured),
        (errno.EACCES, Misconfigured),
        (errno.EREMOTE, Misconfigured),
        (errno.EIO, Unavailable),
        (errno.EMFILE, Unavailable),
    ],
)
def test_an_error_of_the_operating_system_becomes_one_of_ours(number: int, kind: type[KimberliteError]) -> None:
    translated = translate(OSError(number, os.strerror(number)), "somewhere")
    assert type(translated) is kind
    assert "somewhere" in str(translated)


async def test_a_path_that_leads_nowhere_is_misconfigured_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    for name in ("dangling", "missing/db"):
        with pytest.raises(Misconfigured, match=name):
            await kimberlite.open(tmp_path / name)
    assert os.listdir(tmp_path) == ["dangling"]


async def test_a_file_system_that_is_mounted_read_only_is_misconfigured(machine: Machine) -> None:
    def read_only(verb: str, name: str, place: int, length: int) -> OSError | None:
        reads = {"open", "exists", "check", "list", "read", "size", "extent", "lock"}
        return None if verb in reads else OSError(errno.EROFS, os.strerror(errno.EROFS), name)

    machine.fault = read_only
    with pytest.raises(Misconfigured, match="Read-only"):
        await machine.open()
    machine.fault = None
    async with machine.open() as db:
        await db.append("s", b"x")
    machine.fault = read_only
    with pytest.raises(Misconfigured, match="Read-only"):
        await machine.open()
    async with machine.open(read_only=True) as db:
        assert await payloads(db.read()) == [b"x"]


async def test_a_file_that_is_gone_while_a_database_opens_is_not_a_fault_of_its_configuration(machine: Machine) -> None:
    async with machine.open() as db:
        await db.append("s", b"x")
    machine.fault = failing("read", "segments/", errno.ENOENT)
    for read_only in (True, False):
        with pytest.raises(Unavailable):
            await machine.open(read_only=read_only)


async def test_a_kernel_that_writes_no_more_at_the_close_is_a_disk_that_failed(machine: Machine) -> None:
    db = await machine.open()
    await db.append("s", b"x")
    machine.fault = failing("truncate", "segments/", errno.EROFS)
    with pytest.raises(Unavailable, match="with everything durable"):
        await db.close()


async def test_an_opening_that_is_never_awaited_has_done_nothing(tmp_path: Path) -> None:
    kimberlite.open(tmp_path / "db")
    assert not (tmp_path / "db").exists()
    assert Disk().files() == {}


@pytest.mark.parametrize("path", ["", "a\0b", 5, None, b"db"])
def test_what_names_no_directory_is_invalid(path: Any) -> None:
    for opened in (kimberlite.open, kimberlite.sync.open, verify_directory):
        with pytest.raises(Invalid):
            opened(path)


def test_an_anchor_that_is_no_receipt_is_invalid(tmp_path: Path) -> None:
    sound = Receipt("s", 0, 0, 1, 1, 1, True, 2, bytes(32), bytes(32), 0, 1, bytes(16))
    for anchor in (5, (), sound._replace(tree_size=-1), sound._replace(root=b"x"), sound._replace(durable=False)):
        for opened in (kimberlite.open, verify_directory):
            with pytest.raises(Invalid, match="anchor"):
                opened(tmp_path / "db", anchor=anchor)  # type: ignore[arg-type]
    assert not (tmp_path / "db").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"origin": 5},
        {"origin": b"x"},
        {"origin": "a b"},
        {"backend": object()},
        {"backend": None},
        {"backend": "memory"},
        {"key_file": 5},
        {"key_file": b"k"},
        {"key_file": ""},
        {"key_file": "a\0"},
        {"key_file": "/nowhere/key"},
    ],
)
async def test_what_cannot_be_opened_so_is_refused_by_name_and_leaves_nothing(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    with pytest.raises(KimberliteError):
        await kimberlite.open(tmp_path / "db", **wrong)
    assert not (tmp_path / "db").exists()


async def test_an_anchor_is_not_met_by_a_new_database(machine: Machine, tmp_path: Path) -> None:
    async with machine.open() as db:
        receipt = await db.append("s", b"x")
    with pytest.raises(RolledBack, match="no database"):
        await kimberlite.open(tmp_path / "db", anchor=receipt)
    assert not list((tmp_path / "db").iterdir())
