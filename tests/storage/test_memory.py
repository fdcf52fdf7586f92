"""The simulated disk can lose all that a real one can, and nothing that a sync or a durable write covered."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Iterator
from itertools import product
from pathlib import Path
from random import Random
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kimberlite.storage.backend import BLOCK, Backend
from kimberlite.storage.memory import SECTOR, STYLES, Disk, Flight, MemoryBackend, MemoryFile, Write, scatter

T = TypeVar("T")


def sector(letter: str, count: int = 1) -> bytes:
    return letter.encode() * (SECTOR * count)


def states(disk: Disk) -> Iterator[dict[str, bytes]]:
    """Every disk that a power cut now may leave."""
    loose = disk.unsynced()
    sizes = product(*(range(most + 1) for most in loose.resizes))
    for operations, resizes, mask in product(range(loose.operations + 1), sizes, range(1 << loose.sectors)):
        yield disk.persist(operations, resizes, mask).files()


def contents(disk: Disk, name: str = "a") -> set[bytes]:
    return {state[name] for state in states(disk)}


def left(disk: Disk, sectors: int = 0) -> Disk:
    """After a cut that let these sectors through and nothing else."""
    return disk.persist(0, [0] * len(disk.unsynced().resizes), sectors)


def opened(disk: Disk, name: str = "a", rng: Random | None = None) -> tuple[MemoryBackend, MemoryFile]:
    backend = MemoryBackend(disk, rng)
    return backend, backend.open(name, "w")


def on_loop(work: Callable[[], Awaitable[T]]) -> T:
    async def main() -> T:
        return await work()

    return asyncio.run(main())


class Ending:
    """A `done`, and what it was called with."""

    def __init__(self) -> None:
        self.calls: list[OSError | None] = []

    def __call__(self, problem: OSError | None) -> None:
        self.calls.append(problem)


async def until(*endings: Ending) -> None:
    while not all(ending.calls for ending in endings):
        await asyncio.sleep(0)


def test_is_a_backend() -> None:
    backend: Backend = MemoryBackend(Disk())
    assert (backend.name, backend.list(), backend.exists("")) == ("memory", [], False)


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


@pytest.mark.parametrize(
    ("style", "possible"),
    [
        ("all", {0xFFFFFF}),
        ("none", {0}),
        ("prefix", {(1 << n) - 1 for n in range(25)}),
        ("one missing", {0xFFFFFF ^ 1 << n for n in range(24)}),
        ("one present", {1 << n for n in range(24)}),
        ("whole writes", {0, 0xFF, 0xFFFF00, 0xFFFFFF}),
        ("whole blocks", {a | b << 8 | c << 16 for a, b, c in product((0, 0xFF), repeat=3)}),
    ],
)
def test_a_style_draws_all_of_its_masks_and_no_others(style: str, possible: set[int]) -> None:
    writes = [Write(1, 0, bytes(BLOCK)), Write(2, 5 * BLOCK, bytes(2 * BLOCK))]
    rng = Random(1)
    assert {STYLES[style](rng, writes, 24) for _ in range(1000)} == possible


def test_blocks_are_those_of_the_file_and_not_of_the_write() -> None:
    writes = [Write(1, BLOCK - SECTOR, bytes(BLOCK))]
    rng = Random(1)
    assert {STYLES["whole blocks"](rng, writes, 8) for _ in range(100)} == {0, 1, 0xFE, 0xFF}


def test_torn_blocks_lose_one_end_of_each() -> None:
    rng = Random(1)
    ends = {(1 << n) - 1 for n in range(9)} | {0xFF ^ (1 << n) - 1 for n in range(9)}
    drawn = {STYLES["torn blocks"](rng, [Write(1, 0, bytes(2 * BLOCK))], 16) for _ in range(5000)}
    assert drawn == {a | b << 8 for a, b in product(ends, repeat=2)}


@given(st.integers(), st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), max_size=5))
def test_no_mask_is_longer_than_the_writes(seed: int, shapes: list[tuple[int, int]]) -> None:
    writes = [Write(n, at * SECTOR, bytes(count * SECTOR)) for n, (at, count) in enumerate(shapes)]
    assert 0 <= scatter(Random(seed), writes) < 1 << sum(write.sectors for write in writes)


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


def test_each_file_loses_its_own_sectors() -> None:
    disk = Disk.from_files({"a": sector("o"), "b": sector("o")})
    for name in "ab":
        opened(disk, name)[1].write(0, sector(name))
    pairs = {(state["a"], state["b"]) for state in states(disk)}
    assert pairs == set(product((sector("o"), sector("a")), (sector("o"), sector("b"))))


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
        assert not first.calls and file.read(0, 2 * BLOCK) == bytes(2 * BLOCK)
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


def test_a_buffer_that_changes_in_flight_is_written_changed() -> None:
    disk = Disk.from_files({"a": bytes(BLOCK)})

    async def work() -> None:
        backend, file = opened(disk)
        ending, buffer = Ending(), bytearray(BLOCK)
        backend.submit(file, 0, buffer, True, ending)
        buffer[:] = sector("x", 8)
        await until(ending)

    on_loop(work)
    assert disk.files()["a"] == sector("x", 8)


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


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_completions_come_one_a_turn_in_the_order_of_the_rng(seed: int | None) -> None:
    disk = Disk.from_files({"a": bytes(8 * BLOCK)})

    async def work() -> list[int]:
        backend, file = opened(disk, rng=None if seed is None else Random(seed))
        order: list[int] = []
        for n in range(8):
            backend.submit(file, n * BLOCK, bytes(BLOCK), False, lambda _, n=n: order.append(n))  # type: ignore[misc]
        assert order == []
        while len(order) < 8:
            had = len(order)
            await asyncio.sleep(0)
            assert len(order) - had <= 1
        return order

    order = on_loop(work)
    assert sorted(order) == list(range(8))
    assert (order == list(range(8))) == (seed is None)


def test_a_raising_done_does_not_hold_up_the_others() -> None:
    disk = Disk.from_files({"a": bytes(BLOCK)})

    def raises(_: OSError | None) -> None:
        raise RuntimeError("mine")

    async def work() -> None:
        reported: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
        backend, file = opened(disk)
        ending = Ending()
        backend.submit(file, 0, bytes(BLOCK), False, raises)
        backend.submit_sync(file, ending)
        await until(ending)
        assert str(reported[0]) == "mine"

    on_loop(work)


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


def test_of_a_failed_write_any_part_may_be_there() -> None:
    seen: set[bytes] = set()

    async def work() -> None:
        for seed in range(100):
            disk = Disk.from_files({"a": bytes(BLOCK)})
            rng = Random(seed)
            backend = MemoryBackend(disk, rng, lambda verb, *_: OSError(errno.EIO, "") if verb == "submit" else None)
            ending = Ending()
            backend.submit(backend.open("a", "w"), 0, sector("n", 8), True, ending)
            await until(ending)
            assert isinstance(ending.calls[0], OSError)
            seen.add(disk.files()["a"])

    on_loop(work)
    assert {bytes(BLOCK), sector("n", 8)} < seen


@pytest.mark.parametrize("durable", [False, True])
def test_a_short_write_is_completed(durable: bool) -> None:
    disk = Disk.from_files({"a": bytes(BLOCK)})
    disk.trace = []
    data = bytes(range(256)) * 16

    async def work() -> None:
        backend = MemoryBackend(disk, fault=lambda verb, name, place, length: 1000 if length > 1000 else None)
        file = backend.open("a", "w")
        ending = Ending()
        backend.submit(file, 0, data, durable, ending)
        await until(ending)
        assert ending.calls == [None] and file.read(0, 900) == data[:900]
        file.write(0, data[::-1])

    on_loop(work)
    pieces = [(0, 1000), (1000, 1000), (2000, 1000), (3000, 1000), (4000, 96)]
    assert [(place, length) for verb, _, place, length in disk.trace if verb == "submit"] == pieces
    assert [(place, length) for verb, _, place, length in disk.trace if verb == "write"] == pieces
    assert disk.files()["a"] == data[::-1]
    assert (left(disk).files()["a"] == data) == durable


def test_every_verb_can_fail() -> None:
    asked: list[str] = []

    def fault(verb: str, name: str, place: int, length: int) -> OSError:
        asked.append(verb)
        return OSError(errno.EIO, verb)

    disk = Disk.from_files({"a": b"data"})
    backend, file = opened(disk)
    backend.fault = fault
    verbs: dict[str, Callable[[], object]] = {
        "open": lambda: backend.open("a", "r"),
        "exists": lambda: backend.exists("a"),
        "list": backend.list,
        "mkdir": lambda: backend.mkdir("d"),
        "rename": lambda: backend.rename("a", "b"),
        "unlink": lambda: backend.unlink("a"),
        "sync_directory": backend.sync_directory,
        "lock_directory": backend.lock_directory,
        "free": backend.free,
        "read": lambda: file.read(0, 1),
        "write": lambda: file.write(0, b"x"),
        "sync": file.sync,
        "size": file.size,
        "allocate": lambda: file.allocate(0, 9),
        "truncate": lambda: file.truncate(0),
        "lock": file.lock,
    }
    for verb, call in verbs.items():
        with pytest.raises(OSError, match=verb):
            call()
    assert asked == list(verbs)
    assert disk.files() == {"a": b"data"}


def test_a_full_disk_takes_what_fits_and_has_room_again_after_the_last_close() -> None:
    disk = Disk.from_files({"a": bytes(BLOCK), "b": bytes(BLOCK)}, capacity=3 * BLOCK)
    backend, file = opened(disk)
    with pytest.raises(OSError) as refused:
        file.allocate(0, 3 * BLOCK)
    assert refused.value.errno == errno.ENOSPC and file.size() == BLOCK
    with pytest.raises(OSError) as refused:
        file.write(BLOCK, sector("n", 16))
    assert refused.value.errno == errno.ENOSPC and backend.free() == 0
    assert file.read(BLOCK, 2 * BLOCK) == sector("n", 8)
    file.write(0, sector("o", 8))
    open_still = backend.open("b", "r")
    backend.unlink("b")
    assert backend.free() == 0
    open_still.close()
    assert backend.free() == BLOCK

    async def work() -> None:
        ending = Ending()
        backend.submit(file, 2 * BLOCK, bytes(2 * BLOCK), True, ending)
        await until(ending)
        assert isinstance(ending.calls[0], OSError) and ending.calls[0].errno == errno.ENOSPC

    on_loop(work)


def test_locks_shut_others_out_until_closed_or_crashed() -> None:
    disk = Disk.from_files({"a": b""})
    backend, file = opened(disk)
    other, same = opened(disk)
    file.lock()
    backend.lock_directory()
    with pytest.raises(BlockingIOError):
        same.lock()
    with pytest.raises(BlockingIOError):
        other.lock_directory()
    crashed, again = opened(disk.crash(Random(1)))
    again.lock()
    crashed.lock_directory()
    file.close()
    backend.close()
    same.lock()
    other.lock_directory()


def test_close_lands_what_was_submitted() -> None:
    disk = Disk.from_files({"a": bytes(BLOCK)})

    async def work() -> None:
        backend, file = opened(disk, rng=Random(1))
        ending = Ending()
        backend.submit(file, 0, sector("n", 8), True, ending)
        backend.close()
        assert ending.calls == [None]
        with pytest.raises(OSError):
            backend.submit_sync(file, ending)

    on_loop(work)
    assert contents(disk) == {sector("n", 8)}


def test_one_loop_after_another_takes_over_what_is_in_flight() -> None:
    disk = Disk.from_files({"a": bytes(8 * BLOCK)})
    backend, file = opened(disk)
    endings = [Ending() for _ in range(8)]

    async def submit(numbers: range) -> None:
        for n in numbers:
            backend.submit(file, n * BLOCK, sector("n", 8), True, endings[n])

    async def finish() -> None:
        await submit(range(7, 8))
        await asyncio.wait_for(until(*endings), 5)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(submit(range(7)))
    loop.close()
    assert not endings[6].calls
    on_loop(finish)
    assert contents(disk) == {sector("n", 64)}


def test_misuse_is_refused() -> None:
    disk = Disk.from_files({"a": b"data", "d/b": b""})
    backend, file = opened(disk)
    ending = Ending()
    for place, data in ((1, bytes(BLOCK)), (0, bytes(SECTOR)), (0, b"")):
        with pytest.raises(ValueError, match="whole blocks"):
            backend.submit(file, place, data, False, ending)
    for name in ("../a", "/a", "d//b", ".", ""):
        with pytest.raises(ValueError, match="not a name"):
            backend.open(name, "r")
    with pytest.raises(FileExistsError):
        backend.open("a", "x")
    with pytest.raises(FileNotFoundError):
        backend.open("e/a", "x")
    with pytest.raises(IsADirectoryError):
        backend.unlink("d")
    with pytest.raises(OSError, match="a"):
        backend.open("a", "r").write(0, b"x")
    file.close()
    with pytest.raises(OSError, match="a"):
        file.read(0, 1)
    assert disk.files() == {"a": b"data", "d/b": b""}


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


def test_every_change_is_a_step_and_in_the_trace() -> None:
    disk = Disk.from_files({"a": bytes(BLOCK)})
    disk.trace = []
    steps: list[int] = []
    disk.on_step = lambda: steps.append(len(disk.crash(Random(1)).files()))

    async def work() -> None:
        backend, file = opened(disk)
        ending, synced = Ending(), Ending()
        backend.submit(file, 0, bytes(BLOCK), True, ending)
        backend.submit_sync(file, synced)
        await until(ending, synced)
        backend.rename("a", "b")
        backend.sync_directory()

    on_loop(work)
    assert [entry[0] for entry in disk.trace] == [
        *("open", "submit", "submit_sync", "durable", "synced", "rename", "sync_directory"),
    ]
    assert disk.trace[5] == ("rename", "a -> b", 0, 0)
    # A durable landing is two: in the cache, then on the platter.
    assert steps == [1] * 6


class Sectors:
    """The slow model of one file of a fixed size: what each sector may hold after a cut."""

    def __init__(self, count: int) -> None:
        self.landed: list[list[tuple[int, bytes]]] = [[(0, bytes(SECTOR))] for _ in range(count)]
        self.flying: list[tuple[int, bytes]] = []
        self.order = 0

    def write(self, place: int, data: bytes, durable: bool = False) -> None:
        self.order += 1
        for at, piece in pieces(place, data):
            if durable:
                self.landed[at].clear()
            self.landed[at].append((self.order, piece))

    def settle(self, upto: int) -> None:
        for versions in self.landed:
            while len(versions) > 1 and versions[1][0] <= upto:
                versions.pop(0)

    def possible(self) -> list[set[bytes]]:
        found = [{piece for _, piece in versions} for versions in self.landed]
        for place, data in self.flying:
            for at, piece in pieces(place, data):
                found[at].add(piece)
        return found


def pieces(place: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    for at in range(0, len(data), SECTOR):
        yield (place + at) // SECTOR, data[at : at + SECTOR]


async def drive(disk: Disk, verbs: list[tuple[str, int]], seed: int) -> None:
    rng = Random(seed)
    backend, file = opened(disk, rng=rng)
    model = Sectors(16)
    for number, (verb, block) in enumerate(verbs, 1):
        data = b"".join(bytes([number, at]) * (SECTOR // 2) for at in range(8))
        if verb == "write":
            file.write(block * SECTOR, data)
            model.write(block * SECTOR, data)
        elif verb == "sync":
            file.sync()
            model.settle(model.order)
        elif verb == "submit_sync":
            backend.submit_sync(file, lambda _, upto=model.order: model.settle(upto))  # type: ignore[misc]
        elif verb == "turn":
            await asyncio.sleep(0)
        else:
            flight = (block // 8 * BLOCK, data)
            model.flying.append(flight)

            def done(
                problem: OSError | None, flight: tuple[int, bytes] = flight, durable: bool = verb == "durable"
            ) -> None:
                assert problem is None
                model.flying.remove(flight)
                model.write(*flight, durable)

            backend.submit(file, *flight, verb == "durable", done)
        check(disk, model, rng)


def check(disk: Disk, model: Sectors, rng: Random) -> None:
    """All that the model allows can be left, sector by sector, and nothing else is."""
    seen: list[set[bytes]] = [set() for _ in model.landed]
    masks = [0, *(1 << n for n in range(disk.unsynced().sectors))]
    for state in [*(left(disk, mask) for mask in masks), *(disk.crash(rng) for _ in range(5))]:
        for at, piece in pieces(0, state.files()["a"]):
            seen[at].add(piece)
    assert seen == model.possible()


VERBS = st.sampled_from(["write", "sync", "submit", "durable", "submit_sync", "turn", "turn"])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(VERBS, st.integers(0, 8)), max_size=12), st.integers(0, 1000))
def test_every_sector_may_hold_exactly_what_the_model_says(verbs: list[tuple[str, int]], seed: int) -> None:
    disk = Disk.from_files({"a": bytes(2 * BLOCK)})
    on_loop(lambda: drive(disk, verbs, seed))


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
