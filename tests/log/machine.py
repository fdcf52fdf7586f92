"""One database and its life on a simulated disk: appends in every way, cuts, kills, faults, a full disk."""

from __future__ import annotations

import asyncio
import errno
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import pytest

from kimberlite import (
    Busy,
    Closed,
    Conflict,
    Dropping,
    Duplicate,
    KimberliteError,
    Log,
    NoSpace,
    Receipt,
    Unavailable,
    UnknownOutcome,
)
from kimberlite.log.opening import Injected, Opening, open_log
from kimberlite.log.options import Options
from kimberlite.storage.memory import Disk, MemoryBackend
from tests.log.audit import audit
from tests.log.expected import Answer, Expected, State
from tests.log.shown import Beside, Following, check_handle, everything
from tests.log.steps import Call, Cut, Fault, Outcome, Retaining, Sent, killed, make, prepare, repeated, same
from tests.log.turns import VirtualLoop, end
from tests.model.agreement import Master

T = TypeVar("T")

START = 1_700_000_000_123_456_789
#: What a call may say when something is wrong; of these only UNKNOWN_OUTCOME leaves open what was appended.
REFUSALS = (NoSpace, Unavailable, Conflict, UnknownOutcome)


class History:
    """`log` is always open between the steps, and `expected` is what it must show."""

    def __init__(
        self, *, encrypted: bool, loops: Callable[[], asyncio.AbstractEventLoop] = VirtualLoop, debug: bool = False
    ) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self.master = Master.kept(Path(self._directory.name), b"m" * 32) if encrypted else None
        self._loops, self._debug = loops, debug
        self.expected = Expected()
        self.disk = Disk()
        self.now = self.latest = START
        self.options = Options(segment_bytes=64 * 1024, idle=0.0005)
        #: The order in which writes land; none is the order in which they were submitted.
        self.rng: Random | None = None
        self.fault: Fault | None = None
        self.anchor: Receipt | None = None
        self.beside: Beside | None = None
        self.tails: list[Following] = []
        self._opened = 0
        self.loop = self._begin()
        self.log = self.run(self._open())

    def abandon(self) -> None:
        """Something did not hold, and that is what is to be seen."""
        end(self.loop)
        self._directory.cleanup()

    def finish(self) -> None:
        self.disk.capacity = None
        try:
            self.close_and_reopen([])
            self.run(self.log.close())
        finally:
            self.abandon()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def tick(self, ns: int) -> None:
        """The clock is put on, or back; the log's time is between that of its last record and `latest`."""
        self._decide()
        if self.expected.of(State.SENT):
            # On a full disk some may still wait, and may find their producers forgotten.
            return
        self.now += ns
        self.latest = max(self.latest, self.now)

    # ---- opening

    def _begin(self) -> asyncio.AbstractEventLoop:
        loop = self._loops()
        loop.set_debug(self._debug)
        return loop

    def _ask(self, verb: str, name: str, place: int, length: int) -> OSError | None:
        return None if self.fault is None else self.fault(verb, name, place, length)

    def opening(self, *, read_only: bool = False, anchor: Receipt | None = None) -> Opening:
        self._opened += 1
        # Not the same entropy after a crash: what was torn off must not fit in again.
        entropy = Random(self._opened)
        return open_log(
            "simulated",
            create=True,
            read_only=read_only,
            key_file=None if self.master is None else self.master.file,
            backend=MemoryBackend(self.disk, self.rng, self._ask),
            origin=None,
            anchor=anchor,
            options=self.options,
            injected=Injected(entropy.randbytes, lambda: self.now, entropy.randbytes(32)),
        )

    async def _open(self) -> Log:
        """The writer. On a full disk it may be a reader at first, and then it gets room."""
        log = await self.opening(anchor=self.anchor)
        if any("opened for reading only" in note for note in (await log.info())["notes"]):
            assert self.disk.capacity is not None
            shown = await everything(log.read(system=True))
            first = shown[0].position if shown else 0
            common = min(first + len(shown), len(self.expected.rows))
            assert shown[: common - first] == self.expected.rows[first:common]
            await log.close()
            self.disk.capacity = None
            log = await self.opening(anchor=self.anchor)
        with pytest.raises(Busy):
            await self.opening()
        return log

    def restart(self, left: Disk, *, power: bool, recovery: Sequence[int] = ()) -> None:
        """Another process, on what is left of the disk; the power may go as many more times while it opens."""
        end(self.loop)
        self.tails, self.beside, self.fault = [], None, None
        for countdown in recovery:
            self.disk, self.loop = left, self._begin()
            cut = Cut(left, countdown, Random(countdown))
            left.on_step = cut
            self.run(self._open())
            end(self.loop)
            left.on_step = None
            left, power = cut.taken(), True
        self.disk, self.loop = left, self._begin()
        self._recover(power=power)

    def _recover(self, *, power: bool) -> None:
        self.log = self.run(self._open())
        for unit in self.expected.of(State.TAKEN) if power else []:
            unit.state = State.SENT
        self.check()
        for unit in self.expected.of(State.SENT):
            unit.lost()
        assert not self.expected.of(State.TAKEN), "what the kernel had taken is gone without a cut"
        self.expected.asked = self.expected.first
        audit(self.disk, self.master, self.expected, whole=True)

    def close_and_reopen(self, calls: Sequence[Call], lose: Sequence[str] = ()) -> None:
        """A clean close, with appends under way. A reader beside it stays, unless derived files are deleted then."""
        self._decide()
        sents = self._prepared(calls, strict=False)

        async def work() -> None:
            tasks = [asyncio.ensure_future(self._send(sent)) for sent in sents]
            await asyncio.sleep(0)
            await self.log.close()
            await asyncio.gather(*tasks, *(tail.task for tail in self.tails))
            if lose and self.beside is not None:
                await self.beside.log.close()

        self.run(work())
        self.tails = []
        self.beside = None if lose else self.beside
        for name in [name for name in self.disk.files() if name.startswith(tuple(lose))]:
            MemoryBackend(self.disk).unlink(name)
        for sent in sents:
            self._settle(sent, sent.outcome, (*REFUSALS, Closed), calm=False)
        self._recover(power=False)

    def bury(self, how: str, rng: Random) -> None:
        """A dead handle says so to everybody; then its process goes on, is killed, or loses power."""
        for call in (lambda: self.log.append("s", b"x"), self.log.info, lambda: self.log.get(0)):
            with pytest.raises(UnknownOutcome):
                self.run(call())
        with pytest.raises(UnknownOutcome):
            self.run(everything(self.log.read()))
        for unit in self.expected.of(State.TAKEN):
            unit.state = State.SENT
        if how == "close":
            with pytest.raises(UnknownOutcome):
                self.run(self.log.close())
            self.tails = []
            self._recover(power=True)
        else:
            self.restart(killed(self.disk, rng) if how == "kill" else self.disk.crash(rng), power=True)

    @property
    def dead(self) -> bool:
        try:
            self.run(self.log.info())
        except UnknownOutcome:
            return True
        return False

    # ---- appending

    def step(
        self,
        calls: Sequence[Call],
        *,
        cancel: Sequence[int] = (),
        turns: int = 0,
        cut: Cut | None = None,
        fault: Fault | None = None,
        retaining: Retaining | None = None,
    ) -> None:
        """Makes the calls at once. Some are cancelled after so many turns of the loop; or a cut is taken while
        they run, for `restart`; or a fault meets them, and the handle may be `dead`. Beside them something may be
        dropped."""
        self._decide()
        full = self.disk.capacity is not None
        calm = not cancel and fault is None and not (full and len(calls) > 1) and not self.expected.of(State.SENT)
        calm = calm and not (full and retaining)
        if retaining is not None:
            self.expected.asked = max(self.expected.asked, retaining.before)
            self.expected.full |= full or (fault is not None and fault.number == errno.ENOSPC)
        sents = self._prepared(calls, strict=calm)
        asked = [] if retaining is None else [retaining]
        if cut is not None:
            cut.sent, self.disk.on_step = [*sents, *asked], cut
        self.fault = fault
        self.run(self._send_all(sents, cancel, turns, asked))
        self.fault = self.disk.on_step = None
        if cut is not None:
            cut.taken()
        refusals = REFUSALS if not calm else (NoSpace,) if full else ()
        for i, sent in enumerate(sents):
            self._settle(sent, sent.outcome if cut is None else cut.outcomes.get(i), refusals, calm=calm)
        for each in asked:
            self._dropped(each.outcome if cut is None else cut.outcomes.get(len(sents)), calm=calm and fault is None)
        if cut is None and (fault is None or not self.dead):
            self.check()
            self.expected.asked = self.expected.first

    def _decide(self) -> None:
        """Behind a durable append nothing that was sent before is under way any more."""
        if not self.expected.of(State.SENT):
            return
        flush = self._prepared([Call(("flush",), (0,))], strict=False)[0]
        self.run(self._send(flush))
        self._settle(flush, flush.outcome, (NoSpace,) if self.disk.capacity is not None else (), calm=False)
        self.check()
        if flush.unit.state is State.DURABLE:
            for unit in self.expected.of(State.SENT):
                unit.lost()

    def _prepared(self, calls: Sequence[Call], *, strict: bool) -> list[Sent]:
        last = max((unit.timestamp for unit in self.expected.of(State.TAKEN, State.DURABLE)), default=0)
        times = sorted({max(last, self.now), max(self.latest, self.now)})
        forming = [(self.expected.forming(), time) for time in times]
        there = {stream for stream, length in forming[0][0].lengths.items() if length}
        alone = len(calls) == 1
        sents = []
        for call in calls:
            sents.append(prepare(call, self.expected, forming, there, strict=strict, alone=alone))
            if call.twice and sents[-1].unit.producer is not None:
                sents.append(repeated(sents[-1], forming))
        return sents

    async def _send(self, sent: Sent) -> None:
        try:
            sent.outcome = await make(self.log, sent)
        except (KimberliteError, asyncio.CancelledError) as error:
            sent.outcome = error

    def _dropped(self, outcome: Outcome, *, calm: bool) -> None:
        """What was said to be dropped is, whatever comes."""
        if isinstance(outcome, Dropping):
            assert self.expected.first <= outcome.first <= max(self.expected.first, self.expected.asked)
            self.expected.first = outcome.first
        elif outcome is not None:
            assert not calm, outcome
            assert isinstance(outcome, REFUSALS), outcome

    async def _retain(self, retaining: Retaining) -> None:
        try:
            retaining.outcome = await self.log.retain(before=retaining.before)
        except KimberliteError as error:
            retaining.outcome = error

    def would_drop(self, before: int) -> Dropping:
        """What would go. Nothing does."""
        self.check()
        return self.run(self.log.retain(before=before, dry_run=True))

    async def _send_all(
        self, sents: Sequence[Sent], cancel: Sequence[int], turns: int, asked: Sequence[Retaining]
    ) -> None:
        tasks = [asyncio.ensure_future(self._send(sent)) for sent in sents]
        dropping = [asyncio.ensure_future(self._retain(each)) for each in asked]
        for _ in range(turns):
            await asyncio.sleep(0)
        for i in cancel:
            tasks[i % len(tasks)].cancel()
        await asyncio.gather(*tasks, *dropping, return_exceptions=True)

    def _settle(self, sent: Sent, outcome: Outcome, refusals: tuple[type[KimberliteError], ...], *, calm: bool) -> None:
        """What follows from an answer, and whether it is one that this call may get."""
        if isinstance(outcome, dict):
            assert not calm or any(answer.kind in ("new", "again") for answer in sent.allowed)
            self._acknowledged(sent, outcome)
        elif isinstance(outcome, KimberliteError):
            if not isinstance(outcome, refusals):
                assert isinstance(outcome, (Conflict, Duplicate)), outcome
                expected = outcome.expected if isinstance(outcome, Conflict) else None
                said = Answer("conflict" if isinstance(outcome, Conflict) else "duplicate", None, expected)
                # On a disk that cannot be read it is known to be there, and not where.
                unread = said.kind == "duplicate" and Unavailable in refusals
                there = unread and any(answer.kind == "again" for answer in sent.allowed)
                assert there or said in sent.allowed, f"{outcome!r}, and not {sent.allowed}"
            certain = not isinstance(outcome, UnknownOutcome) and len(sent.units) == 1
            if certain and not sent.repeats and not sent.call.twice and sent.unit.state is State.SENT:
                sent.unit.lost()

    def _acknowledged(self, sent: Sent, receipts: dict[str, Receipt]) -> None:
        durable = all(receipt.durable for receipt in receipts.values())
        assert durable or sent.policy == "os"
        for unit in sent.units:
            unit.state = State.DURABLE if durable or unit.state is State.DURABLE else State.TAKEN
        if durable:
            self.anchor = max([*receipts.values(), *([self.anchor] if self.anchor else [])], key=lambda r: r.tree_size)
        if len(sent.units) > 1:
            [receipt] = receipts.values()
            assert receipt.last_offset - receipt.first_offset == len(sent.units) - 1
            self.expected.joined.append(receipt)
            return
        for stream, receipt in receipts.items():
            assert receipt.stream == stream
            for earlier in sent.unit.receipts:
                if earlier.stream == stream:
                    assert same(receipt, earlier), f"unit {sent.unit.number} was answered {earlier} and now {receipt}"
            sent.unit.receipts.append(receipt)

    # ---- what must hold

    def open_beside(self) -> None:
        """A reader beside the writer, who stays open."""

        async def work() -> Beside:
            if self.beside is not None:
                await self.beside.log.close()
            return Beside(await self.opening(read_only=True))

        self.beside = self.run(work())
        self.check()
        self.rest(0.2)

    def follow(self, stream: str | None, start: int | None, *, system: bool) -> None:
        async def work() -> Following:
            tail = Following(self.log, stream, start, system=system)
            await asyncio.sleep(0)
            return tail

        self.tails.append(self.run(work()))

    def rest(self, seconds: float) -> None:
        """Time passes. An idle log marks what is durable, so a reader beside it shows all of it."""

        async def work() -> None:
            await asyncio.sleep(seconds)
            if self.beside is not None and seconds > 0.1:
                await self.beside.read()
                await check_handle(self.log, self.expected, encrypted=self.master is not None)
                self.beside.check(self.expected)
                shown = (self.beside.first, self.beside.shown)
                there = (self.expected.first, len(self.expected.rows))
                assert shown == there, "a reader beside a writer that rests does not show all, or what is dropped"

        self.run(work())

    def check(self) -> None:
        """What the handle shows is what it must show."""
        self.run(self._check())

    async def _check(self) -> None:
        expected, encrypted = self.expected, self.master is not None
        await check_handle(self.log, expected, encrypted=encrypted)
        due = [len(tail.window(expected)) for tail in self.tails]
        for _ in range(10):
            await asyncio.sleep(0)
        if self.beside is not None:
            await self.beside.read()
        await check_handle(self.log, expected, encrypted=encrypted)
        if self.beside is not None:
            self.beside.check(expected)
        for tail, least in zip(self.tails, due, strict=True):
            tail.check(expected, least)
