"""What happens to a database in one step: the appends that are sent, and what goes wrong meanwhile."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from random import Random

from kimberlite import Dropping, Log, Receipt, Record
from kimberlite.arguments import Sync
from kimberlite.storage.memory import Disk
from tests.log.expected import FORGOTTEN, Answer, Expected, Forming, State, Unit


@dataclass(frozen=True)
class Call:
    """An append as a rule of the machine draws it; what depends on the state is said in words."""

    streams: tuple[str, ...]
    sizes: tuple[int, ...]
    many: bool = False
    sync: Sync = "group"
    #: "", "right", "new" or "wrong".
    expect: str = ""
    #: "" or a name; and which sequence it gives: "next", "ahead", "other" for other records under the last one.
    producer: str = ""
    sequence: str = "next"
    #: Which of the appends that had a producer this repeats, if any; and whether it is sent twice at once.
    again: int | None = None
    twice: bool = False
    shape: int = 0


#: None while it has not returned.
Outcome = dict[str, Receipt] | Dropping | BaseException | None


@dataclass(eq=False)
class Retaining:
    """A dropping that was asked for, and what came of it."""

    before: int
    outcome: Outcome = None


@dataclass(eq=False)
class Sent:
    """A call, what may come of it if nothing goes wrong, and what came."""

    units: list[Unit]
    expect: dict[str, int | None]
    call: Call
    allowed: list[Answer]
    #: Whether its unit had been sent before, and is not to be judged gone because this call was refused.
    repeats: bool
    outcome: Outcome = None

    @property
    def unit(self) -> Unit:
        return self.units[0]

    @property
    def several(self) -> bool:
        """Whether it is one for `append_many`."""
        unit = self.unit
        return unit.scope is None and (unit.producer is not None or len(unit.parts) > 1 or self.call.many)

    @property
    def policy(self) -> Sync:
        """Several records in one batch cannot have a sync each."""
        single = len(self.units) > 1 or (len(list(self.unit.records())) == 1 and not self.several)
        return "batch" if self.call.sync == "record" and not single else self.call.sync


@dataclass
class Fault:
    """The n-th call of this verb from now on fails, and if it is `lasting` all after it."""

    verb: str
    countdown: int
    number: int = errno.EIO
    lasting: bool = False
    fired: bool = False

    def __call__(self, verb: str, name: str, place: int, length: int) -> OSError | None:
        if verb != self.verb or (self.fired and not self.lasting):
            return None
        self.countdown -= 1
        if self.countdown > 0:
            return None
        self.fired = True
        return OSError(self.number, os.strerror(self.number), name)


def killed(disk: Disk, rng: Random) -> Disk:
    """What a process leaves that is killed: all of the cache. What was being written is, or is in part: nobody gets
    the lock before."""
    left = disk.copy()
    for inode in left.tree.values():
        for flight in [] if inode is None else list(inode.flights):
            assert inode is not None
            with suppress(OSError):
                left.land(inode, flight) if rng.random() < 0.5 else left.lose(inode, flight, rng)
    return left


@dataclass
class Cut:
    """What is left of a disk at its n-th change: of the power (`power`) or only of the process."""

    disk: Disk
    countdown: int
    rng: Random
    power: bool = True
    left: Disk | None = None
    #: Of the calls that had returned by then.
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    sent: Sequence[Sent | Retaining] = ()

    def __call__(self) -> None:
        self.countdown -= 1
        if self.countdown == 0:
            self.take()

    def taken(self) -> Disk:
        """What was left, or is now if there were not so many changes."""
        if self.left is None:
            self.take()
        assert self.left is not None
        return self.left

    def take(self) -> None:
        self.left = self.disk.crash(self.rng) if self.power else killed(self.disk, self.rng)
        self.outcomes = {i: sent.outcome for i, sent in enumerate(self.sent) if sent.outcome is not None}


#: Key, headers and event time of a record, by its shape.
SHAPES = (
    Record(b""),
    Record(b"", key=b"k"),
    Record(b"", key=b"", headers=(("h", b"v"), ("h", b"")), event_time=-5),
    Record(b"", headers=(("ключ", b"\0" * 40),), event_time=1_700_000_000_000_000_000),
)


def fresh(expected: Expected, parts: dict[str, tuple[int, ...]], shape: int) -> Unit:
    """A unit of records of these sizes, which nobody sent before."""
    number = expected.made
    made: dict[str, list[Record]] = {}
    for stream, sizes in parts.items():
        made[stream] = []
        for i, size in enumerate(sizes):
            front = b"%d.%s.%d." % (number, stream.encode(), i)
            # Some compress, some do not.
            fill = bytes(size) if (number + i) % 2 else Random(number).randbytes(size)
            made[stream].append(SHAPES[(shape + i) % len(SHAPES)]._replace(payload=front + fill))
    return expected.unit(made)


Formings = Sequence[tuple[Forming, int]]


def prepare(call: Call, expected: Expected, forming: Formings, there: Set[str], *, strict: bool, alone: bool) -> Sent:
    """The call as it will be made. `forming` is how things stand before it, once for each time that it may be; they are
    moved on. `there` are the streams that were there before any of the calls. A call that is not `strict` may be
    refused, so it makes no condition on what others do."""
    several = call.many or len(call.streams) > 1
    if not alone and several and not set(call.streams) <= there:
        # Others do not wait for the keys of new streams, so only appends to one stream keep their order.
        call, several = replace(call, streams=call.streams[:1], many=False), False
    if call.sync == "record" and not several and len(call.sizes) > 1 and call.again is None and not call.producer:
        # Each record by itself: without conditions, whole or nothing each.
        units = [fresh(expected, {call.streams[0]: (size,)}, call.shape) for size in call.sizes]
        for state, now in forming:
            for unit in units:
                state.add(unit, now)
        return Sent(units, {}, call, [Answer("new")], False)
    unit, repeats = _unit(call, expected, forming, several=several, alone=alone, strict=strict)
    expect: dict[str, int | None] = {}
    if strict and call.expect:
        lengths = forming[0][0].lengths
        wrong = {"right": 0, "new": 0, "wrong": 1 + call.shape}[call.expect]
        expect = {s: (0 if call.expect == "new" else lengths[s] + wrong) for s in unit.parts}
    allowed: list[Answer] = []
    for state, now in forming:
        answers = state.judge(unit, expect)
        allowed += answers
        if answers[0].kind == "new":
            state.add(unit, now)
    return Sent([unit], expect, call, allowed, repeats)


def repeated(sent: Sent, forming: Formings) -> Sent:
    """The same call again, at once."""
    allowed = [answer for state, _ in forming for answer in state.judge(sent.unit, sent.expect)]
    return Sent(sent.units, sent.expect, sent.call, allowed, True)


def _unit(
    call: Call, expected: Expected, forming: Formings, *, several: bool, alone: bool, strict: bool
) -> tuple[Unit, bool]:
    if call.again is not None:
        named = [u for u in expected.units.values() if u.producer is not None and (alone or u.scope is not None)]
        old = named[call.again % len(named)] if named else None
        if old is not None and old.state is State.GONE:
            old.state = State.SENT
            return old, False
        # A producer that others may make forgotten meanwhile would be believed to send it for the first time.
        young = old is not None and old.places and all(now < old.timestamp + FORGOTTEN for _, now in forming)
        if old is not None and (strict or young) and all(s.judge(old, {})[0].kind != "new" for s, _ in forming):
            return old, True
    unit = fresh(expected, dict.fromkeys(call.streams, call.sizes), call.shape)
    if call.producer:
        unit.scope = None if several else call.streams[0]
        following = forming[0][0].next_of(unit.scope, call.producer)
        moved = {"next": 0, "ahead": 2, "other": -1}[call.sequence]
        unit.producer = (call.producer, max(0, following + moved))
    return unit, False


async def make(log: Log, sent: Sent) -> dict[str, Receipt]:
    """Makes the call."""
    unit = sent.unit
    if len(sent.units) > 1:
        [stream] = unit.parts
        records = [record for single in sent.units for _, record in single.records()]
        return {stream: await log.append(stream, records, sync="record")}
    if sent.several:
        expect = {stream: offset for stream, offset in sent.expect.items() if offset is not None}
        return await log.append_many(unit.parts, expect=expect, producer=unit.producer, sync=sent.policy)
    [(stream, records)] = unit.parts.items()
    expected = sent.expect.get(stream)
    return {stream: await log.append(stream, records, expect=expected, producer=unit.producer, sync=sent.policy)}


def same(one: Receipt, other: Receipt) -> bool:
    """Whether they say the same, but for how durable it was then."""
    if one.durable == other.durable:
        return one == other
    return one._replace(durable=True, mac=b"") == other._replace(durable=True, mac=b"")
