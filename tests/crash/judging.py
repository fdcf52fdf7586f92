"""A crash state is opened as any user would, and held against what was promised."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final

from kimberlite.crypto.master import load_master
from kimberlite.errors import Conflict, Duplicate, Erased, Invalid
from kimberlite.log.log import Log
from kimberlite.log.verify import verify
from kimberlite.records import Receipt, Record
from kimberlite.storage.memory import Disk, MemoryBackend
from tests.crash.cuts import flying, power_cut
from tests.crash.nonces import find_slots
from tests.crash.order import violations
from tests.crash.workload import (
    SEVERAL,
    History,
    Sent,
    Served,
    State,
    World,
    everything,
    is_gone,
    number_of,
    served,
)

#: Crashes during the recovery of a crash during the recovery of a crash.
DEEPEST: Final = 3
#: That a step of a recovery, of what is appended after it or of its close is cut.
CHANCE: Final = 0.012

#: `lost` promised records; `refused` to open, serve or verify; a batch `twice`, in part or with other bytes; what was
#: dropped or erased is `back`; records or disk calls out of `order`; and a session that `failed` before any crash.
KINDS: Final = ("lost", "refused", "twice", "partial", "changed", "back", "order", "failed")


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
        kind = "back" if first_kept < state.first else "lost"
        raise Wrong(kind, f"it begins at {first_kept}: {state.first} was dropped, and {state.asked} was to be")
    halves = {r.stream for r in found if is_gone(r)} & {r.stream for r in found if not is_gone(r)}
    if halves:
        raise Wrong("partial", f"of {min(halves)} some records are erased and some are not")
    found = history.whole(found)
    gone = {record.stream for record in found if is_gone(record)}
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
        if record.offset != lengths[record.stream] and not is_gone(record):
            raise Wrong("order", f"offset {record.offset} of {record.stream} at position {position}")
        lengths[record.stream] += 1
        if record.stream in gone:
            continue
        number = number_of(record)
        first.setdefault(number, record)
        batches.setdefault(number, []).append((record.stream, record.payload))
    for stream, length in state.lengths.items():
        if lengths[stream] < length:
            raise Wrong("lost", f"{stream} has {lengths[stream]} records, and a refusal cited {length}")
    for number, records in batches.items():
        _compare_batch(number, records, history.sent.get(number), gone)
    _compare_receipts(found, history, min(state.same, len(found)))
    return first


def _compare_batch(number: int, records: list[tuple[str, bytes]], sent: Sent | None, gone: set[str]) -> None:
    if sent is None:
        raise Wrong("changed", f"batch {number} was never sent, or was lost before")
    whole = [(stream, payload) for stream, payloads in sent.parts for payload in payloads if stream not in gone]
    if len(records) > len(whole):
        raise Wrong("twice", f"batch {number} of {len(whole)} records has {len(records)}")
    if len(records) < len(whole):
        raise Wrong("partial", f"batch {number} of {len(whole)} records has {len(records)}")
    if records != whole:
        raise Wrong("changed", f"batch {number} has other bytes or another order")


def _compare_receipts(found: list[Record], history: History, below: int) -> None:
    """Where a receipt says that its records are, they are; the last answers count too, of as much as survived."""
    for sent in history.answered:
        for (stream, payloads), receipt in zip(sent.parts, sent.receipts, strict=True):
            if receipt.last_position >= below:
                continue
            record = found[receipt.first_position]
            if is_gone(record) and record.stream == stream:
                continue
            if (record.stream, record.offset, record.payload) != (stream, receipt.first_offset, payloads[0]):
                raise Wrong("changed", f"position {record.position} is not what its receipt says")


def compare_served(told: Served, found: list[Record], state: State) -> None:
    """What was erased stays so, and nothing is that nobody asked for."""
    must = state.forgotten
    if not must.erased <= told.erased:
        raise Wrong("back", f"{sorted(must.erased)} were erased, and {sorted(told.erased)} are")
    if not told.streams <= must.erasing:
        raise Wrong("lost", f"{sorted(must.erasing)} were to be erased, and {sorted(told.streams)} are")
    if not must.confirmed <= told.confirmed <= must.confirming:
        raise Wrong("lost", f"{sorted(told.confirmed)} are confirmed, and {sorted(must.confirmed)} were")
    for record in found:
        if record.stream in told.streams and not is_gone(record):
            raise Wrong("back", f"{record.stream} is erased, and position {record.position} is read")


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
    for what in find_slots(disk.files(), state.forgotten.slots):
        raise Wrong("back", what)
    if (state.asked or state.forgotten.erasing) and not state.level:
        await _read_beside(state, history, world)
    disk.trace = []
    child = State(disk, state.promised, state.lengths, state.same, 0, state.level + 1, flying=state.flying)
    child.first, child.asked, child.forgotten = state.first, state.asked, state.forgotten

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
    db = await world.open(state, rng)
    try:
        verdict.torn = _quarantined(disk) > before
        found = await everything(db)
        told = await served(db)
        compare_served(told, found, state)
        first = compare(found, state, history)
        # What it served is promised from here on, and the mark that it wrote covers it.
        child.forgotten = state.forgotten.settled(told, world.key)
        child.first = child.asked = found[0].position if found else 0
        child.promised = child.first + len(found)
        child.same = min(state.same, child.promised)
        child.covered = history.last_group(child.same)
        await _retry(db, history, first, child, rng)
        await _append(db, history, rng)
        await _try_erased(db, told, rng)
    finally:
        await db.close()
    disk.on_step = None
    report = verify(MemoryBackend(disk), None if world.key is None else load_master(world.key))
    if {each["stream"] for each in report.erasures} != told.streams:
        raise Wrong("changed", "to verify something else is erased")
    for what in (*find_slots(disk.files(), child.forgotten.slots), *report.notes):
        raise Wrong("back", what)
    for what in violations(disk.trace, state.flying):
        raise Wrong("order", what)


async def _read_beside(state: State, history: History, world: World) -> None:
    """A reader judges nothing behind a watermark, and misses nothing in front of it."""
    try:
        db = await world.open(state, None, disk=state.disk.copy(), read_only=True)
    except Invalid:
        # Its making was cut off.
        return
    found, told = await everything(db), await served(db)
    await db.close()
    compare_served(told, found, state)
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


async def _try_erased(db: Log, told: Served, rng: Random) -> None:
    """Nobody reads of an erased stream or appends to it."""
    if not told.erased:
        return
    stream = rng.choice(sorted(told.streams))
    for attempt in (anext(db.read(stream)), db.append(stream, b"late")):
        try:
            await attempt
        except Erased:
            continue
        raise Wrong("back", f"{stream} is erased, and is read or appended to")


async def _retry(db: Log, history: History, first: dict[int, Record], child: State, rng: Random) -> None:
    """A producer repeats what it is not sure of: what is there gets its receipt, what is not is appended once."""
    erased = child.forgotten.erasing
    lines = [line for line in sorted(history.lines) if history.lines[line] and line[1] not in erased]
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
        except Erased:
            if not any(name in erased for name, _ in each.parts):
                raise
            if where is None:
                # No later one can be taken either.
                return
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
