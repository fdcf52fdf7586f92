"""A repair that loses power is finished by the next one."""

from __future__ import annotations

import pytest

from tests.crash import mounts, repaircuts

WHY = mounts.lacking()


@pytest.mark.skipif(WHY is not None, reason=f"no power cuts: {WHY}")
def test_nothing_in_front_of_the_damage_is_lost_in_a_power_cut() -> None:
    counts = repaircuts.run_apart(60, seed=1)
    assert {bad: counts[bad] for bad in repaircuts.BAD} == dict.fromkeys(repaircuts.BAD, 0)
    assert counts["cut in the middle"] > 3
