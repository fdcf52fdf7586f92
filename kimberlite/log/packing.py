"""Closed segments that are mostly padding, written anew without it.

    prepare/N.pack: groups, header, fdatasync
    → rename to segments/N.seg → fsync both directories → index/N.idx replaced → readers are told

A crash leaves the old file or the new one, and each says what the log says; what is in `prepare/` is discarded by the
next start. An index of the other file has another salt, and is made again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Generator
from typing import Final

from kimberlite import _native
from kimberlite.errors import Corrupt, KimberliteError
from kimberlite.log.checkpoint import Derived
from kimberlite.log.creation import discard, write_small
from kimberlite.log.description import size_of
from kimberlite.log.findings import Findings
from kimberlite.log.names import PREPARE, SEGMENTS, index_name, packed_name, segment_name
from kimberlite.log.tasks import begin, rest
from kimberlite.log.walking import check_header, check_rest, groups
from kimberlite.storage.backend import BLOCK, Backend, opener

#: Read, checked and written at a time.
PIECE: Final = 64 * 1024
#: After each piece nothing is done for so many times as long as it took: appends come first.
REST: Final = 9
#: Seconds until what the disk refused is tried again.
AGAIN: Final = 60.0


class Packer:
    """One at a time, oldest first, those that the last checkpoint is behind: no checkpoint names a place in them."""

    def __init__(
        self,
        backend: Backend,
        native: _native.Log,
        derived: Derived,
        findings: Findings,
        share: float,
        random: Callable[[int], bytes],
    ) -> None:
        self._backend, self._native, self._derived, self._findings = backend, native, derived, findings
        self._share, self._random = share, random
        self._next = 0
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        #: Held while a segment is being packed: it must not be dropped meanwhile, and come back.
        self.lock = asyncio.Lock()
        #: Segments that were packed, and bytes that they were shorter for it.
        self.packed = self.saved = 0

    def checkpointed(self) -> None:
        """Called when a checkpoint was written: there may be something to do."""
        ready = self._share > 0 and self._next < self._derived.segment
        if ready and self._task is None and not self._stopping.is_set():
            self._task = begin(self._work(), "kimberlite-pack", lambda _error: None)

    async def stop(self) -> None:
        self._stopping.set()
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _work(self) -> None:
        try:
            while self._next < self._derived.segment and not self._stopping.is_set():
                try:
                    async with self.lock:
                        self._next = max(self._next, self._native.dropped[0])
                        await self._consider(self._next)
                except KimberliteError as error:
                    # It stays as it is, for whoever looks into it.
                    self._findings.add(error)
                except OSError:
                    await rest(AGAIN, self._stopping)
                    continue
                self._next += 1
        finally:
            self._task = None

    async def _consider(self, number: int) -> None:
        size, least = await self._backend.run(lambda: self._lengths(number))
        if least is None or least > size * self._share:
            return
        steps = pack(self._backend, self._native, number, self._random(32))
        while not self._stopping.is_set():
            begun = asyncio.get_running_loop().time()
            if await self._backend.run(lambda: next(steps, None)) is None:
                after = await self._backend.run(lambda: size_of(self._backend, segment_name(number)))
                self.packed, self.saved = self.packed + 1, self.saved + size - after
                return
            await rest(REST * (asyncio.get_running_loop().time() - begun), self._stopping)
        await self._backend.run(lambda: self._give_up(steps, number))

    def _lengths(self, number: int) -> tuple[int, int | None]:
        return size_of(self._backend, segment_name(number)), self._native.packed_length(number)

    def _give_up(self, steps: Generator[bool], number: int) -> None:
        steps.close()
        discard(self._backend, packed_name(number))


def pack(backend: Backend, native: _native.Log, number: int, salt: bytes) -> Generator[bool]:
    """Packs a closed segment, a piece at each step. Corrupt if anything in it is not as it was sealed."""
    name, temporary = segment_name(number), packed_name(number)
    discard(backend, temporary)
    packing = native.packing(number, salt)
    source = backend.open(name, "s")
    target = backend.open(temporary, "x")
    try:
        target.write(0, bytes(BLOCK))
        check_header(source, packing.segment, packing)
        end, place = BLOCK, BLOCK
        for out, place, _ in groups(source, packing, PIECE):  # noqa: B007 (needed behind the last)
            target.write(end, out)
            end += len(out)
            yield True
        for _ in check_rest(source, place, PIECE):
            yield True
        header, index = _finish(packing, name)
        target.write(0, header)
        target.sync()
        yield True
        backend.rename(temporary, name)
    except (KimberliteError, OSError):
        with contextlib.suppress(OSError):
            discard(backend, temporary)
        raise
    finally:
        source.close()
        target.close()
    indexed = None
    with contextlib.suppress(OSError):
        backend.sync_directory(SEGMENTS)
        backend.sync_directory(PREPARE)
        write_small(backend, index_name(number), index)
        indexed = opener(backend, index_name(number))
    native.attach_closed(header, opener(backend, name), indexed)


def _finish(packing: _native.Packing, name: str) -> tuple[bytes, bytes]:
    try:
        return packing.finish()
    except ValueError as error:
        raise Corrupt(str(error), file=name) from None
