"""The native pieces by themselves: aligned memory, the writer threads and the ring."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kimberlite import _native
from kimberlite.storage import BLOCK

Engine = _native.Writer | _native.Ring
ENGINES: dict[str, Callable[[], Engine]] = {"threads": lambda: _native.Writer(1), "uring": lambda: _native.Ring(2)}


def made(name: str) -> Engine:
    try:
        return ENGINES[name]()
    except OSError as problem:
        if problem.errno not in (errno.ENOSYS, errno.EPERM, errno.EACCES):
            raise
        pytest.skip(f"no io_uring here: {problem}")


@pytest.fixture(params=list(ENGINES))
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = made(request.param)
    yield engine
    engine.close()


@pytest.fixture
def ring() -> Iterator[Engine]:
    ring = made("uring")
    yield ring
    ring.close()


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends without blocking: a write into it may be short."""
    ends = os.pipe2(os.O_NONBLOCK)
    yield ends
    for end in ends:
        os.close(end)


def readable(engine: Engine) -> bool:
    return bool(select.select([engine.fileno()], [], [], 0)[0])


def emptied(end: int) -> bytes:
    got = b""
    with suppress(BlockingIOError):
        while True:
            got += os.read(end, 1 << 20)
    return got


@pytest.mark.parametrize(("asked", "given"), [(1, BLOCK), (BLOCK, BLOCK), (BLOCK + 1, 2 * BLOCK), (1 << 20, 1 << 20)])
def test_a_buffer_is_whole_aligned_zeroed_blocks(asked: int, given: int) -> None:
    buffer = _native.Buffer(asked)
    assert buffer.capacity == len(buffer) == given
    assert bytes(buffer) == bytes(given)
    assert ctypes.addressof(ctypes.c_char.from_buffer(buffer)) % BLOCK == 0


@pytest.mark.parametrize("capacity", [0, 2**63 - 1, 2**64 - 1])
def test_a_buffer_has_a_sensible_capacity(capacity: int) -> None:
    with pytest.raises(ValueError, match="capacity"):
        _native.Buffer(capacity)


def test_a_buffer_that_is_too_large_is_a_memory_error() -> None:
    with pytest.raises(MemoryError):
        _native.Buffer(1 << 60)


def test_a_view_keeps_its_buffer() -> None:
    view = memoryview(_native.Buffer(BLOCK))
    view[10:13] = b"abc"
    assert not view.readonly
    assert bytes(view[10:13]) == b"abc"


def test_a_number_in_use_is_refused(engine: Engine, descriptor: int) -> None:
    engine.submit(1, descriptor, 0, b"first", False)
    with pytest.raises(RuntimeError, match="this id"):
        engine.submit(1, descriptor, 0, b"other", False)
    engine.wait()
    with pytest.raises(RuntimeError, match="this id"):
        engine.submit(1, descriptor, 0, b"other", False)
    assert engine.completions() == [(1, 0)]
    engine.submit(1, descriptor, 0, b"third", False)
    engine.close()
    assert engine.completions() == [(1, 0)]
    assert engine.fileno() == -1
    assert os.pread(descriptor, 9, 0) == b"third"
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(2, descriptor, 0, b"after", False)
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit_sync(2, descriptor)
    engine.close()


def test_a_buffer_cannot_change_its_size_while_it_is_written(engine: Engine, descriptor: int) -> None:
    data = bytearray(b"stays")
    engine.submit(1, descriptor, 0, data, False)
    with pytest.raises(BufferError):
        data.extend(b"more")
    engine.wait()
    with pytest.raises(BufferError):
        data.extend(b"more")
    engine.completions()
    data.extend(b"more")


def test_a_buffer_is_let_go_when_its_write_has_been_told(engine: Engine, descriptor: int) -> None:
    data = _native.Buffer(BLOCK)
    before = sys.getrefcount(data)
    for number in range(1000):
        engine.submit(number, descriptor, 0, data, False)
    assert sys.getrefcount(data) > before
    engine.wait()
    assert len(engine.completions()) == 1000
    engine.submit(1, descriptor, 0, data, False)
    with pytest.raises(RuntimeError, match="this id"):
        engine.submit(1, descriptor, 0, data, False)
    with pytest.raises(ValueError, match="place"):
        engine.submit(2, descriptor, -1, data, False)
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(3, descriptor, 0, data, False)
    engine.completions()
    assert sys.getrefcount(data) == before


@pytest.mark.parametrize("name", ENGINES)
def test_one_that_is_dropped_finishes_first(name: str, descriptor: int) -> None:
    data, engine = bytearray(b"\x5a" * (32 << 20)), made(name)
    for number in range(3):
        engine.submit(number, descriptor, number * len(data), data, False)
    del engine
    assert os.fstat(descriptor).st_size == 3 * len(data)
    data.extend(b"more")


def test_the_eventfd_is_readable_while_there_is_something_to_tell(engine: Engine, descriptor: int) -> None:
    assert not readable(engine)
    assert engine.completions() == []
    for number in range(20):
        engine.submit(number, descriptor, number * BLOCK, bytes(BLOCK), True)
    engine.wait()
    assert readable(engine)
    assert sorted(engine.completions()) == [(number, 0) for number in range(20)]
    assert not readable(engine)


def test_a_write_of_nothing_is_done(engine: Engine, descriptor: int) -> None:
    engine.submit(1, descriptor, 0, b"", True)
    engine.wait()
    assert engine.completions() == [(1, 0)]


def test_the_errno_comes_back(engine: Engine) -> None:
    engine.submit(1, -1, 0, b"nowhere", True)
    engine.submit_sync(2, -1)
    engine.wait()
    assert sorted(engine.completions()) == [(1, errno.EBADF), (2, errno.EBADF)]


@pytest.mark.parametrize("place", [-1, 2**63 - 2])
def test_a_place_out_of_range_is_refused(engine: Engine, place: int) -> None:
    with pytest.raises(ValueError, match="place"):
        engine.submit(1, 1, place, b"nowhere", False)


def test_a_buffer_with_holes_is_refused(engine: Engine, descriptor: int) -> None:
    with pytest.raises(ValueError, match="contiguous"):
        engine.submit(1, descriptor, 0, memoryview(bytes(BLOCK))[::2], False)


@pytest.mark.parametrize("entries", [0, 4097])
def test_a_ring_has_a_sensible_size(entries: int) -> None:
    with pytest.raises(ValueError, match="entries"):
        _native.Ring(entries)


def test_what_finds_the_ring_full_waits_and_is_told_of_by_the_eventfd(ring: Engine, descriptor: int) -> None:
    for number in range(100):
        ring.submit(number, descriptor, number * BLOCK, bytes([number + 1]) * BLOCK, number % 2 == 0)
    told: list[int] = []
    while len(told) < 100:
        assert select.select([ring.fileno()], [], [], 10)[0]
        told += [number for number, _ in ring.completions()]
    assert sorted(told) == list(range(100))
    assert os.pread(descriptor, 101 * BLOCK, 0) == b"".join(bytes([n + 1]) * BLOCK for n in range(100))


def test_a_ring_takes_a_short_write_up_again(ring: Engine, pipe: tuple[int, int]) -> None:
    data = b"".join(bytes([number + 1]) * BLOCK for number in range(24))
    ring.submit(1, pipe[1], 0, data, False)
    got = emptied(pipe[0])
    assert 0 < len(got) < len(data)
    while not (told := ring.completions()):
        got += emptied(pipe[0])
    assert told == [(1, 0)]
    assert got + emptied(pipe[0]) == data
