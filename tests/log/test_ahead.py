"""Reading a file piece by piece."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from kimberlite.log.ahead import Ahead, aside
from kimberlite.storage import open_backend
from kimberlite.storage.backend import BLOCK, Backend, File
from kimberlite.storage.memory import Disk, MemoryBackend

DATA = bytes(range(256)) * 40


@pytest.fixture(params=["threads", "memory"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    return MemoryBackend(Disk()) if request.param == "memory" else open_backend(tmp_path / "db", "threads", create=True)


@pytest.fixture
def file(backend: Backend) -> File:
    file = backend.open("file", "x")
    file.write(0, DATA)
    return file


@pytest.mark.parametrize("piece", [1_000, 1_024, 5_120, 10_240, 20_000])
@pytest.mark.parametrize("start", [0, 1, 240, 10_239])
def test_pieces_follow_each_other_to_the_end_and_then_are_empty(file: File, start: int, piece: int) -> None:
    with Ahead(file, start, piece) as ahead:
        taken: list[bytes] = []
        while not taken or len(taken[-1]) == piece:
            taken.append(ahead.take())
        assert b"".join(taken) == DATA[start:]
        assert all(len(part) == piece for part in taken[:-1])
        assert ahead.take() == ahead.take() == b""


def test_behind_the_end_there_is_nothing(file: File) -> None:
    with Ahead(file, len(DATA), 100) as ahead:
        assert ahead.take() == b""


def test_an_error_of_a_read_reaches_whoever_takes_the_piece(backend: Backend, file: File) -> None:
    file.close()
    with Ahead(file, 0, 100) as ahead, pytest.raises(OSError, match=r"\[Errno 9\]"):
        ahead.take()


def test_no_thread_is_left_behind_though_a_piece_was_not_taken(file: File) -> None:
    before = threading.active_count()
    with Ahead(file, 0, 1_000) as ahead:
        ahead.take()
    assert threading.active_count() == before


def test_the_rest_begins_with_what_was_put_back(file: File) -> None:
    with Ahead(file, 0, 1_024) as ahead:
        taken = ahead.take()
        ahead.back(taken[1_000:])
        places, pieces = zip(*ahead.rest(), strict=True)
        assert b"".join(pieces) == DATA[1_000:]
        assert places == (1_000, *range(1_024, len(DATA), 1_024))
        assert ahead.take() == b""


@pytest.mark.parametrize("start", [0, len(DATA), 20 * BLOCK + 5])
def test_the_rest_passes_over_holes(file: File, start: int) -> None:
    far = 100 * BLOCK + 17
    file.write(far, b"there")
    file.truncate(200 * BLOCK)
    with Ahead(file, start, BLOCK) as ahead:
        found = list(ahead.rest())
    assert {place + i: byte for place, data in found for i, byte in enumerate(data) if byte} == {
        place: byte for place, byte in [*enumerate(DATA), *enumerate(b"there", far)] if byte and place >= start
    }
    assert len(found) <= 8
    assert all(place % BLOCK == start % BLOCK or place % BLOCK == 0 for place, _ in found)


def test_a_call_aside_gives_its_result_or_its_error(file: File) -> None:
    with aside(file, lambda: file.read(0, 10)) as read:
        assert file.read(10, 10) == DATA[10:20]
        assert read() == DATA[:10]
    with aside(file, lambda: 1 // 0) as failing, pytest.raises(ZeroDivisionError):
        failing()
    before = threading.active_count()
    with aside(file, lambda: 1):
        pass
    assert threading.active_count() == before
