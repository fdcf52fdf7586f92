"""Random logs that cross between the engine and the model, in any number: `python -m tests.model.crossing --logs 5000`.

The engine writes and the model reads; the model writes, the engine reads, goes on, and the model reads again.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random

from kimberlite import Duplicate, Receipt
from kimberlite.arguments import Sync
from kimberlite.log.log import Log as Engine
from kimberlite.log.opening import Injected
from kimberlite.log.options import Options
from kimberlite.storage.memory import Disk, MemoryBackend
from tests.model import (
    AppendMany,
    Batch,
    Identity,
    Keys,
    Log,
    Mode,
    Operation,
    Record,
    Said,
    Sender,
    encode_system,
    past_file,
    pieces_of,
    read_log,
    retained_of,
    without,
    write_log,
)
from tests.model.agreement import (
    Master,
    agree,
    batches,
    closed_agree,
    given,
    key_of,
    opened,
    receipts_agree,
    segments_of,
)
from tests.model.derived import receipt_key
from tests.model.drawing import STREAMS, Tick, clock, records
from tests.model.groups import BLOCK
from tests.model.hashes import kept_producer, many_key

POLICIES: tuple[Sync, ...] = ("group", "group", "group", "batch", "os")
WIDE = 1 << 20

Operations = list[list[Operation]]


@dataclass
class Append:
    """What a client asked for, and how to ask again."""

    batches: dict[str, tuple[Record, ...]]
    producer: tuple[bytes, int] | None
    many: bool
    policy: Sync = "group"

    async def send(self, db: Engine) -> list[Receipt]:
        asked = {stream: [given(record) for record in records] for stream, records in self.batches.items()}
        if self.many:
            answered = await db.append_many(asked, producer=self.producer, sync=self.policy)
            assert list(answered) == list(asked)
            return list(answered.values())
        [(stream, batch)] = asked.items()
        return [await db.append(stream, batch, producer=self.producer, sync=self.policy)]


@dataclass
class Acknowledged:
    append: Append
    receipts: list[Receipt]


@dataclass
class Writing:
    """The engine writes a random log, in some sessions. Some of them end in a power cut, some are just left."""

    rng: Random
    master: Master | None
    largest: int
    disk: Disk = field(default_factory=Disk)
    acknowledged: list[Acknowledged] = field(default_factory=list)
    #: The disk and what was acknowledged at the power cut.
    cut: tuple[Disk, list[Acknowledged]] | None = None
    cuts: int = 0
    #: Nothing from this position on was asked to be dropped.
    dropped: int = 0
    clock: Tick = field(init=False)
    steps: int = 0
    producers: int = 0

    def __post_init__(self) -> None:
        self.clock = clock(self.rng)

    def options(self) -> Options:
        rng = self.rng
        return Options(
            segment_bytes=2 * WIDE if self.largest >= WIDE else rng.choice((192 * 1024, WIDE)),
            depth=rng.randrange(1, 9),
            group_bytes=rng.choice((1, 4096, 256 * 1024)),
            largest_group=rng.choice((BLOCK, 64 * 1024, 4 << 20)),
            idle=rng.choice((0.0002, 1.0)),
            compression=rng.choice((None, 1, 3, -3)),
            checkpoint_records=rng.choice((5, 100_000)),
        )

    async def session(self, *, last: bool) -> bool:
        """Whether it ended in a clean close."""
        rng, self.cut = self.rng, None
        cut = not last and rng.random() < 0.6
        self.steps = rng.randrange(10, 160) if cut else 0
        self.disk.on_step = self.step
        backend = MemoryBackend(self.disk, Random(rng.random()))
        injected = Injected(rng.randbytes, self.clock, rng.randbytes(32))
        db = await opened(self.disk, self.master, options=self.options(), injected=injected, backend=backend)
        for again in rng.sample(self.acknowledged, min(3, len(self.acknowledged))):
            await self.repeat(db, again)
        for _ in range(rng.randrange(1, rng.choice((4, 12)))):
            await self.wave(db)
        clean = rng.random() < 0.5
        left = self.disk.copy()
        await db.close()
        self.disk.on_step = None
        if self.cut is not None:
            self.disk, self.acknowledged = self.cut
            self.cuts += 1
            return False
        if not clean:
            self.disk = left
        return clean

    def step(self) -> None:
        """Called after every change of the disk."""
        self.steps -= 1
        if self.steps == 0:
            durable = [one for one in self.acknowledged if all(receipt.durable for receipt in one.receipts)]
            self.cut = self.disk.crash(Random(self.rng.random())), durable

    async def wave(self, db: Engine) -> None:
        appends = [self.draw() for _ in range(self.rng.randrange(1, 8))]
        answers = await asyncio.gather(*(append.send(db) for append in appends))
        self.acknowledged += [Acknowledged(a, receipts) for a, receipts in zip(appends, answers, strict=True)]
        if self.rng.random() < 0.3:
            await asyncio.sleep(0.001)
        if self.rng.random() < 0.2:
            before = self.rng.randrange(db.durable_position + 1)
            self.dropped = max(self.dropped, before)
            await db.retain(before=before)

    def draw(self) -> Append:
        rng = self.rng
        many = rng.random() < 0.2
        streams = rng.sample(STREAMS, rng.randrange(1, 4) if many else 1)
        producer = None
        if rng.random() < 0.4:
            self.producers += 1
            producer = (b"p%d" % self.producers, 0)
        batches = {stream: records(rng, self.largest) for stream in streams}
        return Append(batches, producer, many, rng.choice(POLICIES))

    async def repeat(self, db: Engine, first: Acknowledged) -> None:
        """What has a producer is answered as it was the first time, unless it was dropped."""
        if first.append.producer is None:
            return
        try:
            answers = await replace(first.append, policy="group").send(db)
        except Duplicate:
            assert first.receipts[0].first_position < (await db.info())["first_position"]
            return
        for again, receipt in zip(answers, first.receipts, strict=True):
            assert again[:6] == receipt[:6]
            assert again[7:12] == receipt[7:12]


def several(log: Log) -> str:
    if log.first > 0:
        return "the first segments dropped"
    return "several segments" if segments_of(log) > 1 else "one segment"


async def engine_to_model(seed: int, master: Master) -> str:
    """How it ended."""
    rng = Random(f"engine {seed}")
    chosen = master if rng.random() < 0.5 else None
    writing = Writing(rng, chosen, WIDE if rng.random() < 0.05 else 8000)
    sessions = rng.randrange(1, 4)
    clean = False
    for left in reversed(range(sessions)):
        clean = await writing.session(last=left == 0)
    log = await agree(writing.disk, chosen)
    if clean:
        closed_agree(writing.disk, log)
    receipts = [receipt for one in writing.acknowledged for receipt in one.receipts]
    receipts_agree(receipts, writing.disk.files(), chosen, log)
    assert log.first <= writing.dropped
    held = {(rows[0].name, rows[0].offset): tuple(row.record for row in rows) for rows in batches(log)}
    for one in writing.acknowledged:
        for receipt, sent in zip(one.receipts, one.append.batches.values(), strict=True):
            assert receipt.first_position < log.first or held[receipt.stream, receipt.first_offset] == sent
    return f"{several(log)}, {'cut' if writing.cuts else 'not cut'}, {'closed' if clean else 'left'}"


@dataclass
class Drawn:
    """What the model is to write."""

    rng: Random
    tagged: bool
    largest: int
    modes: dict[str, Mode] = field(default_factory=dict)
    sequences: dict[tuple[str, bytes], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.modes = {name: Mode(self.tagged and self.rng.random() < 0.7) for name in STREAMS}

    def groups(self) -> Operations:
        count = self.rng.randrange(1, self.rng.choice((3, 3, 8, 8, 8, 60)))
        return [[self.operation() for _ in range(self.rng.randrange(1, 4))] for _ in range(count)]

    def operation(self) -> Operation:
        rng = self.rng
        if rng.random() < 0.7:
            stream = rng.choice(STREAMS)
            return replace(self.batch(stream), producer=self.sender(stream))
        streams = rng.sample(STREAMS, rng.randrange(1, 3))
        return AppendMany(tuple(self.batch(stream) for stream in streams), self.sender(""))

    def batch(self, stream: str) -> Batch:
        return Batch(stream, records(self.rng, self.largest), self.modes[stream])

    def sender(self, scope: str) -> Sender | None:
        """A producer's numbers go up by one in each stream, from wherever they start."""
        if self.rng.random() < 0.5:
            return None
        who = self.rng.choice((b"p", b"q" * 128, self.rng.randbytes(9)))
        start = self.rng.choice((0, 7, 1 << 40))
        self.sequences[scope, who] = self.sequences.get((scope, who), start - 1) + 1
        return Sender(who, self.sequences[scope, who])


def model_writes(rng: Random, master: Master | None, largest: int) -> tuple[dict[str, bytes], Operations, Tick]:
    """Its files, what was written, and the clock."""
    drawn = Drawn(rng, master is not None, largest)
    groups = drawn.groups()
    origin = rng.choice(("example.com/log", "é", "x" * 255))
    identity = Identity(rng.randbytes(16), rng.randrange(1 << 63), origin, master is not None, 1 << rng.randrange(13))
    behind = rng.randrange(5)
    small = [64 * 1024] * 3 if len(groups) > 3 else []
    made = partial(
        write_log,
        identity,
        keys=Keys(rng.randbytes(32), rng.randbytes(32), key_of(master)),
        segment_bytes=16 * WIDE if largest == WIDE else rng.choice((*small, 128 * 1024, WIDE)),
        compress=rng.random() < 0.5,
        incarnation=rng.choice((0, 3)),
        durable_upto=lambda number: max(0, number - 1 - behind),
        clean=rng.random() < 0.5,
        zeros_behind=rng.choice((0, 0, 3 * BLOCK)),
    )
    seed, ticks = rng.random(), [clock(rng)]

    def write() -> dict[str, bytes]:
        """A longer one begins as a shorter one does."""
        chance = Random(seed)
        ticks[0] = clock(Random(seed))
        return made(operations=groups, entropy=chance.randbytes, clock=ticks[0])

    return model_drops(rng, write, drawn, groups, master), groups, ticks[0]


def model_drops(
    rng: Random, write: Callable[[], dict[str, bytes]], drawn: Drawn, groups: Operations, master: Master | None
) -> dict[str, bytes]:
    """Writes it; of most that have several segments the first ones were dropped, once or twice, and some are left."""
    files, gone = write(), range(0)
    for _ in range(rng.choice((0, 1, 1, 2))):
        log = read_log(files, key_of(master))
        kept = range(log.segment + 1, segments_of(log))
        if not kept:
            break
        said = retained_of(
            files, log, rng.choice(kept), rule=rng.choice(("a", "é")), now=rng.randrange(1 << 63),
            master=key_of(master), entropy=rng.randbytes,
        )  # fmt: skip
        pieces: list[Operation] = [Said(encode_system(piece)) for piece in pieces_of(said, rng.choice((1, 2, 5)))]
        if rng.random() < 0.3:
            # one that was given up
            groups.append(pieces[:-1] or drawn.groups()[0])
        if rng.random() < 0.5:
            groups.append(pieces)
        else:
            for piece in pieces:
                groups.append([drawn.operation(), piece])
        groups += drawn.groups() if rng.random() < 0.5 else []
        files, gone = write(), range(rng.choice((said.segment, said.segment, rng.randrange(said.segment + 1))))
        files["past"] = past_file(log, said.position)
    return without(files, gone)


def senders(groups: Operations) -> Iterator[Append]:
    """What has a producer, to be sent again."""
    for operation in (one for group in groups for one in group):
        if not isinstance(operation, Said) and operation.producer is not None:
            many = isinstance(operation, AppendMany)
            parts = operation.batches if isinstance(operation, AppendMany) else (operation,)
            sender = (operation.producer.identifier, operation.producer.sequence)
            yield Append({batch.stream: batch.records for batch in parts}, sender, many)


def left(append: Append, log: Log, key: bytes) -> bool:
    """Whether the log still has it."""
    assert append.producer is not None
    identifier, sequence = append.producer
    if append.many:
        kept = kept_producer(many_key(key), identifier)
        here = (sent for sent in log.sent if sent.group >= log.groups[0].number)
        return any((sent.producer, sent.sequence) == (kept, sequence) for sent in here)
    senders = (row.producer for row in log.rows if row.name in append.batches)
    return any(sender and (sender.identifier, sender.sequence) == append.producer for sender in senders)


async def model_to_engine(seed: int, master: Master) -> str:
    """How it was."""
    rng = Random(f"model {seed}")
    chosen = master if rng.random() < 0.5 else None
    largest = WIDE if rng.random() < 0.05 else 8000
    files, groups, tick = model_writes(rng, chosen, largest)
    disk = Disk.from_files(files)
    before = await agree(disk, chosen)
    writing = Writing(rng, chosen, largest, disk)
    injected = Injected(rng.randbytes, tick, rng.randbytes(32))
    async with await opened(disk, chosen, options=writing.options(), injected=injected) as db:
        again = list(senders(groups))
        for append in rng.sample(again, min(3, len(again))):
            # of what was dropped there is no receipt
            with (
                nullcontext()
                if left(append, before, receipt_key(files, before, key_of(chosen)))
                else suppress(Duplicate)
            ):
                receipts = await append.send(db)
                assert receipts[0].last_position < before.tree_size
                receipts_agree(receipts, files, chosen, before)
        await writing.wave(db)
    after = await agree(disk, chosen)
    closed_agree(disk, after)
    first = max(before.first, after.first)
    assert after.between(first, before.tree_size) == before.between(first, before.tree_size)
    receipts_agree((r for one in writing.acknowledged for r in one.receipts), disk.files(), chosen, after)
    return several(before)


Way = Callable[[int, Master], Awaitable[str]]
WAYS: dict[str, Way] = {"engine to model": engine_to_model, "model to engine": model_to_engine}
MASTER = bytes(range(32))


def cross(way: str, seeds: range) -> tuple[Counter[str], list[str]]:
    """How many went how, and what went wrong."""
    went: Counter[str] = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        master = Master.kept(Path(name), MASTER)
        for seed in seeds:
            try:
                went[asyncio.run(_limited(WAYS[way], seed, master))] += 1
            except Exception as error:
                at = traceback.extract_tb(error.__traceback__)[-1]
                what = f"{type(error).__name__} in {Path(at.filename).name}, line {at.lineno}: {error}"
                wrong.append(f"{way}, seed {seed}: {what}")
    return went, wrong


async def _limited(way: Way, seed: int, master: Master) -> str:
    return await asyncio.wait_for(way(seed, master), 60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--logs", type=int, default=1000, help="each way")
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    failed = False
    for way in WAYS:
        begun, went, wrong = time.monotonic(), Counter[str](), list[str]()
        end = options.seed + options.logs
        pieces = [range(start, min(start + 50, end)) for start in range(options.seed, end, 50)]
        with ProcessPoolExecutor(options.jobs) as pool:
            for good, bad in pool.map(partial(cross, way), pieces):
                went += good
                wrong += bad
        print(f"{way}: {went.total()} agree, {len(wrong)} do not, {time.monotonic() - begun:.0f} s")
        print("  " + "; ".join(f"{what}: {count}" for what, count in sorted(went.items())))
        for line in wrong[:20]:
            print(f"  {line}")
        failed = failed or bool(wrong)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
