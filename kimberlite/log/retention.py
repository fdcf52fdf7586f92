"""Dropping the oldest segments.

    their hashes kept → a record of all that they say and the others need → durable → a mark that covers it
    → their files unlinked → fsync

So what is gone was given up by a record that no recovery loses. A crash leaves some of the files, and the next start
unlinks them. Readers without a lock find the record below their watermark before they miss a file.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from kimberlite import _native
from kimberlite.arguments import Rule
from kimberlite.errors import Corrupt, KimberliteError
from kimberlite.log import past
from kimberlite.log.checkpoint import Checkpointer
from kimberlite.log.clock import Clock
from kimberlite.log.committer import Committer
from kimberlite.log.creation import keep_reserve
from kimberlite.log.description import size_of
from kimberlite.log.findings import Findings
from kimberlite.log.names import DIRECTORIES, INDEX, SEGMENTS, segment_name
from kimberlite.log.options import Options
from kimberlite.log.packing import Packer
from kimberlite.log.refusals import refusal
from kimberlite.log.scrub import mend
from kimberlite.log.tasks import Chores
from kimberlite.records import Dropping
from kimberlite.storage.backend import Backend

#: Bytes of what is said in one system record, if a segment takes so much.
PIECE: Final = 256 * 1024
#: Seconds between two looks at what is too old by now.
LOOK: Final = 60.0


class Retention:
    """Segments are dropped whole, the oldest first, and only such as the last checkpoint is behind.

    One dropping at a time; what the options let go is dropped unasked. What is found damaged meanwhile is a finding.
    """

    def __init__(
        self,
        backend: Backend,
        native: _native.Log,
        committer: Committer,
        checkpointer: Checkpointer,
        packer: Packer,
        clock: Clock,
        findings: Findings,
    ) -> None:
        self._backend, self._native, self._committer, self._packer = backend, native, committer, packer
        self._checkpointer, self._clock, self._findings = checkpointer, clock, findings
        self._rule = rule_of(committer.options)
        self._chores = Chores("kimberlite-retain", committer.poison)
        self._looking: asyncio.Task[None] | None = None
        #: Why what the options let go is not dropped; None if it is.
        self.waits: str | None = None
        #: Told of each reason, and of None when there is no more.
        self.on_waits: Callable[[str | None], None] = lambda _why: None
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
                why = await self._let_go()
                before, self.waits = self.waits, None if why is None else str(why)
                if self.waits != before:
                    self.on_waits(self.waits)
            await self._backend.run(self.note)
        finally:
            self._looking = None

    async def _let_go(self) -> KimberliteError | None:
        """What the options say; why not all of it, if so. While nobody knows the time the other rule goes on."""
        rule, held = self._rule, None
        if rule.age is not None and (held := self._clock.held()) is not None:
            rule = rule._replace(age=None)
        outcome = await self._drop(rule)
        return outcome if isinstance(outcome, KimberliteError) else held

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
            async with self._packer.lock:
                if dry_run:
                    return await self._plan(rule, self._committer.tail.number, confirmed=confirm_clock)
                if confirm_clock:
                    await self._backend.run(self._clock.confirm)
                return await self._drop_all(rule)
        except KimberliteError as error:
            if isinstance(error, Corrupt):
                self._findings.add(error)
            return error
        except OSError as error:
            return refusal("not all that was to be dropped is gone yet", error)

    async def _plan(self, rule: Rule, upto: int, *, confirmed: bool = False) -> Dropping:
        """What of the segments before this one the rule lets go."""
        oldest = oldest_kept(rule, self._clock, confirmed=confirmed)
        end = self._committer.tail.number, self._committer.tail.place
        return await self._backend.run(lambda: count(self._backend, self._native, rule, oldest, upto, end))

    async def _drop_all(self, rule: Rule) -> Dropping:
        planned = await self._plan(rule, self._committer.tail.number)
        first, drops = self._native.dropped
        if first + planned.segments > self._checkpointer.segment:
            await self._checkpointer.take()
            planned = await self._plan(rule, self._checkpointer.segment)
        number, position, now = first + planned.segments, planned.first, self._committer.clock()
        more = bool(drops) and rule.covers(drops[-1][-1])
        retained = await self._backend.run(lambda: self._native.retain(number, now, str(rule), more))
        if retained is not None:
            await self._backend.run(lambda: self._keep(range(first, number), position))
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

    def _keep(self, segments: range, position: int) -> None:
        """The hashes of what is before this position. Those that are wrong are made again, as far as their segments
        are sound; what cannot be is given up with the records, which it would prove."""
        database = self._committer.database_id
        try:
            past.keep(self._backend, self._native, database, position)
        except Corrupt as error:
            self._findings.add(error)
            for number in segments:
                mend(self._backend, self._native, number, database, self._findings)
            past.keep(self._backend, self._native, database, position, told=self._findings.add)

    def _unlink(self, number: int) -> None:
        unlink_before(self._backend, number)
        past.let_go(self._backend, self._native.first)
        keep_reserve(self._backend)


def rule_of(options: Options) -> Rule:
    age, size = options.retain_age, options.retain_size
    return Rule(None, round(age * 10**9) if age else None, size or None)


def oldest_kept(rule: Rule, clock: Clock, *, confirmed: bool) -> int | None:
    """What is older than this is so for its age; None if no age is asked for."""
    return None if rule.age is None else clock.now(confirmed=confirmed) - rule.age


def count(
    backend: Backend, native: _native.Log, rule: Rule, oldest: int | None, upto: int, end: tuple[int, int]
) -> Dropping:
    """What a rule lets go of the segments before this one. The log ends at a place of the segment that is written."""
    number = dropped = native.dropped[0]
    first = position = native.first
    active, place = end
    until = None
    sizes = [size_of(backend, segment_name(n)) for n in range(number, active)]
    left = total = sum(sizes) + place
    while number < upto and (ended := native.ended(number)) is not None:
        after, time = ended
        old = oldest is not None and time < oldest
        if not (old or position_goes(rule.before, after) or (rule.size is not None and left > rule.size)):
            break
        left -= sizes[number - dropped]
        number, position, until = number + 1, after, time
    return Dropping(number - dropped, position - first, total - left, position, until)


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
