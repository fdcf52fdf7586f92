"""A database over a simulated disk, whose clock, faults and deaths are in a test's hands."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterable, Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

from kimberlite import Receipt, Record
from kimberlite.crypto.master import load_master
from kimberlite.log.clock import Moment
from kimberlite.log.loading import load_identity, load_keys
from kimberlite.log.names import segment_name
from kimberlite.log.opening import Injected, Opening, open_log
from kimberlite.log.options import Options
from kimberlite.log.verify import Report, verify
from kimberlite.storage.backend import BLOCK
from kimberlite.storage.memory import Disk, Fault, MemoryBackend
from tests.model.agreement import mac_of

START = 1_700_000_000_000_000_000


class Machine:
    """A disk, and the processes that open the database on it one after another, or beside each other."""

    def __init__(self, key: Path | None = None, capacity: int | None = None) -> None:
        self.disk = Disk(capacity)
        self.key = key
        self.now = START
        #: Which boot of the machine this is, and the ns since.
        self.boot, self.up = bytes(16), 0
        self.fault: Fault | None = None

    def wait(self, ns: int) -> None:
        """Time passes. Who sets the clock changes only `now`."""
        self.now, self.up = self.now + ns, self.up + ns

    def backend(self, rng: Random | None = None) -> MemoryBackend:
        return MemoryBackend(self.disk, rng, self._ask)

    def open(
        self,
        *,
        create: bool = True,
        read_only: bool = False,
        origin: str | None = None,
        anchor: Receipt | None = None,
        backend: MemoryBackend | None = None,
        or_read: bool = True,
        retaining: bool = False,
        **options: Any,
    ) -> Opening:
        return open_log(
            "simulated",
            create=create,
            read_only=read_only,
            key_file=self.key,
            backend=backend or self.backend(),
            origin=origin,
            anchor=anchor,
            options=Options(**{"segment_bytes": 128 * 1024, "idle": 0.0005, **options}),
            or_read=or_read,
            retaining=retaining,
            injected=Injected(clock=lambda: self.now, moment=lambda: Moment(self.now, self.boot, self.up)),
        )

    def watch(self) -> list[tuple[str, str, int, int]]:
        """Collects what is done to the disk from now on."""
        trace: list[tuple[str, str, int, int]] = []
        self.disk.trace = trace
        return trace

    def kill(self) -> None:
        """The processes are gone, and with them their locks; the disk keeps all that was written."""
        self.disk.holder = None
        for inode in self.disk.tree.values():
            if inode is not None:
                inode.holder = None

    def image(self) -> Machine:
        """The same disk as a process leaves it that is killed now: everything that was written is there."""
        other = Machine(self.key)
        other.disk = Disk.from_files(self.disk.files())
        other.now, other.boot, other.up = self.now, self.boot, self.up
        return other

    def end(self, segment: int = 0) -> int:
        """Behind the last byte of a segment that is not zero, in whole blocks."""
        data = self.disk.files()[segment_name(segment)].rstrip(b"\0")
        return -(-len(data) // BLOCK) * BLOCK

    def write(self, name: str, place: int, data: bytes) -> None:
        """Damage."""
        MemoryBackend(self.disk).open(name, "w").write(place, data)

    def flip(self, name: str, place: int) -> None:
        self.write(name, place, bytes([self.disk.files()[name][place] ^ 1]))

    def cut(self) -> None:
        """The power is gone: only what was synced stays."""
        self.disk = self.disk.crash(Random(1))

    def verify(self, anchor: Receipt | None = None) -> Report:
        return verify(self.backend(), load_master(self.key), anchor=anchor)

    def forge(self, receipt: Receipt, stream: int = 1, **changes: Any) -> Receipt:
        """Another receipt as only this database could give it."""
        backend = self.backend()
        identity = load_identity(backend)
        assert identity is not None
        keys = load_keys(backend, identity, load_master(self.key), os.urandom, read_only=True)
        other = receipt._replace(**changes)
        return other._replace(mac=mac_of(other, stream, identity.database_id, keys.receipt))

    def _ask(self, verb: str, name: str, place: int, length: int) -> OSError | int | None:
        return None if self.fault is None else self.fault(verb, name, place, length)


def failing(verb: str, file: str = "", number: int = errno.EIO) -> Fault:
    """Every call of this verb on files whose name begins so fails."""

    def fault(asked: str, name: str, place: int, length: int) -> OSError | None:
        return OSError(number, os.strerror(number), name) if asked == verb and name.startswith(file) else None

    return fault


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Returns when it holds; it is nobody's event."""
    async with asyncio.timeout(5):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.0005)


async def payloads(records: AsyncIterable[Record]) -> list[bytes]:
    return [record.payload async for record in records]
