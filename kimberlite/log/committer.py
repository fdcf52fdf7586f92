"""From the pool to the disk to the receipts."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from kimberlite import _native
from kimberlite.arguments import Sender, Sync
from kimberlite.errors import (
    Closed,
    Duplicate,
    KimberliteError,
    LimitExceeded,
    NoSpace,
    RolledBack,
    Unavailable,
    UnknownOutcome,
)
from kimberlite.log.flights import Answer, Flight, Flights
from kimberlite.log.marks import Mark, encode_mark
from kimberlite.log.names import segment_name
from kimberlite.log.options import Options
from kimberlite.log.reserve import KEPT, give_reserve
from kimberlite.log.tail import Tail, install
from kimberlite.log.tasks import begin
from kimberlite.records import Receipt
from kimberlite.storage.backend import BLOCK, Backend, File, let_go, opener

#: Seconds after which what the kernel only holds is synced.
OS_DELAY: Final = 1.0
#: What a group takes beside its batches; and what declarations of new streams may take of one.
OVERHEAD: Final = _native.OVERHEAD
#: Records of a segment: its index counts them in 32 bits.
MOST_RECORDS: Final = (1 << 32) - 1
MOST_DECLARED: Final = 1 << 20
#: Buffers kept for the next groups.
SPARE_BUFFERS: Final = 16

Part = tuple[str, int, _native.Batch, int | None]


class Committer:
    """One queue, one owner of the tail.

    * Requests are sealed in the order in which they came; numbers are given when they are sealed.
    * Durable is the prefix of the flights that is synced: it is published, then acknowledged, and leaves.
    * Poisoned is for ever: after a failed write or sync nothing is sealed, synced or acknowledged again.
    """

    def __init__(
        self,
        log: _native.Log,
        backend: Backend,
        tail: Tail,
        segment: _native.Segment,
        marks: File,
        mark: Mark,
        options: Options,
        clock: Callable[[], int],
        *,
        quantum: int,
        database_id: bytes,
        identity_hash: bytes,
    ) -> None:
        self.log, self.backend, self.tail, self.segment = log, backend, tail, segment
        self.options, self.clock, self.quantum = options, clock, quantum
        self.database_id, self.identity_hash = database_id, identity_hash
        self.poisoned: BaseException | None = None
        #: Why nothing new is taken, though what was taken is finished.
        self.forbidden: KimberliteError | None = None
        self.closed = False
        self.durable = log.durable_group()[0]
        #: Called after groups became durable, and after a segment was closed.
        self.on_publish: Callable[[], None] = lambda: None
        self.on_rotate: Callable[[_native.Segment], None] = lambda _segment: None
        #: From the closing group to the next segment: the end of the log is in neither.
        self.rotating = False
        #: Bytes sealed since the start.
        self.written = 0
        tail.on_death = self.poison
        self._loop = asyncio.get_running_loop()
        self._marks, self._mark, self._marking = marks, mark, False
        self._marked_at = mark.group
        self.pool = log.pool(options.group_bytes)
        #: Out of the pool, and in no flight yet.
        self._taken: list[_native.Request] = []
        #: Appends that wait for room in the pool, in their order.
        self._turns: deque[asyncio.Future[None]] = deque()
        self._flights = Flights()
        self._syncing = False
        self._busy: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._os_timer: asyncio.TimerHandle | None = None
        self._waiting: list[asyncio.Future[None]] = []
        self._buffers: list[_native.Buffer] = []
        #: The next group's number when the idle timer was set.
        self._sealed_then = 0

    # ---- in

    async def append(
        self,
        parts: list[Part],
        policy: Sync,
        producer: Sender | None = None,
        several: bool = False,
    ) -> asyncio.Future[Any]:
        """Its answer to come, when it is in the pool: a receipt, or a list of them if it is to several streams."""
        if self.crowded:
            await self.turn()
        future = self._loop.create_future()
        self.enter(_native.Request(parts, policy, producer, several, future, self.quantum))
        return future

    @property
    def crowded(self) -> bool:
        """Whether an append has to wait for its `turn` before it may `enter`."""
        return bool(self._turns) or self.pool.bytes >= self.options.pool_bytes

    def fits(self, request: _native.Request) -> bool:
        """Whether any segment takes it."""
        return OVERHEAD + request.bound <= self.tail.most

    def enter(self, request: _native.Request) -> None:
        """Puts an append behind those in the pool. Its future is answered when it is as durable as it wants to be."""
        self.check()
        if self.forbidden is not None:
            raise type(self.forbidden)(str(self.forbidden))
        if self.closed:
            raise Closed("the database was closed before this was appended")
        self.pool.push(request)
        self.entered()

    @property
    def pulse(self) -> tuple[int, ...] | None:
        """Something that changes as long as it gets on with what it has to do; None if it has nothing."""
        if not (self.pool or self._flights or self._busy is not None or self._marking):
            return None
        return (
            self.durable,
            self.tail.place,
            self.tail.number,
            self._mark.counter,
            sum(f.written for f in self._flights),
        )

    def entered(self) -> None:
        """Appends have come into the pool: they are sealed when all who are about to ask have asked."""
        if self.pool.bytes >= self.options.group_bytes and self._busy is None:
            # Sealed while the others are still asking, so that it is written while the next is sealed.
            self._pump()
        elif not self.pool.due:
            self.pool.due = True
            if self.options.max_delay and not self._flights:
                self._loop.call_later(self.options.max_delay, self._pump)
            else:
                self._loop.call_soon(self._pump)

    async def turn(self) -> None:
        """Waits for room in the pool, behind whoever waits already."""
        turn = self._loop.create_future()
        self._turns.append(turn)
        self.pool.turns += 1
        # There may be room by now, and nothing left that would make some.
        self._loop.call_soon(self._let_in)
        try:
            self.check()
            await turn
        finally:
            self._turns.remove(turn)
            self.pool.turns -= 1
            # When this one is in the pool, or gone.
            self._loop.call_soon(self._let_in)

    def _let_in(self) -> None:
        room = self.pool.bytes < self.options.pool_bytes or self.poisoned is not None
        if room and self._turns and not self._turns[0].done():
            self._turns[0].set_result(None)

    def check(self) -> None:
        if self.poisoned is not None:
            why = str(self.poisoned) or type(self.poisoned).__name__
            raise UnknownOutcome(f"this handle is dead: {why}") from self.poisoned

    # ---- pool to disk

    def _pump(self) -> None:
        self.pool.due = False
        try:
            self._pump_all()
        except BaseException as error:
            # A group that is sealed and not written, or written and not accounted for, must never be followed.
            self.poison(error)
            raise

    def _pump_all(self) -> None:
        while self.pool and self.poisoned is None and self._busy is None and self._may_seal():
            batch, declarations = self.pool.first
            if OVERHEAD + batch > self.tail.most:
                requests, _ = self.pool.take(0)
                self._let_in()
                self.refuse(requests, LimitExceeded("the append does not fit in a segment"))
                continue
            # So many streams may be new that their declarations alone fill groups.
            crowd = OVERHEAD + declarations + batch > self.tail.most or declarations > MOST_DECLARED
            some = min(declarations, MOST_DECLARED, self.tail.most // 2)
            bound = OVERHEAD + (some if crowd else declarations + batch)
            if self.tail.full(bound) or self._out_of_numbers():
                self._start(self._rotate())
            elif not self.tail.has_room(bound):
                self._start(self.tail.make_room(bound))
            elif crowd:
                self._declare(bound)
            else:
                self._commit(*self._take())

    def _out_of_numbers(self) -> bool:
        """Whether the next group may have more records than the segment can count: compression makes little of some."""
        there = self.log.sealed()[1] - self.segment.first_position
        return there + self.tail.segment_bytes // _native.RECORD_HEADER > MOST_RECORDS

    def _may_seal(self) -> bool:
        flights, depth = self._flights, self.options.depth
        if flights.awaited >= depth:
            return False
        if not flights.writing:
            return True
        return len(flights.writing) < depth and self.pool.ripe

    def _take(self) -> tuple[list[_native.Request], int]:
        """The requests of the next group, and its bound: what fits, of one policy."""
        self._taken, bound = self.pool.take(max(0, min(self.options.largest_group, self.tail.largest()) - OVERHEAD))
        self._let_in()
        return self._taken, OVERHEAD + bound

    def _declare(self, bound: int) -> None:
        """A group of nothing but declarations."""
        self.log.declare(bound - OVERHEAD)
        flight = self._seal(bound, self._time(), durable=self.pool.time is None, closing=False)
        self._write(flight)
        self.log.finish(flight.sealed)

    def _time(self) -> int:
        """Of a group in front of the first that waits: if that keeps its time, the log's is not to be later."""
        now, kept = self.clock(), self.pool.time
        return now if kept is None else min(kept, now)

    def _commit(self, requests: list[_native.Request], bound: int) -> None:
        # One time for all of the group: what is kept of producers must not be of another time, or go back.
        now = self.clock()
        accepted, refused = self.log.admit(requests, now)
        if not accepted:
            self._refuse(refused)
            self._taken = []
            return
        kept = requests[0].time
        flight = self._seal(bound, now if kept is None else kept, durable=requests[0].durable, closing=False)
        flight.acks, flight.refused = accepted, refused
        self._taken = []
        if refused:
            self._flights.wanted = flight.sealed.number
        self._write(flight)
        self.log.finish(flight.sealed)

    def _refuse(self, refused: list[Answer]) -> None:
        """What they cite is sealed: they are told when it is durable."""
        if self._flights:
            last = self._flights.last()
            last.refused += refused
            self._flights.wanted = last.sealed.number
            if not last.durable:
                self._sync()
        else:
            self._answer(refused)

    def _answer(self, refused: list[Answer]) -> None:
        """What they cite is durable: they get their error, or the receipt that they were given before."""
        for request, outcome in refused:
            if isinstance(outcome, KimberliteError):
                request.refuse(outcome)
                continue
            try:
                self.log.answer_again(outcome, request)
            except KimberliteError as error:
                request.refuse(error)
            except OSError as error:
                request.refuse(Duplicate(f"it is appended, and its receipt cannot be read: {error}"))

    def _seal(self, bound: int, now: int, *, durable: bool, closing: bool) -> Flight:
        buffer = self._buffer(bound)
        sealed = self.log.seal(self.segment, self.tail.place, self.durable, now, closing, buffer)
        self.tail.advance(sealed.padded)
        self.written += sealed.padded
        flight = Flight(sealed, buffer, durable, time.monotonic())
        self._flights.add(flight)
        self.pool.writing = True
        return flight

    def _write(self, flight: Flight) -> None:
        buffer = flight.buffer
        assert buffer is not None
        view = memoryview(buffer)[: flight.sealed.padded]

        def done(error: OSError | None) -> None:
            error = error or self.tail.current.lost
            if error is not None:
                self.poison(error)
                return
            self._flights.written(flight)
            self.pool.writing = bool(self._flights.writing)
            view.release()
            if len(self._buffers) < SPARE_BUFFERS:
                self._buffers.append(buffer)
            try:
                self._written()
            except BaseException as problem:
                self.poison(problem)
                raise

        self.backend.submit(self.tail.file, flight.sealed.place, view, flight.alone, done)

    def _buffer(self, bound: int) -> _native.Buffer:
        for i, spare in enumerate(self._buffers):
            if spare.capacity >= bound:
                return self._buffers.pop(i)
        if self._buffers and len(self._buffers) >= SPARE_BUFFERS // 2:
            self._buffers.pop(0)
        return _native.Buffer(max(bound, 64 * 1024))

    # ---- disk to receipts

    def _written(self) -> None:
        if self.poisoned is not None:
            return
        self._answer_os()
        if self._sync_due():
            self._sync()
        self._advance()

    def _answer_os(self) -> None:
        """What the kernel has taken is said to be so, in order, and to be nothing more."""
        taken = self._flights.take_taken()
        if not taken:
            return
        for flight in taken:
            self._acknowledge(flight, durable=False)
        self._rest()
        if self._os_timer is None:
            self._os_timer = self._loop.call_later(OS_DELAY, self._os_due)

    def _os_due(self) -> None:
        self._os_timer = None
        if self.poisoned is None:
            self._sync()

    def _sync_due(self) -> bool:
        return self._flights.sync_due(everything=bool(self._waiting))

    def _sync(self) -> None:
        """Syncs every group whose write has completed; those that are needed and have not come back for it."""
        covered = self._flights.covered()
        if self._syncing or not covered or self.poisoned is not None:
            return
        self._syncing = True

        def done(error: OSError | None) -> None:
            self._syncing = False
            error = error or self.tail.current.lost
            if error is not None:
                self.poison(error)
                return
            for flight in covered:
                flight.synced = True
            self._advance()
            if self._sync_due():
                self._sync()

        self.backend.submit_sync(self.tail.file, done)

    def _advance(self) -> None:
        """Durable, publish, ack: in this order, for the prefix that is synced."""
        if self.poisoned is not None:
            return
        synced = self._flights.synced()
        now = time.monotonic() if synced else 0.0
        for flight in synced:
            self.durable = flight.sealed.number
            self.log.publish(flight.sealed)
            self.log.meters.durable(now - flight.since, flight.sealed.records, flight.sealed.padded)
        for flight in synced:
            self._acknowledge(flight, durable=True)
            self._answer(flight.refused)
            self._flights.leaves(flight)
        if synced:
            self._wake()
            self.on_publish()
        self._pump()
        if not self._flights:
            self._rest()

    def _acknowledge(self, flight: Flight, *, durable: bool) -> None:
        acks, flight.acks = flight.acks, []
        self.log.acknowledge(flight.sealed, acks, durable)

    # ---- quiet, mark, rotation

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def _rest(self) -> None:
        """Idle as far as can be seen: after a while without a new group, what is not synced is, and then a mark."""
        if self._idle is None:
            self._sealed_then = self.log.sealed()[0]
            self._idle = self._loop.call_later(self.options.idle, self._idle_due)

    def _idle_due(self) -> None:
        self._idle = None
        if self.poisoned is not None or self._marking:
            return
        if self.log.sealed()[0] != self._sealed_then:
            self._rest()
        elif self._flights:
            self._sync()
        elif self.pool or self._busy is not None:
            # Nobody comes back here for them if no group comes of it.
            self._rest()
        elif self._marked_at != self.durable:
            self._write_mark(clean=False)

    def _write_mark(self, *, clean: bool, done: Callable[[], None] = lambda: None) -> None:
        group, chain = self.log.durable_group()
        self._mark = Mark(self._mark.counter + 1, self.log.incarnation, clean, group, chain)
        buffer = self._buffer(BLOCK)
        view = memoryview(buffer)[:BLOCK]
        view[:] = encode_mark(self._mark, self.database_id, self.identity_hash)
        self._marking = True

        def finished(error: OSError | None) -> None:
            self._marking = False
            view.release()
            self._buffers.append(buffer)
            if error is not None:
                self.poison(error)
            else:
                self._marked_at = group
                done()
                if group != self.durable:
                    # The timer that was to mark what became durable meanwhile may have come and gone.
                    self._rest()

        self.backend.submit(self._marks, self._mark.counter % 2 * BLOCK, view, True, finished)

    def _start(self, work: Coroutine[object, object, None]) -> None:
        """Runs what the next group must wait for; appends go on gathering in the pool meanwhile."""

        async def run() -> None:
            try:
                await work
            except (NoSpace, Unavailable) as error:
                self._refuse_all(error)
            except (OSError, UnknownOutcome) as error:
                self.poison(error)
            except BaseException as error:
                # A rotation that was left in its middle must not be begun again.
                self.poison(error)
                raise
            finally:
                self._busy = None
            self._pump()

        self._busy = begin(run(), "kimberlite-committer", self.poison)

    def forbid(self, why: KimberliteError) -> None:
        """From here on nothing new is taken; what is sealed is finished."""
        self.forbidden = why
        self._refuse_all(why)

    def _refuse_all(self, error: KimberliteError) -> None:
        """Everything in the pool: nothing of it was numbered or sealed."""
        requests = self.pool.clear()
        self._let_in()
        self.refuse(requests, error)

    def refuse(self, requests: list[_native.Request], error: KimberliteError) -> None:
        """With this error whatever is not in the log already; what is, is answered as it was before."""
        answers: list[Answer] = []
        for request in requests:
            outcome = self.log.repeated(request)
            # In a log that was rolled back nobody finds what it has lost.
            if outcome is None or (isinstance(error, RolledBack) and isinstance(outcome, KimberliteError)):
                request.refuse(type(error)(str(error)))
            else:
                answers.append((request, outcome))
        if answers:
            self._refuse(answers)

    async def quiet(self) -> None:
        """Returns when everything sealed is durable."""
        while self._flights:
            self.check()
            self._sync()
            waiter = self._loop.create_future()
            self._waiting.append(waiter)
            await waiter
        self.check()

    async def until_durable(self, group: int) -> bool:
        """Returns when this group is durable; False if it never will be."""
        while self.durable < group and self.poisoned is None:
            self._sync()
            waiter = self._loop.create_future()
            self._waiting.append(waiter)
            await waiter
        return self.poisoned is None

    async def say(self, payloads: Sequence[bytes]) -> int:
        """Appends system records; the group by which all of them are in the log, and durable."""
        answers: list[asyncio.Future[Receipt]] = []
        for payload in payloads:
            if self.crowded:
                await self.turn()
            future: asyncio.Future[Receipt] = self._loop.create_future()
            parts: list[Part] = [("", 0, _native.encode([payload]), None)]
            self.enter(_native.Request(parts, "group", None, False, future, self.quantum))
            answers.append(future)
        return max(receipt.group for receipt in await asyncio.gather(*answers))

    async def say_anyhow(self, payloads: Sequence[bytes], *more: Callable[[], None]) -> int:
        """The same with the room that is kept for it, if the disk has no other; and with `more`, what makes some, if
        that is not enough."""
        try:
            return await self.say(payloads)
        except NoSpace as error:
            full = error
        for give in (lambda: give_reserve(self.backend, self.log, KEPT), *more):
            # At once: nobody else is to come in front of it and take the room.
            self._refuse_all(full)
            # What cannot be given is no room.
            with contextlib.suppress(OSError):
                give()
            with self.tail.to_the_last():
                try:
                    return await self.say(payloads)
                except NoSpace as error:
                    full = error
        raise full

    async def mark(self, group: int) -> bool:
        """Returns when a mark on the disk says that this group is durable; False if it never will be."""
        while await self.until_durable(group) and self._marked_at < group:
            if self._marking:
                await asyncio.sleep(0.001)
                continue
            marked = self._loop.create_future()
            self._waiting.append(marked)
            self._write_mark(clean=False, done=self._wake)
            await marked
        return self.poisoned is None

    async def _rotate(self) -> None:
        """Old segment's closing group durable, then rename, directory, header, sync; only then append."""
        prepared = await self.tail.make_next()
        await self.quiet()
        self.rotating = True
        flight = self._seal(2 * BLOCK, self._time(), durable=True, closing=True)
        self._write(flight)
        self.log.finish(flight.sealed)
        await self.quiet()
        number = self.tail.number + 1
        header = self.log.next_segment_header(number)
        await self.backend.run(lambda: install(self.backend, prepared, number, header))
        old, old_file, old_end = self.segment, self.tail.file, self.tail.place
        self.segment = self.log.attach(header, prepared.file)
        self.tail.rotated(prepared)
        self.rotating = False
        await self.backend.run(lambda: old_file.truncate(old_end))
        self.log.release(old, opener(self.backend, segment_name(old.number)))
        let_go(old_file)
        self.on_rotate(old)

    # ---- out

    async def drain(self) -> None:
        """Everything accepted is durable and answered."""
        while self.pool or self._turns or self._busy is not None or self._flights or self._marking:
            self.check()
            if self._busy is not None:
                await asyncio.wait([self._busy])
            elif self._flights:
                await self.quiet()
            else:
                self._pump()
                await asyncio.sleep(0)
        self.check()

    async def close(self) -> None:
        """Drains, then writes both marks clean."""
        await self.drain()
        # Nothing follows a clean mark.
        self.closed = True
        for timer in (self._idle, self._os_timer):
            if timer is not None:
                timer.cancel()
        for _ in range(2):
            finished = self._loop.create_future()
            self._waiting.append(finished)
            self._write_mark(clean=True, done=self._wake)
            await finished
            self.check()

    def poison(self, error: BaseException) -> None:
        """Nothing is acknowledged from here on, and the descriptor is never synced again."""
        if self.poisoned is not None:
            return
        self.poisoned = error
        message = (
            f"a write or a sync failed ({str(error) or type(error).__name__}); whether this was appended is unknown"
        )
        waiting = self.pool.clear() + self._taken
        self._taken = []
        for flight in self._flights:
            waiting += flight.acks + [request for request, _ in flight.refused]
            # A request leads by its future's error to the caller's frame and so back here, and no collector sees it.
            flight.acks, flight.refused = [], []
        for request in waiting:
            request.refuse(UnknownOutcome(message))
        self._wake()
        self._let_in()
        self.on_publish()
