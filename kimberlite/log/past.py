"""Hashes of what was dropped, which nothing else on the disk gives: old receipts are held against them.

hashes that are about to be the only ones → checked → past, fsync → (fsync directory) → what they are of is dropped
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Final

from kimberlite import _native
from kimberlite.errors import Corrupt
from kimberlite.log.checkpoint import HASHES_HEADER
from kimberlite.log.names import HASHES, PAST
from kimberlite.log.refusals import FULL
from kimberlite.storage.backend import Backend, File, read_around

#: Leaves whose hashes are read, checked and written at a time.
PIECE: Final = 1 << 14


def keep(
    backend: Backend,
    native: _native.Log,
    database_id: bytes,
    position: int,
    *,
    told: Callable[[Corrupt], None] | None = None,
) -> None:
    """The hashes of what is before this position. A full disk keeps them where they are. What is wrong is Corrupt, or
    is `told`, and left out."""
    try:
        _copy(backend, native, database_id, position, told)
    except OSError as error:
        if error.errno not in FULL:
            raise
    attach(backend, native)


def let_go(backend: Backend, position: int) -> None:
    """Of what is kept here the other file needs nothing more; where the file system cannot give room back, it stays."""
    past = backend.open(PAST, "r") if backend.exists(PAST) else None
    if past is None:
        return
    kept = leaves_in(past)
    past.close()
    if kept < position or not backend.exists(HASHES):
        return
    hashes = backend.open(HASHES, "w")
    try:
        with contextlib.suppress(OSError):
            hashes.punch(HASHES_HEADER, 32 * stored(position))
    finally:
        hashes.close()


def attach(backend: Backend, native: _native.Log) -> None:
    native.set_past(backend.open(PAST, "r") if backend.exists(PAST) else None)


def wrong(backend: Backend, native: _native.Log) -> str | None:
    """What is not as it should be, of a log that has dropped something."""
    if not backend.exists(PAST):
        return "it is missing"
    file = backend.open(PAST, "r")
    try:
        for _ in check(file, native, PIECE):
            pass
    except Corrupt as error:
        return error.message
    finally:
        file.close()
    return None


def check(file: File, native: _native.Log, piece: int) -> Iterator[bytes]:
    """Holds it against itself and the tree, the hashes of so many leaves at a time, which it gives before they are
    judged."""
    proving, first = native.proving(0), native.first
    assert proving is not None, "an empty tree has no hashes"
    if leaves_in(file) < first:
        raise Corrupt(f"it ends before position {first}", file=PAST)
    for start in range(0, first, piece):
        data = _piece(file, start, min(start + piece, first))
        yield data
        found = proving.take(data)
        if found is not None:
            raise Corrupt(f"hash {found} is wrong", file=PAST, place=HASHES_HEADER + 32 * found)
    if proving.root != native.root_at(first):
        raise Corrupt("it is of another tree", file=PAST)


def _copy(
    backend: Backend, native: _native.Log, database_id: bytes, position: int, told: Callable[[Corrupt], None] | None
) -> None:
    hashes, new = backend.open(HASHES, "r") if backend.exists(HASHES) else None, not backend.exists(PAST)
    past = backend.open(PAST, "x" if new else "w")
    try:
        # What a crash has left of an earlier copy may be there in part. What is not there any more leaves a hole.
        start, proving = native.first, native.proving(native.first)
        assert proving is not None, "what was dropped last is known"
        wrong: int | None = None
        past.write(0, (b"KIMBPST1" + database_id).ljust(HASHES_HEADER, b"\0"))
        past.truncate(HASHES_HEADER + 32 * stored(start))
        while start < position:
            end = min(start + PIECE, position)
            data = b"" if hashes is None else _piece(hashes, start, end)
            length = 32 * (stored(end) - stored(start))
            if wrong is None:
                wrong = stored(start) + len(data) // 32 if len(data) < length else proving.take(data)
                if wrong is not None and told is None:
                    raise wrong_at(wrong, "it is not what the records say; it is made again")
            # It is believed in nothing, and beside what is wrong it still proves something.
            past.write(HASHES_HEADER + 32 * stored(start), data)
            start = end
        if wrong is not None and told is not None:
            what = f"nothing tells what is right: receipts of before position {position} may prove nothing"
            told(wrong_at(wrong, what))
            past.truncate(HASHES_HEADER + 32 * stored(position))
        past.sync()
        if new:
            backend.sync_directory()
    finally:
        if hashes is not None:
            hashes.close()
        past.close()


def wrong_at(index: int, what: str) -> Corrupt:
    return Corrupt(what, file=HASHES, place=HASHES_HEADER + 32 * index)


def _piece(file: File, start: int, end: int) -> bytes:
    """The hashes that come with these leaves."""
    first, behind = stored(start), stored(end)
    return read_around(file, HASHES_HEADER + 32 * first, 32 * (behind - first))


def leaves_in(file: File) -> int:
    """How many have all their hashes in it."""
    count = max(0, file.size() - HASHES_HEADER) // 32
    leaves = count // 2
    while stored(leaves + 1) <= count:
        leaves += 1
    return leaves


def stored(leaves: int) -> int:
    """How many hashes come with so many leaves."""
    return 2 * leaves - leaves.bit_count()
