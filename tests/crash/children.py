"""Processes that use a database and say what they do and what was acknowledged, for as long as they live."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal

import kimberlite
from kimberlite._native import key_id
from kimberlite.arguments import Sync
from kimberlite.crypto.master import create_master, read_key_file
from kimberlite.errors import Dropped, Erased, KeyUnavailable, KimberliteError
from kimberlite.log import checkpoint, committer, keyring, opening, packing, past, retention
from kimberlite.log.keycheck import wrapped_by
from kimberlite.log.log import Log
from kimberlite.log.names import SEGMENTS
from kimberlite.log.opening import Injected, open_log
from kimberlite.log.options import MIB, Options
from kimberlite.log.verify import verify_directory
from kimberlite.storage import disk, engines
from kimberlite.storage.backend import Done, File
from tests.crash.workload import slots

if TYPE_CHECKING:
    from typing_extensions import Buffer

Engine = Literal["threads", "uring"]
Manner = Literal["usual", "quiet", "large", "loose", "keeping", "erasing"]
#: Stream, first offset, first position, seed, records.
Ack = tuple[str, int, int, int, int]
Say = Callable[[Any], None]
POLICIES: list[Sync] = ["group", "group", "batch", "os", "record"]
#: What a child can be in the middle of, and where the engine does it.
STEPS: dict[str, tuple[Any, str]] = {
    "segment": (committer, "install"),
    "vault": (keyring.Keyring, "_write"),
    "checkpoint": (checkpoint.Derived, "write_all"),
    "opening": (opening.Opener, "_prepare"),
}


def usable() -> list[Engine]:
    """The engines that there are here."""
    try:
        engines.Uring().close()
    except OSError:
        return ["threads"]
    return ["threads", "uring"]


def payloads(seed: int, count: int) -> list[bytes]:
    rng = Random(seed)
    sizes = (0, 20, 300, 3000, 9000) if seed % 16 else (60_000, 90_000)
    return [rng.randbytes(rng.choice(sizes)) for _ in range(count)]


@dataclass
class Kept:
    """What a database has answered for, as its children say it."""

    acks: list[Ack] = field(default_factory=list)
    #: What is before its start was dropped, and before its end it may be.
    dropped: range = range(0)
    #: Of each stream that was erased, how its slot in the vault began; and all that may be erased.
    erased: dict[str, bytes] = field(default_factory=dict)
    erasing: set[str] = field(default_factory=set)
    #: Of those, whose master key was said to be no more, or may be.
    confirmed: set[str] = field(default_factory=set)
    confirming: set[str] = field(default_factory=set)

    def take(self, kind: str, what: Any) -> None:
        if kind == "ack":
            self.acks.append(tuple(what))
        elif kind in ("asked", "dropped"):
            first = max(self.dropped.start, what if kind == "dropped" else 0)
            self.dropped = range(first, max(self.dropped.stop, what))
        elif kind == "erasing":
            self.erasing.add(what)
        elif kind == "erased":
            self.erasing.add(what[0])
            self.erased[what[0]] = bytes.fromhex(what[1])
        elif kind == "confirming":
            self.confirming.add(what)
        elif kind == "confirmed":
            self.confirming.add(what)
            self.confirmed.add(what)
        elif kind == "checked":
            # What it shows is so from here on, and all else is not.
            self.erasing, self.confirming = set(self.erased), set(self.confirmed)


@dataclass(frozen=True)
class Writer:
    """What a child works on, and how."""

    path: Path
    key: Path | None
    engine: Engine
    seed: int
    #: `quiet`: one client that pauses, so that there is time for marks. `large`: groups of 100 KB and more, some in
    #: flight together. `loose`: large ones that mostly nobody waits for. `keeping`: small segments, packed and dropped.
    #: `erasing`: streams are erased, and the master key is rotated.
    manner: Manner = "usual"
    #: Of what closed segments are packed.
    pack: float = 0.9
    #: A master key to which a rotation was cut off.
    other: Path | None = None

    async def open(self, rng: Random) -> Log:
        if self.other is None:
            return await self._open(rng, self.key)
        try:
            return await self._open(rng, self.other)
        except KeyUnavailable:
            return await self._open(rng, self.key)

    async def opened(self, rng: Random, say: Say) -> Log:
        """Says with which of the master keys; the other one is refused."""
        db = await self.open(rng)
        if self.other is not None:
            used = self._current()
            say(["opened", str(used)])
            unused = self.key if used == self.other else self.other
            try:
                await kimberlite.open(self.path, key_file=unused, read_only=True)
            except KeyUnavailable:
                return db
            say(["back", f"two master keys open it, and one of them is {unused}"])
        return db

    def _current(self) -> Path | None:
        """Of the two master keys the one that the vault is under."""
        if self.other is not None and key_id(read_key_file(self.other)) == wrapped_by(self.path):
            return self.other
        return self.key

    async def _open(self, rng: Random, key: Path | None) -> Log:
        size = MIB // 8 if self.manner == "keeping" else MIB
        depth = rng.randrange(1, 9)
        options = Options(segment_bytes=size, depth=depth, checkpoint_records=200, idle=0.001, pack=self.pack)
        return await open_log(
            self.path, create=True, read_only=False, key_file=key, backend=self.engine, origin=None, anchor=None,
            options=options, injected=Injected(),
        )  # fmt: skip

    async def work(self, say: Say) -> None:
        """Appends until it is killed."""
        report_steps(say)
        rng = Random(self.seed)
        db = await self.opened(rng, say)
        say(["torn", sum("torn" in note for note in (await db.info())["notes"])])
        await self._say_erased(db, say)
        say(["begin", "work"])
        # Large groups are in flight together: one can land without the one before it.
        heavy = self.manner in ("large", "loose") or (self.manner in ("usual", "quiet") and rng.random() < 0.5)
        clients = 1 if self.manner == "quiet" else rng.randrange(1, 9)
        working = [self._client(db, Random(rng.random()), say, heavy) for _ in range(clients)]
        if self.manner == "keeping":
            working.append(self._drop(db, rng, say))
        elif self.manner == "erasing":
            working.append(self._erase(db, rng, say))
        await asyncio.gather(*working)

    async def _say_erased(self, db: Log, say: Say) -> None:
        """What it shows as erased."""
        found = slots(db)
        for each in (await db.info())["erasures"]:
            say(["erased", [each["stream"], found[each["stream"]].hex()]])
            if not each["pending"]:
                say(["confirmed", each["stream"]])

    async def _erase(self, db: Log, rng: Random, say: Say) -> None:
        """Erases one stream after another, and now and then rotates the master key."""
        while True:
            await asyncio.sleep(rng.random() * 0.02)
            there = [s.name for s in db.streams() if not s.erased and not s.name.startswith("after")]
            if rng.random() < 0.4 or not there:
                await self._rotate(db, rng, say)
                continue
            stream = rng.choice(there)
            say(["erasing", stream])
            say(["begin", "erasure"])
            await db.erase(stream, reason=stream)
            say(["erased", [stream, slots(db)[stream].hex()]])
            say(["end", "erasure"])

    async def _rotate(self, db: Log, rng: Random, say: Say) -> None:
        assert self.key is not None
        key = self.key.with_name(f"key{rng.getrandbits(60)}")
        create_master(key)
        say(["rotating", str(key)])
        say(["begin", "rotation"])
        await db.rotate(key)
        say(["rotated", str(key)])
        say(["end", "rotation"])
        for each in (await db.info())["erasures"]:
            if each["pending"] and rng.random() < 0.5:
                say(["confirming", each["stream"]])
                await db.confirm_erasure(each["stream"])
                say(["confirmed", each["stream"]])

    async def _drop(self, db: Log, rng: Random, say: Say) -> None:
        """Drops about the older half, again and again."""
        while True:
            await asyncio.sleep(rng.random() * 0.05)
            first = (await db.info())["first_position"]
            before = rng.randrange(first, first + (db.durable_position - first) * 2 // 3 + 1)
            say(["asked", before])
            say(["dropped", (await db.retain(before=before)).first])

    async def _client(self, db: Log, rng: Random, say: Say, heavy: bool) -> None:
        while True:
            policy = "os" if self.manner == "loose" and rng.random() < 0.9 else rng.choice(POLICIES)
            count = 1 if policy == "record" else rng.randrange(1, 9)
            stream = f"s{rng.randrange(40)}" if rng.random() < 0.9 else f"new{rng.randrange(10**6)}"
            records = rng.getrandbits(48) & (~15 if heavy and rng.random() < 0.7 else -1) | (self.manner == "keeping")
            try:
                r = await db.append(stream, payloads(records, count), sync=policy)
            except Erased:
                await asyncio.sleep(0)
                continue
            if r.durable:
                say(["ack", [stream, r.first_offset, r.first_position, records, count]])
            say(["by", policy])
            if self.manner == "quiet" or rng.random() < 0.1:
                await asyncio.sleep(rng.random() * 0.01)

    async def check(self, kept: Kept, say: Say) -> None:
        """Opens what a cut left; says what is lost or back, whether it verifies and that it goes on."""
        db = await self.opened(Random(self.seed), say)
        info = await db.info()
        first = info["first_position"]
        if first < kept.dropped.start:
            say(["back", f"it begins at {first}, and {kept.dropped} was dropped"])
        elif first > kept.dropped.stop:
            say(["lost", f"it begins at {first}, and {kept.dropped} was dropped"])
        say(["dropped", first])
        say(["torn", sum("torn" in note for note in info["notes"])])
        erased = {each["stream"] for each in info["erasures"]}
        confirmed = {each["stream"] for each in info["erasures"] if not each["pending"]}
        for stream in (kept.erased.keys() - erased) | (kept.confirmed - confirmed):
            say(["back", f"that {stream} was erased, or that this was confirmed"])
        for stream in (erased - kept.erasing) | (confirmed - kept.confirming):
            say(["lost", f"{stream} is erased or confirmed, and nobody asked for it"])
        await self._say_erased(db, say)
        for lost in await missing(db, kept.acks):
            say(["lost", lost])
        for back in await read_again(db, erased, kept.acks):
            say(["back", back])
        say(["checked", None])
        after = [await db.append(f"after{i}", payloads(self.seed + i, 3)) for i in range(2)]
        await db.close()
        verify_directory(self.path, key_file=self._current())
        for i, r in enumerate(after):
            say(["ack", [f"after{i}", r.first_offset, r.first_position, self.seed + i, 3]])


async def missing(db: Log, acks: list[Ack]) -> list[Ack]:
    """What was acknowledged, was not dropped and is not there as it was."""
    by_stream: dict[str, list[tuple[int, bytes]]] = {}
    begins: dict[str, int] = {}
    async for record in db.read():
        of_stream = by_stream.setdefault(record.stream, [])
        assert record.offset == begins.setdefault(record.stream, record.offset) + len(of_stream)
        of_stream.append((record.position, record.payload))
    info = await db.info()
    first, erased = info["first_position"], {each["stream"] for each in info["erasures"]}
    assert first > 0 or not any(begins.values())
    lost = []
    for ack in acks:
        stream, offset, position, records, count = ack
        if position < first:
            if begins.get(stream, offset + count) < offset + count:
                lost.append(ack)
            continue
        if stream in erased:
            continue
        at = offset - begins.get(stream, 0)
        found = by_stream.get(stream, [])[max(0, at) : max(0, at + count)]
        if [payload for _, payload in found] != payloads(records, count) or found[0][0] != position:
            lost.append(ack)
    return lost


async def read_again(db: Log, erased: set[str], acks: list[Ack]) -> list[str]:
    """What can still be read of these streams."""
    back = [f"position {record.position} of {record.stream}" async for record in db.read() if record.stream in erased]
    for stream in erased:
        with contextlib.suppress(Erased):
            back += [f"a read of {stream} begins at {(await anext(db.read(stream))).position}"]
    for stream, _, position, _, _ in acks:
        if stream in erased:
            with contextlib.suppress(Erased, Dropped):
                back += [f"position {(await db.get(position)).position} of {stream}"]
    return back


def reporting(say: Say, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*arguments: Any) -> Any:
        say(["begin", name])
        result = call(*arguments)
        say(["end", name])
        return result

    return wrapped


def report_steps(say: Say) -> None:
    """In a child only: what it does is said before and after; a mark or a group is done when it has completed."""
    for name, (owner, attribute) in STEPS.items():
        setattr(owner, attribute, reporting(say, name, getattr(owner, attribute)))
    keep, unlink = past.keep, retention.Retention._unlink

    def begin(*arguments: Any, **named: Any) -> bool:
        say(["begin", "retention"])
        return keep(*arguments, **named)

    def unlink_all(self: retention.Retention) -> None:
        unlink(self)
        say(["end", "retention"])

    past.keep = begin
    retention.Retention._unlink = unlink_all  # type: ignore[method-assign]
    pack = packing.pack

    def pack_all(*arguments: Any) -> Iterator[bool]:
        say(["begin", "packing"])
        yield from pack(*arguments)
        say(["end", "packing"])

    packing.pack = pack_all  # type: ignore[assignment]
    mark = committer.Committer._write_mark

    def write_mark(self: committer.Committer, *, clean: bool, done: Callable[[], None] = lambda: None) -> None:
        def finished() -> None:
            say(["end", "mark"])
            done()

        say(["begin", "mark"])
        mark(self, clean=clean, done=finished)

    committer.Committer._write_mark = write_mark  # type: ignore[method-assign]
    submit = disk.DiskBackend.submit

    def submit_group(self: disk.DiskBackend, file: File, place: int, buffer: Buffer, durable: bool, done: Done) -> None:
        if not file.name.startswith(SEGMENTS):
            submit(self, file, place, buffer, durable, done)
            return

        def finished(error: OSError | None) -> None:
            if error is None:
                say(["end", "group"])
            done(error)

        say(["begin", "group"])
        submit(self, file, place, buffer, durable, finished)

    disk.DiskBackend.submit = submit_group  # type: ignore[method-assign]
    checkpoint.LEAST_INTERVAL = 0.02  # type: ignore[misc]


class Child:
    """A forked process and what it says."""

    def __init__(self, work: Callable[[Say], Any]) -> None:
        self._pipe, out = os.pipe()
        self._said = b""
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._pipe)
            self._run(work, out)
        os.close(out)

    def _run(self, work: Callable[[Say], Any], out: int) -> None:
        def say(what: Any) -> None:
            os.write(out, json.dumps(what).encode() + b"\n")

        try:
            asyncio.run(work(say))
            say(["done", None])
        except BaseException as error:
            kind = "refused" if isinstance(error, KimberliteError) else "escaped"
            text = traceback.format_exc() if kind == "escaped" else f"{type(error).__name__}: {error}"
            say([kind, text[-1500:]])
        os._exit(0)

    def listen(self, seconds: float, until: str | None = None, edge: str = "begin") -> bool:
        """Whether it ended in that time; returns sooner if it begins that step, or is at its other edge."""
        begins = json.dumps([edge, until]).encode()
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self._pipe], [], [], left)[0]:
                data = os.read(self._pipe, 1 << 16)
                if not data:
                    return True
                self._said += data
                if begins in data:
                    break
        return False

    def kill(self) -> None:
        """Kills it, and returns when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def end(self) -> list[Any]:
        """Kills it; what it has said."""
        self.kill()
        self.listen(60)
        os.close(self._pipe)
        return [json.loads(line) for line in self._said.splitlines()]
