"""What a killed process had in flight lands before anybody judges the log."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from kimberlite.errors import Busy
from tests.crash import killed
from tests.crash.children import Child, Writer
from tests.crash.mounts import lacking as lacking_mounts

WHY = killed.lacking()
NO_DEVICE = lacking_mounts("/dev/fuse")


@pytest.mark.skipif(WHY is not None, reason=f"no writes that outlive a process: {WHY}")
def test_nothing_changes_beneath_a_log_that_was_killed(tmp_path: Path) -> None:
    counts = killed.run(tmp_path, 12, seed=1)
    assert counts["kills"] == 12
    assert counts["group in flight"] + counts["mark in flight"] > 0
    assert not any(counts[bad] for bad in killed.BAD), counts


@pytest.mark.skipif(WHY is not None, reason=f"no writes that outlive a process: {WHY}")
@pytest.mark.skipif(NO_DEVICE is not None, reason=f"no slow disk: {NO_DEVICE}")
async def test_a_write_in_flight_lands_before_a_new_writer_judges(tmp_path: Path) -> None:
    with killed.slow_disk(tmp_path) as (place, device):
        writer = Writer(place / "db", None, "uring", 1, "quiet")
        child = Child(writer.work)
        assert not child.listen(20, until="work")
        device.hold(1500)
        assert not child.listen(2, until="mark")
        # Until it is in flight.
        await asyncio.sleep(0.05)
        device.hold(0)
        child.end()
        with pytest.raises(Busy, match="is still being written"):
            await writer.open(Random(1))
        counts = Counter[str]()
        await (await killed.opened(writer, counts)).close()
        assert counts["busy"] == 1
