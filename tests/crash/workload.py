"""Sessions of a random workload over a simulated disk that is cut at random moments, and what was promised at each.

Every payload names its batch and its place in it: so a log that was read says of itself what is whole and in order.
"""

from __future__ import annotations

import asyncio
import errno
import struct
from collections import Counter
from collections.abc import Awaitable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

from kimberlite.arguments import Sync
from kimberlite.crypto.master import create_master
from kimberlite.crypto.vault import STREAM
from kimberlite.errors import Conflict, Erased, KeyUnavailable, KimberliteError, UnknownOutcome
from kimberlite.log.log import Log
from kimberlite.log.opening import Injected, open_log
from kimberlite.log.options import Options
from kimberlite.records import Receipt, Record
from kimberlite.storage.memory import Disk, MemoryBackend
from kimberlite.storage.memory.backend import Fault
from tests.crash.cuts import flying, killed, power_cut

#: Batch and index in it, at the start of every payload.
HEAD: Final = struct.Struct("<II")
#: States of one session at most, however often it is cut.
MOST_STATES: Final = 40
POLICIES: Final[list[Sync]] = ["group", "group", "group", "batch", "os", "os", "record"]
#: The stream in which a producer of appends to several streams counts.
SEVERAL: Final = ""
#: The others are never erased, and every append to several streams goes to one of those too.
ERASABLE: Final = ("s3", "s4", "s5")
#: Behind every position.
NO_END: Final = 1 << 62
NOISE: Final = Random(1).randbytes(1 << 16)


@dataclass(eq=False)
class Sent:
    """One batch, and what was answered to it."""

    number: int
    #: Each stream with its payloads, in the order given.
    parts: list[tuple[str, list[bytes]]]
    producer: tuple[str, int] | None = None
    receipts: list[Receipt] = field(default_factory=list)

    @property
    def durable(self) -> bool:
        return bool(self.receipts) and self.receipts[0].durable

    @property
    def size(self) -> int:
        return sum(len(payloads) for _, payloads in self.parts)


class Served(NamedTuple):
    """What a log says of its erasures: each stream, and how its slot in the vault began; and which are confirmed."""

    erased: frozenset[tuple[str, bytes]]
    confirmed: frozenset[str]

    @property
    def streams(self) -> frozenset[str]:
        return frozenset(stream for stream, _ in self.erased)


@dataclass(frozen=True)
class Forgotten:
    """Streams and master keys that are not to come back."""

    #: As in `Served`; and all that may be erased.
    erased: frozenset[tuple[str, bytes]] = frozenset()
    erasing: frozenset[str] = frozenset()
    #: Of those, whose master key was said to be no more, or may be.
    confirmed: frozenset[str] = frozenset()
    confirming: frozenset[str] = frozenset()
    #: Of these exactly one opens it; of the old ones none.
    keys: tuple[Path | None, ...] = (None,)
    old: tuple[Path, ...] = ()

    @property
    def slots(self) -> list[bytes]:
        return [slot for _, slot in self.erased]

    def settled(self, told: Served, key: Path | None) -> Forgotten:
        """What a log that was opened with this key shows stays so."""
        old = (*self.old, *(each for each in self.keys if each is not None and each != key))
        return Forgotten(told.erased, told.streams, told.confirmed, told.confirmed, (key,), old)


@dataclass
class State:
    """A disk that a crash left, and what it must still have."""

    disk: Disk
    #: Positions below this are promised: acknowledged as durable, or shown to a reader.
    promised: int
    #: Of each stream, the length that a refusal cited.
    lengths: dict[str, int]
    #: Up to this position the log is that of the history.
    same: int
    #: The group up to which a watermark must cover the log.
    covered: int
    #: How many crashes during a recovery led here.
    level: int = 0
    #: At rest: what is covered is covered by what was written for that.
    resting: bool = False
    #: Segments that a write was on its way to.
    flying: frozenset[str] = frozenset()
    #: Positions below this were dropped, and below `asked` they may be.
    first: int = 0
    asked: int = 0
    #: What the database was doing for itself.
    amid: frozenset[str] = frozenset()
    forgotten: Forgotten = Forgotten()


class History:
    """Everything that was sent and answered in the log as it now is."""

    def __init__(self, first: int = 0) -> None:
        self.sent: dict[int, Sent] = {}
        self.answered: list[Sent] = []
        #: What each producer sent to each stream, in the order of its sequence.
        self.lines: dict[tuple[str, str], list[Sent]] = {}
        self.lengths: dict[str, int] = {}
        #: Positions below this were acknowledged as durable.
        self.promised = 0
        self.covered = 0
        #: What was read before some of it was dropped, and where that was asked to end.
        self.rows: list[Record] = []
        self.asked = 0
        self.forgotten = Forgotten()
        self._next = first

    def batch(self, rng: Random, streams: Iterable[str]) -> Sent:
        self._next += 1
        sent = Sent(self._next, [])
        for stream in streams:
            longest = rng.choice((1, 40, 400, 400, 2500, 9000))
            count = min(rng.randrange(1, 24 if rng.random() < 0.05 else 4), max(1, 9000 // longest))
            sent.parts.append((stream, [self._payload(rng, sent.size + i, longest) for i in range(count)]))
        self.sent[sent.number] = sent
        return sent

    def _payload(self, rng: Random, index: int, longest: int) -> bytes:
        start = rng.randrange(len(NOISE) - longest)
        return HEAD.pack(self._next, index) + NOISE[start : start + rng.randrange(longest)]

    def answer(self, sent: Sent, receipts: list[Receipt]) -> None:
        sent.receipts = receipts
        self.answered.append(sent)
        if receipts[0].durable:
            self.promised = max(self.promised, receipts[-1].last_position + 1)

    def forget(self, **what: Any) -> None:
        self.forgotten = replace(self.forgotten, **what)

    def refuse(self, sent: Sent, stream: str) -> None:
        """It never was: one of its streams is erased."""
        del self.sent[sent.number]
        if sent.producer is not None:
            self.lines[sent.producer[0], stream].remove(sent)

    def last_group(self, below: int) -> int:
        """The last group that is known to have records below a position."""
        groups = [r.group for sent in self.answered for r in sent.receipts if r.last_position < below]
        return max(groups, default=0)

    def whole(self, found: list[Record]) -> list[Record]:
        """With what was dropped in front of it."""
        return self.rows[: found[0].position] + found if found else []

    def cut_to(self, found: list[Record]) -> None:
        """The log lost what is not in `found`, and goes on from there."""
        found = self.rows = self.whole(found)
        kept = {number_of(record) for record in found if record.stream and not is_gone(record)}
        self.sent = {number: sent for number, sent in self.sent.items() if number in kept}
        self.answered = [s for s in self.answered if s.receipts[-1].last_position < len(found)]
        self.lines = {line: [s for s in sent if s.number in kept] for line, sent in self.lines.items()}
        self.lengths = dict(Counter(record.stream for record in found if record.stream))
        self.promised = len(found)
        self.covered = self.last_group(len(found))


def gone(stream: str, position: int) -> Record:
    """In the place of a record that nobody can read."""
    return Record(b"", stream=stream, position=position)


def is_gone(record: Record) -> bool:
    return bool(record.stream) and record.offset < 0


def number_of(record: Record) -> int:
    number: int = HEAD.unpack_from(record.payload)[0]
    return number


class Ticks:
    """A clock that is the same every time."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000_000_000

    def __call__(self) -> int:
        self.now += 1000
        return self.now


@dataclass
class World:
    """What the sessions of one seed share."""

    rng: Random
    #: The one that opened it last.
    key: Path | None
    options: Options
    clock: Ticks = field(default_factory=Ticks)
    made: int = 0

    def next_key(self) -> Path:
        assert self.key is not None
        self.made += 1
        key = self.key.with_name(f"key{self.made}")
        create_master(key)
        return key

    @classmethod
    def draw(cls, rng: Random, key: Path | None) -> World:
        return cls(
            rng,
            key,
            Options(
                segment_bytes=rng.choice((64, 64, 128)) * 1024,
                depth=rng.randrange(1, 9),
                group_bytes=rng.choice((1, 2000, 20_000)),
                idle=0.0005,
                compression=rng.choice((None, None, 1)),
                checkpoint_records=rng.choice((20, 100_000, 100_000)),
                pack=rng.choice((0.0, 0.5, 1.0)),
            ),
        )

    async def open(
        self,
        state: State,
        rng: Random | None,
        fault: Fault | None = None,
        *,
        disk: Disk | None = None,
        read_only: bool = False,
    ) -> Log:
        """With the one of its master keys that fits; the others are refused."""
        disk, keys, old = disk or state.disk, state.forgotten.keys, state.forgotten.old
        fits = [key for key in keys if len(keys) == 1 or await self._fits(disk.copy(), key)]
        assert len(fits) == 1, f"of {len(keys)} master keys {len(fits)} open it"
        if old:
            assert not await self._fits(disk.copy(), self.rng.choice(old)), "a master key from before opens it"
        [self.key] = fits
        return await self._open(disk, self.key, rng, fault, read_only=read_only)

    async def _fits(self, disk: Disk, key: Path | None) -> bool:
        try:
            db = await self._open(disk, key, None, None, read_only=False)
        except KeyUnavailable:
            return False
        await db.close()
        return True

    async def _open(
        self, disk: Disk, key: Path | None, rng: Random | None, fault: Fault | None, *, read_only: bool
    ) -> Log:
        return await open_log(
            "simulated",
            create=True,
            read_only=read_only,
            key_file=key,
            backend=MemoryBackend(disk, rng, fault),
            origin=None,
            anchor=None,
            options=self.options,
            injected=Injected(self.rng.randbytes, self.clock, self.rng.randbytes(32)),
        )


class Failing:
    """A `Fault`: one write or sync of the commit path fails."""

    def __init__(self, rng: Random) -> None:
        self.left = rng.randrange(1, 16)
        self.verb = rng.choice(("submit", "submit_sync"))
        self.failed = False

    def __call__(self, verb: str, name: str, place: int, length: int) -> OSError | None:
        if verb != self.verb or not name.startswith("segments/"):
            return None
        self.left -= 1
        if self.left:
            return None
        self.failed = True
        return OSError(errno.EIO, "the disk failed", name)


class Session:
    """One process: it opens, its clients append, and it closes, fails or is cut off."""

    def __init__(self, world: World, history: History, base: State) -> None:
        self.world, self.history, self.disk = world, history, base.disk
        history.promised, history.lengths, history.covered = base.promised, dict(base.lengths), base.covered
        history.asked, self.first = base.asked, base.first
        history.forgotten = base.forgotten
        #: What it was asked for and has not finished.
        self.amid = Counter[str]()
        self.begun_on = base
        self.rng = Random(world.rng.random())
        self.states: list[State] = []
        self.chance = self.rng.choice((0.05, 0.1, 0.3))
        self.db: Log | None = None
        self.closed = False
        #: What the next session begins on, unless this one is closed cleanly.
        self.base: State | None = None
        self.fault = Failing(self.rng) if self.rng.random() < 0.2 else None
        self.disk.on_step = self.cut
        self.disk.trace = []

    def cut(self) -> None:
        rng = self.rng
        if rng.random() < (self.chance if self.db else 0.2) and len(self.states) < MOST_STATES:
            self.states.append(self.left_by(power_cut(self.disk, rng)))
        if rng.random() < 0.01:
            self.base = self.left_by(killed(self.disk, rng) if rng.random() < 0.5 else power_cut(self.disk, rng))

    def left_by(self, disk: Disk) -> State:
        history = self.history
        seen = 0 if self.db is None else self.db.durable_position
        left = State(disk, max(history.promised, seen), dict(history.lengths), NO_END, history.covered)
        left.flying = flying(self.disk)
        self.first = max(self.first, 0 if self.db is None else self.db._native.first)
        left.first, left.asked = self.first, max(self.first, history.asked)
        packing = any(name.endswith(".pack") for name in self.disk.tree)
        left.amid = frozenset([*+self.amid, *["packing"] * packing])
        left.forgotten = history.forgotten
        return left

    async def begin(self) -> tuple[list[Record], Served]:
        """What is in the log when it opens."""
        self.db = await self.world.open(self.begun_on, self.rng, self.fault)
        found, told = await everything(self.db), await served(self.db)
        self.history.forgotten = self.begun_on.forgotten.settled(told, self.world.key)
        return found, told

    async def work(self) -> None:
        """The clients, one after another or side by side."""
        clients = range(self.rng.randrange(1, 6))
        beside = [self._drop_some()] if self.rng.random() < 0.8 else []
        if self.world.key is not None:
            beside += [self._erase_some()] if self.rng.random() < 0.5 else []
            beside += [self._rotate()] if self.rng.random() < 0.4 else []
        await asyncio.gather(*(self._client(number) for number in clients), *map(self._until_it_fails, beside))

    async def _until_it_fails(self, work: Awaitable[None]) -> None:
        try:
            await work
        except UnknownOutcome:
            if not self.failed:
                raise

    async def _drop_some(self) -> None:
        """Now and then what is before some record, which was read before."""
        assert self.db is not None
        for _ in range(self.rng.randrange(1, 4)):
            await turns(self.rng.choice((0, 20, 200)))
            self.history.rows = self.history.whole(await everything(self.db))
            before = self.rng.randrange(len(self.history.rows) + 1)
            self.history.asked = max(self.history.asked, before)
            with self._amid("retention"):
                self.first = max(self.first, (await self.db.retain(before=before)).first)

    async def _erase_some(self) -> None:
        assert self.db is not None
        history = self.history
        for _ in range(self.rng.randrange(1, 3)):
            await turns(self.rng.choice((0, 20, 200)))
            before = history.forgotten.erasing
            there = [s.name for s in self.db.streams() if s.name in ERASABLE and s.name not in before]
            if not there:
                continue
            stream = self.rng.choice(there)
            history.forget(erasing=before | {stream})
            with self._amid("erasure"):
                await self.db.erase(stream, reason=stream)
            history.forget(erased=history.forgotten.erased | {(stream, slots(self.db)[stream])})

    async def _rotate(self) -> None:
        """Once; then some of what was erased before is confirmed."""
        assert self.db is not None
        history = self.history
        await turns(self.rng.choice((0, 20, 200)))
        before = history.forgotten
        [key], after = before.keys, self.world.next_key()
        assert key is not None
        history.forget(keys=(key, after))
        with self._amid("rotation"):
            await self.db.rotate(after)
        history.forget(keys=(after,), old=(*before.old, key))
        for stream, _ in sorted(before.erased):
            if self.rng.random() < 0.7:
                history.forget(confirming=history.forgotten.confirming | {stream})
                assert not (await self.db.confirm_erasure(stream)).pending
                history.forget(confirmed=history.forgotten.confirmed | {stream})

    @contextmanager
    def _amid(self, what: str) -> Iterator[None]:
        self.amid[what] += 1
        try:
            yield
        finally:
            self.amid[what] -= 1

    async def finish(self) -> None:
        """Idle until all is marked, or not; then a clean close, or not before the power goes."""
        assert self.db is not None
        if self.rng.random() < 0.5 and not self.failed:
            # Two idle times, and turns enough for the mark to land.
            await asyncio.sleep(3)
            await turns(60)
            if not self.failed:
                self.rest()
        try:
            await self.db.close()
        except KimberliteError:
            assert self.failed
            return
        self.closed = True
        self.rest()
        self.disk.on_step = None

    def rest(self) -> None:
        """Idle or closed, all that was acknowledged is covered by a watermark."""
        self.history.covered = self.history.last_group(NO_END)
        self.states.append(self.left_by(power_cut(self.disk, self.rng)))
        self.states[-1].resting = True

    @property
    def failed(self) -> bool:
        return self.fault is not None and self.fault.failed

    async def _client(self, number: int) -> None:
        for _ in range(self.rng.randrange(1, 8)):
            try:
                await self._step(number)
            except UnknownOutcome:
                if not self.failed:
                    raise
                return
            if self.rng.random() < 0.15:
                await asyncio.sleep(self.rng.choice((0.0002, 0.002, 0.7)))

    async def _step(self, number: int) -> None:
        rng, several = self.rng, self.rng.random() < 0.25
        policy = rng.choice(POLICIES)
        streams = rng.sample([f"s{i}" for i in range(6)], rng.randrange(2, 4) if several else 1)
        if several and all(stream in ERASABLE for stream in streams):
            streams[0] = "s0"
        if several:
            await self._several(streams, policy, f"p{number}" if rng.random() < 0.5 else None)
        elif policy == "record":
            await self._records(streams[0])
        elif rng.random() < 0.4:
            await self._produce(streams[0], policy, f"p{number}")
        elif rng.random() < 0.3:
            await self._expect(f"own{number}", policy)
        else:
            await self._send(self.history.batch(rng, streams), policy)

    async def _send(self, sent: Sent, policy: Sync, expect: int | None = None) -> None:
        assert self.db is not None
        [(stream, payloads)] = sent.parts
        try:
            receipt = await self.db.append(stream, payloads, sync=policy, producer=sent.producer, expect=expect)
        except Erased:
            self._refused(sent, stream)
            return
        self.history.answer(sent, [receipt])

    def _refused(self, sent: Sent, stream: str) -> None:
        if not any(name in self.history.forgotten.erasing for name, _ in sent.parts):
            raise AssertionError("nobody has erased any of its streams")
        self.history.refuse(sent, stream)

    async def _several(self, streams: list[str], policy: Sync, producer: str | None) -> None:
        assert self.db is not None
        sent = self.history.batch(self.rng, streams)
        self._name(sent, producer, SEVERAL)
        policy = "batch" if policy == "record" else policy
        try:
            receipts = await self.db.append_many(dict(sent.parts), sync=policy, producer=sent.producer)
        except Erased:
            self._refused(sent, SEVERAL)
            return
        self.history.answer(sent, list(receipts.values()))

    async def _records(self, stream: str) -> None:
        """Each record is a batch by itself."""
        assert self.db is not None
        singles = [self.history.batch(self.rng, [stream]) for _ in range(self.rng.randrange(1, 4))]
        for single in singles:
            del single.parts[0][1][1:]
        try:
            receipt = await self.db.append(stream, [single.parts[0][1][0] for single in singles], sync="record")
        except Erased:
            # Some may be in front of what erased the stream.
            assert stream in self.history.forgotten.erasing
            return
        assert receipt.durable
        self.history.promised = max(self.history.promised, receipt.last_position + 1)

    async def _produce(self, stream: str, policy: Sync, producer: str) -> None:
        sent = self.history.batch(self.rng, [stream])
        self._name(sent, producer, stream)
        await self._send(sent, policy)

    def _name(self, sent: Sent, producer: str | None, stream: str) -> None:
        if producer is not None:
            line = self.history.lines.setdefault((producer, stream), [])
            sent.producer = (producer, len(line))
            line.append(sent)

    async def _expect(self, stream: str, policy: Sync) -> None:
        """A stream of one client; now and then it expects something that does not hold, and is told what would."""
        assert self.db is not None
        length = sum(len(s.parts[0][1]) for s in self.history.sent.values() if s.parts[0][0] == stream)
        sent = self.history.batch(self.rng, [stream])
        await self._send(sent, policy, expect=length)
        if self.rng.random() < 0.5:
            length += sent.size
            told = None
            try:
                await self.db.append(stream, b"unexpected", expect=length + 1, sync=policy)
            except Conflict as conflict:
                told = conflict.expected
            assert told == length
            self.history.lengths[stream] = length


async def everything(db: Log) -> list[Record]:
    """With something in the place of each record that was erased."""
    upto, first = db.durable_position, (await db.info())["first_position"]
    read = {record.position: record async for batch in db.read(system=True).batches() for record in batch}
    return [
        read[position] if position in read else await _erased(db, position)
        for position in range(first, max([upto, *(position + 1 for position in read)]))
    ]


async def _erased(db: Log, position: int) -> Record:
    try:
        record = await db.get(position)
    except Erased as error:
        # The reason is the stream's name.
        return gone(str(error.reason), position)
    raise AssertionError(f"position {position} is not in what was read, and is {record.stream!r}")


async def served(db: Log) -> Served:
    told = (await db.info())["erasures"]
    found = slots(db)
    assert sorted(found) == sorted(each["stream"] for each in told)
    return Served(frozenset(found.items()), frozenset(each["stream"] for each in told if not each["pending"]))


def slots(db: Log) -> dict[str, bytes]:
    """How the slot of each erased stream began: with its kind, its number and, further on, its declaration's hash."""
    return {
        reason: struct.pack("<II", STREAM, number) + declared for number, declared, _, reason, *_ in db._native.erasures
    }


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)
