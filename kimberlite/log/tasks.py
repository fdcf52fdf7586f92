"""Tasks of the database's own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from kimberlite.errors import Closed, KimberliteError

T = TypeVar("T")


def begin(work: Coroutine[Any, Any, T], name: str, died: Callable[[BaseException], None]) -> asyncio.Task[T]:
    """A task that `asyncio.all_tasks` does not show, and no task factory begins too early.

    A program that cancels all tasks, as `asyncio.run` does at its end, must not stop a rotation or a close halfway. An
    interrupt can end one anywhere, also before its first step: `died` is told.
    """
    task = asyncio.Task(work, loop=asyncio.get_running_loop(), name=name)
    asyncio._unregister_task(task)
    # Whoever ends a loop without a close has no more to hear of it than that the database is still open.
    task._log_destroy_pending = False  # type: ignore[attr-defined]

    def ended(task: asyncio.Task[T]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            died(error)

    task.add_done_callback(ended)
    return task


class Chores:
    """Work that goes on when who asked for it is cancelled: it is abandoned by nobody but a crash."""

    def __init__(self, name: str, died: Callable[[BaseException], None]) -> None:
        self._name, self._died = name, died
        self._tasks: set[asyncio.Task[Any]] = set()
        self.ending = False

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        if self.ending:
            work.close()
            raise Closed("the database is closed")
        task = begin(work, self._name, self._died)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def run(self, work: Coroutine[Any, Any, T | KimberliteError]) -> T:
        """What comes of it; an error that it ends with is whoever's who asked, and kills nothing."""
        outcome = await asyncio.shield(self.begin(work))
        if isinstance(outcome, KimberliteError):
            raise outcome
        return outcome

    async def stop(self) -> None:
        """Returns when nothing is under way any more; nothing is begun from here on."""
        self.ending = True
        if self._tasks:
            await asyncio.wait(self._tasks)


async def rest(seconds: float, stopping: asyncio.Event) -> None:
    """Returns after so long, or when it is to stop."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stopping.wait()
