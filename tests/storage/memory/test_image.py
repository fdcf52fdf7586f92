"""The simulated file can lose all that a real one can, and nothing that a sync or a durable write covered."""

from __future__ import annotations

import errno
from itertools import product
from random import Random

import pytest

from kimberlite.storage.backend import BLOCK
from kimberlite.storage.memory import Disk, MemoryBackend
from kimberlite.storage.memory.image import SECTOR, Flight

from .cuts import Ending, contents, left, on_loop, opened, sector, until


def test_each_unsynced_sector_persists_or_not_by_itself() -> None:
    disk = Disk.from_files({"a": sector("o", 3)})
    _, file = opened(disk)
    file.write(0, sector("n", 3))
    expected = {b"".join(map(sector, letters)) for letters in product("on", repeat=3)}
    assert contents(disk) == expected
    seen = {disk.crash(Random(seed)).files()["a"] for seed in range(500)}
    assert seen == expected


def test_of_two_unsynced_writes_to_a_sector_old_first_or_second_persists() -> None:
    disk = Disk.from_files({"a": sector("o")})
    _, file = opened(disk)
    file.write(0, sector("1"))
    file.write(0, sector("2"))
    assert contents(disk) == {sector("o"), sector("1"), sector("2")}


def test_a_part_of_a_sector_persists_only_with_what_the_cache_had_around_it() -> None:
    disk = Disk.from_files({"a": sector("o")})
    _, file = opened(disk)
    file.write(0, b"1" * 100)
    file.write(100, b"2" * 100)
    first = b"1" * 100 + b"o" * 412
    assert contents(disk) == {sector("o"), first, b"1" * 100 + b"2" * 100 + b"o" * 312}


def test_a_block_tears() -> None:
    disk = Disk.from_files({"a": bytes(BLOCK)})
    _, file = opened(disk)
    file.write(0, sector("n", 8))
    seen = {disk.crash(Random(seed)).files()["a"] for seed in range(3000)}
    for kept in range(9):
        assert sector("n", kept) + bytes((8 - kept) * SECTOR) in seen
        assert bytes((8 - kept) * SECTOR) + sector("n", kept) in seen


def test_an_unsynced_extension_is_lost_or_reads_as_zeros_or_is_there() -> None:
    disk = Disk.from_files({"a": sector("o")})
    _, file = opened(disk)
    file.write(SECTOR, sector("n"))
    assert contents(disk) == {sector("o"), sector("o") + bytes(SECTOR), sector("o") + sector("n")}
    file.allocate(0, 4 * SECTOR)
    assert {len(data) // SECTOR for data in contents(disk)} == {1, 2, 4}
    file.sync()
    assert contents(disk) == {sector("o") + sector("n") + bytes(2 * SECTOR)}


def test_what_a_lost_extension_left_behind_the_end_reads_as_zeros_when_the_file_grows_again() -> None:
    disk = Disk.from_files({"a": b"o" * 100})
    _, file = opened(disk)
    file.write(100, b"n" * 100)
    after = left(disk, 1)
    assert after.files()["a"] == b"o" * 100
    _, file = opened(after)
    file.allocate(0, 200)
    assert file.read(0, 200) == b"o" * 100 + bytes(100)


def test_an_unsynced_truncation_is_lost_or_not_and_what_it_cut_off_never_comes_back() -> None:
    disk = Disk.from_files({"a": sector("o", 2)})
    _, file = opened(disk)
    file.write(SECTOR, sector("n"))
    file.truncate(100)
    file.truncate(2 * SECTOR)
    cut = b"o" * 100
    whole = {sector("o", 2), sector("o") + sector("n")}
    assert contents(disk) == whole | {cut, cut.ljust(2 * SECTOR, b"\0")}
    assert file.read(0, 2 * SECTOR) == cut.ljust(2 * SECTOR, b"\0")


def test_in_flight_writes_persist_in_any_order_and_are_read_only_once_landed() -> None:
    disk = Disk.from_files({"a": bytes(2 * BLOCK)})

    async def work() -> None:
        backend, file = opened(disk)
        first, second = Ending(), Ending()
        backend.submit(file, 0, sector("1", 8), False, first)
        backend.submit(file, BLOCK, sector("2", 8), False, second)
        assert not first.calls
        assert file.read(0, 2 * BLOCK) == bytes(2 * BLOCK)
        seen = {disk.crash(Random(seed)).files()["a"] for seed in range(300)}
        assert bytes(BLOCK) + sector("2", 8) in seen
        assert sector("1", 8) + bytes(BLOCK) in seen
        await until(first, second)
        assert file.read(0, 2 * BLOCK) == sector("1", 8) + sector("2", 8)

    on_loop(work)


def test_of_two_equal_writes_in_flight_the_one_that_landed_is_in_flight_no_more() -> None:
    disk = Disk.from_files({"a": bytes(BLOCK)})
    inode = disk.lookup("a")
    kept, reused = bytearray(sector("n", 8)), bytearray(sector("n", 8))
    flights = [Flight(0, memoryview(buffer), True) for buffer in (kept, reused)]
    for flight in flights:
        disk.launch(inode, flight)
    disk.land(inode, flights[1])
    reused[:] = sector("z", 8)
    assert contents(disk) == {sector("n", 8)}


def test_a_durable_write_covers_its_range_the_size_to_read_it_and_no_more() -> None:
    disk = Disk.from_files({"a": sector("o")})

    async def work() -> None:
        backend, file = opened(disk)
        ending = Ending()
        file.write(0, sector("n"))
        file.write(BLOCK, sector("n"))
        file.allocate(0, 3 * BLOCK)
        backend.submit(file, BLOCK, sector("d", 8), True, ending)
        await until(ending)

    on_loop(work)
    pad = bytes(BLOCK - SECTOR)
    short = {sector(letter) + pad + sector("d", 8) for letter in "on"}
    assert contents(disk) == short | {data + bytes(BLOCK) for data in short}


def test_a_durable_write_behind_a_truncation_survives_with_it() -> None:
    disk = Disk.from_files({"a": sector("o", 16)})

    async def work() -> None:
        backend, file = opened(disk)
        ending = Ending()
        file.truncate(0)
        backend.submit(file, 0, sector("d", 8), True, ending)
        await until(ending)

    on_loop(work)
    assert contents(disk) == {sector("d", 8)}


def test_a_sync_covers_only_what_had_landed_before_it_was_submitted() -> None:
    disk = Disk.from_files({"a": bytes(2 * BLOCK)})

    async def work() -> None:
        backend, file = opened(disk)
        early, late, sync = Ending(), Ending(), Ending()
        backend.submit(file, 0, sector("1", 8), False, early)
        await until(early)
        backend.submit(file, BLOCK, sector("2", 8), False, late)
        backend.submit_sync(file, sync)
        await until(late, sync)
        assert [early.calls, late.calls, sync.calls] == [[None]] * 3

    on_loop(work)
    assert left(disk).files()["a"] == sector("1", 8) + bytes(BLOCK)
    assert disk.unsynced().sectors == 8


@pytest.mark.parametrize("submitted", [False, True])
def test_what_a_failed_sync_covered_no_later_sync_writes(submitted: bool) -> None:
    disk = Disk.from_files({"a": bytes(BLOCK)})
    failures = [OSError(errno.EIO, "broken")]

    def fault(verb: str, name: str, place: int, length: int) -> OSError | None:
        return failures.pop() if "sync" in verb and failures else None

    async def work() -> None:
        backend = MemoryBackend(disk, fault=fault)
        file = backend.open("a", "w")
        file.write(0, sector("n", 8))
        ending, again = Ending(), Ending()
        if submitted:
            backend.submit_sync(file, ending)
            await until(ending)
            assert isinstance(ending.calls[0], OSError)
        else:
            with pytest.raises(OSError, match="broken"):
                file.sync()
        backend.submit_sync(file, again)
        await until(again)
        assert again.calls == [None]
        assert file.read(0, BLOCK) == sector("n", 8)
        assert backend.open("a", "s").read(0, BLOCK) == bytes(BLOCK)

    on_loop(work)
    assert contents(disk) == {bytes(BLOCK)}
