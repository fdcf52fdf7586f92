"""What a killed process had in flight lands before anybody judges the log."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash import killed
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
def test_a_slow_write_lands_before_a_new_writer_judges(tmp_path: Path) -> None:
    with killed.slow_disk(tmp_path) as (place, device):
        counts = killed.run(place, 6, seed=1, device=device)
    assert counts["kills"] == 6
    assert counts["group in flight"] + counts["mark in flight"] > 0
    assert not any(counts[bad] for bad in killed.BAD), counts
