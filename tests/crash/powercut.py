"""Real power cuts: the engine on a file system that loses power under it.

A child appends and says through a pipe what was acknowledged and what it is doing. At a random moment the power goes
(see `mounts`), the child is killed, the disk is mounted again, and a second child opens the database and holds it
against every durable acknowledgement. Or the next writer opens it and loses power in its turn, perhaps in the middle
of the recovery. All that is sealed, in every image, is looked at for a nonce that was used twice.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children, get_context
from pathlib import Path
from random import Random
from typing import Any

from tests.crash.children import STEPS, Child, Kept, Manner, Writer, usable
from tests.crash.mounts import Shut, isolate, lacking, mounts
from tests.crash.nonces import Nonces, find_slots, read_files

#: What must never be counted.
BAD = ("lost", "back", "refused", "escaped", "hung", "nonces twice")
#: What the power can go in the middle of: `segment` is the next one being begun, `rotation` that of the master key.
OTHER_STEPS = ("mark", "group", "retention", "packing", "erasure", "rotation")
HITS = (*(f"{step} hit" for step in (*STEPS, *OTHER_STEPS, "recovery")), "torn tails")
#: What a writer may end with when its disk is gone.
#: What it does not give of the marks is as if it were damaged; if they are, they still are behind the cut.
OF_A_DEAD_DISK = (
    "UnknownOutcome: ",
    "Unavailable: ",
    "NoSpace: ",
    "Corrupt: marks, byte 0: neither watermark is sound",
)
#: Of so many cuts and more, so many at least are in the middle of each of these.
ENOUGH, LEAST = 500, 20
#: What a log does that lives for years.
YEARS = ("retention", "packing", "erasure", "rotation")
WANTED = ("segment", "vault", "checkpoint", "mark", *YEARS)
#: What somebody waits for, who may lose power as soon as it is done.
ENDED = ("retention", "erasure", "rotation")
#: Those that only an encrypted database does.
OF_KEYS = ("vault", "erasure", "rotation")
#: Where a cut is aimed at, if not at what was hit least so far; None is any moment.
TARGETS = (None, "group", "group", "group", "opening", *WANTED)
#: How a writer gets there.
MANNERS: dict[str | None, tuple[Manner, ...]] = dict.fromkeys(TARGETS, ("usual", "loose"))
MANNERS |= {"mark": ("quiet",), "group": ("large", "loose"), "retention": ("keeping",), "packing": ("keeping",)}
MANNERS |= {"erasure": ("erasing",), "rotation": ("erasing",)}
#: Seconds from the beginning of a step until the power goes, at most.
DELAYS = (0, 0.0003, 0.002)
LONGER = {"erasure": (0.001, 0.004, 0.012), "rotation": (0.0005, 0.002, 0.006), "retention": (0.0005, 0.003, 0.01)}


class Database:
    """One directory through several cuts, and everything durable that it acknowledged."""

    def __init__(self, path: Path, key: Path | None) -> None:
        self.path, self.key, self.kept = path, key, Kept()
        #: The one that a rotation was to, which may have been cut off.
        self.other: Path | None = None
        self.nonces = Nonces()
        #: Whether the last power cut is still to be recovered from.
        self.cut_off = False

    def cut(self, mount: Shut, rng: Random, counts: Counter[str], *, check: bool) -> None:
        target = "opening" if self.cut_off and rng.random() < 0.25 else self._aim(rng, counts)
        engine = rng.choice(usable())
        manner = rng.choice(MANNERS[target])
        writer = Writer(self.path, self.key, engine, rng.getrandbits(40), manner, other=self.other)
        child = Child(writer.work)
        ended = self._reach(child, target, mount, rng)
        counts["sectors in a cache"] += mount.cut(rng)
        said = child.end()
        mount.again()
        counts["cuts"] += 1
        counts["stopped early"] += ended
        counts[f"on {mount.name}, {engine}, {'plain' if self.key is None else 'encrypted'}"] += 1
        self._count(said, counts, ended=ended)
        self._look(counts)
        self.cut_off = True
        if check:
            self._check(Writer(self.path, self.key, rng.choice(usable()), writer.seed, other=self.other), counts)

    def _aim(self, rng: Random, counts: Counter[str]) -> str | None:
        wanted = [step for step in WANTED if self.key is not None or step not in OF_KEYS]
        if rng.random() < 0.5:
            return min(wanted, key=lambda step: counts[f"{step} hit"])
        return rng.choice([step for step in TARGETS if step in wanted or step not in OF_KEYS])

    def _reach(self, child: Child, target: str | None, mount: Shut, rng: Random) -> bool:
        """Lets the child come to where it is to be cut; whether it ended before."""
        ended = target != "opening" and child.listen(10, until="work")
        if target == "group":
            # Only a segment that was prepared in quiet has been written before: its blocks need no journal to be seen.
            ended = ended or child.listen(1, until="segment")
        if target != "opening":
            ended = ended or child.listen(rng.choice((0.005, 0.03, 0.2)) * rng.random())
        if ended or (target == "group" and mount.arm(rng.randrange(1, 4)) and child.listen(0.5)):
            return ended
        if target is not None:
            ended = child.listen(2 if target in WANTED else 0.5, until=target)
            if target in ENDED and rng.random() < 0.3:
                return ended or child.listen(1, until=target, edge="end")
            time.sleep(rng.choice(LONGER.get(target, DELAYS)) * rng.random())
        return ended

    def _count(self, said: list[Any], counts: Counter[str], *, ended: bool) -> None:
        counts["acknowledged"] += sum(kind == "ack" for kind, _ in said)
        counts.update(f"answered, {what}" for kind, what in said if kind == "by")
        for name in (*STEPS, *OTHER_STEPS):
            edges = [kind for kind, what in said if what == name]
            hit = edges.count("begin") > edges.count("end")
            counts[f"{name} done"] += edges.count("end")
            counts[f"{name} hit"] += hit
            counts["recovery hit"] += hit and name == "opening" and self.cut_off
        self._take(said)
        for kind, text in said:
            if kind == "torn":
                counts["torn tails"] += text
            elif kind == "back":
                self.blame(kind, text, counts)
            elif kind == "escaped":
                counts[kind] += 1
                print(f"escaped before the cut: {text}")
            elif kind == "refused" and (ended or not text.startswith(OF_A_DEAD_DISK)):
                self.blame(kind, f"before the cut: {text}", counts)

    def _take(self, said: list[Any]) -> None:
        for kind, what in said:
            self.kept.take(kind, what)
            if kind == "rotating":
                self.other = Path(what)
            elif kind in ("rotated", "opened"):
                self.key, self.other = Path(what), None

    def _look(self, counts: Counter[str]) -> None:
        """At all that is sealed in the directory as it is now, and whether the key of an erased stream still is."""
        if self.key is None:
            return
        files = read_files(self.path)
        for what in find_slots(files, self.kept.erased.values()):
            self.blame("back", what, counts)
        self.nonces.look(files)
        for what in self.nonces.twice:
            self.blame("nonces twice", what, counts)
        self.nonces.twice.clear()

    def _check(self, writer: Writer, counts: Counter[str]) -> None:
        checker = Child(lambda say: writer.check(self.kept, say))
        counts["hung"] += not checker.listen(60)
        said = checker.end()
        self._take(said)
        for kind, what in said:
            if kind in BAD:
                self.blame(kind, what, counts)
            elif kind == "torn":
                counts["torn tails"] += what
        counts["checked"] += 1
        self.cut_off = False
        self._look(counts)

    def blame(self, kind: str, what: Any, counts: Counter[str]) -> None:
        counts[kind] += 1
        print(f"{kind}: {self.path}: {what}", flush=True)


def run(cuts: int, seed: int) -> Counter[str]:
    counts = Counter(dict.fromkeys(("cuts", "checked", "acknowledged", *BAD, *HITS), 0))
    rng = Random(seed)
    with mounts() as made:
        key = made[0].place.parent / "key"
        while counts["cuts"] < cuts:
            mount = rng.choice(made + made[1::2])
            database = Database(mount.path / f"db{counts['cuts']}", key if rng.random() < 0.5 else None)
            left = min(rng.randrange(1, 9), cuts - counts["cuts"])
            for i in range(left):
                database.cut(mount, rng, counts, check=i == left - 1 or rng.random() < 0.6)
            counts["sealed runs"] += len(database.nonces.seen)
            shutil.rmtree(database.path, ignore_errors=True)
    return counts


def run_all(cuts: int, seed: int, jobs: int = 1) -> Counter[str]:
    """In processes whose mounts nobody else sees."""
    counts = Counter[str]()
    shares = [cuts // jobs + (i < cuts % jobs) for i in range(jobs)]
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=isolate) as pool:
        try:
            for found in pool.map(run, shares, range(seed, seed + jobs)):
                counts.update(found)
        except BaseException:
            for process in active_children():
                process.terminate()
            raise
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.powercut", description=__doc__)
    parser.add_argument("--cuts", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    if (why := lacking()) is not None:
        print(f"no power cuts: {why}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    counts = run_all(arguments.cuts, arguments.seed, arguments.jobs)
    for name, count in sorted(counts.items()):
        print(f"{name:36} {count}")
    print(f"seed {arguments.seed}, {counts['cuts'] / (time.monotonic() - began):.1f} cuts/s")
    amid = ", ".join(f"{step} {counts[f'{step} hit']}" for step in YEARS)
    print(f"cuts in the middle of: {amid}")
    missed = [step for step in WANTED if counts[f"{step} hit"] < LEAST]
    if arguments.cuts >= ENOUGH and missed:
        print(f"fewer than {LEAST} cuts in the middle of: {', '.join(missed)}")
    return int(any(counts[bad] for bad in BAD) or (arguments.cuts >= ENOUGH and bool(missed)))


if __name__ == "__main__":
    sys.exit(main())
