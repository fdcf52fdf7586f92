"""The whole engine against a list: random histories of appends, reads, crashes, faults and reopening.

The test command runs a few, the same ones each time. Many, and others each time:

    python -m pytest tests/log/test_machine.py --hypothesis-profile=long
"""

from __future__ import annotations

import asyncio
import errno
import sys
from collections.abc import AsyncIterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from kimberlite import Dropped, Invalid, Record
from kimberlite.log.options import Options
from tests.log.audit import audit
from tests.log.machine import History
from tests.log.steps import Call, Cut, Fault, Retaining

NAMES = ("a", "b", "поток", "d")
SIZES = st.sampled_from([0, 30, 200, 3_000, 6_000, 12_000])
SEEDS = st.integers(0, 1 << 32)

one = st.sampled_from(NAMES).map(lambda name: (name,))
streams = one | one | one | st.lists(st.sampled_from(NAMES), min_size=2, max_size=3, unique=True).map(tuple)
calls = st.builds(
    Call,
    streams,
    st.lists(SIZES, min_size=1, max_size=4).map(lambda sizes: tuple(sizes[:1] + [min(s, 200) for s in sizes[1:]])),
    many=st.sampled_from([False, False, False, True]),
    sync=st.sampled_from(["group", "group", "os", "os", "batch", "record"]),
    expect=st.sampled_from(["", "", "", "right", "new", "wrong"]),
    producer=st.sampled_from(["", "", "p", "q"]),
    sequence=st.sampled_from(["next", "next", "next", "ahead", "other"]),
    again=st.none() | st.none() | st.integers(0, 30),
    twice=st.sampled_from([False, False, True]),
    shape=st.integers(0, 3),
)
bursts = st.lists(calls, min_size=2, max_size=8)
options = st.builds(
    Options,
    sync=st.sampled_from(["group", "os", "batch"]),
    segment_bytes=st.sampled_from([64 * 1024, 64 * 1024, 128 * 1024]),
    depth=st.integers(1, 8),
    group_bytes=st.sampled_from([1, 1, 256 * 1024]),
    largest_group=st.sampled_from([4096, 4 << 20]),
    pool_bytes=st.sampled_from([1, 64 << 20]),
    max_delay=st.sampled_from([0.0, 0.001]),
    idle=st.sampled_from([0.0005, 0.005]),
    compression=st.sampled_from([None, 1]),
    cache_bytes=st.sampled_from([0, 64 << 20]),
    checkpoint_records=st.sampled_from([1, 10, 100_000, 100_000]),
    pack=st.sampled_from([0.0, 0.5, 1.0]),
)

#: What follows from the log.
DERIVED = ("checkpoint", "hashes", "index/", "producers")
#: The verbs that fail.
VERBS = ("submit", "submit", "submit", "submit_sync", "submit_sync", "write", "sync", "allocate", "rename", "open")


def bound_of(kind: str, at: int, history: History) -> int | datetime | None:
    """A bound for a read: an offset or position, or a time near that of a record."""
    rows = history.expected.rows
    if kind == "time" and rows:
        ns = rows[at % len(rows)].timestamp
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=ns // 1000 + at % 3 - 1)
    if kind == "ancient":
        return datetime(1, 1, 1, tzinfo=UTC)
    if kind == "far":
        return datetime(9999, 12, 31, tzinfo=UTC)
    return at % (len(rows) + 3) if kind == "number" else None


async def until_dropped(records: AsyncIterable[Record]) -> tuple[list[Record], int | None]:
    """What is given, and what is told to go on with behind what was dropped."""
    found: list[Record] = []
    try:
        async for record in records:
            found.append(record)  # noqa: PERF401
    except Dropped as error:
        return found, error.first
    return found, None


kinds = st.sampled_from(["", "number", "number", "time", "time", "ancient", "far"])
places = st.integers(0, 10_000)


class Engine(RuleBasedStateMachine):
    """Rules say what happens; `History` says what must follow."""

    encrypted = False
    debug = False

    def __init__(self) -> None:
        super().__init__()
        self.history = self.begun()

    def begun(self) -> History:
        return History(encrypted=self.encrypted, debug=self.debug)

    def teardown(self) -> None:
        self.history.finish() if sys.exception() is None else self.history.abandon()

    @initialize(options=options, order=st.none() | SEEDS)
    def begin(self, options: Options, order: int | None) -> None:
        self.reopened([], options, order)

    # ---- appending

    @rule(call=calls)
    def append(self, call: Call) -> None:
        self.history.step([call])

    @rule(calls=bursts)
    def append_at_once(self, calls: list[Call]) -> None:
        self.history.step(calls)

    @rule(calls=bursts, cancel=st.lists(st.integers(0, 5), min_size=1, max_size=3), turns=st.integers(0, 12))
    def append_and_cancel(self, calls: list[Call], cancel: list[int], turns: int) -> None:
        self.history.step(calls, cancel=cancel, turns=turns)

    @rule(again=st.integers(0, 30), sync=st.sampled_from(["group", "os", "batch"]))
    def repeat(self, again: int, sync: Any) -> None:
        self.history.step([Call(("a",), (1,), again=again, sync=sync)])

    # ---- what goes wrong

    @rule(
        calls=bursts,
        at=st.integers(1, 16),
        seed=SEEDS,
        power=st.booleans(),
        again=st.lists(st.integers(1, 60), max_size=2),
    )
    def cut_while_appending(self, calls: list[Call], at: int, seed: int, power: bool, again: list[int]) -> None:
        cut = Cut(self.history.disk, at, Random(seed), power)
        self.history.step(calls, cut=cut)
        self.history.restart(cut.taken(), power=power, recovery=again)

    @rule(calls=bursts, seed=SEEDS, again=st.lists(st.integers(1, 40), max_size=2))
    def cut(self, calls: list[Call], seed: int, again: list[int]) -> None:
        self.history.step([replace(call, sync="os") for call in calls])
        self.history.restart(self.history.disk.crash(Random(seed)), power=True, recovery=again)

    @rule(
        calls=bursts,
        verb=st.sampled_from(VERBS),
        at=st.integers(1, 3),
        number=st.sampled_from([errno.EIO, errno.ENOSPC]),
        lasting=st.booleans(),
        how=st.sampled_from(["close", "kill", "cut"]),
        seed=SEEDS,
    )
    def fail(self, calls: list[Call], verb: str, at: int, number: int, lasting: bool, how: str, seed: int) -> None:
        self.history.step(calls, fault=Fault(verb, at, number, lasting))
        if self.history.dead:
            self.history.bury(how, Random(seed))

    # ---- dropping

    def some(self, at: int) -> Retaining:
        """What is before some record that was seen, or before the end."""
        return Retaining(at % (len(self.history.expected.rows) + 1))

    @rule(calls=st.just([]) | bursts, at=places, turns=st.integers(0, 12), beside=st.booleans())
    def retain(self, calls: list[Call], at: int, turns: int, beside: bool) -> None:
        self.history.step(calls, turns=turns, retaining=self.some(at))
        if beside:
            self.history.open_beside()

    @rule(at=places)
    def retain_what_would_go(self, at: int) -> None:
        history, before = self.history, self.some(at).before
        would = history.would_drop(before)
        assert would.first <= max(before, history.expected.first)
        retaining = Retaining(before)
        history.step([], retaining=retaining)
        # On a full disk it may be put off, and a checkpoint may come in between.
        assert retaining.outcome == would or history.disk.capacity is not None

    @rule(
        calls=st.just([]) | bursts,
        before=places,
        at=st.integers(1, 40),
        seed=SEEDS,
        power=st.booleans(),
        again=st.lists(st.integers(1, 60), max_size=2),
    )
    def cut_while_retaining(
        self, calls: list[Call], before: int, at: int, seed: int, power: bool, again: list[int]
    ) -> None:
        cut = Cut(self.history.disk, at, Random(seed), power)
        self.history.step(calls, cut=cut, retaining=self.some(before))
        self.history.restart(cut.taken(), power=power, recovery=again)

    @rule(
        calls=st.just([]) | bursts,
        before=places,
        verb=st.sampled_from((*VERBS, "unlink", "sync_directory", "read")),
        at=st.integers(1, 6),
        number=st.sampled_from([errno.EIO, errno.ENOSPC]),
        lasting=st.booleans(),
        how=st.sampled_from(["close", "kill", "cut"]),
        seed=SEEDS,
    )
    def fail_while_retaining(
        self,
        calls: list[Call],
        before: int,
        verb: str,
        at: int,
        number: int,
        lasting: bool,
        how: str,
        seed: int,
    ) -> None:
        self.history.step(calls, fault=Fault(verb, at, number, lasting), retaining=self.some(before))
        if self.history.dead:
            self.history.bury(how, Random(seed))

    @rule(blocks=st.integers(0, 24))
    def fill_the_disk(self, blocks: int) -> None:
        disk = self.history.disk
        disk.capacity = 1 << 40
        disk.capacity = disk.capacity - disk.free() + 4096 * blocks

    @rule()
    def make_room(self) -> None:
        self.history.disk.capacity = None
        self.history.step([Call(("a",), (10,))])

    @rule(ns=st.sampled_from([1, 1_000, 10**9, 600 * 10**9, -1, -(10**9), -600 * 10**9, 8 * 86_400 * 10**9]))
    def set_the_clock(self, ns: int) -> None:
        self.history.tick(ns)

    @rule(seconds=st.sampled_from([0.002, 0.02, 0.7, 2.0]))
    def wait(self, seconds: float) -> None:
        self.history.rest(seconds)

    # ---- opening

    @rule(
        calls=st.just([]) | bursts,
        options=options,
        order=st.none() | SEEDS,
        lose=st.sampled_from([(), (), ("checkpoint",), ("producers",), DERIVED]),
    )
    def reopen(self, calls: list[Call], options: Options, order: int | None, lose: tuple[str, ...]) -> None:
        self.reopened(calls, options, order, lose)

    def reopened(self, calls: list[Call], options: Options, order: int | None, lose: tuple[str, ...] = ()) -> None:
        self.history.options = options
        self.history.rng = None if order is None else Random(order)
        self.history.close_and_reopen(calls, lose)

    @rule(calls=bursts)
    def open_beside(self, calls: list[Call]) -> None:
        self.history.step(calls)
        self.history.open_beside()

    # ---- reading

    @rule(
        stream=st.sampled_from([None, None, *NAMES, "nobody"]),
        start=kinds,
        at=places,
        until=kinds,
        to=places,
        limit=st.none() | st.integers(0, 8),
        reverse=st.booleans(),
        system=st.booleans(),
    )
    def read(
        self,
        stream: str | None,
        start: str,
        at: int,
        until: str,
        to: int,
        limit: int | None,
        reverse: bool,
        system: bool,
    ) -> None:
        history = self.history
        first, last = bound_of(start, at, history), bound_of(until, to, history)
        found: list[Record] = []
        seen, dropped = -1, None
        while seen != len(history.expected.rows):
            # In real time more may have become durable before the read began.
            history.check()
            seen = history.log.durable_position
            records = history.log.read(stream, start=first, until=last, limit=limit, reverse=reverse, system=system)
            found, dropped = history.run(until_dropped(records))
            seen = max(seen, history.log.durable_position)
        window, ends = history.expected.window(stream, first, last, limit, reverse=reverse, system=system)
        # What is left in front of it may not be given.
        assert found == window[: len(found) if ends else None]
        assert dropped == (history.expected.first_of(stream) if ends else None)

    @rule(places=st.lists(places, max_size=5))
    def get(self, places: list[int]) -> None:
        rows, log = self.history.expected.rows, self.history.log
        wanted = [place % len(rows) for place in places] if rows else []
        first = self.history.expected.first
        for gone in (place for place in wanted if place < first):
            for call in (log.get(gone), log.get_many(wanted)):
                with pytest.raises(Dropped) as caught:
                    self.history.run(call)
                assert caught.value.first == first
        there = [place for place in wanted if place >= first]
        assert self.history.run(log.get_many(there)) == [rows[place] for place in there]
        with pytest.raises(Invalid):
            self.history.run(log.get(len(rows) + 1_000))

    @rule(stream=st.sampled_from([None, *NAMES]), start=st.none() | st.integers(0, 5), system=st.booleans())
    def follow(self, stream: str | None, start: int | None, system: bool) -> None:
        self.history.follow(stream, start, system=system)

    @rule()
    def verify(self) -> None:
        history = self.history
        history.check()
        info = history.run(history.log.info())
        log = audit(history.disk, history.master, history.expected, whole=False)
        if info["group"]:
            group = log.group(info["group"])
            said = (info["chain"], info["root"], info["tree_size"])
            assert said == (group.chain.hex(), group.root.hex(), group.tree_size)


class Encrypted(Engine):
    encrypted = True


class Debugged(Engine):
    """Under asyncio's debug mode."""

    debug = True


class OnPlainLoop(Engine):
    """In real time, where timers and turns come as they come."""

    def begun(self) -> History:
        return History(encrypted=True, loops=asyncio.SelectorEventLoop)


class OnUvloop(Engine):
    def begun(self) -> History:
        uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed")
        return History(encrypted=True, loops=uvloop.new_event_loop)


SHORT = settings(
    derandomize=True,
    deadline=None,
    # What fails is made smaller by the long profile, which has the time.
    phases=[Phase.generate],
    max_examples=15,
    stateful_step_count=25,
    suppress_health_check=list(HealthCheck),
)
LONG = settings.get_current_profile_name() == "long"


@pytest.mark.parametrize("machine", [Engine, Encrypted, Debugged])
def test_an_engine_keeps_its_word_whatever_happens(machine: type[Engine]) -> None:
    run_state_machine_as_test(machine, settings=settings() if LONG else SHORT)


@pytest.mark.parametrize("machine", [OnPlainLoop, OnUvloop])
def test_an_engine_keeps_its_word_on_every_loop(machine: type[Engine]) -> None:
    # What is found here may not come again: nothing is made smaller, however many.
    few = settings(parent=SHORT, max_examples=60 if LONG else 4)
    run_state_machine_as_test(machine, settings=few)
