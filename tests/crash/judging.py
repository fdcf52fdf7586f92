"""A crash state is opened as any user would, and held against what was promised."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final

from kimberlite.crypto.master import load_master
from kimberlite.errors import Conflict, Duplicate, Invalid
from kimberlite.log.log import Log
from kimberlite.log.verify import verify
from kimberlite.records import Receipt, Record
from kimberlite.storage.memory import Disk, MemoryBackend
from tests.crash.cuts import flying, power_cut
from tests.crash.order import violations
from tests.crash.workload import SEVERAL, History, Sent, State, World, everything, number_of

#: Crashes during the recovery of a crash during the recovery of a crash.
DEEPEST: Final = 3
#: That a step of a recovery, of what is appended after it or of its close is cut.
CHANCE: Final = 0.012

#: `lost` promised records; `refused` to open, serve or verify; a batch `twice`, in part or with other bytes; records or
#: disk calls out of `order`; and a session that `failed` before any crash.
KINDS: Final = ("lost", "refused", "twice", "partial", "changed", "order", "failed")


class Wrong(Exception):
    """What must hold does not."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(f"{kind}: {what}")
        self.kind = kind


@dataclass
class Verdict:
    """What came of one state, and the states that a crash of its recovery left."""

    kind: str
    what: str = ""
    torn: bool = False
    children: list[State] = field(default_factory=list)


def compare(found: list[Record], state: State, history: History) -> dict[int, Record]:
    """Holds a log that was read against the history; the first record of every batch that is in it, or was dropped."""
    first_kept = found[0].position if found else 0
    if not state.first <= first_kept <= state.asked:
        raise Wrong("lost", f"it begins at {first_kept}: {state.first} was dropped, and {state.asked} was to be")
    found = history.whole(found)
    if len(found) < state.promised:
        raise Wrong("lost", f"{state.promised} positions were promised and {len(found)} are there")
    lengths: Counter[str] = Counter()
    first: dict[int, Record] = {}
    batches: dict[int, list[tuple[str, bytes]]] = {}
    for position, record in enumerate(found):
        if record.position != position:
            raise Wrong("order", f"position {record.position} follows {position - 1}")
        if not record.stream:
            continue
        if record.offset != lengths[record.stream]:
            raise Wrong("order", f"offset {record.offset} of {record.stream} at position {position}")
        lengths[record.stream] += 1
        number = number_of(record)
        first.setdefault(number, record)
        batches.setdefault(number, []).append((record.stream, record.payload))
    for stream, length in state.lengths.items():
        if lengths[stream] < length:
            raise Wrong("lost", f"{stream} has {lengths[stream]} records, and a refusal cited {length}")
    for number, records in batches.items():
        _compare_batch(number, records, history.sent.get(number))
    _compare_receipts(found, history, min(state.same, len(found)))
    return first


def _compare_batch(number: int, records: list[tuple[str, bytes]], sent: Sent | None) -> None:
    if sent is None:
        raise Wrong("changed", f"batch {number} was never sent, or was lost before")
    if len(records) > sent.size:
        raise Wrong("twice", f"batch {number} of {sent.size} records has {len(records)}")
    if len(records) < sent.size:
        raise Wrong("partial", f"batch {number} of {sent.size} records has {len(records)}")
    if records != [(stream, payload) for stream, payloads in sent.parts for payload in payloads]:
        raise Wrong("changed", f"batch {number} has other bytes or another order")


def _compare_receipts(found: list[Record], history: History, below: int) -> None:
    """Where a receipt says that its records are, they are; the last answers count too, of as much as survived."""
    for sent in history.answered:
        for (stream, payloads), receipt in zip(sent.parts, sent.receipts, strict=True):
            if receipt.last_position >= below:
                continue
            record = found[receipt.first_position]
            if (record.stream, record.offset, record.payload) != (stream, receipt.first_offset, payloads[0]):
                raise Wrong("changed", f"position {record.position} is not what its receipt says")


async def judge(state: State, history: History, world: World, rng: Random) -> Verdict:
    """Opens it, compares, appends, retries, closes and verifies; some steps of that are cut again."""
    verdict = Verdict("sound")
    try:
        await _judge(state, history, world, rng, verdict)
    except Wrong as wrong:
        verdict.kind, verdict.what = wrong.kind, str(wrong)
    except BaseException as error:
        # Whatever is not an answer is a refusal, and so is a panic of the native part, which is no Exception.
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        verdict.kind, verdict.what = "refused", f"refused: {error!r}"
    return verdict


async def _judge(state: State, history: History, world: World, rng: Random, verdict: Verdict) -> None:
    disk = state.disk
    if state.asked and not state.level:
        await _read_beside(state, history, world)
    disk.trace = []
    child = State(disk, state.promised, state.lengths, state.same, 0, state.level + 1, flying=state.flying)
    child.first, child.asked = state.first, state.asked

    def cut() -> None:
        if rng.random() < CHANCE:
            seen = 0 if db is None else db.durable_position
            left = replace(child, disk=power_cut(disk, rng), promised=max(child.promised, seen))
            left.flying |= flying(disk)
            verdict.children.append(left)

    db: Log | None = None
    before = _quarantined(disk)
    if state.level < DEEPEST:
        disk.on_step = cut
    db = await world.open(disk, rng)
    try:
        verdict.torn = _quarantined(disk) > before
        found = await everything(db)
        first = compare(found, state, history)
        # What it served is promised from here on, and the mark that it wrote covers it.
        child.first = child.asked = found[0].position if found else 0
        child.promised = child.first + len(found)
        child.same = min(state.same, child.promised)
        child.covered = history.last_group(child.same)
        await _retry(db, history, first, child, rng)
        await _append(db, history, rng)
    finally:
        await db.close()
    disk.on_step = None
    verify(MemoryBackend(disk), None if world.key is None else load_master(world.key))
    for what in violations(disk.trace, state.flying):
        raise Wrong("order", what)


async def _read_beside(state: State, history: History, world: World) -> None:
    """A reader judges nothing behind a watermark, and misses nothing in front of it."""
    try:
        db = await world.open(state.disk.copy(), None, read_only=True)
    except Invalid:
        # Its making was cut off.
        return
    found = await everything(db)
    await db.close()
    compare(found, replace(state, promised=0, lengths={}, first=0), history)


def _quarantined(disk: Disk) -> int:
    return sum(name.startswith("quarantine/") for name in disk.tree)


async def _append(db: Log, history: History, rng: Random) -> None:
    """An append after the recovery works, and `expect` knows how long the stream is."""
    length = next((s.length for s in db.streams() if s.name == "after"), 0)
    sent = history.batch(rng, ["after"])
    receipt = await db.append("after", sent.parts[0][1], expect=length)
    if receipt.first_offset != length or not receipt.durable:
        raise Wrong("order", f"the append after the crash is at {receipt.first_offset}, not at {length}")
    try:
        await db.append("after", b"unexpected", expect=length)
    except Conflict as conflict:
        if conflict.expected != receipt.last_offset + 1:
            raise Wrong("order", f"a refusal cites {conflict.expected}") from None
    else:
        raise Wrong("twice", "an append that expects too little is accepted")


async def _retry(db: Log, history: History, first: dict[int, Record], child: State, rng: Random) -> None:
    """A producer repeats what it is not sure of: what is there gets its receipt, what is not is appended once."""
    lines = [line for line in sorted(history.lines) if history.lines[line]]
    if not lines:
        return
    producer, stream = line = rng.choice(lines)
    sent = history.lines[line]
    lost = next((i for i, s in enumerate(sent) if s.number not in first), len(sent))
    for each in sent[max(0, lost - 2) : lost + 2]:
        before = db.durable_position
        where = first.get(each.number)
        try:
            receipts = await _repeat(db, each, several=stream == SEVERAL)
        except Duplicate:
            if where is None or where.position >= child.first:
                raise
            # There is no receipt of what was dropped.
            continue
        if where is None:
            if receipts[0].first_position < before:
                raise Wrong("lost", f"{producer} is told that its lost batch {each.number} is there")
        elif receipts[0].first_position != where.position or db.durable_position != before:
            raise Wrong("twice", f"{producer} repeats batch {each.number} and is told {receipts[0].first_position}")
        elif each.durable and receipts[-1].last_position < child.same and receipts != each.receipts:
            raise Wrong("changed", f"{producer} is not given the receipt of batch {each.number} again")


async def _repeat(db: Log, sent: Sent, *, several: bool) -> list[Receipt]:
    if several:
        return list((await db.append_many(dict(sent.parts), producer=sent.producer)).values())
    [(stream, payloads)] = sent.parts
    return [await db.append(stream, payloads, producer=sent.producer)]


def distinct(disk: Disk) -> int:
    """What tells one image from another of its workload."""
    files = ((name, i and (i.platter.size, tuple(i.platter.blocks))) for name, i in disk.durable.items())
    return hash(frozenset(files))


def is_empty(disk: Disk) -> bool:
    """Nothing random is in it yet: other workloads have the same image."""
    return "identity" not in disk.durable
