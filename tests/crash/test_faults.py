"""Whatever the disk refuses, nothing acknowledged is lost, nothing hangs, and only our own errors come out."""

from __future__ import annotations

from pathlib import Path

import pytest

from kimberlite.crypto.master import create_master
from tests.crash import faults


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_a_failing_disk_loses_nothing_that_was_acknowledged(tmp_path: Path, encrypted: bool) -> None:
    key = tmp_path / "key" if encrypted else None
    if key is not None:
        create_master(key)
    counts, wrong = faults.run(key, stride=5)
    assert wrong == []
    assert counts["runs"] > 60
    assert counts["refused"] > 100
    assert counts["acknowledged"] > 1000
