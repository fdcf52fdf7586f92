"""The public names, and `kimberlite.open` over what it takes and gives."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path

import pytest

import kimberlite
import kimberlite.sync
from kimberlite import Log
from kimberlite.log.options import Options
from kimberlite.storage.memory import Disk, MemoryBackend


def test_every_public_name_is_there() -> None:
    assert sorted(set(kimberlite.__all__)) == sorted(kimberlite.__all__)
    for name in kimberlite.__all__:
        assert getattr(kimberlite, name) is not None


def test_both_faces_take_the_same_arguments() -> None:
    assert signature(kimberlite.open) == signature(kimberlite.sync.open)
    for name in ("append", "append_many", "read", "tail", "get", "get_many", "streams", "info", "close"):
        assert signature(getattr(Log, name)) == signature(getattr(kimberlite.sync.Database, name)), name


def signature(call: object) -> dict[str, tuple[object, object]]:
    assert callable(call)
    return {name: (p.kind, p.default) for name, p in inspect.signature(call).parameters.items()}


def test_defaults_of_open_are_those_of_the_options() -> None:
    defaults = {name: default for name, (_, default) in signature(kimberlite.open).items()}
    options = Options()
    for name in ("sync", "segment_bytes", "compression", "depth", "max_delay", "pack", "scrub"):
        assert defaults[name] == getattr(options, name)


@pytest.mark.parametrize("kind", [str, Path])
async def test_a_path_is_a_str_or_like_a_path(tmp_path: Path, kind: type[str] | type[Path]) -> None:
    path = tmp_path / "db"
    given = kind(path)
    async with kimberlite.open(given, backend="threads") as db:
        assert (await db.append("s", b"x")).durable
    assert (path / "identity").exists()


async def test_any_backend_may_be_given() -> None:
    disk = Disk()
    async with kimberlite.open("anywhere", backend=MemoryBackend(disk)) as db:
        await db.append("s", b"x")
    async with kimberlite.open("anywhere", backend=MemoryBackend(disk), create=False) as db:
        assert [record.payload async for record in db.read()] == [b"x"]
    async with kimberlite.open("anywhere", backend=MemoryBackend(disk), read_only=True) as db:
        assert [record.payload async for record in db.read()] == [b"x"]


@pytest.mark.parametrize("backend", ["auto", "threads", "uring"])
async def test_every_backend_writes_what_every_other_reads(tmp_path: Path, backend: str) -> None:
    async with kimberlite.open(tmp_path / "db", backend=backend) as db:  # type: ignore[arg-type]
        receipt = await db.append("s", [b"x" * 100] * 100)
        assert (await db.info())["backend"] in ("threads", "uring")
    for other in ("threads", "uring"):
        async with kimberlite.open(tmp_path / "db", backend=other, anchor=receipt) as db:
            assert len([record async for record in db.read("s")]) == 100


def test_a_database_may_be_used_by_one_loop_after_another(tmp_path: Path) -> None:
    async def once(expected: int) -> None:
        async with kimberlite.open(tmp_path / "db", backend="threads") as db:
            assert (await db.append("s", b"x")).first_offset == expected

    for i in range(3):
        asyncio.run(once(i))


async def test_two_databases_side_by_side_do_not_meet(tmp_path: Path) -> None:
    async with kimberlite.open(tmp_path / "a", backend="threads") as a, kimberlite.open(tmp_path / "b") as b:
        await asyncio.gather(*(db.append("s", name) for db, name in ((a, b"a"), (b, b"b")) for _ in range(20)))
        assert {record.payload async for record in a.read()} == {b"a"}
        assert {record.payload async for record in b.read()} == {b"b"}


async def test_an_exception_in_the_block_closes_and_is_not_hidden(tmp_path: Path) -> None:
    async def fail() -> None:
        async with kimberlite.open(tmp_path / "db", backend="threads") as db:
            await db.append("s", b"kept")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    async with kimberlite.open(tmp_path / "db", backend="threads") as db:
        assert (await db.info())["records"] == 2
