"""Two sides of a comparison: when they are called different, and that all of it runs."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from benches import compare, instructions
from benches.compare import APPEND, CASES, CRYPTO, ROOT, Kind, compared, paired
from benches.slowdowns import SLOWDOWNS, SlowDown, git, slowed


def pairs(slower: float, noise: float, seed: int) -> list[tuple[float, float]]:
    """What a machine says that is now fast and now slow, to both of a pair alike but for the noise."""
    chance = random.Random(seed)
    weather = (chance.uniform(0.7, 1.3) for _ in range(30))
    return [(mood * chance.gauss(1, noise), mood * slower * chance.gauss(1, noise)) for mood in weather]


@pytest.mark.parametrize(("kind", "slower", "noise"), [(CRYPTO, 1.15, 0.04), (APPEND, 1.3, 0.1)])
def test_what_is_slower_is_called_so_and_what_is_the_same_is_not(kind: Kind, slower: float, noise: float) -> None:
    def verdicts(factor: float) -> list[str]:
        return [compared("case", kind, pairs(factor, noise, seed)).verdict for seed in range(20)]

    assert verdicts(1.0) == ["same"] * 20
    assert verdicts(slower).count("slower") >= 18
    assert verdicts(1 / slower).count("faster") >= 18


def test_sides_take_turns_and_neither_is_always_first() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = paired(lambda: side("before"), lambda: side("after"), 3)
    assert order == ["before", "after", "after", "before"] * 2
    assert found == [(4.0, 3.0), (5.0, 6.0), (8.0, 7.0)]


def test_every_case_is_done_by_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "checked_out", lambda *_: ROOT)
    monkeypatch.setattr(compare, "WORK", instructions.built())
    monkeypatch.setattr(compare, "counted", lambda _side: {"seal": 100.0})
    short = {case: Kind(kind.name, 100.0, 0.03, kind.share) for case, kind in CASES.items()}
    monkeypatch.setattr(compare, "CASES", short)
    result = tmp_path / "result.json"
    monkeypatch.setattr(
        "sys.argv", ["compare", "HEAD", "--rounds", "3", "--directory", str(tmp_path), "--json", str(result)]
    )
    assert compare.main() == 0
    found = json.loads(result.read_text())["compared"]
    assert [each["case"] for each in found] == list(CASES)
    assert all(each["before_ns"] > 0 and each["low"] <= each["ratio"] <= each["high"] for each in found)
    shown = capsys.readouterr().out
    assert "later ÷ earlier" in shown
    assert "Instructions for each kind of work of the core" in shown


def test_what_a_commit_cannot_do_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "checked_out", lambda *_: ROOT)
    monkeypatch.setattr(compare, "WORK", "not built then")
    monkeypatch.setattr("sys.argv", ["compare", "HEAD", "--case", "hash", "--directory", str(tmp_path)])
    assert compare.main() == 0
    assert "hash is not compared: a commit has nothing that does it" in capsys.readouterr().err


def test_both_sides_are_newer_than_any_build(tmp_path: Path) -> None:
    """What cargo takes for older than the other side's build it does not build."""
    for name, commit in (("earlier", "HEAD"), ("tree", None)):
        before = time.time()
        copy = tmp_path / name
        copy.mkdir()
        compare.unpack(commit, copy)
        files = [path for path in copy.rglob("*") if path.is_file()]
        assert copy / "native/core/src/lib.rs" in files
        # The clock of a file system is a little behind.
        assert min(path.stat().st_mtime for path in files) > before - 0.1


def test_more_instructions_fail_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([{"seal": 100.0}, {"seal": 111.0}])
    monkeypatch.setattr(compare, "checked_out", lambda *_: ROOT)
    monkeypatch.setattr(compare, "counted", lambda _side: next(counts))
    monkeypatch.setattr(compare, "CASES", {"encode": Kind("codec", 100.0, 0.03)})
    monkeypatch.setattr("sys.argv", ["compare", "HEAD", "--rounds", "3", "--directory", str(tmp_path)])
    assert compare.main() == 1


@pytest.mark.parametrize("slow", SLOWDOWNS, ids=lambda slow: slow.case)
def test_a_slow_down_is_a_commit_that_changes_nothing_else_and_that_nothing_names(slow: SlowDown) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("there is no git checkout")
    before = git("status", "--porcelain"), git("for-each-ref")
    commit = slowed("HEAD", slow)
    added = git("diff", "--numstat", "HEAD", commit).split("\t")
    assert added == [str(slow.instead.count("\n") - 1), "0", slow.file]
    assert slow.case in CASES
    assert (git("status", "--porcelain"), git("for-each-ref")) == before
