"""`kimberlite.open`: from a path to a handle."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from kimberlite import _native
from kimberlite.arguments import Rule, check_receipt
from kimberlite.crypto.master import load_master
from kimberlite.errors import Busy, Invalid, Misconfigured, NoSpace, RolledBack
from kimberlite.log import creation, past
from kimberlite.log.anchor import check_anchor
from kimberlite.log.checkpoint import Checkpointer, Derived
from kimberlite.log.clock import Clock, Moment, moment
from kimberlite.log.committer import Committer
from kimberlite.log.description import describe, size_of
from kimberlite.log.erasure import Eraser
from kimberlite.log.findings import Findings
from kimberlite.log.following import Follower
from kimberlite.log.identity import Identity, origin_fault
from kimberlite.log.keyring import Keyring, orphan_notes
from kimberlite.log.loading import Keys, load_identity, load_keys, load_marks, new_log, unless_overtaken
from kimberlite.log.log import Log
from kimberlite.log.marks import Mark
from kimberlite.log.names import CHECKPOINT, DIRECTORIES, HASHES, IDENTITY, MARKS, SEGMENTS, prepared_name
from kimberlite.log.options import Options
from kimberlite.log.packing import Packer
from kimberlite.log.recovery import Loader
from kimberlite.log.refusals import FULL, UNFIT_TO_BEGIN, UNFIT_TO_WRITE, translate
from kimberlite.log.reserve import KEPT, keep_reserve
from kimberlite.log.retention import Retention, count, oldest_kept, unlink_before
from kimberlite.log.scrub import Scrubber
from kimberlite.log.settling import Settler
from kimberlite.log.streams import Streams
from kimberlite.log.tail import Tail
from kimberlite.log.upkeep import Upkeep
from kimberlite.records import Dropping, Receipt
from kimberlite.storage import Backend, open_backend
from kimberlite.storage.backend import File

BACKENDS = ("auto", "threads", "uring")


@dataclass(frozen=True)
class Injected:
    """Randomness and clock, replaced only by tests that compare bytes; and who looks on."""

    random: Callable[[int], bytes] = os.urandom
    clock: Callable[[], int] = time.time_ns
    seed: bytes | None = None
    #: Called after each piece of the log that a start replays; what it raises ends the start.
    on_replay: Callable[[], None] = lambda: None
    #: What the machine says of the time, for whoever drops what is old.
    moment: Callable[[], Moment] = moment


class Opening:
    """What `open` returns: await it, or use it with `async with`."""

    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start
        self._log: Log | None = None

    def __await__(self) -> Generator[Any, None, Log]:
        log: Log = yield from self._start().__await__()
        return log

    async def __aenter__(self) -> Log:
        self._log = await self
        return self._log

    async def __aexit__(self, *_: object) -> None:
        assert self._log is not None
        await self._log.close()


def checked_path(path: object) -> str:
    """The name of a directory, which may not be there."""
    if not isinstance(path, (str, os.PathLike)):
        raise Invalid(f"a path is a str or a PathLike, not {type(path).__name__}")
    name = os.fspath(path)
    if not isinstance(name, str) or not name or "\0" in name:
        raise Invalid(f"this is not the name of a directory: {name!r}")
    return name


def open_log(
    path: str | os.PathLike[str],
    *,
    create: bool,
    read_only: bool,
    key_file: str | os.PathLike[str] | None,
    backend: Literal["auto", "threads", "uring"] | Backend,
    origin: str | None,
    anchor: Receipt | None,
    options: Options,
    or_read: bool = True,
    retaining: bool = False,
    injected: Injected = Injected(),
) -> Opening:
    """`or_read`: on a full disk it opens for reading only. `retaining`: there it takes what is kept for retention."""
    name = checked_path(path)
    check_receipt(anchor)
    if backend not in BACKENDS if isinstance(backend, str) else not hasattr(backend, "submit"):
        raise Invalid(f"backend is one of {', '.join(BACKENDS)} or a Backend, not {backend!r}")
    if origin is not None and (wrong := origin_fault(origin)):
        raise Misconfigured(wrong)

    async def start() -> Log:
        try:
            if isinstance(backend, str):
                if (read_only or not create) and not os.path.isdir(name):  # noqa: ASYNC240 (once, before anything runs)
                    raise Invalid(f"there is no database at {name}")
                # A key that is not to be had leaves no directory behind.
                master = load_master(key_file)
                storage: Backend = open_backend(name, backend, read_only=read_only, create=create)
            else:
                master, storage = load_master(key_file), backend
        except OSError as error:
            raise translate(error, name, UNFIT_TO_BEGIN) from error
        try:
            opened = Opener(storage, master, options, injected, read_only=read_only, anchor=anchor, last=retaining)
            return await opened.open(create=create, origin=origin, or_read=or_read)
        except BaseException as error:
            # That it could not be opened is what counts.
            with contextlib.suppress(OSError):
                storage.close()
            if isinstance(error, OSError):
                raise translate(error, name, UNFIT_TO_WRITE) from error
            raise

    return Opening(start)


def find_identity(backend: Backend) -> Identity:
    """For whoever only reads. Without a segment nothing was ever acknowledged: the database is being made, or its
    making was cut off, and what is missing is no damage."""
    # The segments before all else: once the first one is there, so is everything.
    if backend.list(SEGMENTS) or was_written(backend):
        identity = load_identity(backend)
        if identity is not None:
            return identity
    raise Invalid("there is no database here")


def was_written(backend: Backend) -> bool:
    """Whether a database that has no segment had one: no creation leaves a checkpoint, or marks of a group."""
    if not backend.exists(IDENTITY) or not backend.exists(MARKS):
        return False
    identity = load_identity(backend)
    return identity is not None and (backend.exists(CHECKPOINT) or load_marks(backend, identity).newest.group > 0)


class Opener:
    """The steps from a locked directory to a log that serves: load, judge, mark, publish."""

    def __init__(
        self,
        backend: Backend,
        master: bytes | None,
        options: Options,
        injected: Injected,
        *,
        read_only: bool,
        anchor: Receipt | None,
        repairing: bool = False,
        last: bool = False,
    ) -> None:
        self.backend, self.master, self.options, self.injected = backend, master, options, injected
        # A log that nobody can write lets go of nothing: half of what is kept is for whoever may, and half of that for
        # whoever was told to.
        asked = options.retain_age or options.retain_size
        self.kept = 0 if last else KEPT // 2 if asked else KEPT
        self.read_only, self.anchor, self.repairing = read_only, anchor, repairing
        self.notes: list[str] = []
        #: Whether files are left of what was dropped.
        self.left = False
        #: As soon as it is known.
        self._log: _native.Log | None = None

    async def open(self, *, create: bool, origin: str | None, or_read: bool) -> Log:
        if self.read_only:
            return await self._open_reader()
        try:
            self.backend.lock_directory()
        except BlockingIOError:
            raise Busy("another writer has the database open") from None
        try:
            prepared = await self.backend.run(lambda: self._prepare(create, origin))
        except OSError as error:
            if not or_read or error.errno not in FULL or not self.backend.list("segments"):
                raise
            self.notes.append(f"opened for reading only: {error.strerror}")
            # What this start gave is nobody else's.
            with contextlib.suppress(OSError):
                await self.backend.run(lambda: keep_reserve(self.backend, self._log))
            log = await self._open_reader()
            why = f"the database is open for reading only: {error.strerror}"
            left = "; for `kimberlite retain` there is room kept, once this is closed" if self.kept else ""
            log.refusal = NoSpace(why + left)
            return log
        return self._serve(*prepared)

    def _identify(self, create: bool, origin: str | None) -> tuple[Identity, Keys]:
        identity = load_identity(self.backend)
        if identity is None:
            if not create:
                raise Invalid("there is no database here")
            if self.anchor is not None:
                raise RolledBack(f"there is no database here; the anchor was given at {self.anchor.tree_size} records")
            strange = set(self.backend.list()) - DIRECTORIES.keys()
            if strange:
                raise Misconfigured(f"the directory is not empty and not a database: {min(strange)!r} is in it")
            identity = creation.create_identity(
                self.backend,
                origin,
                tagged=self.master is not None,
                clock=self.injected.clock,
                random=self.injected.random,
            )
        elif origin is not None and origin != identity.origin:
            raise Misconfigured(f"this database is {identity.origin!r}, not {origin!r}")
        fresh = not self.backend.list("segments")
        if fresh and identity.tagged == (self.master is not None):
            creation.complete(self.backend, identity, self.master, self.injected.random)
        return identity, load_keys(self.backend, identity, self.master, self.injected.random, read_only=self.read_only)

    def _prepare(
        self, create: bool, origin: str | None
    ) -> tuple[Identity, Keys, _native.Log, Tail, _native.Segment, File, Mark, Derived]:
        creation.check_kinds(self.backend)
        identity, keys = self._identify(create, origin)
        if not all(self.backend.exists(name) for name in DIRECTORIES):
            # What copies a database may leave out the directories that are empty.
            creation.make_directories(self.backend)
        lost = not identity.tagged and not keys.receipts
        if lost:
            keys.receipt = self.injected.random(32)
        settler = Settler(self.backend, self.options, self.injected.clock, self.notes, kept=self.kept)
        marks_file = settler.lock_marks()
        marks = load_marks(self.backend, identity, repairing=self.repairing)
        self.notes += [f"marks: block {block} is damaged; the other one is sound" for block in marks.damaged]
        seed = self.injected.seed
        loader = Loader(
            self.backend, identity, keys, marks, lambda: new_log(identity, keys, self.options, seed), write=True
        )
        loader.on_chunk = self.injected.on_replay
        derived = Derived(self.backend, loader.log, identity.database_id)
        end = derived.load(loader)
        self._log = log = derived.log
        with contextlib.suppress(OSError):
            past.restore(self.backend, identity.database_id)
        past.attach(self.backend, log)
        if self.anchor is not None:
            check_anchor(log, self.anchor, keyed=keys.receipts)
        # Not before: what is refused stays as it is.
        mark = settler.settle(log, marks.newest, end, identity, marks_file)
        # What makes room comes before what needs some.
        creation.discard_prepared(self.backend)
        if log.dropped[0] > 0:
            # Some may be left, if the process that dropped them was cut off.
            try:
                unlink_before(self.backend, log.dropped[0])
                self.left = past.is_left(self.backend, log.first)
            except OSError:
                # Retention tries again, and says why it cannot.
                self.left = True
            derived.replayed = [segment for segment in derived.replayed if segment.number >= log.dropped[0]]
        settler.heal(log, keys, lost=lost)
        settler.quarantine(log, end)
        clean = marks.newest.clean and marks.newest.group == log.sealed()[0] - 1 and end.torn_upto is None
        segment, tail = settler.go_on(log, end, clean=clean)
        # All of the above needs room more, and what is made again less.
        keep_reserve(self.backend, log)
        derived.keep_replayed(segment, tail)
        return identity, keys, log, tail, segment, marks_file, mark, derived

    def _serve(
        self,
        identity: Identity,
        keys: Keys,
        native: _native.Log,
        tail: Tail,
        segment: _native.Segment,
        marks_file: File,
        mark: Mark,
        derived: Derived,
    ) -> Log:
        options = self.options
        committer = Committer(
            native,
            self.backend,
            tail,
            segment,
            marks_file,
            mark,
            options,
            self.injected.clock,
            quantum=identity.quantum,
            database_id=identity.database_id,
            identity_hash=identity.hash,
        )
        checkpointer = Checkpointer(derived, committer, options)
        findings = Findings()
        if (refused := derived.refused) is not None:
            findings.add(refused)
            self.notes.append(
                f"{HASHES}: it is not to be believed, and with this damage it cannot be made again: {refused}"
            )
        packer = Packer(self.backend, native, derived, findings, options.pack, self.injected.random)
        scrubber = Scrubber(self.backend, native, derived, packer.lock, findings, options.scrub, self.injected.clock)
        last = native.durable_time or identity.created
        clock = Clock(self.backend, identity, self.injected.moment, last)
        retention = Retention(self.backend, native, committer, checkpointer, packer, clock, findings, left=self.left)

        def checkpointed() -> None:
            packer.checkpointed()
            scrubber.checkpointed()
            retention.look()

        checkpointer.on_written = checkpointed
        checkpointer.on_full = retention.look
        keyring = None if keys.vault is None else Keyring(self.backend, keys.vault, native)
        streams = Streams(native, keyring)
        eraser = Eraser(native, committer, checkpointer, keyring)
        streams.on_death = committer.poison
        tail.start()

        async def close() -> None:
            try:
                await retention.stop()
                await eraser.stop()
                await packer.stop()
                await scrubber.stop()
                await checkpointer.stop()
                await streams.drain()
                await committer.close()
                await tail.stop()
                await self.backend.run(lambda: self._close_files(committer, checkpointer, retention))
            except BaseException as error:
                # Whoever still waits is told.
                committer.poison(error)
                streams.end(error)
                if isinstance(error, OSError):
                    raise translate(error, "at the close, with everything durable") from error
                raise
            finally:
                await tail.stop()
                # They lead back to it, and would keep every file open until a collector comes.
                committer.on_publish = committer.on_rotate = tail.on_death = streams.on_death = nothing
                checkpointer.on_written = checkpointer.on_full = nothing
                self._close_backend()

        def info() -> dict[str, Any]:
            orphans = [] if keyring is None else keyring.notes
            waits = [] if retention.waits is None else [f"retention: {retention.waits}"]
            return describe(identity, native, self.backend, [*self.notes, *orphans, *findings.found, *waits])

        log = Log(self.backend, native, committer, streams, options, info, close, None, identity.quantum)
        log.upkeep = Upkeep(packer, scrubber, retention, eraser, findings)

        def published() -> None:
            log._published()
            checkpointer.published()

        committer.on_publish = published
        # What was closed before this start.
        packer.checkpointed()
        scrubber.checkpointed()
        return log

    def _close_backend(self) -> None:
        try:
            self.backend.close()
        except OSError as error:
            raise translate(error, "at the close, with everything durable") from error

    def _close_files(self, committer: Committer, checkpointer: Checkpointer, retention: Retention) -> None:
        tail = committer.tail
        tail.file.truncate(tail.place)
        tail.file.sync()
        checkpointer.write_last()
        retention.note()
        # Room for what did not come; a start makes its own.
        with contextlib.suppress(OSError):
            creation.discard(self.backend, prepared_name(tail.number + 1))

    async def _open_reader(self) -> Log:
        follower, identity = await self.backend.run(self._follow)

        async def close() -> None:
            follower.close()
            self._close_backend()

        def info() -> dict[str, Any]:
            return describe(identity, log._native, self.backend, self.notes)

        def would_drop(rule: Rule, confirmed: bool) -> Dropping:
            native = log._native
            clock = Clock(self.backend, identity, self.injected.moment, native.durable_time or identity.created)
            oldest = oldest_kept(rule, clock, confirmed=confirmed)
            end = follower.end
            return count(partial(size_of, self.backend), native, rule, oldest, end[0], end)

        def begun_anew(native: _native.Log) -> None:
            past.attach(self.backend, native)
            log._native = native

        refresh = follower.refresh
        log = Log(self.backend, follower.log, None, None, self.options, info, close, refresh, identity.quantum)
        log.would_drop, log.uncovered, follower.on_anew = would_drop, follower.uncovered, begun_anew
        return log

    def _follow(self) -> tuple[Follower, Identity]:
        creation.check_kinds(self.backend)
        identity = find_identity(self.backend)
        return unless_overtaken(self.backend, lambda: self._followed(identity)), identity

    def _followed(self, identity: Identity) -> Follower:
        keys = load_keys(self.backend, identity, self.master, self.injected.random, read_only=True)
        acknowledged = 0 if self.anchor is None else self.anchor.group
        follower = Follower(
            self.backend, identity, keys, lambda: new_log(identity, keys, self.options, None), acknowledged
        )
        try:
            past.attach(self.backend, follower.log)
            if self.anchor is not None:
                check_anchor(follower.log, self.anchor, keyed=keys.receipts)
            self.notes += orphan_notes(self.backend, keys.vault, follower.log)
        except BaseException:
            follower.close()
            raise
        return follower


def nothing(*_: object) -> None:
    """Is told, and does not mind."""
