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
from functools import partial
from typing import Final

from kimberlite import _native
from kimberlite.arguments import Rule
from kimberlite.errors import Corrupt, KimberliteError, NoSpace
from kimberlite.log import past
from kimberlite.log.checkpoint import Checkpointer
from kimberlite.log.clock import Clock
from kimberlite.log.committer import Committer
from kimberlite.log.creation import discard, prepare
from kimberlite.log.description import size_of
from kimberlite.log.findings import Findings
from kimberlite.log.names import DIRECTORIES, INDEX, PAST, SEGMENTS, index_name, segment_name
from kimberlite.log.options import Options
from kimberlite.log.packing import Packer
from kimberlite.log.refusals import FULL, refusal
from kimberlite.log.reserve import KEPT, anyhow, besides, give_reserve, is_reserved, keep_reserve, room_for
from kimberlite.log.scrub import mend
from kimberlite.log.tasks import Chores
from kimberlite.records import Dropping
from kimberlite.storage.backend import Backend

#: What stays of `reserve` when room is given to hashes, without which nothing goes: their record needs some too.
FOR_HASHES: Final = (KEPT, KEPT // 2)
#: Bytes of what is said in one system record, if a segment takes so much.
PIECE: Final = 256 * 1024
#: Seconds between two looks at what is too old by now.
LOOK: Final = 60.0


class Retention:
    """Segments are dropped whole, the oldest first, and only such as the last checkpoint is behind, since a start over
    damaged ones needs it. A disk that has no room for one lets go of those whose hashes are on it, and has some then.

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
        *,
        left: bool,
    ) -> None:
        self._backend, self._native, self._committer, self._packer = backend, native, committer, packer
        self._checkpointer, self._clock, self._findings = checkpointer, clock, findings
        self._rule = rule_of(committer.options)
        self._chores = Chores("kimberlite-retain", committer.poison)
        self._looking: asyncio.Task[None] | None = None
        #: All that went; whether there are files of what was dropped that could not be unlinked yet, as a start has
        #: `left` some, and what of that went in this log's time.
        self._gone = self._going = Dropping(0, 0, 0, native.first, None)
        self._left = left
        #: Whether `past` has what it must; None if nobody has looked.
        self._kept: bool | None = None
        #: Why what the options let go is not dropped; None if it is.
        self.waits: str | None = None
        #: Told of each reason, and of None when there is no more.
        self.on_waits: Callable[[str | None], None] = lambda _why: None
        self._timer = asyncio.get_running_loop().call_later(LOOK, self._tick)
        # What time it is must be noted before it jumps.
        if self._is_due() or clock.stale:
            self._looking = self._chores.begin(self._look())

    async def drop(self, rule: Rule, *, dry_run: bool = False, confirm_clock: bool = False) -> Dropping:
        """Returns when it is gone, or, if dry, what would go.

        Who is cancelled here abandons only the wait: what the log says was dropped must be so for this handle too.
        """
        return await self._chores.run(self._asked(rule, dry_run=dry_run, confirm_clock=confirm_clock))

    def look(self) -> None:
        """There may be more by now that the options let go, or files that can be unlinked."""
        if self._is_due() and self._looking is None and not self._chores.ending:
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

    async def _asked(self, rule: Rule, *, dry_run: bool, confirm_clock: bool) -> Dropping | KimberliteError:
        if not confirm_clock or self._rule == Rule():
            return await self._drop(rule, dry_run=dry_run, confirm_clock=confirm_clock)
        # What waits for it goes too.
        before = self._gone
        outcome = await self._drop(rule, self._rule, dry_run=dry_run, confirm_clock=True)
        if dry_run:
            return outcome
        # Nobody is to be told any more that it waits, and who looks already may have seen the clock as it was.
        await self._looked()
        self.look()
        await self._looked()
        if not isinstance(outcome, KimberliteError):
            return outcome
        # What could not go may have gone by now.
        return await self._drop(rule, self._rule, confirm_clock=True, since=before)

    def _is_due(self) -> bool:
        return self._rule != Rule() or self._left or self.waits is not None

    async def _looked(self) -> None:
        if self._looking is not None:
            await asyncio.wait([self._looking])

    async def _look(self) -> None:
        try:
            if self._is_due():
                why = await self._let_go()
                self._say(None if why is None else str(why))
            await self._backend.run(self.note)
        finally:
            self._looking = None

    def _say(self, why: str | None) -> None:
        before, self.waits = self.waits, why
        if why != before:
            self.on_waits(why)

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
        self, *rules: Rule, dry_run: bool = False, confirm_clock: bool = False, since: Dropping | None = None
    ) -> Dropping | KimberliteError:
        """What goes, by one rule after the other, or went `since`; or why it does not."""
        try:
            async with self._packer.lock:
                if dry_run:
                    upto = self._committer.tail.number
                    # Either begins where the log does.
                    return max([await self._plan(rule, upto, confirmed=confirm_clock) for rule in rules])
                if confirm_clock:
                    self._clock.confirm()
                    await self._backend.run(self.note)
                before = self._gone if since is None else since
                with contextlib.suppress(OSError):
                    # It may be the room for what goes next, which does not wait for it.
                    await self._unlink_left()
                for rule in rules:
                    await self._drop_all(rule)
                await self._unlink_left()
                if self._rule in rules:
                    self._say(None)
                dropped = more_than(before, self._gone)
                return dropped if not confirm_clock else await self._backend.run(lambda: self._noted(dropped))
        except KimberliteError as error:
            if isinstance(error, Corrupt):
                self._findings.add(error)
            return error
        except OSError as error:
            return refusal("not all that was to be dropped is gone yet", error)

    def _noted(self, dropped: Dropping) -> Dropping | KimberliteError:
        """A full disk may have room for what time it is when something was dropped."""
        try:
            if self._clock.stale:
                self._clock.keep()
        except OSError as error:
            gone = f"{dropped.segments} segments went; that the clock is right is not noted for the next start yet"
            return refusal(gone, error)
        return dropped

    async def _plan(self, rule: Rule, upto: int, *, confirmed: bool = False, hashed: int | None = None) -> Dropping:
        """What of the segments before this one, or of those that end before a position, the rule lets go."""
        oldest = oldest_kept(rule, self._clock, confirmed=confirmed)
        end = self._committer.tail.number, self._committer.tail.place
        size = self._size
        return await self._backend.run(lambda: count(size, self._native, rule, oldest, upto, end, hashed))

    def _size(self, name: str) -> int:
        """What is gone that should be there takes no room, and is as damaged as a segment can be."""
        try:
            return size_of(self._backend, name)
        except FileNotFoundError:
            self._findings.add(Corrupt("it is missing", file=name))
            return 0

    async def _drop_all(self, rule: Rule) -> None:
        """In rounds if the disk has no room for all of it at once."""
        try:
            await self._rounds(rule)
        finally:
            self._checkpointer.sparing = False
            await self._backend.run(self._restore)

    async def _rounds(self, rule: Rule) -> None:
        some, ways, last = False, iter(FOR_HASHES), self._committer.tail.number
        while True:
            # What was said of those that went is not to go for it.
            wanted = await self._plan(rule, last)
            number, full, hashed = self._native.dropped[0] + wanted.segments, None, None
            if number > self._checkpointer.segment and (wanted.segments or some):
                full = await self._checkpointer.take(bare=some)
                self._committer.check()
            if not wanted.segments:
                return
            if full is not None and full.errno in FULL:
                hashed, number = max(self._checkpointer.hashed, self._native.first), self._committer.tail.number
            elif full is not None or number > self._checkpointer.segment:
                number = self._checkpointer.segment
            planned = await self._plan(rule, min(number, last), hashed=hashed)
            # A record of many streams may take more than so few segments.
            lean = planned.segments < wanted.segments and planned.bytes < besides(self._native.retained_bound)
            if hashed is not None and (lean or not planned.segments) and (kept := next(ways, None)) is not None:
                self._checkpointer.sparing = True
                await self._backend.run(partial(give_reserve, self._backend, self._native, kept))
            elif planned.segments:
                await self._drop_planned(rule, planned, wanted)
                some, ways = True, iter(FOR_HASHES)
                if planned.segments >= wanted.segments and full is None:
                    return
            elif full is not None:
                raise refusal(waiting(wanted), full)

    async def _drop_planned(self, rule: Rule, planned: Dropping, wanted: Dropping) -> None:
        first = self._native.dropped[0]
        number, position, now = first + planned.segments, planned.first, self._committer.clock()
        drops = self._native.dropped[1]
        more = bool(drops) and rule.covers(drops[-1][-1])
        for _, error in await self._backend.run(lambda: self._native.damaged_repairs(position)):
            if error is not None:
                self._findings.add(error)
        retained = await self._backend.run(lambda: self._native.retain(number, now, str(rule), more))
        if retained is None:
            return
        self._kept = await self._backend.run(lambda: self._keep(range(first, number), position))
        piece = min(PIECE, self._committer.tail.most // 4)
        records = _native.Log.retention_records(retained, piece)
        # Of a full disk too: it makes room. At the worst the indexes go before their segments, and all others.
        ways = (
            lambda: give_reserve(self._backend, self._native, 0),
            lambda: self._unlink_indexes(range(first, number)),
            lambda: self._unlink_indexes(range(first, self._committer.tail.number)),
        )
        try:
            await self._checkpointer.hold()
            if len(records) > 1:
                await self._backend.run(lambda: self._make_room(sum(map(len, records)), ways))
            group = await self._committer.say_anyhow(records, *ways)
            if not await self._committer.mark(group):
                self._committer.check()
            self._native.drop_before(retained)
            self._left, self._going = True, joined(self._going, planned)
            await self._checkpointer.let_go()
            with contextlib.suppress(OSError):
                # A checkpoint that is taken before would find no room. What the disk refuses holds up no other round.
                await self._unlink_left()
        except NoSpace as error:
            raise NoSpace(f"{waiting(wanted)}: {error}") from None
        finally:
            self._checkpointer.held = False

    def _make_room(self, size: int, ways: tuple[Callable[[], None], ...]) -> None:
        """For all pieces of a record before the first: a part of them says nothing, and takes room from the next."""

        def take() -> None:
            self._backend.unlink(prepare(self._backend, PAST, lambda file: file.allocate(0, room_for(size))))

        try:
            anyhow(take, lambda: give_reserve(self._backend, self._native, KEPT), *ways)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise refusal(f"no room for a record of {size} bytes", error) from None

    def _unlink_indexes(self, segments: range) -> None:
        # What is open still has its blocks.
        self._native.forget_indexes(segments.stop)
        for number in segments:
            discard(self._backend, index_name(number))

    def _keep(self, segments: range, position: int) -> bool:
        """The hashes of what is before this position, if there is room. Those that are wrong are made again, as far as
        their segments are sound; what cannot be is given up with the records, which it would prove."""
        database, told = self._committer.database_id, self._findings.add
        try:
            return past.keep(self._backend, self._native, database, position, told)
        except Corrupt as error:
            told(error)
            for number in segments:
                mend(self._backend, self._native, number, database, self._findings)
            return past.keep(self._backend, self._native, database, position, told, anyhow=True)

    def _restore(self) -> None:
        if not is_reserved(self._backend, self._native):
            keep_reserve(self._backend, self._native)

    async def _unlink_left(self) -> None:
        if not self._left:
            return
        await self._backend.run(self._unlink)
        self._gone, self._left = joined(self._gone, self._going), False
        self._going = Dropping(0, 0, 0, self._native.first, None)

    def _unlink(self) -> None:
        try:
            unlink_before(self._backend, self._native.dropped[0])
        finally:
            # What a start has left is looked at again as long as there is no room for it.
            if self._kept is None and self._keep(range(0), self._native.first):
                self._kept = True
            if self._kept:
                past.let_go(self._backend, self._native.first)
            # For the record of what goes next; the rest is for its hashes.
            keep_reserve(self._backend, self._native, KEPT)


def rule_of(options: Options) -> Rule:
    age, size = options.retain_age, options.retain_size
    return Rule(None, round(age * 10**9) if age else None, size or None)


def oldest_kept(rule: Rule, clock: Clock, *, confirmed: bool) -> int | None:
    """What is older than this is so for its age; None if no age is asked for."""
    return None if rule.age is None else clock.now(confirmed=confirmed) - rule.age


def waiting(wanted: Dropping) -> str:
    return f"{wanted.segments} segments, {wanted.bytes} bytes, that may go are waiting for room"


def joined(gone: Dropping, more: Dropping) -> Dropping:
    sums = (gone.segments + more.segments, gone.records + more.records, gone.bytes + more.bytes)
    return Dropping(*sums, more.first, more.until if more.segments else gone.until)


def more_than(before: Dropping, gone: Dropping) -> Dropping:
    sums = (gone.segments - before.segments, gone.records - before.records, gone.bytes - before.bytes)
    return Dropping(*sums, gone.first, gone.until if any(sums) else None)


def count(
    size: Callable[[str], int],
    native: _native.Log,
    rule: Rule,
    oldest: int | None,
    upto: int,
    end: tuple[int, int],
    hashed: int | None = None,
) -> Dropping:
    """What a rule lets go of the segments before this one, or up to a position. The log ends at a place of the segment
    that is written."""
    number = dropped = native.dropped[0]
    first = position = native.first
    active, place = end
    until = None
    sizes = [size(segment_name(n)) for n in range(number, active)]
    left = total = sum(sizes) + place
    while number < upto and (ended := native.ended(number)) is not None:
        after, time = ended
        old = oldest is not None and time < oldest
        if hashed is not None and after > hashed:
            break
        if not (old or position_goes(rule.before, after) or (rule.size is not None and left > rule.size)):
            break
        left -= sizes[number - dropped]
        number, position, until = number + 1, after, time
    return Dropping(number - dropped, position - first, total - left, position, until)


def position_goes(before: int | None, after: int) -> bool:
    """Whether a segment that ends here has nothing from there on."""
    return before is not None and after <= before


def unlink_before(backend: Backend, number: int) -> None:
    """What is left of segments that were dropped. One that stays holds up no other."""
    refused: OSError | None = None
    for directory in (SEGMENTS, INDEX):
        for name in backend.list(directory):
            if DIRECTORIES[directory].fullmatch(name) and int(name[:20]) < number:
                try:
                    backend.unlink(f"{directory}/{name}")
                except OSError as error:
                    refused = refused or error
        backend.sync_directory(directory)
    if refused is not None:
        raise refused
