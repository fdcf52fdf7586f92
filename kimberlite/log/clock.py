"""How far the wall clock may be believed, by whoever drops what is old.

    clock: temporary, fsync, rename, fsync directory

Time that is believed goes on with the machine's uptime, which nobody sets. Across a boot, and where there is no file,
it goes on from what was known last. A wall clock that is no more than a day ahead of that is right; one that is
further ahead has jumped, or the machine was off, and only whoever runs it can tell which.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from kimberlite import _native
from kimberlite.arguments import UNITS
from kimberlite.errors import Unavailable
from kimberlite.log.creation import read_small, write_small
from kimberlite.log.identity import Identity
from kimberlite.log.names import CLOCK
from kimberlite.storage.backend import Backend

#: Magic, database, what is believed, the uptime then, and the boot that it counts from.
HEAD: Final = struct.Struct("<8s16sQQ16s")
MAGIC: Final = b"KIMBCLK1"
CHECK: Final = 8
#: ns that the wall clock may be ahead.
JUMP: Final = 24 * 3600 * 10**9
#: ns for which what was noted is new enough for the next boot.
FRESH: Final = 3600 * 10**9


class Moment(NamedTuple):
    """What the machine says of the time."""

    wall: int
    #: Which boot this is, and the ns since, those of sleep too.
    boot: bytes
    up: int


@cache
def boot() -> bytes:
    """The same as long as this process lives."""
    return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", ""))


def moment() -> Moment:
    return Moment(time.time_ns(), boot(), time.clock_gettime_ns(time.CLOCK_BOOTTIME))


class Clock:
    """What the wall clock says, and whether it may be believed."""

    def __init__(self, backend: Backend, identity: Identity, ask: Callable[[], Moment], last: int) -> None:
        """`last` is the time of the newest group, or of the making of the database: what is known without a file."""
        self._backend, self._identity, self._ask = backend, identity, ask
        wall, boot, up = ask()
        #: Until which uptime what is in the file is new enough.
        self._fresh = 0
        believed = last
        data = read_small(backend, CLOCK, 4096)
        if data is not None and (kept := decode(data, identity)) is not None:
            believed, up_then, boot_then = kept
            if boot_then == boot and up >= up_then:
                believed += up - up_then
                self._fresh = up_then + FRESH
        #: What was believed, and the uptime then.
        self._base = believed, up
        if wall - believed <= JUMP:
            self._base = wall, up

    def ahead(self) -> int:
        """By how many ns the wall clock is ahead of what is believed; 0 if it may be."""
        now, _, up = self._ask()
        then, up_then = self._base
        drift = now - (then + up - up_then)
        if drift < 0:
            # If it comes back from there, that is a jump.
            self._base = now, up
        return drift if drift > JUMP else 0

    def held(self) -> Unavailable | None:
        """Why nobody can say what time it is; None if it is as late as the wall clock says."""
        if not (ahead := self.ahead()):
            return None
        return Unavailable(
            f"the clock has jumped, or the machine was off: it is {ahead / UNITS['d']:,.1f} days ahead of when it was "
            "last known to be right, so nothing is dropped for its age; confirm the clock if it is right. Rules "
            "without an age go on"
        )

    def now(self, *, confirmed: bool = False) -> int:
        """Unavailable if nobody can say, and it is not `confirmed` that the wall clock is right."""
        if not confirmed and (held := self.held()) is not None:
            raise held
        return self._ask().wall

    def confirm(self) -> None:
        """For this process; who keeps it confirms it for the next ones."""
        now, _, up = self._ask()
        self._base, self._fresh = (now, up), 0

    @property
    def stale(self) -> bool:
        """Whether it is time to keep it again."""
        return self._ask().up >= self._fresh

    def keep(self) -> None:
        """So that a later start knows."""
        held = self.ahead() > 0
        (then, up_then), (now, boot, up) = self._base, self._ask()
        believed = then + up - up_then if held else now
        head = HEAD.pack(MAGIC, self._identity.database_id, max(0, believed), up, boot)
        write_small(self._backend, CLOCK, head + _native.blake3(head, self._identity.hash)[:CHECK])
        self._fresh = up + FRESH


def decode(data: bytes, identity: Identity) -> tuple[int, int, bytes] | None:
    """What was believed, the uptime then and the boot; None if it is not this database's, or damaged."""
    head, check = data[: HEAD.size], data[HEAD.size :]
    if len(head) != HEAD.size or _native.blake3(head, identity.hash)[:CHECK] != check:
        return None
    magic, database, believed, up, boot = HEAD.unpack(head)
    return (believed, up, boot) if (magic, database) == (MAGIC, identity.database_id) else None
