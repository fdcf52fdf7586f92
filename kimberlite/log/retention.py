"""Dropping the oldest segments.

    a record of all that they say and the others need → durable → a mark that covers it → their files unlinked → fsync

So what is gone was given up by a record that no recovery loses. A crash leaves some of the files, and the next start
unlinks them. Readers without a lock find the record below their watermark before they miss a file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from kimberlite import _native
from kimberlite.errors import Closed, KimberliteError
from kimberlite.log.checkpoint import Checkpointer
from kimberlite.log.committer import Committer, Part
from kimberlite.log.names import INDEX, SEGMENTS, index_name, segment_name, segment_number
from kimberlite.log.packing import Packer
from kimberlite.log.refusals import refusal
from kimberlite.log.tasks import begin
from kimberlite.records import Receipt
from kimberlite.storage.backend import Backend

#: Bytes of what is said in one system record, if a segment takes so much.
PIECE: Final = 256 * 1024


class Retention:
    """Segments are dropped whole, the oldest first, and only such as the last checkpoint is behind."""

    def __init__(
        self,
        backend: Backend,
        native: _native.Log,
        committer: Committer,
        checkpointer: Checkpointer,
        packer: Packer,
        clock: Callable[[], int],
    ) -> None:
        self._backend, self._native, self._committer, self._packer = backend, native, committer, packer
        self._checkpointer, self._clock = checkpointer, clock
        self._tasks: set[asyncio.Task[KimberliteError | None]] = set()
        self._ending = False

    async def drop(self, before: int, rule: str) -> None:
        """Drops the segments that have nothing from this position on; returns when they are gone.

        Who is cancelled here abandons only the wait: what the log says was dropped must be so for this handle too.
        """
        if self._ending:
            raise Closed("the database is closed")
        task = begin(self._drop(before, rule), "kimberlite-retain", self._committer.poison)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if error := await asyncio.shield(task):
            raise error

    async def stop(self) -> None:
        """Returns when nothing is being dropped any more."""
        self._ending = True
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _drop(self, before: int, rule: str) -> KimberliteError | None:
        """Why it is not done, if so."""
        try:
            await self._drop_all(before, rule)
        except KimberliteError as error:
            return error
        except OSError as error:
            return refusal("not all that was to be dropped is gone yet", error)
        return None

    async def _drop_all(self, before: int, rule: str) -> None:
        number = self._native.segment_of(before)
        if number > self._checkpointer.segment:
            await self._checkpointer.take()
        number = min(number, self._checkpointer.segment)
        async with self._packer.lock:
            now = self._clock()
            retained = await self._backend.run(lambda: self._native.retain(number, now, rule))
            if retained is None:
                return
            group = await self._say(retained)
            if not await self._committer.mark(group):
                self._committer.check()
            self._native.drop_before(retained)
            await self._backend.run(lambda: unlink_before(self._backend, number))

    async def _say(self, retained: bytes) -> int:
        """The group by which all of it is in the log."""
        loop, committer = asyncio.get_running_loop(), self._committer
        answers: list[asyncio.Future[Receipt]] = []
        for payload in _native.Log.retention_records(retained, min(PIECE, committer.tail.most // 4)):
            if committer.crowded:
                await committer.turn()
            future: asyncio.Future[Receipt] = loop.create_future()
            parts: list[Part] = [("", 0, _native.encode([payload]), None)]
            committer.enter(_native.Request(parts, "group", None, False, future, committer.quantum))
            answers.append(future)
        return max(receipt.group for receipt in await asyncio.gather(*answers))


def unlink_before(backend: Backend, number: int) -> None:
    """What is left of segments that were dropped."""
    for name in backend.list(SEGMENTS):
        dropped = segment_number(name)
        if dropped is not None and dropped < number:
            backend.unlink(segment_name(dropped))
            if backend.exists(index_name(dropped)):
                backend.unlink(index_name(dropped))
    backend.sync_directory(SEGMENTS)
    backend.sync_directory(INDEX)
