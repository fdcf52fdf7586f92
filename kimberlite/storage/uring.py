"""The engine for Linux with io_uring: writes that need no thread at all.

A ring belongs to the thread that submits to it. The buffers of what is in flight are the kernel's: they, and the
iovecs that point at them, are kept here until their completion has been seen.
"""

from __future__ import annotations

import errno
import os
import platform
import select
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import liburing

from kimberlite.storage.backend import BLOCK
from kimberlite.storage.disk import Finished

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: Requests in the kernel at once; the completion queue has twice the room, so it cannot overflow. More wait here.
ENTRIES = 64

#: What the liburing wheel's code uses without asking: elsewhere it ends the process with SIGILL, at its first call
#: and not at its import.
INSTRUCTIONS = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

#: Short writes in a row that did not complete one block before we call it an error.
STUCK = 16

#: The kernel could not take it now. Nothing was lost: the entry is still in the submission queue.
_LATER = {errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ENOMEM}


def processor() -> set[str]:
    """The instruction sets of this machine, as Linux names them."""
    if platform.machine() != "x86_64":
        return set()
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
        for line in lines:
            if line.startswith("flags"):
                return set(line.partition(":")[2].split())
    return set()


@dataclass(slots=True)
class _Request:
    number: int
    fd: int
    place: int = 0
    #: None for a sync.
    rest: memoryview | None = None
    durable: bool = False
    iovec: liburing.Iovec | None = None
    stuck: int = 0


class Uring:
    """One ring. OSError where there is none to be had: `ENOSYS` or `EPERM` where the kernel or a container forbids it,
    `ENOEXEC` where the processor cannot run liburing."""

    name = "uring"

    def __init__(self) -> None:
        missing = INSTRUCTIONS - processor()
        if missing:
            raise OSError(errno.ENOEXEC, f"the processor lacks {min(missing)}, which liburing was built for")
        self._in_flight: dict[int, _Request] = {}
        self._waiting: deque[_Request] = deque()
        #: Prepared, but not yet taken by the kernel; in the order of the submission queue.
        self._unsubmitted: deque[int] = deque()
        self._abandoned: list[_Request] = []
        self._finished: list[Finished] = []
        self._broken: OSError | None = None
        self._completion = liburing.Cqe()
        self._ring = liburing.Ring()
        self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            liburing.io_uring_queue_init(ENTRIES, self._ring)
        except OSError:
            os.close(self._eventfd)
            raise
        try:
            liburing.io_uring_register_eventfd(self._ring, self._eventfd)
        except OSError:
            self.close()
            raise

    def fileno(self) -> int:
        return self._eventfd

    def submit(self, number: int, fd: int, place: int, buffer: Buffer, durable: bool) -> None:
        view = memoryview(buffer).cast("B")
        self._waiting.append(_Request(number, fd, place, view, durable, liburing.Iovec([view])))
        self._push()

    def submit_sync(self, number: int, fd: int) -> None:
        self._waiting.append(_Request(number, fd))
        self._push()

    def reap(self) -> list[Finished]:
        # Before looking: what completes in between then leaves it readable, at worst for nothing.
        with suppress(BlockingIOError):
            os.eventfd_read(self._eventfd)
        for _ in range(liburing.io_uring_cq_ready(self._ring)):
            self._complete()
        if self._waiting or self._unsubmitted:
            self._push()
        finished, self._finished = self._finished, []
        return finished

    def finish(self) -> None:
        """Polls instead of waiting in the ring, which would keep the GIL."""
        poll = select.poll()
        poll.register(self._eventfd, select.POLLIN)
        finished: list[Finished] = []
        while self._waiting or self._in_flight:
            poll.poll()
            finished += self.reap()
        self._finished += finished

    def close(self) -> None:
        liburing.io_uring_queue_exit(self._ring)
        os.close(self._eventfd)

    def _push(self) -> None:
        """Hand what is waiting to the kernel, as far as there is room."""
        while self._waiting and len(self._in_flight) < ENTRIES and self._broken is None:
            entry = liburing.io_uring_get_sqe(self._ring)
            if entry is None:
                break
            self._prepare(entry, self._waiting.popleft())
        try:
            while self._unsubmitted:
                for _ in range(liburing.io_uring_submit(self._ring)):
                    self._unsubmitted.popleft()
        except OSError as problem:
            if problem.errno not in _LATER:
                self._broken = problem
            # To be called again, by way of the loop and `reap`.
            os.eventfd_write(self._eventfd, 1)
        if self._broken is not None:
            self._refuse(self._broken)

    def _prepare(self, entry: liburing.SQE, request: _Request) -> None:
        if request.iovec is None:
            liburing.io_uring_prep_fsync(entry, request.fd, liburing.IORING_FSYNC_DATASYNC)
        else:
            flags = liburing.RWF_DSYNC if request.durable else 0
            liburing.io_uring_prep_writev(entry, request.fd, request.iovec, request.place, flags)
        entry.user_data = request.number
        self._in_flight[request.number] = request
        self._unsubmitted.append(request.number)

    def _complete(self) -> None:
        liburing.io_uring_peek_cqe(self._ring, self._completion)
        entry = self._completion[0]
        number = entry.user_data
        problem: OSError | None = None
        count = 0
        try:
            count = entry.res
        except OSError as failed:
            problem = failed
        liburing.io_uring_cqe_seen(self._ring, entry)
        request = self._in_flight.pop(number)
        if problem is not None and problem.errno == errno.EINTR:
            self._waiting.appendleft(request)
        elif problem is not None or request.rest is None or count == len(request.rest):
            self._finished.append((number, problem))
        else:
            self._resume(request, count)

    def _resume(self, request: _Request, count: int) -> None:
        """The rest of a short write, from a whole block: O_DIRECT takes nothing else."""
        assert request.rest is not None
        whole = count - count % BLOCK
        request.stuck = 0 if whole else request.stuck + 1
        if request.stuck == STUCK:
            self._finished.append((request.number, OSError(errno.EIO, os.strerror(errno.EIO))))
            return
        request.place += whole
        request.rest = request.rest[whole:]
        request.iovec = liburing.Iovec([request.rest])
        self._waiting.appendleft(request)

    def _refuse(self, problem: OSError) -> None:
        """The ring takes nothing any more. What it did not take stays in its queue, so its buffers stay here."""
        self._abandoned += [self._in_flight.pop(number) for number in self._unsubmitted]
        self._finished += [(number, problem) for number in self._unsubmitted]
        self._finished += [(request.number, problem) for request in self._waiting]
        self._unsubmitted.clear()
        self._waiting.clear()
        os.eventfd_write(self._eventfd, 1)
