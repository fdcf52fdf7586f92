"""A daemon that is killed under load, a few times; `just crash` does it a thousand times."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash import mounts
from tests.crash.daemonkills import OPERATIONS, ROOT, hunt

KILLS = 10
CUTS = 8
WHY = mounts.lacking()


@pytest.mark.parametrize("keyed", [False, True], ids=["plain", "encrypted"])
def test_nothing_is_lost_doubled_or_reordered_by_kills_of_the_daemon(tmp_path: Path, keyed: bool) -> None:
    outcome = hunt(KILLS, tmp_path, keyed=keyed)
    assert outcome.sound, outcome
    assert outcome.kills == KILLS
    assert outcome.in_flight >= 0.9 * KILLS
    assert outcome.acknowledged > 100 * KILLS
    assert all(outcome.done[what] > 0 for what in (OPERATIONS if keyed else OPERATIONS[:1]))


@pytest.mark.skipif(WHY is not None, reason=f"no power cuts: {WHY}")
def test_nothing_is_lost_doubled_or_reordered_when_the_disk_of_a_daemon_loses_power() -> None:
    command = [sys.executable, "-m", "tests.crash.daemonkills", "--cuts", str(CUTS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{CUTS} power cuts" in done.stdout
    assert "0 lost, 0 twice, 0 streams reordered" in done.stdout
