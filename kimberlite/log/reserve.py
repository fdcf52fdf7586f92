"""`reserve`: room on the disk for what a full one must take all the same, and who is given it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final, TypeVar

from kimberlite import _native
from kimberlite.log.description import size_of
from kimberlite.log.names import RESERVE
from kimberlite.log.refusals import FULL
from kimberlite.storage.backend import BLOCK, Backend, File

T = TypeVar("T")

#: Bytes of it: of these so many are kept for what makes room, and the rest for whatever must be said.
RESERVED: Final = 256 * 1024
KEPT: Final = RESERVED // 2
#: What makes room says something of every stream and producer: so many bytes have room in the above.
FEW: Final = KEPT // 2
#: What is kept besides, if there are more, is so many bytes or some times that: so it is seldom another.
STEP: Final = 128 * 1024
#: What a record in pieces takes besides, whatever it has.
SLACK: Final = 64 * 1024


def room_for(size: int) -> int:
    """What a record in pieces takes of the disk at most: groups are padded, and do not fill their segments."""
    return size + size // 2 + SLACK


def besides(size: int) -> int:
    """What is kept besides, if a record that makes room takes so many bytes."""
    return 0 if size <= FEW else -(-room_for(size) // STEP) * STEP


def wanted_besides(backend: Backend, log: _native.Log | None) -> int:
    """The same; of a log that is not known it stays what it is."""
    if log is not None:
        return besides(log.retained_bound)
    return max(0, size_of(backend, RESERVE) - RESERVED) if backend.exists(RESERVE) else 0


def give_reserve(backend: Backend, log: _native.Log | None, kept: int) -> None:
    """Its room, but for so much, to whoever takes it first."""
    if not backend.exists(RESERVE):
        return
    if not kept:
        backend.unlink(RESERVE)
        return
    kept += wanted_besides(backend, log)
    file = backend.open(RESERVE, "w")
    try:
        if file.size() > kept:
            file.truncate(kept)
    finally:
        file.close()


def all_room(backend: Backend) -> tuple[Callable[[], None], Callable[[], None]]:
    """Ways to room for what nothing goes on without. A start takes back what is left of it."""
    return lambda: give_reserve(backend, None, KEPT), lambda: give_reserve(backend, None, 0)


def anyhow(work: Callable[[], T], *ways: Callable[[], None]) -> T:
    """With what makes room, one after the other, if the disk has none."""
    for give in ways:
        try:
            return work()
        except OSError as error:
            if error.errno not in FULL:
                raise
        give()
    return work()


def is_reserved(backend: Backend, log: _native.Log) -> bool:
    """What is not there of it, somebody needed."""
    return backend.exists(RESERVE) and size_of(backend, RESERVE) >= RESERVED + wanted_besides(backend, log)


def keep_reserve(backend: Backend, log: _native.Log | None, upto: int = RESERVED) -> None:
    """It is only room, of which a full disk has less or none: then a later open makes the rest."""
    try:
        more = wanted_besides(backend, log)
        size, upto = size_of(backend, RESERVE) if backend.exists(RESERVE) else None, upto + more
        if new := size is None or size > 2 * (RESERVED + more) or size % BLOCK > 0:
            with contextlib.suppress(FileNotFoundError):
                backend.unlink(RESERVE)
        file = backend.open(RESERVE, "x" if new else "w")
        try:
            # A copy may have left out what is only zeros.
            if new or not size or not allocated(file, 0, size):
                size = 0
            step = 1 << (upto.bit_length() - 1)
            while step >= BLOCK:
                if size + step <= upto and allocated(file, size, size + step):
                    size += step
                step //= 2
            file.sync()
        finally:
            file.close()
        if new:
            backend.sync_directory()
    except OSError as error:
        if error.errno not in FULL:
            raise


def allocated(file: File, start: int, end: int) -> bool:
    """Has blocks for this range; False on a full disk, of which some file systems keep what they could get."""
    try:
        file.allocate(start, end - start)
    except OSError as error:
        with contextlib.suppress(OSError):
            file.truncate(start)
        if error.errno not in FULL:
            raise
        return False
    return True
