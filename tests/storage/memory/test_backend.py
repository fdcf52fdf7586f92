"""What the backend over a simulated disk promises beyond what every backend does."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from random import Random

import pytest

from kimberlite.storage.backend import BLOCK, Backend
from kimberlite.storage.memory import Disk, MemoryBackend
from kimberlite.storage.memory.image import SECTOR

from .cuts import Ending, contents, left, on_loop, opened, sector, until


def test_is_a_backend() -> None:
    backend: Backend = MemoryBackend(Disk())
    assert (backend.name, backend.list(), backend.exists("")) == ("memory", [], False)


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
        assert ending.calls == [None]
        assert file.read(0, 900) == data[:900]
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
        "read": lambda: file.read(0, 1),
        "write": lambda: file.write(0, b"x"),
        "sync": file.sync,
        "size": file.size,
        "extent": lambda: file.extent(0),
        "allocate": lambda: file.allocate(0, 9),
        "truncate": lambda: file.truncate(0),
        "lock": file.lock,
    }
    for verb, call in verbs.items():
        with pytest.raises(OSError, match=verb):
            call()
    assert asked == list(verbs)
    assert disk.files() == {"a": b"data"}


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
        with pytest.raises(OSError, match="Bad file"):
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
