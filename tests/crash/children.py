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
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal

from kimberlite.arguments import Sync
from kimberlite.errors import KimberliteError
from kimberlite.log import checkpoint, committer, keyring, opening, packing, past, retention
from kimberlite.log.log import Log
from kimberlite.log.names import SEGMENTS
from kimberlite.log.opening import Injected, open_log
from kimberlite.log.options import MIB, Options
from kimberlite.log.verify import verify_directory
from kimberlite.storage import disk, engines
from kimberlite.storage.backend import Done, File

if TYPE_CHECKING:
    from typing_extensions import Buffer

Engine = Literal["threads", "uring"]
Manner = Literal["usual", "quiet", "large", "loose", "keeping"]
#: Stream, first offset, first position, seed, records.
Ack = tuple[str, int, int, int, int]
Say = Callable[[Any], None]
POLICIES: list[Sync] = ["group", "group", "batch", "os", "record"]
#: What a child can be in the middle of, and where the engine does it.
STEPS: dict[str, tuple[Any, str]] = {
    "rotation": (committer, "install"),
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


@dataclass(frozen=True)
class Writer:
    """What a child works on, and how."""

    path: Path
    key: Path | None
    engine: Engine
    seed: int
    #: `quiet`: one client that pauses, so that there is time for marks. `large`: groups of 100 KB and more, some in
    #: flight together. `loose`: large ones that mostly nobody waits for. `keeping`: small segments, packed and dropped.
    manner: Manner = "usual"
    #: Of what closed segments are packed.
    pack: float = 0.9

    async def open(self, rng: Random) -> Log:
        size = MIB // 4 if self.manner == "keeping" else MIB
        depth = rng.randrange(1, 9)
        options = Options(segment_bytes=size, depth=depth, checkpoint_records=200, idle=0.001, pack=self.pack)
        return await open_log(
            self.path, create=True, read_only=False, key_file=self.key, backend=self.engine, origin=None, anchor=None,
            options=options, injected=Injected(),
        )  # fmt: skip

    async def work(self, say: Say) -> None:
        """Appends until it is killed."""
        report_steps(say)
        rng = Random(self.seed)
        db = await self.open(rng)
        say(["torn", sum("torn" in note for note in (await db.info())["notes"])])
        say(["begin", "work"])
        # Large groups are in flight together: one can land without the one before it.
        heavy = self.manner in ("large", "loose") or (self.manner != "keeping" and rng.random() < 0.5)
        clients = 1 if self.manner == "quiet" else rng.randrange(1, 9)
        working = [self._client(db, Random(rng.random()), say, heavy) for _ in range(clients)]
        await asyncio.gather(*working, *([self._drop(db, rng, say)] if self.manner == "keeping" else []))

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
            r = await db.append(stream, payloads(records, count), sync=policy)
            if r.durable:
                say(["ack", [stream, r.first_offset, r.first_position, records, count]])
            say(["by", policy])
            if self.manner == "quiet" or rng.random() < 0.1:
                await asyncio.sleep(rng.random() * 0.01)

    async def check(self, acks: list[Ack], dropped: range, say: Say) -> None:
        """Opens what a cut left; says what is lost, whether it verifies and that it goes on. What is before the start
        of `dropped` is gone, and before its end it may be."""
        db = await self.open(Random(self.seed))
        first = (await db.info())["first_position"]
        if not dropped.start <= first <= dropped.stop:
            say(["lost", f"it begins at {first}, and {dropped} was dropped"])
        say(["dropped", first])
        say(["torn", sum("torn" in note for note in (await db.info())["notes"])])
        for lost in await missing(db, acks):
            say(["lost", lost])
        after = [await db.append(f"after{i}", payloads(self.seed + i, 3)) for i in range(2)]
        await db.close()
        verify_directory(self.path, key_file=self.key)
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
    first = (await db.info())["first_position"]
    assert first > 0 or not any(begins.values())
    lost = []
    for ack in acks:
        stream, offset, position, records, count = ack
        if position < first:
            if begins.get(stream, offset + count) < offset + count:
                lost.append(ack)
            continue
        at = offset - begins.get(stream, 0)
        found = by_stream.get(stream, [])[max(0, at) : max(0, at + count)]
        if [payload for _, payload in found] != payloads(records, count) or found[0][0] != position:
            lost.append(ack)
    return lost


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

    def begin(*arguments: Any) -> None:
        say(["begin", "retention"])
        keep(*arguments)

    def unlink_all(self: retention.Retention, number: int) -> None:
        unlink(self, number)
        say(["end", "retention"])

    past.keep = begin  # type: ignore[assignment]
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

    def listen(self, seconds: float, until: str | None = None) -> bool:
        """Whether it ended in that time; returns sooner if it begins that step."""
        begins = json.dumps(["begin", until]).encode()
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
