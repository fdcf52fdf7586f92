"""A file system that refuses what it is told to: a directory served through FUSE, so io_uring meets the faults too.

`python -m tests.crash.faultfs STORE MOUNTPOINT` serves the directory STORE. It reads one JSON value a line: a `Plan`,
an empty one, or null to keep the one that there is; and answers each with what became of the plan so far. A sync that
is made to fail loses what it was to sync, as a real one does, and the next one succeeds.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import mmap
import os
import select
import stat
import struct
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.crash.device import INIT_FLAGS, LARGEST_WRITE, MOUNT_FLAGS, mount

#: Requests of the kernel's FUSE protocol, version 7.
LOOKUP, FORGET, GETATTR, SETATTR, MKDIR, UNLINK, RENAME, OPEN, READ, WRITE = 1, 2, 3, 4, 9, 10, 12, 14, 15, 16
STATFS, RELEASE, FSYNC, INIT, OPENDIR, READDIR, RELEASEDIR, FSYNCDIR = 17, 18, 20, 26, 27, 28, 29, 30
CREATE, INTERRUPT, BATCH_FORGET, FALLOCATE, RENAME2 = 35, 36, 42, 43, 45
#: With asynchronous direct I/O the kernel makes an error of every short write.
NOT_ASYNCHRONOUS: Final = ~(1 << 15)
ROOT: Final = 1
SET_MODE, SET_SIZE = 1, 8
#: What can be made to fail, and the verb of it.
VERBS: Final = {
    WRITE: "write", FSYNC: "sync", FSYNCDIR: "sync_directory", FALLOCATE: "allocate", SETATTR: "truncate", READ: "read",
    RENAME: "rename", RENAME2: "rename", OPEN: "open", CREATE: "create", MKDIR: "mkdir", UNLINK: "unlink",
    OPENDIR: "list",
}  # fmt: skip


class Node:
    """A file or a directory for as long as the kernel knows it, whatever it is called by now."""

    def __init__(self, path: str, fd: int) -> None:
        self.path, self.fd, self.lookups = path, fd, 0
        #: Place and bytes before of every write since the last sync.
        self.unsynced: list[tuple[int, bytes]] = []

    def write(self, place: int, data: bytes) -> int:
        self.unsynced.append((place, os.pread(self.fd, len(data), place).ljust(len(data), b"\0")))
        return os.pwrite(self.fd, data, place)

    def lose(self) -> None:
        """What was not synced is not there, within what the file is long."""
        size = os.fstat(self.fd).st_size
        while self.unsynced:
            place, before = self.unsynced.pop()
            os.pwrite(self.fd, before[: max(0, size - place)], place)


class Plan:
    """The n-th request of one verb fails, and, if it lasts, every one after it; a number of 0 is a short write."""

    def __init__(self, verb: str = "", nth: int = 0, number: int = 0, lasting: bool = False) -> None:
        self.verb, self.left, self.number, self.lasting = verb, nth, number, lasting
        self.hit: dict[str, Any] | None = None
        #: Requests of each verb.
        self.seen = Counter[str]()

    def fails(self, verb: str, path: str, place: int, data: bytes) -> bool:
        self.seen[verb] += 1
        if verb != self.verb:
            return False
        self.left -= 1
        if self.left > 0 or (self.left < 0 and not self.lasting):
            return False
        self.hit = self.hit or {"verb": verb, "path": path, "place": place, "length": len(data), "zeros": not any(data)}
        return True


class Server:
    """Answers the kernel from a directory; every request of a plan is looked at before it is done."""

    def __init__(self, store: Path, target: Path) -> None:
        root = Node("", os.open(store, os.O_RDONLY | os.O_DIRECTORY))
        self.nodes, self.numbers = {ROOT: root}, {os.fstat(root.fd).st_ino: ROOT}
        self.plan = Plan()
        self.answers: dict[int, Callable[[Node, bytes], bytes]] = {
            LOOKUP: self.lookup, GETATTR: lambda node, _: attributes(node), SETATTR: self.set, MKDIR: self.mkdir,
            UNLINK: self.unlink, RENAME: self.rename, RENAME2: self.rename, OPEN: self.open, OPENDIR: self.open,
            READ: self.read, WRITE: self.write, STATFS: self.statfs, FSYNC: self.sync, FSYNCDIR: self.sync,
            READDIR: self.readdir, CREATE: self.create, FALLOCATE: self.allocate,
            RELEASE: self.nothing, RELEASEDIR: self.nothing, INIT: self.init,
        }  # fmt: skip
        self.fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        mode = f"rootmode={stat.S_IFDIR:o},user_id={os.geteuid()},group_id={os.getegid()}"
        mount("faults", target, "fuse", MOUNT_FLAGS, f"fd={self.fuse},{mode}")

    def serve(self) -> None:
        poll = select.poll()
        poll.register(self.fuse, select.POLLIN)
        # Unbuffered: a line that was read ahead would not be polled for.
        commands = io.FileIO(sys.stdin.fileno(), closefd=False)
        poll.register(commands, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd != self.fuse:
                    line = commands.readline()
                    if not line:
                        return
                    print(json.dumps({"seen": self.plan.seen, "hit": self.plan.hit}), flush=True)
                    plan = json.loads(line)
                    self.plan = self.plan if plan is None else Plan(**plan)
                elif not self.request():
                    return

    def request(self) -> bool:
        try:
            data = os.read(self.fuse, LARGEST_WRITE + mmap.PAGESIZE)
        except OSError as problem:
            return problem.errno != errno.ENODEV
        _, operation, unique, number = struct.unpack_from("<IIQQ", data)
        if operation == FORGET:
            self.forget(number, *struct.unpack_from("<Q", data, 40))
        elif operation == BATCH_FORGET:
            for i in range(*struct.unpack_from("<I", data, 40)):
                self.forget(*struct.unpack_from("<QQ", data, 48 + 16 * i))
        elif operation != INTERRUPT:
            failed, body = self.answer(operation, self.nodes.get(number), data)
            # The kernel has dropped a request whose process was killed.
            with contextlib.suppress(FileNotFoundError):
                os.write(self.fuse, struct.pack("<IiQ", 16 + len(body), -failed, unique) + body)
        return True

    def answer(self, operation: int, node: Node | None, data: bytes) -> tuple[int, bytes]:
        """An errno or 0, and the body."""
        answer = self.answers.get(operation)
        if answer is None:
            return errno.ENOSYS, b""
        if node is None and operation != INIT:
            return errno.ESTALE, b""
        try:
            if node is not None and operation in VERBS and self.fails(operation, node, data):
                if operation == FSYNC:
                    node.lose()
                if self.plan.number:
                    return self.plan.number, b""
                return 0, self.write(node, data, short=True)
            return 0, answer(node or self.nodes[ROOT], data)
        except OSError as problem:
            return problem.errno or errno.EIO, b""

    def fails(self, operation: int, node: Node, data: bytes) -> bool:
        place, written, path = 0, b"", node.path
        if operation == WRITE:
            place, size = struct.unpack_from("<QI", data, 48)
            written = data[80 : 80 + size]
            if self.plan.number == 0 and size < 2:
                return False
        elif operation == SETATTR and not struct.unpack_from("<I", data, 40)[0] & SET_SIZE:
            return False
        elif operation in (CREATE, MKDIR, UNLINK, RENAME, RENAME2):
            start = {CREATE: 56, MKDIR: 48, UNLINK: 40, RENAME: 48, RENAME2: 56}[operation]
            path = inside(path, names(data, start)[0])
        return self.plan.fails(VERBS[operation], path, place, written)

    # ---- names

    def entry(self, parent: Node, name: str) -> bytes:
        found = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
        number = self.numbers.get(found.st_ino)
        if number is None:
            flags = os.O_RDONLY | os.O_DIRECTORY if stat.S_ISDIR(found.st_mode) else os.O_RDWR
            node = Node(inside(parent.path, name), os.open(name, flags | os.O_NOFOLLOW, dir_fd=parent.fd))
            # A descriptor keeps its inode, so no other file gets this number while the node lives.
            number = self.numbers[found.st_ino] = found.st_ino + ROOT
            self.nodes[number] = node
        self.nodes[number].lookups += 1
        return struct.pack("<QQQQII", number, 0, 0, 0, 0, 0) + attributes(self.nodes[number])[16:]

    def forget(self, number: int, lookups: int) -> None:
        node = self.nodes.get(number)
        if node is None or number == ROOT:
            return
        node.lookups -= lookups
        if node.lookups <= 0:
            del self.nodes[number], self.numbers[number - ROOT]
            os.close(node.fd)

    def lookup(self, node: Node, data: bytes) -> bytes:
        return self.entry(node, names(data, 40)[0])

    def mkdir(self, node: Node, data: bytes) -> bytes:
        mode, umask = struct.unpack_from("<II", data, 40)
        name = names(data, 48)[0]
        os.mkdir(name, mode & ~umask & 0o777, dir_fd=node.fd)
        return self.entry(node, name)

    def create(self, node: Node, data: bytes) -> bytes:
        flags, mode, umask = struct.unpack_from("<III", data, 40)
        name = names(data, 56)[0]
        os.close(os.open(name, os.O_RDWR | os.O_CREAT | flags & os.O_EXCL, mode & ~umask & 0o777, dir_fd=node.fd))
        return self.entry(node, name) + self.open(node, data)

    def unlink(self, node: Node, data: bytes) -> bytes:
        os.unlink(names(data, 40)[0], dir_fd=node.fd)
        return b""

    def rename(self, node: Node, data: bytes) -> bytes:
        target = self.nodes[struct.unpack_from("<Q", data, 40)[0]]
        operation = struct.unpack_from("<I", data, 4)[0]
        old, new = names(data, 48 if operation == RENAME else 56)
        os.rename(old, new, src_dir_fd=node.fd, dst_dir_fd=target.fd)
        number = self.numbers.get(os.stat(new, dir_fd=target.fd).st_ino)
        if number is not None:
            self.nodes[number].path = inside(target.path, new)
        return b""

    def readdir(self, node: Node, data: bytes) -> bytes:
        place, size = struct.unpack_from("<QI", data, 48)
        body = b""
        for at, name in enumerate([".", "..", *sorted(os.listdir(node.fd))]):
            raw = os.fsencode(name)
            entry = struct.pack("<QQII", 1, at + 1, len(raw), 0) + raw
            if at >= place and len(body) + len(entry) + 7 <= size:
                body += entry.ljust(-(-len(entry) // 8) * 8, b"\0")
        return body

    # ---- files

    def open(self, node: Node, data: bytes) -> bytes:
        return struct.pack("<QII", 0, 0, 0)

    def read(self, node: Node, data: bytes) -> bytes:
        place, size = struct.unpack_from("<QI", data, 48)
        return os.pread(node.fd, size, place)

    def write(self, node: Node, data: bytes, *, short: bool = False) -> bytes:
        place, size = struct.unpack_from("<QI", data, 48)
        size = size // 2 if short else size
        return struct.pack("<II", node.write(place, data[80 : 80 + size]), 0)

    def sync(self, node: Node, data: bytes) -> bytes:
        node.unsynced.clear()
        return b""

    def allocate(self, node: Node, data: bytes) -> bytes:
        _, place, length = struct.unpack_from("<QQQ", data, 40)
        os.posix_fallocate(node.fd, place, length)
        return b""

    def set(self, node: Node, data: bytes) -> bytes:
        what = struct.unpack_from("<I", data, 40)[0]
        if what & SET_SIZE:
            os.ftruncate(node.fd, struct.unpack_from("<Q", data, 56)[0])
        if what & SET_MODE:
            os.fchmod(node.fd, struct.unpack_from("<I", data, 108)[0] & 0o777)
        return attributes(node)

    def statfs(self, node: Node, data: bytes) -> bytes:
        has = os.fstatvfs(node.fd)
        return struct.pack(
            "<5Q3I28x", has.f_blocks, has.f_bfree, has.f_bavail, has.f_files, has.f_ffree,
            has.f_bsize, has.f_namemax, has.f_frsize,
        )  # fmt: skip

    def nothing(self, node: Node, data: bytes) -> bytes:
        return b""

    def init(self, node: Node, data: bytes) -> bytes:
        _, minor, ahead, flags = struct.unpack_from("<4I", data, 40)
        flags &= INIT_FLAGS & NOT_ASYNCHRONOUS
        told = (7, min(minor, 31), ahead, flags, 64, 48, LARGEST_WRITE, 1, LARGEST_WRITE // mmap.PAGESIZE)
        return struct.pack("<4IHHIIH34x", *told)


def attributes(node: Node) -> bytes:
    """Valid for no time at all: the kernel asks again."""
    has = os.fstat(node.fd)
    return struct.pack(
        "<QII6Q3I7I", 0, 0, 0, has.st_ino, has.st_size, has.st_blocks, 0, 0, 0, 0, 0, 0,
        has.st_mode, has.st_nlink, has.st_uid, has.st_gid, 0, 4096, 0,
    )  # fmt: skip


def inside(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def names(data: bytes, start: int) -> list[str]:
    length = struct.unpack_from("<I", data)[0]
    return [os.fsdecode(name) for name in data[start:length].split(b"\0")[:-1]]


if __name__ == "__main__":
    server = Server(*map(Path, sys.argv[1:]))
    print("ready", flush=True)
    server.serve()
