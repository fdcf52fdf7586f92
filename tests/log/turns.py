"""A loop whose waits take no time, so that a long history is short and comes out alike every time."""

from __future__ import annotations

import asyncio
import selectors


class StuckError(Exception):
    """Somebody waits, and nothing is under way that could ever wake them."""


class _Impatient(selectors.SelectSelector):
    """Adds to the clock what it was to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise StuckError("the loop would wait for ever")
        self.now += max(timeout, 0)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its clock jumps to the next timer whenever nothing is ready."""

    def __init__(self) -> None:
        self._impatient = _Impatient()
        super().__init__(self._impatient)

    def time(self) -> float:
        return self._impatient.now


def end(loop: asyncio.AbstractEventLoop) -> None:
    """The process of this loop is dead: none of its tasks goes on, and none of its timers comes."""

    async def gone(tasks: set[asyncio.Task[object]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    if not loop.is_closed():
        loop.run_until_complete(gone(asyncio.all_tasks(loop)))
        loop.close()
