"""A disk with a volatile write cache, honest about flushes: one file, served through FUSE, for a loop device.

What was written since the last flush is in the cache only. A power cut answers everything with EIO from then on, and
leaves of each sector of the cache one of the versions that were written, or the one before.

`python -m tests.crash.device STORE MOUNTPOINT SECTOR` serves the file STORE. It obeys a command a line, and answers:
`cut SEED` ends the power, `arm N` ends it at the N-th group of a log that is written from now on, and `hold MS` lets
every write from now on land so much later, and overtake those before.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import select
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Final

LARGEST_WRITE: Final = 1 << 20
PAGES: Final = LARGEST_WRITE // mmap.PAGESIZE
#: Requests of the kernel's FUSE protocol, version 7.
GETATTR, OPEN, READ, WRITE, STATFS, RELEASE, FSYNC, FLUSH, INIT, INTERRUPT, FORGET = (
    3,
    14,
    15,
    16,
    17,
    18,
    20,
    25,
    26,
    36,
    2,
)
#: Asynchronous reads, big writes, asynchronous direct I/O, more pages than 32 in a request.
INIT_FLAGS: Final = 1 << 0 | 1 << 5 | 1 << 15 | 1 << 22
#: Past the page cache, and one write beside another.
OPEN_FLAGS: Final = 1 << 0 | 1 << 6
FOR_EVER: Final = 1 << 30
#: mount(2): no devices, no set-user-id.
MOUNT_FLAGS: Final = 4 | 2

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: Path, kind: str, flags: int, data: str) -> None:
    arguments = (source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode())
    if _libc.mount(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"mount {target}")


def unmount(target: Path, *, lazily: bool = False) -> None:
    if _libc.umount2(os.fsencode(target), 2 if lazily else 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"umount {target}")


class Cache:
    """What reads see, and what of it is not on the platter yet."""

    def __init__(self, store: mmap.mmap, sector: int) -> None:
        self.store = store
        #: Bytes that are there or not as one.
        self.sector = sector
        #: Place, the bytes before, the bytes after; in the order of the writes.
        self.unflushed: list[tuple[int, bytes, bytes]] = []

    def write(self, place: int, data: bytes) -> None:
        end = place + len(data)
        self.unflushed.append((place, self.store[place:end], data))
        self.store[place:end] = data

    def flush(self) -> None:
        self.unflushed.clear()

    def cut(self, rng: Random) -> int:
        """Decides what was left of the cache; the number of sectors that it was about."""
        versions: dict[int, bytes] = {}
        share = rng.choice((0.0, 0.1, 0.5, 0.5, 0.9, 0.98, 1.0))
        whole = rng.random() < 0.3
        for place, before, after in self.unflushed:
            coin = rng.random() < share
            for at in range(0, len(after), self.sector):
                part = slice(at, at + self.sector)
                versions.setdefault(place + at, before[part])
                if coin if whole else rng.random() < share:
                    versions[place + at] = after[part]
        for place, kept in versions.items():
            self.store[place : place + len(kept)] = kept
        self.flush()
        return len(versions)


class Server:
    """Answers the kernel for one regular file, which is the root of its file system."""

    def __init__(self, store: Path, target: Path, sector: int) -> None:
        self.size = store.stat().st_size
        with store.open("r+b") as file:
            self.cache = Cache(mmap.mmap(file.fileno(), self.size), sector)
        self.fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        mode = f"rootmode={stat.S_IFREG:o},user_id=0,group_id=0"
        mount("powercut", target, "fuse", MOUNT_FLAGS, f"fd={self.fuse},{mode}")
        self.dead = False
        #: In the cache when the power went.
        self.sectors = 0
        #: Seconds that a write from now on is in flight before it lands; later ones may overtake it.
        self.held = 0.0
        #: When it lands, and the number of the request, its place and its bytes.
        self.flying: list[tuple[float, int, int, bytes]] = []
        #: Groups until the power goes; 0 is for never.
        self.armed = 0

    def serve(self) -> None:
        poll = select.poll()
        poll.register(self.fuse, select.POLLIN)
        poll.register(sys.stdin.fileno(), select.POLLIN)
        while True:
            now = time.monotonic()
            ready = [fd for fd, _ in poll.poll(max(0, self.flying[0][0] - now) * 1000 if self.flying else None)]
            while self.flying and self.flying[0][0] <= time.monotonic():
                _, unique, place, data = self.flying.pop(0)
                self.reply(unique, self.write(place, data))
            # A command first: a request may be what it is about.
            if ready and not (self.command() if sys.stdin.fileno() in ready else self.request()):
                return

    def command(self) -> bool:
        line = os.read(sys.stdin.fileno(), 100)
        if not line:
            return False
        name, value = line.split()
        if name == b"arm":
            self.armed = int(value)
        elif name == b"hold":
            self.held = int(value) / 1000
        else:
            self.cut(int(value))
        os.write(sys.stdout.fileno(), b"%d\n" % self.sectors)
        return True

    def cut(self, seed: int) -> None:
        if self.dead:
            return
        rng = Random(seed)
        for _, unique, place, data in self.flying:
            if rng.random() < 0.5:
                self.cache.write(place, data)
            self.reply(unique, errno.EIO)
        self.flying.clear()
        self.dead, self.sectors = True, self.cache.cut(rng)

    def request(self) -> bool:
        try:
            data = os.read(self.fuse, LARGEST_WRITE + mmap.PAGESIZE)
        except OSError as problem:
            return problem.errno != errno.ENODEV
        _, operation, unique = struct.unpack_from("<IIQ", data)
        if operation == WRITE and self.held and not self.dead:
            place, size = struct.unpack_from("<QI", data, 48)
            self.flying.append((time.monotonic() + self.held, unique, place, data[80 : 80 + size]))
            self.flying.sort()
        elif operation not in (FORGET, INTERRUPT):
            self.reply(unique, self.answer(operation, data))
        return True

    def reply(self, unique: int, answer: bytes | int) -> None:
        failed, body = (answer, b"") if isinstance(answer, int) else (0, answer)
        # Nobody waits any more for what a killed process asked for.
        with contextlib.suppress(FileNotFoundError):
            os.write(self.fuse, struct.pack("<IiQ", 16 + len(body), -failed, unique) + body)

    def answer(self, operation: int, data: bytes) -> bytes | int:
        """The body of the answer, or an errno."""
        if operation == READ:
            place, size = struct.unpack_from("<QI", data, 48)
            return self.cache.store[place : place + size]
        if operation in (WRITE, FSYNC, FLUSH) and self.dead:
            return errno.EIO
        if operation == WRITE:
            place, size = struct.unpack_from("<QI", data, 48)
            return self.write(place, data[80 : 80 + size])
        if operation == FSYNC:
            self.cache.flush()
            return b""
        if operation == GETATTR:
            attributes = (1, self.size, self.size // 512, *bytes(3), *bytes(3), stat.S_IFREG | 0o600, 1, *bytes(3))
            return struct.pack("<QII6Q3I7I", FOR_EVER, 0, 0, *attributes, 4096, 0)
        if operation == OPEN:
            return struct.pack("<QII", 0, OPEN_FLAGS, 0)
        if operation == INIT:
            _, minor, ahead, flags = struct.unpack_from("<4I", data, 40)
            told = (7, min(minor, 31), ahead, flags & INIT_FLAGS, 64, 48, LARGEST_WRITE, 1, PAGES)
            return struct.pack("<4IHHIIH34x", *told)
        return b"" if operation in (RELEASE, FLUSH) else errno.ENOSYS

    def write(self, place: int, data: bytes) -> bytes | int:
        self.cache.write(place, data)
        if self.armed and data[:8] == b"KIMBGRP1":
            self.armed -= 1
            if self.armed == 0:
                self.cut(place)
        return errno.EIO if self.dead else struct.pack("<II", len(data), 0)


class Device:
    """A volatile disk in a process of its own; `path` is the file to put a loop device on."""

    def __init__(self, store: Path, sector: int) -> None:
        self.path = store.with_suffix(".disk")
        self.path.touch()
        command = [sys.executable, "-m", "tests.crash.device", str(store), str(self.path), str(sector)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            self._process.wait()
            raise OSError(errno.ENODEV, "the disk did not start")

    def cut(self, seed: int) -> int:
        """Ends the power, if it has not ended; how many sectors were in the cache."""
        return self._command("cut", seed)

    def arm(self, groups: int) -> None:
        self._command("arm", groups)

    def hold(self, milliseconds: int) -> None:
        self._command("hold", milliseconds)

    def _command(self, name: str, value: int) -> int:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{name} {value}\n".encode())
        stdin.flush()
        return int(stdout.readline())

    def close(self) -> None:
        """The loop device on it is gone, or soon will be: an autoclear is not waited for by the kernel."""
        unmount(self.path, lazily=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def main(store: str, target: str, sector: str) -> None:
    server = Server(Path(store), Path(target), int(sector))
    print("ready", flush=True)
    server.serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
