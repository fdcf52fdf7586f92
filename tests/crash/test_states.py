"""Crash states of the simulated disk, each opened by the production `open`; and that a rule taken out is seen."""

from __future__ import annotations

import pytest

from kimberlite.log.committer import Committer
from tests.crash import breaks
from tests.crash.judging import KINDS
from tests.crash.order import violations
from tests.crash.simulated import AMID, Tally, run, several

#: Rules whose loss some dozens of states show; `python -m tests.crash.simulated --break all` takes out each.
QUICK = [
    "judging",
    "prefix",
    "ack",
    "vault",
    "copies",
    "directory",
    "small",
    "segment",
    "close-mark",
    "together",
    "padding",
    "dropped",
    "packed",
    "emptied",
    "healed",
]


@pytest.fixture(scope="module")
def tally() -> Tally:
    """What came of a thousand states and more."""
    return several(range(24), None)


def test_what_was_promised_survives_every_crash(tally: Tally) -> None:
    assert tally.wrong == []
    assert tally.counts["states"] > 1000
    assert not any(tally.counts[kind] for kind in KINDS)


def test_recoveries_are_cut_too_and_their_recoveries(tally: Tally) -> None:
    assert all(tally.counts[f"level {level}"] > 50 for level in (1, 2, 3))
    assert tally.counts["torn"] > 0.03 * tally.counts["states"]
    assert tally.distinct > 0.8 * tally.counts["states"]


def test_what_is_done_over_the_years_is_cut_in_the_middle(tally: Tally) -> None:
    least = {"retention": 20, "packing": 5, "erasure": 20, "rotation": 5}
    assert {what: tally.counts[f"{what} hit"] > count for what, count in least.items()} == dict.fromkeys(AMID, True)


def test_damage_under_a_watermark_is_always_refused(tally: Tally) -> None:
    assert tally.counts["tried"] > 100
    assert tally.counts["refused open"] + tally.counts["refused later"] == tally.counts["tried"]
    assert tally.counts["refused open"] > tally.counts["refused later"] > 0


@pytest.mark.parametrize("rule", QUICK)
def test_the_engine_without_this_rule_fails(rule: str) -> None:
    assert several(range(60), rule).wrong


def test_a_rule_is_back_after_it_was_taken_out() -> None:
    sound = Committer._advance
    with breaks.applied("prefix"):
        assert Committer._advance is not sound
    assert Committer._advance is sound


def test_a_seed_comes_out_alike_every_time() -> None:
    first, second = run(3), run(3)
    assert (first.counts, first.distinct) == (second.counts, second.distinct)


@pytest.mark.parametrize(
    ("calls", "what"),
    [
        ([("write", "vault.0", 4096, 4096), ("write", "vault.1", 4096, 4096)], "vault.0 is not synced"),
        ([("write", "quarantine/a.tail", 0, 9), ("truncate", "segments/a.seg", 4096, 0)], "quarantine is not synced"),
        ([("rename", "prepare/a.seg -> segments/a.seg", 0, 0), ("submit", "segments/a.seg", 4096, 4096)], "its name"),
        ([("durable", "segments/a.seg", 4096, 8192), ("submit", "segments/a.seg", 8192, 4096)], "it is durable"),
    ],
)
def test_a_wrong_order_of_calls_is_seen(calls: list[tuple[str, str, int, int]], what: str) -> None:
    [seen] = violations(calls)
    assert what in seen


def test_a_group_where_a_write_of_a_process_before_may_land_is_seen() -> None:
    group = ("submit", "segments/a.seg", 8192, 4096)
    another_file = [("rename", "prepare/a.seg -> segments/a.seg", 0, 0), ("sync_directory", "segments", 0, 0)]
    [seen] = violations([group], ["segments/a.seg"])
    assert "may still land" in seen
    assert list(violations([group], ["segments/b.seg"])) == []
    assert list(violations([*another_file, group], ["segments/a.seg"])) == []
