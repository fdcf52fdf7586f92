"""What the raw disk does: durable writes one after another, as anybody would ask for them and as well as can be."""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

BLOCK: Final = 4096
KIB: Final = 1 << 10
MIB: Final = 1 << 20
#: Bytes of the file that `best` writes to.
REGION: Final = 128 * MIB
#: Bytes after which `plain` begins a new file.
TURN: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Call:
    """One way to ask for a durable write."""

    name: str
    flags: int = 0
    each: int = 0
    sync_after: bool = False
    #: Nanoseconds before each, in which the processor is busy with something else.
    pause: int = 0

    def write(self, fd: int, buffer: mmap.mmap, place: int) -> None:
        if os.pwritev(fd, [buffer], place, self.each) != len(buffer):
            raise OSError(errno.EIO, "short write")
        if self.sync_after:
            os.fdatasync(fd)


PLAIN: Final = Call("buffered, fdatasync", sync_after=True)
BEST: Final = Call("O_DIRECT | O_DSYNC", flags=os.O_DIRECT | os.O_DSYNC)


def payload(size: int) -> mmap.mmap:
    """Random bytes at an aligned address, as O_DIRECT wants."""
    buffer = mmap.mmap(-1, size)
    buffer.write(os.urandom(size))
    return buffer


def prepare(path: Path, file: str, length: int) -> None:
    """Make the file anew and have it, and what it is made of, on disk before anybody looks at a clock."""
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | (os.O_DIRECT if file == "zeroed" else 0), 0o600)
    try:
        if file == "fallocated":
            os.posix_fallocate(fd, 0, length)
        elif file == "zeroed":
            zeros = mmap.mmap(-1, MIB)
            for place in range(0, length, MIB):
                part = memoryview(zeros)[: min(MIB, length - place)]
                if os.pwrite(fd, part, place) != len(part):
                    raise OSError(errno.EIO, "short write")
        os.fsync(fd)
    finally:
        os.close(fd)


def timed_writes(path: Path, call: Call, size: int, length: int, seconds: float) -> list[int]:
    """Nanoseconds of each write, from the start of the file until the time or the file is over."""
    buffer = payload(size)
    fd = os.open(path, os.O_RDWR | call.flags)
    samples: list[int] = []
    try:
        end = time.perf_counter_ns() + int(seconds * 1e9)
        for place in range(0, length - size + 1, size):
            before = time.perf_counter_ns() + call.pause
            while call.pause and time.perf_counter_ns() < before:
                pass
            call.write(fd, buffer, place)
            after = time.perf_counter_ns()
            samples.append(after - before)
            if after >= end:
                break
    finally:
        os.close(fd)
    return samples


def plain_writes(directory: Path, batch_bytes: int, seconds: float) -> list[int]:
    """Nanoseconds of each batch: `pwrite` and `fdatasync` on a growing file, as anybody would do it."""
    return _writes(directory / "plain", PLAIN, batch_bytes, seconds, TURN)


def best_writes(directory: Path, batch_bytes: int, seconds: float, region: int = REGION) -> list[int]:
    """The same, padded to whole blocks: O_DIRECT | O_DSYNC on blocks zeroed before the clock ran."""
    return _writes(directory / "best", BEST, -(-batch_bytes // BLOCK) * BLOCK, seconds, region)


def rate(samples: Sequence[int]) -> float:
    """Writes a second, one after another."""
    return len(samples) / sum(samples) * 1e9


def _writes(path: Path, call: Call, size: int, seconds: float, length: int) -> list[int]:
    """Goes on from the start of the file, or of a new one if it should grow; preparation does not count."""
    found: list[int] = []
    file = "zeroed" if call is BEST else "growing"
    length = max(length, size)
    spent = 0
    while spent < seconds * 1e9:
        if file == "growing" or not found:
            prepare(path, file, length)
        samples = timed_writes(path, call, size, length, seconds - spent / 1e9)
        found += samples
        spent += sum(samples)
    path.unlink()
    return found
