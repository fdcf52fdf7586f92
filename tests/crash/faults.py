"""The n-th call of the disk fails, for every n until a run is clean: nothing acknowledged may be lost, nothing hangs.

The workload is fixed and runs over the simulated disk. After each fault the database is opened again without one,
held against what was acknowledged, appended to and verified.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any, Final, Literal, TypeVar

from kimberlite.crypto.master import create_master, load_master
from kimberlite.errors import Erased, KeyUnavailable, KimberliteError, UnknownOutcome
from kimberlite.log import checkpoint, packing, scrub
from kimberlite.log.log import Log
from kimberlite.log.names import CHECKPOINT, HASHES, INDEX, PREPARE, PRODUCERS, SEGMENTS
from kimberlite.log.opening import Injected, open_log
from kimberlite.log.options import Options
from kimberlite.log.verify import verify
from kimberlite.storage.backend import BLOCK
from kimberlite.storage.memory import Disk, MemoryBackend
from tests.crash.nonces import find_slots
from tests.crash.workload import slots

T = TypeVar("T")
#: With this master key.
Opened = Callable[[Path | None], Coroutine[Any, Any, Log]]
#: What a fault must do to the handle that met it; None if either is right.
Effect = Literal["dead", "alive"] | None

#: What is made to fail, and how: an error, or None for a short write after which the disk goes on.
VERBS: Final = {
    "write": (errno.EIO, errno.ENOSPC, None),
    "submit": (errno.EIO, errno.ENOSPC, None),
    "sync": (errno.EIO,),
    "submit_sync": (errno.EIO,),
    "sync_directory": (errno.EIO,),
    "allocate": (errno.EIO, errno.ENOSPC),
    "truncate": (errno.EIO,),
    "rename": (errno.EIO, errno.ENOSPC),
    "open": (errno.EIO, errno.ENOSPC, errno.EMFILE),
    "mkdir": (errno.EIO, errno.ENOSPC),
    "unlink": (errno.EIO,),
    "read": (errno.EIO,),
    "lock_directory": (errno.EIO,),
}
#: Seconds after which a handle that has not answered hangs.
PATIENCE: Final = 10.0
#: Files of these are prepared or derived: a fault discards them and nothing else.
DISPENSABLE: Final = (PREPARE + "/", INDEX + "/", HASHES, PRODUCERS, CHECKPOINT)
OPTIONS: Final = Options(segment_bytes=64 * 1024, checkpoint_records=20, idle=0.0005, pack=1.0, scrub=1 << 40)
#: Of a master key, the names of those that it is rotated to.
NEXT: Final = ("next0", "next1")


class Failing:
    """A `Fault`: the n-th call of one verb fails, and, if it lasts, every one after it."""

    def __init__(self, verb: str, nth: int, number: int | None, *, lasting: bool) -> None:
        self.verb, self.left, self.number, self.lasting = verb, nth, number, lasting
        self.hit: str | None = None
        self.names: set[str] = set()

    @property
    def effect(self) -> Effect:
        if self.hit is None:
            return None
        if self.verb in ("submit", "submit_sync"):
            return "alive" if self.number is None else "dead"
        if self.verb == "sync" and any(name.startswith(SEGMENTS + "/") for name in self.names):
            return "dead"
        # One that lasts meets the log in the end.
        if (
            not self.lasting
            and self.verb in ("write", "sync", "allocate")
            and all(name.startswith(DISPENSABLE) for name in self.names)
        ):
            return "alive"
        return None

    def __call__(self, verb: str, name: str, place: int, length: int) -> OSError | int | None:
        if verb != self.verb:
            return None
        self.left -= 1
        if self.left > 0 or (self.left < 0 and not self.lasting):
            return None
        if self.hit is None:
            self.hit = f"{verb} {name} at {place}"
        self.names.add(name)
        if self.number is not None:
            return OSError(self.number, os.strerror(self.number), name)
        # Whole blocks on the commit path, as O_DIRECT gives.
        short = length // 2 // BLOCK * BLOCK if verb == "submit" else length // 2
        return short or None


class Outcome:
    """What one run acknowledged, and what went wrong that a caller could not have expected."""

    def __init__(self, key: Path | None) -> None:
        #: Master keys of which one opens it.
        self.keys: tuple[Path | None, ...] = (key,)
        #: Of each stream that was erased, how its slot in the vault began; and all that may be erased.
        self.erased: dict[str, bytes] = {}
        self.erasing: set[str] = set()
        #: Stream, offset, payload, position.
        self.acknowledged: list[tuple[str, int, bytes, int]] = []
        #: What is before its start was dropped, and before its end it may be.
        self.dropped = range(0)
        self.wrong: list[str] = []
        self.refused = 0
        #: Whether the handle has answered UNKNOWN_OUTCOME.
        self.dead = False

    async def attempt(self, step: str, coroutine: Coroutine[object, object, T]) -> T | None:
        """What it gives; None if it was refused with an error that is ours."""
        try:
            return await asyncio.wait_for(coroutine, PATIENCE)
        except KimberliteError:
            self.refused += 1
        except TimeoutError:
            self.wrong.append(f"{step} hangs\n{traceback.format_exc()[-1200:]}")
        except Exception:
            self.wrong.append(f"{step}: escaped\n{traceback.format_exc()[-1200:]}")
        return None

    async def open(self, opened: Opened) -> Log:
        """With the one of its master keys that fits."""
        *first, last = self.keys
        for key in first:
            with suppress(KeyUnavailable):
                db = await opened(key)
                self.keys = (key,)
                return db
        db = await opened(last)
        self.keys = (last,)
        return db

    async def append(self, db: Log, stream: str, payloads: list[bytes], sync: str) -> None:
        was_dead = self.dead
        try:
            receipt = await db.append(stream, payloads, sync=sync)  # type: ignore[arg-type]
        except UnknownOutcome:
            self.dead = True
            raise
        if was_dead:
            self.wrong.append("a dead handle acknowledged an append")
        if receipt.durable:
            first, at = receipt.first_offset, receipt.first_position
            self.acknowledged += [(stream, first + i, p, at + i) for i, p in enumerate(payloads)]

    async def drop(self, db: Log) -> None:
        """The older half of what there is."""
        before = db.durable_position // 2
        self.dropped = range(self.dropped.start, max(before, self.dropped.stop))
        self.dropped = range((await db.retain(before=before)).first, self.dropped.stop)

    async def erase(self, db: Log, stream: str) -> None:
        self.erasing.add(stream)
        await db.erase(stream, reason=stream)
        self.erased[stream] = slots(db)[stream]

    async def rotate(self, db: Log, name: str) -> None:
        assert self.keys[0] is not None
        after = self.keys[0].with_name(name)
        self.keys = (self.keys[0], after)
        await db.rotate(after)
        self.keys = (after,)

    async def probe(self, db: Log, effect: Effect) -> None:
        """Whether the handle is as dead or alive as the fault that it met must leave it."""
        await self.attempt("append", self.append(db, "probe", [b"x"], "group"))
        if effect is not None and (effect == "dead") != self.dead:
            self.wrong.append(f"the handle is {'dead' if self.dead else 'alive'}")


async def simulated(backend: MemoryBackend, key: Path | None, options: Options = OPTIONS) -> Log:
    return await open_log(
        "x", create=True, read_only=False, key_file=key, backend=backend, origin=None, anchor=None,
        options=options, injected=Injected(),
    )  # fmt: skip


async def read(db: Log) -> None:
    async for _ in db.read():
        pass


async def workload(opened: Opened, effect: Callable[[], tuple[bool, Effect]], outcome: Outcome) -> None:
    """Create, append until it rotates, takes checkpoints and packs, rest, drop what is old, erase a stream, rotate the
    master key, close, open again, append, close.

    `effect` is whether the fault has been met, and what it must do to a handle.
    """
    rng = Random(7)
    for generation in range(2):
        outcome.dead = False
        db = await outcome.attempt("open", outcome.open(opened))
        if db is None:
            continue
        met_before, _ = effect()
        for turn in range(4):
            sync = ("group", "batch", "os", "group")[turn]
            appends = [
                outcome.attempt(
                    "append",
                    outcome.append(db, f"s{generation}.{i % 5}", [rng.randbytes(2500) for _ in range(2)], sync),
                )
                for i in range(8)
            ]
            await asyncio.gather(*appends)
            await asyncio.sleep(0.002)
        await outcome.attempt("read", read(db))
        await outcome.attempt("retain", outcome.drop(db))
        if outcome.keys != (None,):
            stream = f"s{generation}.1"
            await outcome.attempt("erase", outcome.erase(db, stream))
            await outcome.attempt("rotate", outcome.rotate(db, NEXT[generation]))
            # What was refused is asked for again, and so is what was not.
            for _ in range(2):
                await outcome.attempt("erase", outcome.erase(db, f"s{generation}.2"))
            await outcome.attempt("confirm", db.confirm_erasure(stream))
        await outcome.probe(db, None if met_before else effect()[1])
        await outcome.attempt("close", db.close())


async def judge(opened: Opened, files: Callable[[], dict[str, bytes]], outcome: Outcome) -> None:
    """The process crashed or gave up, and the disk works again: all that was acknowledged is there, nothing that was
    dropped or erased, and it goes on."""
    outcome.wrong += find_slots(files(), outcome.erased.values())
    both = outcome.keys
    db = await asyncio.wait_for(outcome.open(opened), PATIENCE)
    erased = {each["stream"] for each in (await db.info())["erasures"]}
    if not outcome.erased.keys() <= erased <= outcome.erasing:
        outcome.wrong.append(f"{erased} are erased; {set(outcome.erased)} were, and {outcome.erasing} may be")
    for stream in erased:
        with suppress(Erased):
            outcome.wrong.append(f"back: {await anext(db.read(stream))}")
    found: dict[int, tuple[str, int, bytes]] = {}
    async for record in db.read():
        found[record.position] = (record.stream, record.offset, record.payload)
    first = (await db.info())["first_position"]
    if not outcome.dropped.start <= first <= outcome.dropped.stop:
        outcome.wrong.append(f"it begins at {first}, and {outcome.dropped} was dropped")
    for stream, offset, payload, position in outcome.acknowledged:
        if stream not in erased and (found.get(position) != (stream, offset, payload)) != (position < first):
            outcome.wrong.append(f"lost: {stream} offset {offset}, position {position} from {first} on")
    await db.append("after", b"x")
    erased_slots = slots(db).values()
    await db.close()
    outcome.wrong += find_slots(files(), erased_slots)
    for key in both:
        if key not in outcome.keys:
            with suppress(KeyUnavailable):
                await (await opened(key)).close()
                outcome.wrong.append("two master keys open it")


def report_unhandled(outcome: Outcome) -> None:
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: outcome.wrong.append(f"unhandled: {context.get('exception') or context['message']!r}")
    )


async def run_one(key: Path | None, fault: Failing, *, cut: bool) -> Outcome:
    outcome, disk = Outcome(key), Disk()
    report_unhandled(outcome)
    await workload(
        lambda key: simulated(MemoryBackend(disk, Random(3), fault), key),
        lambda: (fault.hit is not None, fault.effect),
        outcome,
    )
    try:
        if cut:
            disk = disk.crash(Random(fault.left))
        disk.holder = None
        for inode in disk.tree.values():
            if inode is not None:
                inode.holder = None
        await judge(lambda key: simulated(MemoryBackend(disk), key), disk.files, outcome)
        verify(MemoryBackend(disk), load_master(outcome.keys[0]))
    except Exception:
        outcome.wrong.append(f"recovery\n{traceback.format_exc()[-1200:]}")
    return outcome


@contextmanager
def eager() -> Iterator[None]:
    """So that a short run takes checkpoints, packs and scrubs."""
    waits = [(checkpoint, "LEAST_INTERVAL", 0.002), (packing, "REST", 0), (scrub, "LATER", 0.001), (scrub, "REST", 0)]
    usual = [(module, name, getattr(module, name)) for module, name, _ in waits]
    try:
        for module, name, soon in waits:
            setattr(module, name, soon)
        yield
    finally:
        for module, name, value in usual:
            setattr(module, name, value)


def make_keys(key: Path) -> None:
    """This one, if it is not there, and those that it is rotated to."""
    for each in (key, *(key.with_name(name) for name in NEXT)):
        if not each.exists():
            create_master(each)


@eager()
def run(key: Path | None, *, stride: int = 1, only: str | None = None) -> tuple[Counter[str], list[str]]:
    """Counts, and what went wrong. A stride above 1 takes a sample of the places."""
    counts, wrong = Counter[str](), list[str]()
    kinds = [(verb, number) for verb, numbers in VERBS.items() for number in numbers if only in (None, verb)]
    for i, (verb, number) in enumerate(kinds):
        nth = 1 + i % stride
        while True:
            fault = Failing(verb, nth, number, lasting=nth % 2 == 0 and number is not None)
            outcome = asyncio.run(run_one(key, fault, cut=nth % 3 == 0))
            what = f"{verb} {errno.errorcode[number] if number else 'short'}"
            for text in outcome.wrong:
                wrong.append(f"{what} n={nth} lasting={fault.lasting} ({fault.hit}): {text}")
            if fault.hit is None and fault.left > 0:
                break
            counts["runs"] += 1
            counts[what] += 1
            counts["refused"] += outcome.refused
            counts["acknowledged"] += len(outcome.acknowledged)
            nth += stride
    return counts, wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.faults", description=__doc__)
    parser.add_argument("--key", type=Path, help="a file for the master key, made if it is not there")
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--only", choices=VERBS)
    arguments = parser.parse_args()
    if arguments.key is not None:
        make_keys(arguments.key)
    counts, wrong = run(arguments.key, stride=arguments.stride, only=arguments.only)
    for text in wrong:
        print(text)
    print(dict(counts), f"wrong: {len(wrong)}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
