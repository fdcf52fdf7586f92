"""A few threads for calls that block.

Those of `concurrent.futures` take no more work once the interpreter begins to end, before what was registered with
`atexit` has run: a database could not be closed there.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

_Work = tuple[Callable[[], Any], asyncio.AbstractEventLoop, "asyncio.Future[Any]"]


class _Shared:
    """What the threads know: not the `Background`, so that one nobody has any more can end them."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[_Work | None] = SimpleQueue()
        self.guard = threading.Lock()
        #: Threads that wait for work, less the work that waits for them.
        self.free = 0


class Background:
    """Threads are started as they are needed, `most` of them, and end with `close` or when nobody has it any more."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._shared = _Shared()
        self._threads: list[threading.Thread] = []
        #: Of those, how many were told to end.
        self._ended = 0
        self._closed = False

    async def run(self, call: Callable[[], T]) -> T:
        """The call's result. One that is cancelled before it has begun is not made."""
        if self._closed:
            raise OSError(errno.EBADF, "the files are closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        with self._shared.guard:
            if self._shared.free <= 0 and len(self._threads) < self._most:
                self._start()
            self._shared.free -= 1
        self._shared.queue.put((call, loop, future))
        return await future

    def close(self) -> None:
        """Returns when everything that was asked for is done. Whoever is interrupted here may call it again."""
        self._closed = True
        self._end()
        for thread in self._threads:
            thread.join()

    def __del__(self) -> None:
        self._end()

    def _end(self) -> None:
        for _ in range(len(self._threads) - self._ended):
            self._ended += 1
            self._shared.queue.put(None)

    def _start(self) -> None:
        thread = threading.Thread(target=_serve, args=(self._shared,), name="kimberlite-background", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            # The process may have no more; those that are there will do.
            if not self._threads:
                raise OSError(errno.EAGAIN, str(error)) from error
            return
        self._threads.append(thread)
        self._shared.free += 1


def _serve(shared: _Shared) -> None:
    while (work := shared.queue.get()) is not None:
        call, loop, future = work
        result: Any = None
        problem: BaseException | None = None
        if not future.cancelled():
            try:
                result = call()
            except BaseException as error:
                problem = error
        with shared.guard:
            shared.free += 1
        # A loop that is closed has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_tell, future, result, problem)
        del work, call, loop, future, result, problem


def _tell(future: asyncio.Future[Any], result: Any, problem: BaseException | None) -> None:
    if future.done():
        return
    if problem is None:
        future.set_result(result)
    else:
        future.set_exception(problem)
