"""Records of the system's own stream."""

from __future__ import annotations

import asyncio
from typing import Final

from kimberlite import _native
from kimberlite.log.committer import Part
from kimberlite.log.log import Log
from kimberlite.records import Receipt

#: Ranges of positions that one names at most.
MOST_LOST: Final = 65_536


async def say(log: Log, payload: bytes) -> Receipt:
    """Appends one; it is durable when this returns."""
    committer, _ = log._writer()
    future: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
    parts: list[Part] = [("", 0, _native.encode([payload]), None)]
    committer.enter(_native.Request(parts, "group", None, False, future, committer.quantum))
    return await future
