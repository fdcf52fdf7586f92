"""The same database, blocking: `with kimberlite.sync.open(path) as db`, or `connect(url)`.

The database lives on an event loop in a thread of its own; every method hands its call over and waits. So a
handle may be shared between threads, and their appends share groups as tasks' do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import warnings
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from operator import length_hint
from typing import Any, Final, Generic, Literal, Self, TypeVar

from kimberlite import api, importing
from kimberlite.arguments import Producer, Records, Sync, checked_batches
from kimberlite.client.client import Client
from kimberlite.errors import Closed, Invalid, KimberliteError
from kimberlite.iterators import Batched
from kimberlite.log.log import Log
from kimberlite.log.opening import Opening
from kimberlite.log.options import MIB
from kimberlite.records import NEW, Dropping, Erasure, Receipt, Record, StreamInfo
from kimberlite.storage import Backend

T = TypeVar("T")

#: What all threads of a database are called, and more.
THREADS: Final = "kimberlite"

__all__ = ["NEW", "Database", "connect", "open"]


class Iteration(Iterator[T]):
    """A blocking iterator over an asynchronous one, a batch at a time. `close` ends it.

    A wait for more that is interrupted loses nothing, and threads that share an iterator share its records out.
    """

    def __init__(self, database: Database, source: Batched[T]) -> None:
        self._database, self._source, self._batches = database, source, source.batches()
        #: What is at hand. Of an iterator over a list each record, and the rest, is taken in one step by one thread.
        self._records: Iterator[T] = iter([])
        #: Held on the loop by whoever gets the next batch.
        self._turn = asyncio.Lock()

    def __next__(self) -> T:
        while (record := next(self._records, None)) is None:
            self._wait()
        return record

    def _wait(self) -> None:
        """Returns when there may be more at hand."""
        try:
            self._database._call(self._fill())
        except StopAsyncIteration:
            raise StopIteration from None

    async def _fill(self) -> None:
        # What comes is at hand for all, though whoever asked for it may have been interrupted.
        async with self._turn:
            if not length_hint(self._records):
                self._records = iter(await anext(self._batches))

    def batches(self) -> Batches[T]:
        """As lists, for speed."""
        return Batches(self)

    def close(self) -> None:
        self._records = iter([])
        self._database._call(self._source.aclose())


class Batches(Iterator[list[T]]):
    """A blocking iterator over lists."""

    def __init__(self, iteration: Iteration[T]) -> None:
        self._iteration = iteration

    def __next__(self) -> list[T]:
        while not (batch := list(self._iteration._records)):
            self._iteration._wait()
        return batch

    def close(self) -> None:
        self._iteration.close()


class Import:
    """What `kimberlite.importing.Import` does."""

    def __init__(self, database: Database, into: importing.Import) -> None:
        self._database, self._into = database, into

    def add(self, stream: str, offset: int, time: int, records: Records, *, of: str | None = None) -> None:
        self._database._call(self._into.add(stream, offset, time, at_hand(records), of=of))

    def gap(self, stream: str, offset: int, time: int, reason: str, *, of: str | None = None) -> None:
        self._database._call(self._into.gap(stream, offset, time, reason, of=of))

    def finish(self) -> None:
        self._database._call(self._into.finish())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._database._call(self._into.__aexit__(kind))


class Answer(Generic[T]):
    """What a call that was handed to the loop's thread comes to.

    Whoever waits may be interrupted at any step: of what is held meanwhile the loop's thread needs nothing.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine
        self._result: T
        self._error: BaseException | None = None
        self._task: asyncio.Task[None] | None = None
        self._pending = threading.Lock()
        self._pending.acquire()

    def begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            self._result = await self._coroutine
        except asyncio.CancelledError:
            self._error = Closed("the database was closed before this was answered")
        except BaseException as error:
            # It is that of whoever waits.
            self._error = error
        finally:
            self._task = None
            self._pending.release()

    def wait(self) -> T:
        self._pending.acquire()
        if self._error is None:
            return self._result
        try:
            raise self._error
        finally:
            # The error leads to this frame.
            self._error = None


def at_hand(items: T) -> T | list[Any]:
    """What is made as it is read, perhaps from this very database, is made before the call is handed over."""
    return list(items) if isinstance(items, Iterator) else items


class Database:
    """What `kimberlite.Log` does, for threads. See there for what the arguments mean."""

    def __init__(self, opening: Coroutine[Any, Any, Log | Client]) -> None:
        self._loop = asyncio.new_event_loop()
        #: Held while a call is handed over, so that none comes behind the end.
        self._handing, self._stopped = threading.Lock(), False
        #: Whether the loop has been told to end.
        self._finishing = False
        #: Held by whoever closes.
        self._closing = threading.Lock()
        self._thread = threading.Thread(target=run, args=(self._loop,), name="kimberlite", daemon=True)
        self._pid = os.getpid()
        self._thread.start()
        try:
            self._log = self._call(opening)
        except BaseException:
            self._stop()
            raise

    def append(
        self,
        stream: str,
        records: Records,
        *,
        expect: int | None = None,
        producer: Producer | None = None,
        sync: Sync | None = None,
    ) -> Receipt:
        return self._call(self._log.append(stream, at_hand(records), expect=expect, producer=producer, sync=sync))

    def append_many(
        self,
        batches: Mapping[str, Records],
        *,
        expect: Mapping[str, int] | None = None,
        producer: Producer | None = None,
        sync: Sync | None = None,
    ) -> dict[str, Receipt]:
        batches = {stream: at_hand(records) for stream, records in checked_batches(batches).items()}
        return self._call(self._log.append_many(batches, expect=expect, producer=producer, sync=sync))

    def read(
        self,
        stream: str | None = None,
        *,
        start: int | datetime | None = None,
        until: int | datetime | None = None,
        limit: int | None = None,
        reverse: bool = False,
        system: bool = False,
    ) -> Iteration[Record]:
        return Iteration(
            self, self._log.read(stream, start=start, until=until, limit=limit, reverse=reverse, system=system)
        )

    def tail(
        self, stream: str | None = None, *, start: int | datetime | None = None, system: bool = False
    ) -> Iteration[Record]:
        async def begin() -> Batched[Record]:
            return self._log.tail(stream, start=start, system=system)

        return Iteration(self, self._call(begin()))

    def runs(
        self,
        stream: str | None = None,
        *,
        start: int | datetime | None = None,
        until: int | datetime | None = None,
    ) -> Iteration[bytes]:
        return Iteration(self, self._log.runs(stream, start=start, until=until))

    def importing(self, *, new_times: bool = False) -> Import:
        async def begin() -> importing.Import:
            return self._log.importing(new_times=new_times)

        return Import(self, self._call(begin()))

    def get(self, position: int) -> Record:
        return self._call(self._log.get(position))

    def get_many(self, positions: Iterable[int]) -> list[Record]:
        return self._call(self._log.get_many(at_hand(positions)))

    def streams(self) -> Iterator[StreamInfo]:
        async def listed() -> list[StreamInfo]:
            return [stream async for stream in self._log.streams()]

        return iter(self._call(listed()))

    def info(self) -> dict[str, Any]:
        return self._call(self._log.info())

    def retain(
        self,
        *,
        before: int | None = None,
        age: timedelta | float | None = None,
        size: int | None = None,
        dry_run: bool = False,
        confirm_clock: bool = False,
    ) -> Dropping:
        return self._call(
            self._log.retain(before=before, age=age, size=size, dry_run=dry_run, confirm_clock=confirm_clock)
        )

    def erase(self, stream: str, *, reason: str) -> Erasure:
        return self._call(self._log.erase(stream, reason=reason))

    def confirm_erasure(self, stream: str) -> Erasure:
        return self._call(self._log.confirm_erasure(stream))

    def rotate(self, key_file: str | os.PathLike[str] | None = None) -> str:
        return self._call(self._log.rotate(key_file))

    @property
    def durable_position(self) -> int:
        """Positions below this are durable and visible."""
        return self._log.durable_position

    def close(self) -> None:
        """Finishes what was accepted and lets the directory go. Twice is fine."""
        if os.getpid() != self._pid:
            return
        self._check_thread()
        with self._closing:
            try:
                if not self._stopped:
                    self._call(self._log.close())
            finally:
                self._stop()

    def __del__(self) -> None:
        if getattr(self, "_stopped", True) or sys.is_finalizing() or os.getpid() != self._pid:
            return
        warnings.warn("a database was dropped without a close", ResourceWarning, stacklevel=2)
        if threading.current_thread().name.startswith(THREADS):
            # The collector runs anywhere, also where the end would wait for itself.
            self._hand_over_the_end()
            return
        with contextlib.suppress(KimberliteError):
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        handed = False
        try:
            if os.getpid() != self._pid:
                raise Closed("the database belongs to the process that this one was forked from")
            self._check_thread()
            answer = Answer(coroutine)
            with self._handing:
                if self._stopped:
                    raise Closed("the database is closed")
                handed = True
                self._loop.call_soon_threadsafe(answer.begin)
        except BaseException:
            if not handed:
                coroutine.close()
            raise
        return answer.wait()

    def _check_thread(self) -> None:
        if sys.is_finalizing():
            raise Closed("the interpreter is ending, and the database's thread with it")
        if threading.current_thread() is self._thread:
            raise Invalid("a call from the database's own thread would wait for itself")

    def _stop(self) -> None:
        """Whoever is interrupted here may call it again."""
        self._hand_over_the_end()
        self._thread.join()

    def _hand_over_the_end(self) -> None:
        with self._handing:
            self._stopped = True
            if not self._finishing:
                asyncio.run_coroutine_threadsafe(finish(getattr(self, "_log", None)), self._loop)
                self._finishing = True


def run(loop: asyncio.AbstractEventLoop) -> None:
    """The life of a database's thread."""
    loop.run_forever()
    loop.close()


async def finish(log: Log | Client | None) -> None:
    """Those whose calls were handed over in time are answered before the loop ends."""
    loop = asyncio.get_running_loop()
    try:
        if log is not None:
            # Begun already, as a rule; whoever began it may have been interrupted, and the close was not.
            with contextlib.suppress(KimberliteError):
                await log.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            _, late = await asyncio.wait(others, timeout=1)
            for task in late:
                task.cancel()
    finally:
        loop.call_soon(loop.stop)


def open(
    path: str | os.PathLike[str],
    *,
    create: bool = True,
    read_only: bool = False,
    key_file: str | os.PathLike[str] | None = None,
    sync: Sync = "group",
    backend: Literal["auto", "threads", "uring"] | Backend = "auto",
    segment_bytes: int = 256 * MIB,
    compression: int | None = None,
    depth: int = 4,
    max_delay: float = 0.0,
    pack: float = 0.5,
    retain_age: timedelta | float = 0.0,
    retain_size: int = 0,
    scrub: int = 4 * MIB,
    origin: str | None = None,
    anchor: Receipt | None = None,
) -> Database:
    """`kimberlite.open`, blocking, for any number of threads."""
    return opened(
        api.open(
            path,
            create=create,
            read_only=read_only,
            key_file=key_file,
            sync=sync,
            backend=backend,
            segment_bytes=segment_bytes,
            compression=compression,
            depth=depth,
            max_delay=max_delay,
            pack=pack,
            retain_age=retain_age,
            retain_size=retain_size,
            scrub=scrub,
            origin=origin,
            anchor=anchor,
        )
    )


def open_to_retain(path: str | os.PathLike[str], *, key_file: str | os.PathLike[str] | None) -> Database:
    return opened(api.open_to_retain(path, key_file=key_file))


def opened(opening: Opening) -> Database:
    async def log() -> Log:
        return await opening

    return Database(log())


def connect(url: str, *, retry: float = 60.0, anchor: Receipt | None = None) -> Database:
    """`kimberlite.connect`, blocking, for any number of threads."""

    async def connected() -> Client:
        return await api.connect(url, retry=retry, anchor=anchor)

    return Database(connected())
