"""A few threads for calls that block.

Those of `concurrent.futures` take no more work once the interpreter begins to end, before what was registered with
`atexit` has run: a database could not be closed there.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

_Work = tuple[Callable[[], Any], asyncio.AbstractEventLoop, "asyncio.Future[Any]"]


class Background:
    """Threads are started as they are needed, `most` of them, and end with `close`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        #: Threads that wait for work, less the work that waits for them.
        self._free = 0
        self._guard = threading.Lock()

    async def run(self, call: Callable[[], T]) -> T:
        """The call's result. One that is cancelled before it has begun is not made."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        with self._guard:
            if self._free <= 0 and len(self._threads) < self._most:
                self._start()
            self._free -= 1
        self._queue.put((call, loop, future))
        return await future

    def close(self) -> None:
        """Returns when everything that was asked for is done."""
        with self._guard:
            threads, self._threads = self._threads, []
        for _ in threads:
            self._queue.put(None)
        for thread in threads:
            thread.join()

    def _start(self) -> None:
        thread = threading.Thread(target=self._serve, name="kimberlite-background", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # The process may have no more; those that are there will do.
            if not self._threads:
                raise
            return
        self._threads.append(thread)
        self._free += 1

    def _serve(self) -> None:
        while (work := self._queue.get()) is not None:
            call, loop, future = work
            result: Any = None
            problem: BaseException | None = None
            if not future.cancelled():
                try:
                    result = call()
                except BaseException as error:
                    problem = error
            with self._guard:
                self._free += 1
            # A loop that is closed has nobody left who waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_tell, future, result, problem)
            del work, call, future, result, problem


def _tell(future: asyncio.Future[Any], result: Any, problem: BaseException | None) -> None:
    if future.done():
        return
    if problem is None:
        future.set_result(result)
    else:
        future.set_exception(problem)
