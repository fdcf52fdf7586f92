"""What every backend promises; what is asked only of real disks is in test_disk.py."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from kimberlite import _native
from kimberlite.storage import BLOCK, Backend, File
from kimberlite.storage.backend import written


def block(fill: int, blocks: int = 1) -> _native.Buffer:
    buffer = _native.Buffer(blocks * BLOCK)
    with memoryview(buffer) as view:
        view[:] = bytes([fill]) * len(view)
    return buffer


async def submitted(backend: Backend, file: File, place: int, buffer: _native.Buffer, durable: bool = True) -> None:
    """Returns when it is written; raises what `done` was given."""
    finished: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
    backend.submit(file, place, buffer, durable, finished.set_result)
    problem = await asyncio.wait_for(finished, 10)
    if problem is not None:
        raise problem


async def synced(backend: Backend, file: File) -> None:
    finished: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
    backend.submit_sync(file, finished.set_result)
    problem = await asyncio.wait_for(finished, 10)
    if problem is not None:
        raise problem


@pytest.fixture
def file(backend: Backend) -> Iterator[File]:
    file = backend.open("segment", "x")
    yield file
    file.close()


def test_what_is_written_is_read_at_its_place(file: File) -> None:
    file.write(5, b"hello")
    assert file.read(0, 10) == b"\0\0\0\0\0hello"
    assert file.read(6, 3) == b"ell"
    assert file.size() == 10


def test_a_read_is_short_only_at_the_end_of_the_file(file: File) -> None:
    file.write(0, b"abc")
    assert file.read(1, 100) == b"bc"
    assert file.read(3, 100) == b""
    assert file.read(9000, 1) == b""
    assert file.read(0, 0) == b""


@pytest.mark.parametrize(
    ("place", "length"), [(0, 1), (1, BLOCK), (BLOCK - 1, 2), (100, 3 * BLOCK), (3 * BLOCK, 77), (0, 0)]
)
def test_reading_the_disk_takes_any_place_and_length(backend: Backend, file: File, place: int, length: int) -> None:
    content = bytes(range(251)) * 50
    file.write(0, content)
    file.sync()
    direct = backend.open("segment", "s")
    try:
        assert direct.read(place, length) == content[place : place + length]
    finally:
        direct.close()


def test_creating_a_file_that_is_there_fails(backend: Backend, file: File) -> None:
    with pytest.raises(FileExistsError):
        backend.open("segment", "x")


@pytest.mark.parametrize("mode", ["r", "s", "w"])
def test_opening_a_file_that_is_not_there_fails(backend: Backend, mode: Any) -> None:
    with pytest.raises(FileNotFoundError):
        backend.open("nothing", mode)
    assert not backend.exists("nothing")


def test_allocated_blocks_read_as_zeros(file: File) -> None:
    file.write(0, b"kept")
    file.allocate(0, 3 * BLOCK)
    assert file.size() == 3 * BLOCK
    assert file.read(0, 3 * BLOCK) == b"kept" + bytes(3 * BLOCK - 4)


def test_allocation_never_shortens(file: File) -> None:
    file.write(2 * BLOCK, b"far")
    file.allocate(0, BLOCK)
    assert file.size() == 2 * BLOCK + 3


def test_truncate_cuts(file: File) -> None:
    file.write(0, b"abcdef")
    file.truncate(2)
    assert file.read(0, 10) == b"ab"


def test_an_extent_is_what_may_be_other_than_zeros(file: File) -> None:
    far, size = 100 * BLOCK + 5, 1000 * BLOCK
    file.write(0, b"near")
    file.write(far, b"far")
    file.truncate(size)
    file.sync()
    found = list(written(file, 0, size))
    assert [file.read(place, length).strip(b"\0") for place, length in found] == [b"near", b"far"]
    assert sum(length for _, length in found) < size // 2
    [(first, length), (second, _)] = found
    assert first == 0
    assert file.extent(length) == file.extent(second) == (second, second + found[1][1])
    assert file.extent(far + 1) == (far + 1, second + found[1][1])
    assert [file.extent(place) for place in (size - 1, size, size + 1)] == [None] * 3


def test_what_is_written_comes_in_pieces_and_between_bounds(file: File) -> None:
    file.write(BLOCK, b"x" * 4 * BLOCK)
    start, end = BLOCK + 10, 4 * BLOCK + 10
    pieces = list(written(file, start, end, 1000))
    assert pieces[0] == (start, 1000)
    assert sum(length for _, length in pieces) == end - start
    assert [place + length for place, length in pieces[:-1]] == [place for place, _ in pieces[1:]]
    assert list(written(file, end, end)) == []
    assert list(written(file, 0, BLOCK)) == [] or file.extent(0) == (0, 5 * BLOCK)


def test_names_are_listed_in_order(backend: Backend) -> None:
    for name in ("b", "a", "c"):
        backend.open(name, "x").close()
    backend.mkdir("inner")
    backend.mkdir("inner")
    backend.open("inner/z", "x").close()
    assert backend.list() == ["a", "b", "c", "inner"]
    assert backend.list("inner") == ["z"]
    assert backend.list("missing") == []
    assert backend.exists("inner/z")
    assert not backend.exists("missing/z")


def test_a_check_tells_files_from_directories(backend: Backend) -> None:
    backend.mkdir("d")
    backend.open("d/x", "x").close()
    backend.check("d/x")
    backend.check("d", directory=True)
    for name, directory, number in (
        ("d", False, errno.EISDIR),
        ("d/x", True, errno.ENOTDIR),
        ("missing", False, errno.ENOENT),
        ("missing", True, errno.ENOENT),
    ):
        with pytest.raises(OSError, match=rf"\[Errno {number}\]"):
            backend.check(name, directory=directory)


def test_rename_replaces_and_unlink_removes(backend: Backend) -> None:
    for name, content in (("old", b"old"), ("new", b"new")):
        written = backend.open(name, "x")
        written.write(0, content)
        written.close()
    backend.rename("new", "old")
    backend.sync_directory()
    assert backend.list() == ["old"]
    read = backend.open("old", "r")
    assert read.read(0, 9) == b"new"
    read.close()
    backend.unlink("old")
    assert backend.list() == []
    with pytest.raises(FileNotFoundError):
        backend.unlink("old")


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "a//b", ".", "", "a/"])
def test_a_name_never_leaves_the_directory(backend: Backend, name: str) -> None:
    with pytest.raises(ValueError, match="not a name"):
        backend.open(name, "x")


def test_a_lock_shuts_out_everybody_else_until_it_is_closed(backend: Backend, file: File) -> None:
    file.lock()
    other = backend.open("segment", "w")
    with pytest.raises(BlockingIOError):
        other.lock()
    file.close()
    other.lock()
    other.close()
    other.close()
    file.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("blocks", [1, 7, 256])
async def test_a_submitted_write_is_on_the_disk_when_done_says_so(
    backend: Backend, file: File, durable: bool, blocks: int
) -> None:
    buffer = block(0x5A, blocks)
    await submitted(backend, file, BLOCK, buffer, durable)
    if not durable:
        await synced(backend, file)
    direct = backend.open("segment", "s")
    assert direct.read(0, (blocks + 2) * BLOCK) == bytes(BLOCK) + bytes(buffer)
    direct.close()


@pytest.mark.asyncio
async def test_part_of_a_buffer_can_be_submitted(backend: Backend, file: File) -> None:
    finished: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
    backend.submit(file, 0, memoryview(block(7, 4))[BLOCK : 2 * BLOCK], True, finished.set_result)
    assert await asyncio.wait_for(finished, 10) is None
    assert file.size() == BLOCK


@pytest.mark.asyncio
async def test_done_is_never_called_from_inside_the_call(backend: Backend, file: File) -> None:
    thread = threading.get_ident()
    called: list[int] = []
    finished = asyncio.Event()

    def done(problem: OSError | None) -> None:
        called.append(threading.get_ident())
        finished.set()

    backend.submit(file, 0, block(1), True, done)
    assert called == []
    await asyncio.wait_for(finished.wait(), 10)
    backend.submit_sync(file, done)
    assert called == [thread]
    await asyncio.sleep(0.05)
    assert called == [thread, thread]


@pytest.mark.asyncio
async def test_more_writes_than_fit_at_once_wait_their_turn(backend: Backend, file: File) -> None:
    count = 300
    buffers = [block(number % 251 + 1) for number in range(count)]
    await asyncio.gather(
        *(submitted(backend, file, number * BLOCK, buffer, number % 3 == 0) for number, buffer in enumerate(buffers)),
        *(synced(backend, file) for _ in range(20)),
    )
    for number, buffer in enumerate(buffers):
        assert file.read(number * BLOCK, BLOCK) == bytes(buffer)


@pytest.mark.asyncio
async def test_a_file_closed_early_stays_open_for_its_writes(backend: Backend) -> None:
    first = backend.open("first", "x")
    finished = [asyncio.ensure_future(submitted(backend, first, n * BLOCK, block(0x11))) for n in range(40)]
    await asyncio.sleep(0)
    first.close()
    # Descriptors that were given out again would now be those of this file.
    second = backend.open("second", "x")
    await asyncio.gather(*finished)
    assert second.size() == 0
    second.close()
    again = backend.open("first", "r")
    assert again.read(0, 41 * BLOCK) == b"\x11" * (40 * BLOCK)
    again.close()


@pytest.mark.asyncio
async def test_a_done_that_raises_does_not_keep_the_others_waiting(backend: Backend, file: File) -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))

    def bad(problem: OSError | None) -> None:
        raise LookupError("mine")

    for number in range(10):
        backend.submit(file, number * BLOCK, block(3), False, bad)
    good = asyncio.gather(*(submitted(backend, file, number * BLOCK, block(4)) for number in range(10, 20)))
    await asyncio.sleep(0)
    # The loop stands still, so that it finds them all at once and nothing comes after that would wake it.
    time.sleep(0.2)  # noqa: ASYNC251
    await good
    while len(reported) < 10:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert {type(context["exception"]) for context in reported} == {LookupError}


@pytest.mark.asyncio
async def test_close_waits_for_what_was_submitted(backend: Backend, file: File) -> None:
    told: list[OSError | None] = []
    for number in range(100):
        backend.submit(file, number * BLOCK, block(9), True, told.append)
    backend.close()
    assert told == [None] * 100
    with pytest.raises(OSError, match="Bad file"):
        backend.submit(file, 0, block(9), True, told.append)


def test_one_loop_after_another_can_use_it(backend: Backend, file: File) -> None:
    for number in range(3):
        asyncio.run(submitted(backend, file, number * BLOCK, block(number + 1)))
    assert file.read(0, 3 * BLOCK) == b"".join(bytes([fill]) * BLOCK for fill in (1, 2, 3))


@pytest.mark.asyncio
async def test_run_gives_the_result_or_the_error(backend: Backend) -> None:
    assert await backend.run(lambda: 6 * 7) == 42

    def fail() -> None:
        raise KeyError("background")

    with pytest.raises(KeyError):
        await backend.run(fail)
