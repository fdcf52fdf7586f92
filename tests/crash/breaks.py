"""The engine with one of its rules taken out: each must be seen, or what sees nothing proves nothing.

The engine has no switch for any of this. A rule is a patch of the Python that keeps it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from kimberlite.log import checkpoint, committer, creation, keyring, loading, opening, retention, settling
from kimberlite.log.checkpoint import Checkpointer
from kimberlite.log.committer import Committer
from kimberlite.log.erasure import Eraser
from kimberlite.log.flights import Flight
from kimberlite.log.keyring import Keyring
from kimberlite.log.log import Log
from kimberlite.log.names import MARKS, PREPARE, QUARANTINE, SEGMENTS, prepared_name, segment_name
from kimberlite.log.recovery import Loader
from kimberlite.log.settling import Settler
from kimberlite.log.streams import Streams
from kimberlite.log.tail import Prepared
from kimberlite.records import Receipt
from kimberlite.storage.backend import BLOCK, Backend, Done, File
from kimberlite.storage.memory import MemoryBackend, MemoryFile
from tests.crash.cuts import Physical
from tests.crash.mending import Mending

#: How the names of its copies begin.
VAULT: Final = "vault."
#: What is patched, its attribute, and what takes its place.
Patch = tuple[Any, str, Any]


def _watermark() -> list[Patch]:
    """`durable_upto` is the highest group that is synced, not the last of the prefix."""
    seal = Committer._seal

    def highest(self: Committer, bound: int, now: int, *, durable: bool, closing: bool) -> Flight:
        prefix = self.durable
        self.durable = max([prefix, *(f.sealed.number for f in self._flights if f.synced)])
        try:
            return seal(self, bound, now, durable=durable, closing=closing)
        finally:
            self.durable = prefix

    return [(Committer, "_seal", highest)]


def _judging() -> list[Patch]:
    """Recovery takes the first bad group for the end, whatever the watermarks say."""
    judge = Loader._judge

    def trusting(self: Loader, *arguments: Any, **named: Any) -> Any:
        self.watermark, rest = 0, self.rest
        self.rest = lambda *place: (0, rest(*place)[1])  # type: ignore[method-assign]
        return judge(self, *arguments, **named)

    return [(Loader, "_judge", trusting)]


def _prefix() -> list[Patch]:
    """Each group is acknowledged when it is synced, whatever became of those before it."""
    advance = Committer._advance

    def eager(self: Committer) -> None:
        for flight in self._flights:
            if flight.synced:
                self._acknowledge(flight, durable=True)
        advance(self)

    return [(Committer, "_advance", eager)]


def _ack() -> list[Patch]:
    """A group is acknowledged as durable when it is submitted."""
    commit = Committer._commit

    def hasty(self: Committer, *arguments: Any) -> None:
        commit(self, *arguments)
        for flight in self._flights:
            if flight.durable:
                self._acknowledge(flight, durable=True)

    return [(Committer, "_commit", hasty)]


def _sync() -> list[Patch]:
    """A group that is written is taken to be synced."""
    written = Committer._written

    def early(self: Committer) -> None:
        for flight in self._flights:
            flight.synced = flight.synced or flight.written
        written(self)

    return [(Committer, "_written", early)]


def _range() -> list[Patch]:
    """A durable write is taken to have synced what was written before it too."""
    seal, written = Committer._seal, Committer._written

    def alone(self: Committer, *arguments: Any, **named: Any) -> Flight:
        flight = seal(self, *arguments, **named)
        flight.alone = flight.durable
        return flight

    def all_before(self: Committer) -> None:
        last = max((f.sealed.number for f in self._flights if f.synced), default=0)
        for flight in self._flights:
            flight.synced = flight.synced or (flight.written and flight.sealed.number <= last)
        written(self)

    return [(Committer, "_seal", alone), (Committer, "_written", all_before)]


def _coverage() -> list[Patch]:
    """A sync is taken to cover what was written while it ran."""
    advance, sync = Committer._advance, Committer._sync
    running: set[int] = set()

    def started(self: Committer) -> None:
        sync(self)
        if self._syncing:
            running.add(id(self))

    def finished(self: Committer) -> None:
        if not self._syncing and id(self) in running:
            running.discard(id(self))
            for flight in self._flights:
                flight.synced = flight.synced or flight.written
        advance(self)

    return [(Committer, "_sync", started), (Committer, "_advance", finished)]


def _conflict() -> list[Patch]:
    """A refusal does not wait until what it cites is durable."""
    write = Committer._write

    def answered(self: Committer, flight: Flight) -> None:
        self._answer(flight.refused)
        flight.refused = []
        write(self, flight)

    return [(Committer, "_refuse", Committer._answer), (Committer, "_write", answered)]


def _vault() -> list[Patch]:
    """A new stream may be appended to before its key is in the vault."""
    create = Streams.create

    async def first(self: Streams, names: list[str]) -> None:
        keyring = self._keyring
        missing = [name for name in names if self._native.stream(name) is None]
        if keyring is None or not missing:
            return await create(self, names)
        vault = keyring.vault
        drafts = self._native.drafts(missing, True)
        keys = [vault.add(number, declared) for number, _, declared in drafts]
        for (_, declaration, _), key in zip(drafts, keys, strict=True):
            self._native.add_stream(declaration, key)
        blocks = vault.dirty()

        def late() -> None:
            with suppress(OSError):
                keyring._write(blocks)

        asyncio.get_running_loop().call_later(0.001, late)
        return None

    return [(Streams, "create", first)]


def _copies() -> list[Patch]:
    """Both copies of the vault are written before either is synced."""

    def write(self: Keyring, blocks: list[tuple[int, bytes]]) -> None:
        for copy in self._copies:
            for place, block in blocks:
                copy.write(place, block)
        for copy in self._copies:
            copy.sync()

    return [(Keyring, "_write", write)]


def _installed(*, directory: bool, header: bool) -> list[Patch]:
    def install(backend: Backend, prepared: Prepared, number: int, block: bytes) -> None:
        backend.rename(prepared_name(number), segment_name(number))
        if directory:
            backend.sync_directory(SEGMENTS)
            backend.sync_directory(PREPARE)
        prepared.file.name = segment_name(number)
        prepared.file.write(0, block)
        if header:
            prepared.file.sync()

    return [(committer, "install", install), (settling, "install", install)]


def _small() -> list[Patch]:
    """A small file gets its name before its bytes are on the disk."""

    def write_small(backend: Backend, name: str, data: bytes) -> None:
        with unsynced(PREPARE):
            write(backend, name, data)

    write = creation.write_small
    return [(creation, "write_small", write_small)]


def _rotation() -> list[Patch]:
    """The next segment is begun while the closing group of the last one is on its way."""
    quiet = Committer.quiet

    async def hasty(self: Committer) -> None:
        if not self.rotating:
            await quiet(self)

    return [(Committer, "quiet", hasty)]


def _segment() -> list[Patch]:
    """After a crash the log goes on in the segment that it was in."""
    go_on = Settler.go_on

    def same(self: Settler, log: Any, end: Any, *, clean: bool) -> Any:
        if end.torn_upto is not None and not end.closed:
            end.file.truncate(end.place)
            end.file.sync()
        return go_on(self, log, end, clean=True)

    return [(Settler, "go_on", same)]


def _unmarked(*, clean: bool) -> list[Patch]:
    write_mark = Committer._write_mark

    def none(self: Committer, *, clean: bool, done: Callable[[], None] = lambda: None) -> None:
        if clean != without:
            write_mark(self, clean=clean, done=done)
        else:
            self._marked_at = self.durable
            done()

    without = clean
    return [(Committer, "_write_mark", none)]


def _unsynced(owner: Any, name: str, files: str) -> list[Patch]:
    """Files that begin like this are not synced in this call."""
    method = getattr(owner, name)

    def hasty(*arguments: Any, **named: Any) -> Any:
        with unsynced(files):
            return method(*arguments, **named)

    return [(owner, name, hasty)]


@contextmanager
def unsynced(files: str) -> Iterator[None]:
    sync = MemoryFile.sync
    MemoryFile.sync = lambda self: None if self.name.startswith(files) else sync(self)  # type: ignore[method-assign]
    try:
        yield
    finally:
        MemoryFile.sync = sync  # type: ignore[method-assign]


def _poison() -> list[Patch]:
    """What failed is tried again, and goes on as if it had not."""
    submit, submit_sync = MemoryBackend.submit, MemoryBackend.submit_sync

    def write(self: MemoryBackend, file: File, place: int, buffer: Any, durable: bool, done: Done) -> None:
        submit(self, file, place, buffer, durable, lambda error: done(None))

    def sync(self: MemoryBackend, file: File, done: Done) -> None:
        submit_sync(self, file, lambda error: done(None) if error is None else sync(self, file, done))

    return [(MemoryBackend, "submit", write), (MemoryBackend, "submit_sync", sync)]


def _together() -> list[Patch]:
    """An append to several streams is one append after another."""
    append_many = Log.append_many

    async def one_by_one(self: Log, batches: Any, *, producer: Any = None, **named: Any) -> dict[str, Receipt]:
        if producer is not None:
            return await append_many(self, batches, producer=producer, **named)
        return {stream: await self.append(stream, records, **named) for stream, records in batches.items()}

    return [(Log, "append_many", one_by_one)]


def _chain() -> list[Patch]:
    """Recovery makes each group follow the one before it, instead of looking whether it does."""
    new_log = loading.new_log
    return [(opening, "new_log", lambda *arguments: Mending(new_log(*arguments)))]


def _producers() -> list[Patch]:
    """The tables of producers are not read back."""
    return [(checkpoint.Derived, "_load_producers", lambda self, resume: True)]


def _dropped() -> list[Patch]:
    """The files of segments go before the record that says so is durable."""
    say = Committer.say_anyhow

    async def late(self: Committer, payloads: Sequence[bytes], *more: Callable[[], None]) -> int:
        # Behind the head of its first piece.
        number = int.from_bytes(payloads[0][42:50], "little")
        await self.backend.run(lambda: retention.unlink_before(self.backend, number))
        return await say(self, payloads, *more)

    return [(Committer, "say_anyhow", late)]


def _covered() -> list[Patch]:
    """They go before a mark covers that record."""

    async def none(self: Committer, group: int) -> bool:
        return True

    return [(Committer, "mark", none)]


def _held() -> list[Patch]:
    """A checkpoint may be taken of a log that says what its state does not have yet."""
    published, take = Checkpointer.published, Checkpointer._take

    def told(self: Checkpointer) -> None:
        self.held = False
        published(self)

    async def taken(self: Checkpointer, *, bare: bool = False) -> OSError | None:
        self.held = False
        return await take(self, bare=bare)

    return [(Checkpointer, "published", told), (Checkpointer, "_take", taken)]


def _packed() -> list[Patch]:
    """A packed segment takes its name before its bytes are on the disk."""
    sync = MemoryFile.sync
    return [(MemoryFile, "sync", lambda self: None if self.name.endswith(".pack") else sync(self))]


def _slot() -> list[Patch]:
    """The key of a stream is gone before the record that says so is durable."""
    erase = Eraser._erase

    async def early(self: Eraser, keyring: Keyring, number: int, reason: str) -> None:
        await keyring.erase({each for each in keyring.vault._places if each[0] == number})
        await erase(self, keyring, number, reason)

    return [(Eraser, "_erase", early)]


def _healed() -> list[Patch]:
    """A start does not finish the erasures that were cut off."""
    heal = Settler.heal

    def idle(self: Settler, log: Any, keys: Any, *, lost: bool) -> None:
        if keys.vault is None:
            heal(self, log, keys, lost=lost)
            return
        keys.vault.erase = lambda *_: False
        heal(self, log, keys, lost=lost)
        del keys.vault.erase

    return [(Settler, "heal", idle)]


#: By the rule that is gone. No crash can show that of `copies`, `quarantine` or `segment`: the disk's calls do.
RULES: Final[dict[str, Callable[[], list[Patch]]]] = {
    "watermark": _watermark,
    "judging": _judging,
    "prefix": _prefix,
    "ack": _ack,
    "sync": _sync,
    "range": _range,
    "coverage": _coverage,
    "conflict": _conflict,
    "vault": _vault,
    "copies": _copies,
    "directory": lambda: _installed(directory=False, header=True),
    "header": lambda: _installed(directory=True, header=False),
    "small": _small,
    "rotation": _rotation,
    "segment": _segment,
    "idle-mark": lambda: _unmarked(clean=False),
    "close-mark": lambda: _unmarked(clean=True),
    "open-mark": lambda: _unsynced(Settler, "settle", MARKS),
    "open-sync": lambda: _unsynced(Loader, "_open", SEGMENTS),
    "quarantine": lambda: _unsynced(Settler, "_quarantine", QUARANTINE),
    "poison": _poison,
    "together": _together,
    "producers": _producers,
    "chain": _chain,
    "padding": lambda: [(Physical, "block", 2 * BLOCK)],
    "dropped": _dropped,
    "covered": _covered,
    "held": _held,
    "packed": _packed,
    "slot": _slot,
    "emptied": lambda: _unsynced(Keyring, "_write", VAULT),
    "healed": _healed,
    "wrapped": lambda: _unsynced(keyring, "prepare", PREPARE),
}


@contextmanager
def applied(rule: str | None) -> Iterator[None]:
    """The engine without this rule; with all of them if there is none."""
    patches = RULES[rule]() if rule else []
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in patches]
    for owner, name, weaker in patches:
        setattr(owner, name, weaker)
    try:
        yield
    finally:
        for owner, name, strong in kept:
            setattr(owner, name, strong)
