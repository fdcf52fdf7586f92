"""Whatever the disk refuses, nothing acknowledged is lost, nothing hangs, and only our own errors come out."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TypeVar

import pytest

from kimberlite.errors import UnknownOutcome
from kimberlite.log.names import PREPARE, SEGMENTS
from kimberlite.log.options import MIB, Options
from kimberlite.storage.memory import Disk, MemoryBackend
from tests.crash import faults

T = TypeVar("T")


class Slow(MemoryBackend):
    """What is done in the background takes a while."""

    async def run(self, call: Callable[[], T]) -> T:
        await asyncio.sleep(0.02)
        return call()


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_a_failing_disk_loses_nothing_that_was_acknowledged(tmp_path: Path, encrypted: bool) -> None:
    key = tmp_path / "key" if encrypted else None
    if key is not None:
        faults.make_keys(key)
    counts, wrong = faults.run(key, stride=5)
    assert wrong == []
    assert counts["runs"] > 60
    assert counts["refused"] > 100
    assert counts["acknowledged"] > 1000


class Turning:
    """A `Fault`: every call of one verb on what is named so fails, once it has been turned on."""

    def __init__(self, verb: str, start: str) -> None:
        self.verb, self.start, self.on = verb, start, False

    def __call__(self, verb: str, name: str, place: int, length: int) -> OSError | None:
        meant = self.on and verb == self.verb and name.startswith(self.start)
        return OSError(errno.EIO, os.strerror(errno.EIO), name) if meant else None


async def test_a_close_ends_though_what_is_prepared_meanwhile_fails() -> None:
    fault = Turning("allocate", PREPARE)
    db = await faults.simulated(Slow(Disk(), Random(1), fault), None)
    fault.on = True
    await db.append("s", b"x")
    await asyncio.wait_for(db.close(), faults.PATIENCE)


async def test_a_sync_that_fails_while_room_is_made_is_not_taken_for_one_of_a_prepared_file() -> None:
    fault = Turning("sync", SEGMENTS)
    options = Options(segment_bytes=4 * MIB)
    db = await faults.simulated(Slow(Disk(), Random(1), fault), None, options)
    fault.on = True
    # Most of the room that is ready: more is made.
    await db.append("s", bytes(700_000), sync="os")
    await asyncio.sleep(0.1)
    fault.on = False
    for _ in range(2):
        with pytest.raises(UnknownOutcome):
            await db.append("s", b"behind it")
    with pytest.raises(UnknownOutcome):
        await db.close()
