"""Closed segments, and what is derived of them, read again while nobody asks for them.

A pass takes each of them once, at a set rate: every check, the chain and the tags of its groups, their padding and what
is behind them; `hashes` and its index, held against what its groups say; and once what there is of `past`. What the
disk has is read, not what the page cache has.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Generator, Iterator
from random import randrange
from typing import Final

from kimberlite import _native
from kimberlite.errors import Corrupt, KimberliteError
from kimberlite.log import past
from kimberlite.log.checkpoint import Derived, hashes_header
from kimberlite.log.creation import write_small
from kimberlite.log.findings import Findings
from kimberlite.log.names import HASHES, PAST, index_name, segment_name
from kimberlite.log.past import HASHES_HEADER
from kimberlite.log.refusals import UNFIT, translate
from kimberlite.log.tasks import begin, rest
from kimberlite.log.walking import check_header, check_rest, groups, read_sound
from kimberlite.storage.backend import BLOCK, CANNOT_READ, Backend, File

#: Read and checked at a time.
PIECE: Final = 64 * 1024
#: After each piece nothing is done for at least so many times as long as it took, whatever the rate.
REST: Final = 4
#: Seconds after a start before the first pass: whoever has waited for it comes first.
LATER: Final = 1.0
#: Seconds from the beginning of a pass to that of the next one, at least.
PASS: Final = 24 * 3600.0
#: Seconds until what the system refuses is tried again.
AGAIN: Final = 60.0
#: Where an index has the salt of its segment.
SALT: Final = slice(48, 80)
#: What is beyond a scrub.
AT_A_START: Final = "the next start makes it again, if it finds every segment sound"


class Scrubber:
    """One segment at a time, of those that the last checkpoint is behind: their hashes and indexes are on the disk.

    A pass begins at any of them, so that those of a log that is often started again all have their turn. `lock` keeps
    segments from being packed or dropped: what seems to be damage is judged under it.
    """

    def __init__(
        self,
        backend: Backend,
        native: _native.Log,
        derived: Derived,
        lock: asyncio.Lock,
        findings: Findings,
        rate: int,
        clock: Callable[[], int],
    ) -> None:
        self._backend, self._native, self._derived = backend, native, derived
        self._lock, self._findings, self._rate, self._clock = lock, findings, rate, clock
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        #: Bytes that were read.
        self.read = 0
        #: Segments that the pass has not got to yet.
        self.left = 0
        #: Segments of the last whole pass, and when it ended, in ns since 1970.
        self.passed = self.ended = 0

    def checkpointed(self) -> None:
        """Called when a checkpoint was written: there may be something to do."""
        if self._rate and self._closed() and self._task is None and not self._stopping.is_set():
            self._task = begin(self._work(), "kimberlite-scrub", lambda _error: None)

    async def stop(self) -> None:
        self._stopping.set()
        if self._task is not None:
            await asyncio.wait([self._task])

    def _closed(self) -> range:
        return range(self._native.dropped[0], self._derived.segment)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await rest(LATER, self._stopping)
            while not self._stopping.is_set() and (closed := self._closed()):
                begun = loop.time()
                await self._pass(closed)
                await rest(begun + PASS - loop.time(), self._stopping)
        finally:
            self._task = None

    async def _pass(self, closed: range) -> None:
        first = randrange(len(closed))
        for done, number in enumerate([*closed[first:], *closed[:first]]):
            self.left = len(closed) - done
            await self._scrub(self._segment(number))
            if number == closed[0]:
                await self._scrub(lambda: Past(self._backend, self._native))
            if self._stopping.is_set():
                return
        self.left, self.passed, self.ended = 0, len(closed), self._clock()

    def _segment(self, number: int) -> Callable[[], Scrub | None]:
        def begun() -> Scrub | None:
            native = self._native.scrub(number)
            return native and Scrub(self._backend, self._native, native, number, self._derived.database_id)

        return begun

    async def _scrub(self, begun: Callable[[], Scrub | Past | None]) -> None:
        """What this gives, and again what it gives then if that was not the last word; nothing if there is nothing."""
        while not self._stopping.is_set():
            scrub = await self._backend.run(begun)
            if scrub is None:
                return
            try:
                if await self._read(scrub) and await self._judge(scrub):
                    return
            except OSError:
                await rest(AGAIN, self._stopping)

    async def _read(self, scrub: Scrub | Past) -> bool:
        """Whether it was read to its end."""
        loop, steps = asyncio.get_running_loop(), scrub.steps()
        while not self._stopping.is_set() and scrub.is_current:
            begun = loop.time()
            size = await self._backend.run(lambda: next(steps, None))
            if size is None:
                return True
            self.read += size
            took = loop.time() - begun
            await rest(max(size / self._rate - took, REST * took), self._stopping)
        # The last that has the file: its blocks become free here.
        await self._backend.run(steps.close)
        return False

    async def _judge(self, scrub: Scrub | Past) -> bool:
        """Whether the segment is still what was read: if it was packed meanwhile nothing was wrong with it."""
        if not scrub.found and not scrub.mends:
            return True
        async with self._lock:
            if not scrub.is_current:
                return False
            for error in scrub.found:
                self._findings.add(error)
            for mend in scrub.mends:
                await self._backend.run(mend)
        return True


class Scrub:
    """One segment."""

    def __init__(
        self, backend: Backend, log: _native.Log, native: _native.Scrub, number: int, database_id: bytes
    ) -> None:
        self._backend, self._log, self._native, self._number = backend, log, native, number
        self._database_id = database_id
        self._hashes: File | None = None
        #: Whether some of them were wrong: one place is enough to say.
        self._wrong = False
        #: What is wrong, and what makes it right again where it is derived.
        self.found: list[KimberliteError] = []
        self.mends: list[Callable[[], None]] = []

    @property
    def is_current(self) -> bool:
        """Whether the segment is still there, in the same file."""
        return self._native.is_current

    def steps(self) -> Generator[int]:
        """Bytes that were read, a piece at each step."""
        index = b""
        with self._finding():
            index = yield from self._groups()
        if index:
            yield from self._index(index)

    @contextlib.contextmanager
    def _finding(self, mend: Callable[[], None] | None = None) -> Iterator[None]:
        try:
            yield
        except KimberliteError as error:
            self.found.append(error)
            if mend is not None:
                self.mends.append(mend)

    def _groups(self) -> Generator[int, None, bytes]:
        """In the end the index that the segment must have."""
        source = opened(self._backend, segment_name(self._number))
        try:
            check_header(source, self._native.header, self._native)
            yield BLOCK + self._open_hashes()
            end = BLOCK
            for (first, hashes), end, read in groups(source, self._native, PIECE):  # noqa: B007 (needed behind the last)
                yield read + self._compare(first, hashes)
            yield from check_rest(source, end, PIECE)
            return self._finish(source, end)
        finally:
            source.close()
            self._close_hashes()

    def _finish(self, source: File, end: int) -> bytes:
        try:
            return self._native.finish(source.size())
        except ValueError as error:
            raise Corrupt(str(error), file=source.name, place=end) from None

    # ---- what is derived

    def _open_hashes(self) -> int:
        with self._finding(self._log.doubt):
            self._hashes = opened(self._backend, HASHES)
            if not self._native.is_rooted:
                _, position = self._native.expected
                what = f"so much before this position is wrong that nothing tells what is right; {AT_A_START}"
                raise Corrupt(what, file=HASHES, position=position)
            found = read_sound(self._hashes, 0, HASHES_HEADER)
            # A writer that does not believe it has taken its header away.
            if any(found) or not self._log.doubted:
                self._hold(0, found, hashes_header(self._database_id), "its header is wrong")
            return HASHES_HEADER
        self._close_hashes()
        return 0

    def _compare(self, first: int, right: bytes) -> int:
        if self._hashes is None:
            return 0
        place = HASHES_HEADER + 32 * first
        try:
            found = read_sound(self._hashes, place, len(right))
        except KimberliteError as error:
            self._mend(place, right, error)
        else:
            self._hold(place, found, right, "it is not what the records say")
        return len(right)

    def _hold(self, place: int, found: bytes, right: bytes, what: str) -> None:
        # Of what was dropped meanwhile they are elsewhere.
        if found != right and self.is_current:
            at = place + difference(found, right)
            self._mend(place, right, Corrupt(f"{what}; it is made again", file=HASHES, place=at))

    def _mend(self, place: int, right: bytes, error: KimberliteError) -> None:
        """Of closed segments nobody else writes any, and what is right does not hang on their files."""
        if not self._wrong:
            self.found.append(error)
        self._wrong = True
        try:
            file = self._backend.open(HASHES, "w")
            try:
                file.write(place, right)
                file.sync()
            finally:
                file.close()
        except OSError:
            self._log.doubt()

    def _close_hashes(self) -> None:
        if self._hashes is not None:
            self._hashes.close()
            self._hashes = None

    def _index(self, right: bytes) -> Generator[int]:
        name = index_name(self._number)

        def write() -> None:
            # The next pass comes here again.
            with contextlib.suppress(OSError):
                write_small(self._backend, name, right)

        if not self._backend.exists(name):
            self.mends.append(write)
            return
        with self._finding(write):
            source = opened(self._backend, name)
            try:
                for place in range(0, len(right) + 1, PIECE):
                    found = read_sound(source, place, PIECE)
                    wanted = right[place : place + PIECE]
                    if place == 0 and len(found) >= SALT.stop and found[SALT] != right[SALT]:
                        # A crash came between packing and its index.
                        self.mends.append(write)
                        return
                    if found != wanted:
                        place += difference(found, wanted)
                        raise Corrupt("it is not what the segment says; it is made again", file=name, place=place)
                    yield len(found)
            finally:
                source.close()


def mend(backend: Backend, log: _native.Log, number: int, database_id: bytes, findings: Findings) -> None:
    """Reads a closed segment again, which neither is packed nor dropped meanwhile, and makes its hashes again."""
    native = log.scrub(number)
    if native is not None:
        scrub = Scrub(backend, log, native, number, database_id)
        for _ in scrub.steps():
            pass
        for error in scrub.found:
            findings.add(error)
        for each in scrub.mends:
            each()


class Past:
    """The hashes of what was dropped: nothing makes them again."""

    is_current = True

    def __init__(self, backend: Backend, native: _native.Log) -> None:
        self._backend, self._native = backend, native
        self.found: list[KimberliteError] = []
        self.mends: list[Callable[[], None]] = []

    def steps(self) -> Generator[int]:
        if not self._native.first:
            return
        try:
            for data in past.check(self._backend, self._native, PIECE // 64, self._open):
                if bytes(32) in data and self._backend.exists(PAST):
                    # From here on some were nowhere when they were to be kept.
                    return
                yield len(data)
        except KimberliteError as error:
            self.found.append(error)

    def _open(self, name: str) -> File:
        return opened(self._backend, name)


def opened(backend: Backend, name: str) -> File:
    try:
        return backend.open(name, "s")
    except FileNotFoundError:
        raise Corrupt("it is missing", file=name) from None
    except OSError as error:
        if error.errno in (*UNFIT, *CANNOT_READ):
            raise translate(error, name) from None
        raise


def difference(one: bytes, other: bytes) -> int:
    """Where they begin to differ."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
