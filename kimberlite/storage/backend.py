"""The storage seam: everything a database does to its directory goes through these verbs.

A backend owns one directory. Names are relative to it and use `/`; a name never leaves it.
The crash and fault tests see every byte because nothing else in the package opens a file there.

Three kinds of work:

* **Files**: blocking verbs, called at open, at rotation and from `Backend.run`. They raise `OSError`.
* **The commit path**: `submit` and `submit_sync`, called on the loop's thread. They return at once;
  `done` is called later on the loop, never from inside the call, with None or the error.
* **Background**: `run` takes a blocking call off the loop.

A write that `submit` took may land in any order relative to the others, and may land after the process
is gone. `durable=True` says that when `done(None)` is called the bytes of this write, and the metadata
needed to read them, are on the disk; it says so of no other write. `submit_sync` covers the writes that
had completed before it was submitted, and no others.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeVar
from weakref import ref

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")

#: `r` read; `s` read what the disk has, not what the page cache has; `w` write an existing file;
#: `x` create it, 0600, and fail if it is there.
Mode = Literal["r", "s", "w", "x"]

Done = Callable[[OSError | None], None]

#: Everything appended is padded to this, so that no block that was acknowledged is written again.
BLOCK = 4096


def error(number: int, name: str) -> OSError:
    return OSError(number, os.strerror(number), name)


class File(Protocol):
    """One open file. Places are bytes from its start."""

    name: str
    #: The descriptor for native readers, or -1 where there is none (a simulated file).
    fd: int

    def read(self, place: int, length: int) -> bytes:
        """The bytes there; fewer only at the end of the file."""

    def write(self, place: int, data: Buffer) -> None:
        """All of it, short writes completed; not synced."""

    def sync(self) -> None:
        """fdatasync: what was written is on the disk when this returns."""

    def size(self) -> int: ...

    def extent(self, place: int) -> tuple[int, int] | None:
        """Where the next bytes begin and end, from a place on, that may be other than zeros; None if there are none.
        What is between such extents is a hole."""

    def allocate(self, place: int, length: int) -> None:
        """Have blocks for this range (it reads as zeros where nothing was written), extending the file."""

    def zero(self, place: int, length: int) -> None:
        """Zeros in this range, in whole blocks; not synced. Once they are, what is written there later costs the file
        system nothing but the write."""

    def punch(self, place: int, length: int) -> None:
        """Give the blocks of this range back, which then reads as zeros. OSError where the file system cannot."""

    def truncate(self, length: int) -> None: ...

    def lock(self) -> None:
        """Exclusive until closed; BlockingIOError if anybody else, in this process too, holds it."""

    def close(self) -> None: ...


#: What the system says of a block that the disk does not give back: to direct reads not what it says to others.
CANNOT_READ: Final = (errno.EIO, errno.ENODATA, errno.EREMOTEIO, errno.EILSEQ)
#: What stands for a block that the disk cannot read: like one that is damaged, it is no part of a sound group.
UNREADABLE: Final = b"\xff" * BLOCK


def read_around(file: File, place: int, length: int, missed: Callable[[int], None] = lambda _place: None) -> bytes:
    """As `File.read`, past the blocks that the disk cannot read; `missed` is told where they are."""

    def block(start: int, size: int) -> bytes:
        try:
            return file.read(start, size)
        except OSError as problem:
            if problem.errno not in CANNOT_READ:
                raise
            missed(start)
            return UNREADABLE[:size]

    try:
        return file.read(place, length)
    except OSError as problem:
        if problem.errno not in CANNOT_READ:
            raise
    end = min(place + length, file.size())
    return b"".join(block(start, min(BLOCK, end - start)) for start in range(place, end, BLOCK))


def written(file: File, start: int, end: int, most: int = sys.maxsize) -> Iterator[tuple[int, int]]:
    """Places and lengths of what may be other than zeros between these two, so much at a time at most: a file may say
    that it is longer than any disk, and nobody lives to read its holes."""
    while start < end and (extent := file.extent(start)) is not None:
        start, upto = extent[0], min(extent[1], end)
        while start < upto:
            length = min(most, upto - start)
            yield start, length
            start += length


def let_go(file: File) -> None:
    """Closes what a native reader was given: it has a duplicate of the descriptor. What has none it reads through the
    file itself."""
    if file.fd >= 0:
        file.close()


def opener(backend: Backend, name: str) -> Callable[[], File]:
    """For a native reader, which opens a file for itself whenever it needs it and has it not."""
    # Native objects are not seen by the collector: through them nothing may lead back to their owner.
    weak = ref(backend)

    def open() -> File:
        backend = weak()
        if backend is None:
            raise error(errno.EBADF, name)
        return backend.open(name, "r")

    return open


class Backend(Protocol):
    #: `threads`, `uring` or `memory`, and why this one.
    name: str
    reason: str
    #: True if mode `s` really bypasses the page cache.
    direct: bool

    def open(self, name: str, mode: Mode) -> File: ...

    def exists(self, name: str) -> bool: ...

    def check(self, name: str, *, directory: bool = False) -> None:
        """The OSError of an `open` or `list` that does not take what is there; nothing is opened."""

    def list(self, name: str = "") -> list[str]:
        """The names in a directory, sorted; a directory that is not there is empty."""

    def mkdir(self, name: str) -> None:
        """0700; one that is there already is fine."""

    def rename(self, old: str, new: str) -> None: ...

    def unlink(self, name: str) -> None: ...

    def sync_directory(self, name: str = "") -> None: ...

    def lock_directory(self) -> None:
        """Hold the directory for one writer until `close`; BlockingIOError if it is held."""

    def submit(self, file: File, place: int, buffer: Buffer, durable: bool, done: Done) -> None:
        """Write the whole buffer; it must not change until `done`. Place, length and address are multiples of BLOCK."""

    def submit_sync(self, file: File, done: Done) -> None: ...

    async def run(self, call: Callable[[], T]) -> T:
        """The result of a blocking call, made where it does not hold up the loop."""

    def close(self) -> None:
        """Waits for what was submitted, then lets the locks go."""
