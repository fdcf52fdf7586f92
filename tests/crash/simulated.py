"""Crash states of the simulated disk in any number: `python -m tests.crash.simulated --states 1000000 --jobs 2`."""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import re
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

from kimberlite.crypto.master import create_master
from kimberlite.errors import KimberliteError
from kimberlite.log import checkpoint
from kimberlite.storage.memory import Disk
from tests.crash import breaks
from tests.crash.damage import trial, twins
from tests.crash.judging import DEEPEST, KINDS, Verdict, Wrong, compare, compare_served, distinct, is_empty, judge
from tests.crash.order import violations
from tests.crash.workload import NO_END, Forgotten, History, Session, State, World
from tests.log.turns import VirtualLoop

#: Of the states, how many are damaged too; of those at rest, all are.
DAMAGED: Final = 0.1
#: Of the workloads, how many are followed by a log that gets groups of its twin.
TWINS: Final = 0.2
#: What a log does that lives for years.
AMID: Final = ("retention", "packing", "erasure", "rotation")
#: Workloads that a process is given at a time.
PIECE: Final = 4
#: What comes of a patch of what is not there like that any more.
UNFIT: Final = re.compile("failed: (TypeError|AttributeError)")


@dataclass
class Tally:
    """What was counted over some workloads."""

    counts: Counter[str] = field(default_factory=Counter)
    #: What went wrong, each with its seed.
    wrong: list[str] = field(default_factory=list)
    distinct: int = 0
    #: Seconds of a processor.
    seconds: float = 0.0
    #: Images without anything random in them, which other workloads have too.
    empty: set[int] = field(default_factory=set)

    def add(self, other: Tally) -> None:
        self.counts += other.counts
        self.wrong += other.wrong
        self.distinct += other.distinct
        self.seconds += other.seconds
        self.empty |= other.empty

    def note(self, verdict: Verdict, state: State, seed: int) -> None:
        self.counts["states"] += 1
        self.counts.update(f"{what} hit" for what in state.amid)
        self.counts[f"level {state.level}"] += 1
        self.counts["torn"] += verdict.torn
        if verdict.kind != "sound":
            self.counts[verdict.kind] += 1
            self.wrong.append(f"seed {seed}, level {state.level}: {verdict.what}")


class Workload:
    """Some sessions, one after another on what the last one left; their states are judged before the next begins."""

    def __init__(self, seed: int, key: Path | None) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.world = World.draw(self.rng, key)
        self.history = History()
        self.tally = Tally()
        self.images: set[int] = set()
        #: Images that were judged, with what they had to hold.
        self.sound: set[tuple[object, ...]] = set()

    async def run(self) -> Tally:
        base = State(Disk(), 0, {}, NO_END, 0, forgotten=Forgotten(keys=(self.world.key,)))
        try:
            for _ in range(self.rng.choice((1, 2, 2, 3))):
                base = await self._session(base)
            if self.rng.random() < TWINS:
                self._count(await twins(self.world, self.rng), "twins")
        except Wrong as wrong:
            self._note(Verdict(wrong.kind, str(wrong)), base)
        except BaseException as error:
            # A panic of the native part is no Exception.
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            self._note(Verdict("failed", f"failed: {error!r}"), base)
        self.tally.distinct = len(self.images)
        return self.tally

    async def _session(self, base: State) -> State:
        """What the next session begins on."""
        session = Session(self.world, self.history, base)
        # What is cut off while it opens may still have what it then finds to be lost, or gone.
        before = copy(self.history)
        try:
            found, told = await session.begin()
        except KimberliteError as error:
            raise Wrong("refused", repr(error)) from error
        compare_served(told, found, base)
        compare(found, base, self.history)
        self.history.cut_to(found)
        opening, left = len(session.states), session.base
        await session.work()
        await session.finish()
        for what in violations(session.disk.trace, base.flying):
            self.tally.counts["order"] += 1
            self.tally.wrong.append(f"seed {self.seed}: {what}")
        await self._judge(session.states[:opening], before)
        await self._judge(session.states[opening:], self.history)
        base = self._next(session)
        if base is left:
            self.history = before
        return base

    def _next(self, session: Session) -> State:
        if session.base is None or (session.closed and self.rng.random() < 0.4):
            return session.left_by(session.disk)
        return session.base

    async def _judge(self, states: list[State], history: History) -> None:
        while states:
            state = states.pop()
            image = distinct(state.disk)
            (self.tally.empty if is_empty(state.disk) else self.images).add(image)
            lengths = sorted(state.lengths.items())
            claim = (image, state.promised, state.first, state.asked, state.flying, state.forgotten, *lengths)
            if claim in self.sound:
                # The same bytes and the same promises: what was seen to be so is not opened again.
                self.tally.counts.update({"states": 1, "repeated": 1, f"level {state.level}": 1})
                continue
            if state.resting or self.rng.random() < DAMAGED:
                self._count(await trial(state, history, self.world, self.rng), f"level {state.level}")
            verdict = await judge(state, history, self.world, self.rng)
            self._note(verdict, state)
            states += verdict.children
            if verdict.kind == "sound":
                self.sound.add(claim)

    def _count(self, found: tuple[Counter[str], list[str]], where: str) -> None:
        counts, missed = found
        self.tally.counts += counts
        self.tally.wrong += [f"seed {self.seed}, {where}: {what}" for what in missed]

    def _note(self, verdict: Verdict, state: State) -> None:
        self.tally.note(verdict, state, self.seed)


def run(seed: int) -> Tally:
    """One workload and all its crash states."""
    begun = time.process_time()
    checkpoint.LEAST_INTERVAL = 0.002  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as name, asyncio.Runner(loop_factory=VirtualLoop) as runner:
        key = Path(name) / "key" if seed % 2 else None
        if key is not None:
            create_master(key)
        tally = runner.run(Workload(seed, key).run())
        tally.seconds = time.process_time() - begun
        return tally


def several(seeds: range, broken: str | None) -> Tally:
    """Some workloads, with a rule taken out or none."""
    tally = Tally()
    with breaks.applied(broken):
        for seed in seeds:
            tally.add(run(seed))
            if broken is not None and tally.wrong and UNFIT.search(tally.wrong[-1]):
                raise RuntimeError(f"what takes out {broken} does not fit the engine: {tally.wrong[-1]}")
            if broken is not None and tally.wrong:
                break
    return tally


def search(states: int, seed: int, pool: ProcessPoolExecutor, jobs: int, broken: str | None) -> Tally:
    """So many states, or with a rule taken out the first that shows it."""
    tally, running = Tally(), set[Future[Tally]]()
    while tally.counts["states"] < states and not (broken and tally.wrong):
        while len(running) < 2 * jobs:
            running.add(pool.submit(several, range(seed, seed + PIECE), broken))
            seed += PIECE
        done, running = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            tally.add(future.result())
        progress = f"{tally.counts['states']} of {states} states, {len(tally.wrong)} wrong"
        print(f"\r{progress}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    for future in running:
        future.cancel()
    return tally


def report(tally: Tally, seconds: float) -> str:
    counts, total = tally.counts, tally.counts["states"]
    lost = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS)
    nested = ", ".join(f"{counts[f'level {level}']}" for level in range(1, DEEPEST + 1))
    refused = counts["refused open"] + counts["refused later"]
    amid = ", ".join(f"{what} {counts[what + ' hit']}" for what in AMID)
    return (
        f"{total} states, {tally.distinct + len(tally.empty)} distinct images "
        f"({counts['repeated']} with the same promises as one before)\n"
        f"{total / seconds:.0f} states/s ({total / max(tally.seconds, 1e-9):.0f} a second of a processor)\n"
        f"{counts['torn'] / max(1, total):.1%} with a torn tail; {nested} crashed in one, two, three recoveries\n"
        f"cuts in the middle of: {amid}\n"
        f"{lost}\n"
        f"damage under a watermark: {refused} refused of {counts['tried']} tried "
        f"({counts['refused open']} when opened, {counts['refused later']} behind a checkpoint)"
    )


def show_breaks(names: list[str], options: argparse.Namespace, pool: ProcessPoolExecutor) -> int:
    """Each rule taken out in turn; how many go unseen."""
    unseen = 0
    for name in names:
        begun = time.monotonic()
        tally = search(options.states, options.seed, pool, options.jobs, name)
        kinds = ", ".join(f"{count} {kind}" for kind in (*KINDS, "missed") if (count := tally.counts[kind]))
        unseen += not tally.wrong
        what = f"{kinds} in {tally.counts['states']} states, {time.monotonic() - begun:.1f} s"
        print(f"{name:14} {what if tally.wrong else f'NOT SEEN: {what}'}", flush=True)
        if tally.wrong:
            print(f"{'':14} {tally.wrong[0][:180]}", flush=True)
    return unseen


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.simulated", description=__doc__)
    parser.add_argument("--states", type=int, help="how many; 2,000 unless told, and 20,000 at most to see a break")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--break", dest="rule", choices=["all", *breaks.RULES], help="a rule to take out")
    options = parser.parse_args()
    options.states = options.states or (20_000 if options.rule else 2000)
    begun = time.monotonic()
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("forkserver")) as pool:
        if options.rule == "all":
            return int(show_breaks(list(breaks.RULES), options, pool) > 0)
        if options.rule is not None:
            # As a broken engine fails, unless nothing is seen.
            return int(show_breaks([options.rule], options, pool) == 0)
        tally = search(options.states, options.seed, pool, options.jobs, None)
    for what in tally.wrong[:20]:
        print(what)
    print(report(tally, time.monotonic() - begun))
    return int(bool(tally.wrong))


if __name__ == "__main__":
    sys.exit(main())
