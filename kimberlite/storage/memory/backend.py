"""A `Backend` over a simulated disk: one process, whose calls can be made to fail."""

from __future__ import annotations

import asyncio
import errno
import weakref
from collections.abc import Callable
from functools import partial
from random import Random
from typing import TYPE_CHECKING, TypeVar

from kimberlite.storage.backend import BLOCK, Done, File, Mode, error
from kimberlite.storage.memory.disk import Disk, parent
from kimberlite.storage.memory.image import Flight, Image, Inode

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")

#: (verb, name, place, length), asked before every verb but `close` and `run`: an error to raise or to hand to `done`,
#: or how much of a `write` or `submit` to take this time. A rename's name is "old -> new".
Fault = Callable[[str, str, int, int], OSError | int | None]

#: Verbs for which no name is the directory itself.
_OF_THE_ROOT = frozenset(("exists", "list", "sync_directory", "lock_directory", "free"))

#: What is called when its turn comes: the error, or the next part of a short write.
Landing = Callable[[], "OSError | Landing | None"]


class MemoryFile:
    fd = -1

    def __init__(self, backend: MemoryBackend, name: str, inode: Inode, mode: Mode) -> None:
        self.name = name
        self.inode = inode
        self.writable = mode in "wx"
        self._unbuffered = mode == "s"
        self._backend = backend
        self._disk = backend.disk
        self._open = True
        inode.handles += 1

    def read(self, place: int, length: int) -> bytes:
        self._enter("read", place, length)
        return self._image().read(place, length)

    def _image(self) -> Image:
        return self.inode.device() if self._unbuffered else self.inode.cache

    def write(self, place: int, data: Buffer) -> None:
        rest = bytes(data)
        while rest:
            taken = self._enter("write", place, len(rest), writes=True)
            self._disk.write(self.inode, place, rest[:taken])
            place += taken
            rest = rest[taken:]

    def sync(self) -> None:
        upto = self.inode.landed
        try:
            self._enter("sync")
        except OSError:
            if self._open:
                self._disk.forget(self.inode, upto, self._backend.rng)
            raise
        self._disk.settle(self.inode, upto)

    def size(self) -> int:
        self._enter("size")
        return self.inode.cache.size

    def extent(self, place: int) -> tuple[int, int] | None:
        self._enter("extent", place)
        return self._image().extent(place)

    def allocate(self, place: int, length: int) -> None:
        self._enter("allocate", place, length, writes=True)
        self._disk.resize(self.inode, max(self.inode.cache.size, place + length))

    def zero(self, place: int, length: int) -> None:
        self.write(place, bytes(length))

    def punch(self, place: int, length: int) -> None:
        self.write(place, bytes(length))

    def truncate(self, length: int) -> None:
        self._enter("truncate", length, writes=True)
        self._disk.resize(self.inode, length)

    def lock(self) -> None:
        self._enter("lock")
        if self.inode.holder not in (None, self):
            raise error(errno.EWOULDBLOCK, self.name)
        self.inode.holder = self

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        if self.inode.holder is self:
            self.inode.holder = None
        self._disk.release(self.inode)

    def __del__(self) -> None:
        # What a native reader was given has nobody else who closes it.
        if getattr(self, "_open", False):
            self.close()

    def usable(self, *, writes: bool) -> None:
        if not self._open or (writes and not self.writable):
            raise error(errno.EBADF, self.name)

    def _enter(self, verb: str, place: int = 0, length: int = 0, *, writes: bool = False) -> int:
        self.usable(writes=writes)
        return self._backend.enter(verb, self.name, place, length)


class MemoryBackend:
    """One process's view of a `Disk`. With an `rng`, what was submitted lands in an order drawn from it and not in
    every turn of the loop, and any part of what failed may be on the disk; without one, in the order of submission,
    one a turn, and nothing of what failed."""

    name = "memory"
    reason = "a simulated disk"
    direct = True

    def __init__(self, disk: Disk, rng: Random | None = None, fault: Fault | None = None) -> None:
        self.disk = disk
        self.rng = rng
        self.fault = fault
        self._waiting: list[tuple[Landing, Done]] = []
        #: The loop that has been asked for a turn; a database may be used by one loop after another.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._files: weakref.WeakSet[MemoryFile] = weakref.WeakSet()

    def open(self, name: str, mode: Mode) -> MemoryFile:
        self._enter("open", name)
        inode = self.disk.create(name) if mode == "x" else self.disk.lookup(name)
        file = MemoryFile(self, name, inode, mode)
        self._files.add(file)
        return file

    def exists(self, name: str) -> bool:
        self._enter("exists", name)
        return name in self.disk.tree

    def check(self, name: str, *, directory: bool = False) -> None:
        self._enter("check", name)
        if not directory:
            self.disk.lookup(name)
        elif not self.disk.is_directory(name):
            raise error(errno.ENOTDIR if name in self.disk.tree else errno.ENOENT, name)

    def list(self, name: str = "") -> list[str]:
        self._enter("list", name)
        return sorted(n.rpartition("/")[2] for n in self.disk.tree if parent(n) == name)

    def mkdir(self, name: str) -> None:
        self._enter("mkdir", name)
        self.disk.mkdir(name)

    def rename(self, old: str, new: str) -> None:
        self._enter("rename", f"{old} -> {new}", old, new)
        self.disk.rename(old, new)

    def unlink(self, name: str) -> None:
        self._enter("unlink", name)
        self.disk.unlink(name)

    def sync_directory(self, name: str = "") -> None:
        self._enter("sync_directory", name)
        self.disk.sync_directory(name)

    def lock_directory(self) -> None:
        self._enter("lock_directory")
        if self.disk.holder not in (None, self):
            raise error(errno.EWOULDBLOCK, "")
        self.disk.holder = self

    def submit(self, file: File, place: int, buffer: Buffer, durable: bool, done: Done) -> None:
        view = memoryview(buffer).cast("B")
        if place < 0 or place % BLOCK or not len(view) or len(view) % BLOCK:
            raise ValueError(f"{len(view)} bytes at {place} are not whole blocks of {BLOCK}")
        self._begin(partial(self._write, _mine(file), place, view, durable), done)

    def submit_sync(self, file: File, done: Done) -> None:
        self._begin(partial(self._sync, _mine(file)), done)

    async def run(self, call: Callable[[], T]) -> T:
        await asyncio.sleep(0)
        return call()

    def close(self) -> None:
        if self._closed:
            return
        while self._waiting:
            self._land_one()
        self._closed = True
        for file in list(self._files):
            file.close()
        if self.disk.holder is self:
            self.disk.holder = None

    def _enter(self, verb: str, name: str = "", *names: str) -> None:
        for each in names or (name,):
            root = not each and verb in _OF_THE_ROOT
            if not root and any(part in ("", ".", "..") for part in each.split("/")):
                raise ValueError(f"not a name in the directory: {each!r}")
        if self._closed:
            raise error(errno.EBADF, name)
        self.enter(verb, name, 0, 0)

    def enter(self, verb: str, name: str, place: int, length: int) -> int:
        """How many of the bytes this verb is to take."""
        fault = self.fault(verb, name, place, length) if self.fault else None
        if isinstance(fault, OSError):
            raise fault
        if fault is not None and (verb not in ("write", "submit") or not 0 < fault <= length):
            raise ValueError(f"{verb} of {length} bytes cannot take {fault}")
        taken = length if fault is None else fault
        if self.disk.trace is not None:
            self.disk.trace.append((verb, name, place, taken))
        return taken

    def _begin(self, verb: Callable[[], Landing], done: Done) -> None:
        if self._closed:
            raise error(errno.EBADF, "")
        loop = asyncio.get_running_loop()
        self._waiting.append((verb(), done))
        self._ask(loop)

    def _ask(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._waiting and self._loop is not loop:
            self._loop = loop
            loop.call_soon(self._tick)

    def _write(self, file: MemoryFile, place: int, view: memoryview, durable: bool) -> Landing:
        file.usable(writes=False)
        problem = None if file.writable else error(errno.EBADF, file.name)
        taken = len(view)
        try:
            taken = self.enter("submit", file.name, place, len(view))
        except OSError as failed:
            problem = problem or failed
        flight = Flight(place, view[:taken], durable)
        if file.writable:
            self.disk.launch(file.inode, flight)

        def land() -> OSError | Landing | None:
            if problem is not None:
                if file.writable:
                    self.disk.lose(file.inode, flight, self.rng)
                return problem
            try:
                self.disk.land(file.inode, flight)
            except OSError as full:
                return full
            self._finished("durable" if durable else "written", file.name, place, taken)
            if taken < len(view):
                return self._write(file, place + taken, view[taken:], durable)
            return None

        return land

    def _sync(self, file: MemoryFile) -> Landing:
        file.usable(writes=False)
        upto = file.inode.landed
        problem: OSError | None = None
        try:
            self.enter("submit_sync", file.name, 0, 0)
        except OSError as failed:
            problem = failed

        def land() -> OSError | None:
            if problem is not None:
                self.disk.forget(file.inode, upto, self.rng)
                return problem
            self.disk.settle(file.inode, upto)
            self._finished("synced", file.name, 0, 0)
            return None

        return land

    def _finished(self, verb: str, name: str, place: int, length: int) -> None:
        if self.disk.trace is not None:
            self.disk.trace.append((verb, name, place, length))

    def _tick(self) -> None:
        self._loop = None
        try:
            if self._waiting and not (self.rng and self.rng.randrange(3) == 0):
                self._land_one()
        finally:
            self._ask(asyncio.get_running_loop())

    def _land_one(self) -> None:
        landing, done = self._waiting.pop(self.rng.randrange(len(self._waiting)) if self.rng else 0)
        outcome = landing()
        if callable(outcome):
            self._waiting.append((outcome, done))
        else:
            done(outcome)


def _mine(file: File) -> MemoryFile:
    if not isinstance(file, MemoryFile):
        raise TypeError(f"{file.name} is another backend's")
    return file
