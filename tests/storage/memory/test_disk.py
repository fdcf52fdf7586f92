"""The simulated directory: names are lost in order, and only before they are synced."""

from __future__ import annotations

import errno
from itertools import product
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kimberlite.storage.backend import BLOCK
from kimberlite.storage.memory import Disk, MemoryBackend
from kimberlite.storage.memory.image import SECTOR

from .cuts import Ending, contents, on_loop, opened, sector, states, until


def test_operations_on_names_persist_as_a_prefix() -> None:
    disk = Disk.from_files({"tmp": b"new", "a": b"old", "b": b"gone"})
    backend = MemoryBackend(disk)
    backend.rename("tmp", "a")
    backend.unlink("b")
    backend.open("c", "x")
    before = {"tmp": b"new", "a": b"old", "b": b"gone"}
    renamed = {"a": b"new", "b": b"gone"}
    assert list(states(disk)) == [before, renamed, {"a": b"new"}, {"a": b"new", "c": b""}]
    backend.sync_directory()
    assert list(states(disk)) == [{"a": b"new", "c": b""}]


def test_a_new_file_is_lost_with_its_name_although_it_was_synced() -> None:
    disk = Disk()
    file = MemoryBackend(disk).open("a", "x")
    file.write(0, b"data")
    file.sync()
    assert list(states(disk)) == [{}, {"a": b"data"}]


def test_a_renamed_file_that_was_not_synced_may_be_empty() -> None:
    disk = Disk.from_files({"a": b"old"})
    backend = MemoryBackend(disk)
    backend.open("tmp", "x").write(0, b"new")
    backend.rename("tmp", "a")
    backend.sync_directory()
    assert contents(disk) == {b"", b"\0\0\0", b"new"}


def test_a_directory_is_lost_with_all_that_was_synced_in_it() -> None:
    disk = Disk()
    backend = MemoryBackend(disk)
    backend.mkdir("d")
    file = backend.open("d/a", "x")
    file.write(0, b"data")
    file.sync()
    backend.sync_directory("d")
    assert list(states(disk)) == [{}, {"d/a": b"data"}]
    backend.sync_directory()
    assert list(states(disk)) == [{"d/a": b"data"}]


def test_a_rename_is_durable_once_the_directory_of_the_new_name_is_synced() -> None:
    disk = Disk.from_files({"d/a": b"data"})
    backend = MemoryBackend(disk)
    backend.rename("d/a", "b")
    backend.sync_directory("d")
    assert list(states(disk)) == [{"d/a": b"data"}, {"b": b"data"}]
    backend.sync_directory()
    assert list(states(disk)) == [{"b": b"data"}]


def test_syncing_a_directory_takes_along_how_its_names_came_to_be() -> None:
    disk = Disk.from_files({"d/z": b""})
    backend = MemoryBackend(disk)
    backend.open("d/a", "x")
    backend.rename("d/a", "b")
    backend.open("d/c", "x")
    backend.sync_directory()
    assert list(states(disk)) == [{"b": b"", "d/z": b""}, {"b": b"", "d/c": b"", "d/z": b""}]


def test_each_file_loses_its_own_sectors() -> None:
    disk = Disk.from_files({"a": sector("o"), "b": sector("o")})
    for name in "ab":
        opened(disk, name)[1].write(0, sector(name))
    pairs = {(state["a"], state["b"]) for state in states(disk)}
    assert pairs == set(product((sector("o"), sector("a")), (sector("o"), sector("b"))))


def test_a_full_disk_takes_what_fits_and_has_room_again_after_the_last_close() -> None:
    disk = Disk.from_files({"a": bytes(BLOCK), "b": bytes(BLOCK)}, capacity=3 * BLOCK)
    backend, file = opened(disk)
    with pytest.raises(OSError, match="No space"):
        file.allocate(0, 3 * BLOCK)
    assert file.size() == BLOCK
    with pytest.raises(OSError, match="No space"):
        file.write(BLOCK, sector("n", 16))
    assert disk.free() == 0
    assert file.read(BLOCK, 2 * BLOCK) == sector("n", 8)
    file.write(0, sector("o", 8))
    open_still = backend.open("b", "r")
    backend.unlink("b")
    assert disk.free() == 0
    open_still.close()
    assert disk.free() == BLOCK

    async def work() -> None:
        ending = Ending()
        backend.submit(file, 2 * BLOCK, bytes(2 * BLOCK), True, ending)
        await until(ending)
        assert isinstance(ending.calls[0], OSError)
        assert ending.calls[0].errno == errno.ENOSPC

    on_loop(work)


def test_a_flipped_bit_is_in_the_cache_and_on_the_platter() -> None:
    disk = Disk.from_files({"a": bytes(BLOCK + 1)})
    other = disk.copy()
    disk.flip("a", 8 * BLOCK + 3)
    assert contents(disk) == {disk.files()["a"]} == {bytes(BLOCK) + b"\x08"}
    assert other.files()["a"] == bytes(BLOCK + 1)
    with pytest.raises(IndexError):
        disk.flip("a", 8 * (BLOCK + 1))


def test_a_copy_can_lose_the_same_and_goes_its_own_way() -> None:
    disk = Disk.from_files({"a": sector("o", 2), "b": b""})
    backend, file = opened(disk)
    file.write(0, sector("n"))
    backend.rename("b", "c")
    twin = disk.copy()
    before = list(states(twin))
    assert before == list(states(disk))
    file.write(SECTOR, sector("n"))
    file.sync()
    backend.unlink("c")
    assert list(states(twin)) == before


def test_a_real_directory_goes_there_and_back(tmp_path: Path) -> None:
    disk = Disk.from_files({"a": b"data", "d/e/b": bytes(5000)})
    MemoryBackend(disk).mkdir("empty")
    disk.dump(tmp_path)
    again = Disk.load(tmp_path)
    assert (again.files(), again.directories()) == (disk.files(), ["d", "d/e", "empty"])
    assert MemoryBackend(again).list() == ["a", "d", "empty"]
    assert list(states(again)) == [disk.files()]


NAMES = st.sampled_from(["a", "b", "d/a", "d/b"])


CHANGES = st.one_of(
    st.tuples(st.sampled_from(["write", "truncate", "allocate"]), NAMES, st.integers(0, 9000)),
    st.tuples(st.sampled_from(["rename", "unlink", "create"]), NAMES, NAMES),
)


def change(backend: MemoryBackend, verb: str, name: str, more: int | str) -> None:
    if isinstance(more, str):
        {
            "rename": lambda: backend.rename(name, more),
            "unlink": lambda: backend.unlink(name),
            "create": lambda: backend.open(name, "x").close(),
        }[verb]()
        return
    file = backend.open(name, "w")
    {
        "write": lambda: file.write(more, bytes([more % 255 + 1]) * (more // 2 + 1)),
        "truncate": lambda: file.truncate(more),
        "allocate": lambda: file.allocate(more, 700),
    }[verb]()
    file.close()


@settings(max_examples=200, deadline=None)
@given(st.lists(CHANGES, max_size=15), st.integers(0, 2**20), st.lists(CHANGES, max_size=4))
def test_whatever_happened_a_disk_that_was_synced_loses_nothing(
    changes: list[tuple[str, str, int | str]], seed: int, later: list[tuple[str, str, int | str]]
) -> None:
    disk = Disk.from_files({"a": b"1", "d/b": bytes(5000)})
    backend = MemoryBackend(disk)
    for each in changes:
        try:
            change(backend, *each)
        except (FileNotFoundError, FileExistsError):
            continue
    for name in disk.files():
        backend.open(name, "r").sync()
    backend.sync_directory("d")
    backend.sync_directory()
    synced = disk.files()
    rng = Random(seed)
    assert disk.unsynced() == (0, [], 0)
    assert disk.crash(rng).files() == synced
    touched: set[int | str] = set()
    for each in later:
        touched |= set(each[1:])
        try:
            change(backend, *each)
        except (FileNotFoundError, FileExistsError):
            continue
    for _ in range(5):
        after = disk.crash(rng).files()
        assert all(after.get(name) == data for name, data in synced.items() if name not in touched)
