"""Dropping the oldest segments.

    their hashes kept → a record of all that they say and the others need → durable → a mark that covers it
    → their files unlinked → fsync

So what is gone was given up by a record that no recovery loses. A crash leaves some of the files, and the next start
unlinks them. Readers without a lock find the record below their watermark before they miss a file.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from kimberlite import _native
from kimberlite.arguments import Rule
from kimberlite.errors import KimberliteError
from kimberlite.log import past
from kimberlite.log.checkpoint import Checkpointer
from kimberlite.log.clock import Clock
from kimberlite.log.committer import Committer
from kimberlite.log.creation import keep_reserve
from kimberlite.log.description import size_of
from kimberlite.log.names import DIRECTORIES, INDEX, SEGMENTS, segment_name
from kimberlite.log.options import Options
from kimberlite.log.packing import Packer
from kimberlite.log.refusals import refusal
from kimberlite.log.tasks import Chores
from kimberlite.records import Dropping
from kimberlite.storage.backend import Backend

#: Bytes of what is said in one system record, if a segment takes so much.
PIECE: Final = 256 * 1024
#: Seconds between two looks at what is too old by now.
LOOK: Final = 60.0


class Retention:
    """Segments are dropped whole, the oldest first, and only such as the last checkpoint is behind.

    One dropping at a time; what the options let go is dropped unasked.
    """

    def __init__(
        self,
        backend: Backend,
        native: _native.Log,
        committer: Committer,
        checkpointer: Checkpointer,
        packer: Packer,
        clock: Clock,
    ) -> None:
        self._backend, self._native, self._committer, self._packer = backend, native, committer, packer
        self._checkpointer, self._clock = checkpointer, clock
        self._rule = rule_of(committer.options)
        self._chores = Chores("kimberlite-retain", committer.poison)
        self._looking: asyncio.Task[None] | None = None
        #: Why what the options let go is not dropped; None if it is.
        self.waits: str | None = None
        self._timer = asyncio.get_running_loop().call_later(LOOK, self._tick)
        self.look()

    async def drop(self, rule: Rule, *, dry_run: bool = False, confirm_clock: bool = False) -> Dropping:
        """Returns when it is gone, or, if dry, what would go.

        Who is cancelled here abandons only the wait: what the log says was dropped must be so for this handle too.
        """
        return await self._chores.run(self._drop(rule, dry_run=dry_run, confirm_clock=confirm_clock))

    def look(self) -> None:
        """There may be more by now that the options let go."""
        if self._rule != Rule() and self._looking is None and not self._chores.ending:
            self._looking = self._chores.begin(self._look())

    async def stop(self) -> None:
        """Returns when nothing is being dropped any more."""
        self._timer.cancel()
        await self._chores.stop()

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK, self._tick)
        self.look()
        if self._looking is None and self._clock.stale:
            self._looking = self._chores.begin(self._look())

    async def _look(self) -> None:
        try:
            if self._rule != Rule():
                outcome = await self._drop(self._rule)
                self.waits = str(outcome) if isinstance(outcome, KimberliteError) else None
            await self._backend.run(self.note)
        finally:
            self._looking = None

    def note(self) -> None:
        """What time it is, for a later start."""
        if self._clock.stale:
            with contextlib.suppress(OSError):
                self._clock.keep()

    async def _drop(
        self, rule: Rule, *, dry_run: bool = False, confirm_clock: bool = False
    ) -> Dropping | KimberliteError:
        """What goes, or why it does not."""
        try:
            if confirm_clock:
                await self._backend.run(self._clock.confirm)
            async with self._packer.lock:
                return await (self._plan(rule, self._committer.tail.number) if dry_run else self._drop_all(rule))
        except KimberliteError as error:
            return error
        except OSError as error:
            return refusal("not all that was to be dropped is gone yet", error)

    async def _plan(self, rule: Rule, upto: int) -> Dropping:
        """What of the segments before this one the rule lets go."""
        oldest = None if rule.age is None else self._clock.now() - rule.age
        end = self._committer.tail.place
        return await self._backend.run(lambda: self._count(rule, oldest, upto, end))

    def _count(self, rule: Rule, oldest: int | None, upto: int, end: int) -> Dropping:
        number = dropped = self._native.dropped[0]
        first = position = self._native.first
        active, until = self._committer.tail.number, None
        sizes = [size_of(self._backend, segment_name(n)) for n in range(number, active)]
        left = total = sum(sizes) + end
        while number < upto and (ended := self._native.ended(number)) is not None:
            after, time = ended
            old = oldest is not None and time < oldest
            if not (old or position_goes(rule.before, after) or (rule.size is not None and left > rule.size)):
                break
            left -= sizes[number - dropped]
            number, position, until = number + 1, after, time
        return Dropping(number - dropped, position - first, total - left, position, until)

    async def _drop_all(self, rule: Rule) -> Dropping:
        planned = await self._plan(rule, self._committer.tail.number)
        first = self._native.dropped[0]
        if first + planned.segments > self._checkpointer.segment:
            await self._checkpointer.take()
            planned = await self._plan(rule, self._checkpointer.segment)
        number, position, now = first + planned.segments, planned.first, self._committer.clock()
        retained = await self._backend.run(lambda: self._native.retain(number, now, str(rule)))
        if retained is not None:
            await self._backend.run(
                lambda: past.keep(self._backend, self._native, self._committer.database_id, position)
            )
            piece = min(PIECE, self._committer.tail.most // 4)
            records = _native.Log.retention_records(retained, piece)
            self._checkpointer.held = True
            try:
                # Of a full disk too: it makes room.
                group = await self._committer.say_anyhow(records)
                if not await self._committer.mark(group):
                    self._committer.check()
                self._native.drop_before(retained)
            finally:
                self._checkpointer.held = False
            await self._backend.run(lambda: self._unlink(number))
        return planned

    def _unlink(self, number: int) -> None:
        unlink_before(self._backend, number)
        past.let_go(self._backend, self._native.first)
        keep_reserve(self._backend)


def rule_of(options: Options) -> Rule:
    age, size = options.retain_age, options.retain_size
    return Rule(None, round(age * 10**9) if age else None, size or None)


def position_goes(before: int | None, after: int) -> bool:
    """Whether a segment that ends here has nothing from there on."""
    return before is not None and after <= before


def unlink_before(backend: Backend, number: int) -> None:
    """What is left of segments that were dropped."""
    for directory in (SEGMENTS, INDEX):
        for name in backend.list(directory):
            if DIRECTORIES[directory].fullmatch(name) and int(name[:20]) < number:
                backend.unlink(f"{directory}/{name}")
        backend.sync_directory(directory)
