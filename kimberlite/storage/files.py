"""One directory on a real disk and the files in it: the blocking verbs that both real backends share.

Nothing here follows a symlink or opens what is not a regular file (below the directory itself, which may be
reached however the operator likes). What raises `OSError`, and with which errno:

* `ELOOP` or `ENOTDIR` a symlink stands where a file or a directory is wanted; `EISDIR` a directory where a file is;
  `ENXIO` a FIFO, socket or device.
* `EROFS` the backend was opened for reading only.
* `EPERM` others than the owner may write to a file.
* `EREMOTE` the directory is on a network file system.
* `EWOULDBLOCK` (BlockingIOError) the lock is held.
* `ESTALE` a file was replaced while it was being opened.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeVar

from kimberlite import _native
from kimberlite.storage.backend import BLOCK, Mode, error
from kimberlite.storage.background import Background

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")

#: O_NONBLOCK only so that a FIFO planted here cannot hang the open; `_open_regular` takes it off again.
_SAFE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_FLAGS: dict[Mode, int] = {
    "r": os.O_RDONLY,
    "s": os.O_RDONLY,
    "w": os.O_RDWR,
    "x": os.O_RDWR | os.O_CREAT | os.O_EXCL,
}
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

#: statfs(2) types whose locks or syncs mean less than a local disk's.
NETWORK = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFE534D42: "SMB2",
    0xFF534D42: "CIFS",
    0x5346414F: "AFS",
    0x6B414653: "AFS",
    0x00C36400: "Ceph",
}

#: Whoever can write to a file of the directory is the database.
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

#: Zeroed at a time.
_ZEROS = _native.Buffer(1 << 20)

#: Threads for `run`: one for the log's preparations, one so that a long scrub does not hold them up.
_BACKGROUND = 2


@contextmanager
def collected() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """What is tried in `with each():` does not keep the others from being tried; the first error is raised then."""
    first: list[OSError] = []

    @contextmanager
    def each() -> Iterator[None]:
        try:
            yield
        except OSError as error:
            first.append(error)

    yield each
    if first:
        raise first[0]


class DiskFile:
    """One open regular file.

    A file open for writing has two descriptions: `fd` goes through the page cache, `direct_fd` is what the commit
    path writes through, O_DIRECT where the file system takes that and the same as `fd` where it does not.

    The lock is on `direct_fd`, because an io_uring write outlives its process: it keeps the description it goes
    through, and so the flock on it, until it has landed. It is not on `fd` too: two descriptions of one file shut
    each other out even within a process.

    What was submitted keeps the descriptors open after `close`: a number that was given out again would send the
    write into another file.
    """

    def __init__(self, name: str, fd: int, direct_fd: int, *, unbuffered: bool = False, forget: bool = False) -> None:
        self.name = name
        self.fd = fd
        self.direct_fd = direct_fd
        self._unbuffered = unbuffered
        self._forget = forget
        self._open = {fd, direct_fd}
        self._submitted = 0
        self._closed = False
        self._guard = threading.Lock()
        self._scratch: _native.Buffer | None = None
        self._locked = False

    def read(self, place: int, length: int) -> bytes:
        if self._unbuffered:
            return self._read_aligned(place, length)
        if self._forget:
            os.posix_fadvise(self.fd, place, length, os.POSIX_FADV_DONTNEED)
        data = os.pread(self.fd, length, place)
        if len(data) == length or not data:
            return data
        parts = [data]
        got = len(data)
        while got < length and (data := os.pread(self.fd, length - got, place + got)):
            parts.append(data)
            got += len(data)
        return b"".join(parts)

    def _read_aligned(self, place: int, length: int) -> bytes:
        """O_DIRECT wants place, length and address in whole blocks: read outwards to those."""
        if length == 0:
            return b""
        start = place - place % BLOCK
        span = -(-(place + length) // BLOCK) * BLOCK - start
        if self._scratch is None or self._scratch.capacity < span:
            self._scratch = _native.Buffer(span)
        view = memoryview(self._scratch)[:span]
        got = 0
        while got < span:
            count = os.preadv(self.fd, [view[got:]], start + got)
            got += count
            # Short is the end of the file only if the file says so; damage must not look like an end.
            if count == 0 or start + got >= self.size():
                break
            got -= got % BLOCK
        return bytes(view[place - start : min(got, place - start + length)])

    def write(self, place: int, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        while view:
            count = os.pwrite(self.fd, view, place)
            view = view[count:]
            place += count

    def sync(self) -> None:
        """Not through `direct_fd`: the kernel tells each description once that something was lost."""
        os.fdatasync(self.fd)

    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def extent(self, place: int) -> tuple[int, int] | None:
        try:
            start = os.lseek(self.fd, place, os.SEEK_DATA)
            return start, os.lseek(self.fd, start, os.SEEK_HOLE)
        except OSError as problem:
            if problem.errno == errno.ENXIO:
                return None
            # It cannot be told. Whoever reads what is there hears why, and where.
            size = self.size()
            return (place, size) if place < size else None

    def allocate(self, place: int, length: int) -> None:
        os.posix_fallocate(self.fd, place, length)

    def zero(self, place: int, length: int) -> None:
        """Past the page cache, which would only be emptied again by the direct writes that follow."""
        with memoryview(_ZEROS) as zeros:
            end = place + length
            while place < end:
                place += os.pwrite(self.direct_fd, zeros[: end - place], place)

    def punch(self, place: int, length: int) -> None:
        _native.punch(self.fd, place, length)

    def truncate(self, length: int) -> None:
        os.ftruncate(self.fd, length)

    def lock(self) -> None:
        fcntl.flock(self.direct_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._locked = True

    def hold(self) -> None:
        """A write through this file has been submitted."""
        with self._guard:
            if self._closed:
                raise error(errno.EBADF, self.name)
            self._submitted += 1

    def release(self) -> None:
        with self._guard:
            self._submitted -= 1
            self._close_if_done()

    def close(self) -> None:
        with self._guard:
            self._closed = True
            self._close_if_done()

    def __del__(self) -> None:
        # Dropped without a close, by a native reader that has its own duplicate or by an error on its way up. Nothing
        # is unlocked: in a forked child the lock is its parent's.
        while self._open:
            os.close(self._open.pop())

    def _close_if_done(self) -> None:
        if self._closed and not self._submitted and self._open:
            # A native reader may hold a duplicate of the description that is locked.
            if self._locked:
                self._locked = False
                fcntl.flock(self.direct_fd, fcntl.LOCK_UN)
            self.fd = self.direct_fd = -1
            with collected() as closing:
                while self._open:
                    with closing():
                        os.close(self._open.pop())


class Directory:
    """The verbs on names. Every name is walked from the directory's own descriptor, one component at a time."""

    def __init__(self, path: str | os.PathLike[str], *, read_only: bool) -> None:
        self.path = os.fspath(path)
        self.read_only = read_only
        #: Until a file system has refused O_DIRECT.
        self.direct = True
        self._root = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if os.fstat(self._root).st_mode & _OTHERS_WRITE:
            root, self._root = self._root, -1
            os.close(root)
            raise OSError(errno.EPERM, "others may write to it: chmod go-w", self.path)
        self._background = Background(_BACKGROUND)
        self._locked_by = 0
        self._files: weakref.WeakSet[DiskFile] = weakref.WeakSet()
        kind = NETWORK.get(_native.file_system(self._root) & 0xFFFFFFFF)
        if kind is not None:
            root, self._root = self._root, -1
            os.close(root)
            raise OSError(errno.EREMOTE, f"a database must not be on {kind}, whose locks do not hold", self.path)

    def open(self, name: str, mode: Mode) -> DiskFile:
        file = self._open(name, mode)
        self._files.add(file)
        return file

    def _open(self, name: str, mode: Mode) -> DiskFile:
        if mode in "wx":
            self._writable(name)
        with self._parent(name) as (parent, leaf):
            if mode == "s" and (fd := self._open_direct(parent, leaf, mode)) >= 0:
                return DiskFile(name, fd, fd, unbuffered=True)
            fd = _open_regular(parent, leaf, _FLAGS[mode])
            if mode in "rs":
                return DiskFile(name, fd, fd, forget=mode == "s")
            try:
                direct = self._open_direct(parent, leaf, "w")
                if direct >= 0 and not os.path.sameopenfile(fd, direct):
                    os.close(direct)
                    raise error(errno.ESTALE, name)
            except OSError:
                os.close(fd)
                raise
            return DiskFile(name, fd, direct if direct >= 0 else fd)

    def _open_direct(self, parent: int, leaf: str, mode: Mode) -> int:
        """A descriptor, or -1 where the file system does not take O_DIRECT.

        At once and not at the first write: by then the file may have been renamed.
        """
        try:
            return _open_regular(parent, leaf, _FLAGS[mode] | os.O_DIRECT)
        except OSError as problem:
            if problem.errno != errno.EINVAL:
                raise
            self.direct = False
            return -1

    def open_nameless(self) -> DiskFile:
        """A file that never has a name: nobody else meets it, and however the process ends, it is gone."""
        self._writable(self.path)
        flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
        try:
            fd = os.open(".", flags | os.O_DIRECT, 0o600, dir_fd=self._root)
        except OSError as problem:
            if problem.errno != errno.EINVAL:
                raise
            fd = os.open(".", flags, 0o600, dir_fd=self._root)
        return DiskFile("", fd, fd, unbuffered=True)

    def exists(self, name: str) -> bool:
        try:
            with self._parent(name) as (parent, leaf):
                os.stat(leaf, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def check(self, name: str, *, directory: bool = False) -> None:
        with self._parent(name) as (parent, leaf):
            _refuse(os.stat(leaf, dir_fd=parent, follow_symlinks=False).st_mode, name, directory=directory)

    def list(self, name: str = "") -> list[str]:
        try:
            directory = self._open_directory(name)
        except FileNotFoundError:
            return []
        try:
            return sorted(os.listdir(directory))
        finally:
            os.close(directory)

    def mkdir(self, name: str) -> None:
        self._writable(name)
        with self._parent(name) as (parent, leaf):
            try:
                os.mkdir(leaf, 0o700, dir_fd=parent)
            except FileExistsError:
                os.close(os.open(leaf, _DIRECTORY, dir_fd=parent))

    def rename(self, old: str, new: str) -> None:
        self._writable(old)
        with self._parent(old) as (source, before), self._parent(new) as (target, after):
            os.rename(before, after, src_dir_fd=source, dst_dir_fd=target)

    def unlink(self, name: str) -> None:
        self._writable(name)
        with self._parent(name) as (parent, leaf):
            os.unlink(leaf, dir_fd=parent)

    def sync_directory(self, name: str = "") -> None:
        directory = self._open_directory(name)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def lock_directory(self) -> None:
        fcntl.flock(self._root, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._locked_by = os.getpid()

    async def run(self, call: Callable[[], T]) -> T:
        return await self._background.run(call)

    def close_directory(self) -> None:
        """What `run` has begun is finished first, then every file is closed. A second time does nothing."""
        self._background.close()
        with collected() as closing:
            for file in list(self._files):
                with closing():
                    file.close()
            with closing():
                self._close_root()

    def _close_root(self) -> None:
        root, self._root = self._root, -1
        if root >= 0:
            # A forked child may live on with a duplicate of it; and what its parent has locked is not the child's.
            if self._locked_by == os.getpid():
                fcntl.flock(root, fcntl.LOCK_UN)
            os.close(root)

    def __del__(self) -> None:
        # Dropped without a close: nobody else could ever open the directory in this process.
        root, self._root = getattr(self, "_root", -1), -1
        if root >= 0:
            os.close(root)

    def _writable(self, name: str) -> None:
        if self.read_only:
            raise error(errno.EROFS, name)

    def _open_directory(self, name: str) -> int:
        """A new description each time: a listing has a place in it that others would move."""
        if not name:
            return os.open(".", _DIRECTORY, dir_fd=self._root)
        with self._parent(name) as (parent, leaf):
            return _open_within(parent, leaf)

    @contextmanager
    def _parent(self, name: str) -> Iterator[tuple[int, str]]:
        """The directory that a name is in, and what it is called there."""
        *above, leaf = name.split("/")
        if any(part in ("", ".", "..") for part in (*above, leaf)):
            raise ValueError(f"not a name in the directory: {name!r}")
        parent = self._root
        with ExitStack() as opened:
            for part in above:
                parent = _open_within(parent, part)
                opened.callback(os.close, parent)
            yield parent, leaf


def create_directory(path: str | os.PathLike[str]) -> None:
    """mkdir, fsync of the parent. One that is there already is fine."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return
    _sync_parent(path)


def move_directory(old: str | os.PathLike[str], new: str | os.PathLike[str]) -> None:
    """rename, fsync of the parent: what is in it was synced by whoever wrote it."""
    os.rename(old, new)
    _sync_parent(new)


def _sync_parent(path: str | os.PathLike[str]) -> None:
    parent = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _open_within(parent: int, leaf: str) -> int:
    fd = os.open(leaf, _DIRECTORY, dir_fd=parent)
    try:
        _refuse(os.fstat(fd).st_mode, leaf, directory=True)
    except OSError:
        os.close(fd)
        raise
    return fd


def _open_regular(parent: int, leaf: str, flags: int) -> int:
    fd = os.open(leaf, flags | _SAFE, 0o600, dir_fd=parent)
    try:
        _refuse(os.fstat(fd).st_mode, leaf, directory=False)
    except OSError:
        os.close(fd)
        raise
    # With O_NONBLOCK left on, io_uring answers EAGAIN where it should wait.
    os.set_blocking(fd, True)
    return fd


def _refuse(kind: int, name: str, *, directory: bool) -> None:
    """Whoever else may write to a directory of ours could put another file in the place of one."""
    if stat.S_ISLNK(kind):
        raise error(errno.ELOOP, name)
    if directory and not stat.S_ISDIR(kind):
        raise error(errno.ENOTDIR, name)
    if not directory and stat.S_ISDIR(kind):
        raise error(errno.EISDIR, name)
    if not directory and not stat.S_ISREG(kind):
        raise OSError(errno.ENXIO, "it is a FIFO, a socket or a device, and no regular file", name)
    if kind & _OTHERS_WRITE:
        raise OSError(errno.EPERM, "others may write to it: chmod go-w", name)
