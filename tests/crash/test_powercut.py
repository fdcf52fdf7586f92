"""What was acknowledged as durable is there after the power went."""

from __future__ import annotations

import pytest

from tests.crash import powercut

WHY = powercut.lacking()


@pytest.mark.skipif(WHY is not None, reason=f"no power cuts: {WHY}")
def test_nothing_acknowledged_is_lost_in_a_power_cut() -> None:
    counts = powercut.run(30, seed=1)
    assert counts["cuts"] == 30
    assert counts["acknowledged"] > 300
    assert {bad: counts[bad] for bad in ("lost", "refused", "escaped", "hung")} == {
        "lost": 0, "refused": 0, "escaped": 0, "hung": 0,
    }  # fmt: skip
