"""A daemon that is killed under load, a few times; `just crash` does it a thousand times."""

from __future__ import annotations

from pathlib import Path

from tests.crash.daemonkills import hunt

KILLS = 20


def test_nothing_is_lost_doubled_or_reordered_by_kills_of_the_daemon(tmp_path: Path) -> None:
    outcome = hunt(KILLS, tmp_path)
    assert outcome.sound, outcome
    assert outcome.kills == KILLS
    assert outcome.in_flight >= 0.9 * KILLS
    assert outcome.acknowledged > 100 * KILLS
