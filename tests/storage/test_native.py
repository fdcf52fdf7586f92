"""The native pieces by themselves: aligned memory and the writer threads."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from kimberlite import _native
from kimberlite.storage import BLOCK


@pytest.mark.parametrize("asked, given", [(1, BLOCK), (BLOCK, BLOCK), (BLOCK + 1, 2 * BLOCK), (1 << 20, 1 << 20)])
def test_a_buffer_is_whole_aligned_zeroed_blocks(asked: int, given: int) -> None:
    buffer = _native.Buffer(asked)
    assert buffer.capacity == len(buffer) == given
    assert bytes(buffer) == bytes(given)
    assert ctypes.addressof(ctypes.c_char.from_buffer(buffer)) % BLOCK == 0


@pytest.mark.parametrize("capacity", [0, 2**63 - 1, 2**64 - 1])
def test_a_buffer_has_a_sensible_capacity(capacity: int) -> None:
    with pytest.raises(ValueError):
        _native.Buffer(capacity)


def test_a_buffer_that_is_too_large_is_a_memory_error() -> None:
    with pytest.raises(MemoryError):
        _native.Buffer(1 << 60)


def test_a_view_keeps_its_buffer() -> None:
    view = memoryview(_native.Buffer(BLOCK))
    view[10:13] = b"abc"
    assert not view.readonly
    assert bytes(view[10:13]) == b"abc"


def test_a_number_in_use_is_refused(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    writer = _native.Writer(1)
    writer.submit(1, descriptor, 0, b"first", False)
    with pytest.raises(RuntimeError):
        writer.submit(1, descriptor, 0, b"other", False)
    writer.wait()
    assert writer.completions() == [(1, 0)]
    writer.submit(1, descriptor, 0, b"third", False)
    writer.close()
    assert writer.completions() == [(1, 0)]
    assert os.pread(descriptor, 9, 0) == b"third"
    with pytest.raises(RuntimeError):
        writer.submit(2, descriptor, 0, b"after", False)
    os.close(descriptor)


def test_a_buffer_cannot_change_its_size_while_it_is_written(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    writer = _native.Writer(1)
    data = bytearray(b"stays")
    writer.submit(1, descriptor, 0, data, False)
    with pytest.raises(BufferError):
        data.extend(b"more")
    writer.wait()
    writer.completions()
    data.extend(b"more")
    writer.close()
    os.close(descriptor)


def test_the_errno_comes_back() -> None:
    writer = _native.Writer(2)
    writer.submit(1, -1, 0, b"nowhere", True)
    writer.submit_sync(2, -1)
    writer.wait()
    assert sorted(writer.completions()) == [(1, 9), (2, 9)]
    writer.close()


@pytest.mark.parametrize("place", [-1, 2**63 - 2])
def test_a_place_out_of_range_is_refused(place: int) -> None:
    writer = _native.Writer(1)
    with pytest.raises(ValueError):
        writer.submit(1, 1, place, b"nowhere", False)
    writer.close()
