"""The bench over the network, very small: a daemon is started for each work, and none outlives it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benches import network
from benches.clients import Load
from benches.daemon import Daemon
from benches.network_tables import Cell, Outcome, aim
from benches.rivals import Figures, Rival


class Slow:
    """A server that is always as slow."""

    name = "Slow"
    settings = "1.0: no settings"
    alone = False

    def run(self, load: Load) -> Figures:
        return Figures(float(load.batch), 1.0, 2.0, 3.0)


class Store(Slow):
    """One that is in the process of its writer."""

    name = "Store"
    alone = True


class Broken(Slow):
    name = "Broken"

    def run(self, load: Load) -> Figures:
        raise RuntimeError("it lost a record")


def slow(names: Sequence[str], _directory: Path) -> tuple[list[Rival], list[str]]:
    assert list(names) == ["redis", "lmdb"]
    return [Slow(), Store(), Broken()], ["Fast is left out: everything"]


def test_every_work_is_measured_beside_the_raw_disk_its_aim_and_the_peers(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(network, "CELLS", [Cell(1, 1, 1), Cell(1, 8, 100)])
    monkeypatch.setattr(network, "rivals_here", slow)
    rows_at = place / "rows.json"
    small = ["--directory", str(place), "--seconds", "0.1", "--rounds", "1", "--records", "2000"]
    monkeypatch.setattr(sys, "argv", ["network", *small, "--peers", "redis,lmdb", "--markdown", "--json", str(rows_at)])
    network.main()
    printed, said = capsys.readouterr()
    rows = json.loads(rows_at.read_text(encoding="utf-8"))
    assert [path.name for path in place.iterdir()] == ["rows.json"]
    assert "Fast is left out" in said
    assert "1 × 8 × 100, plain: Broken failed: it lost a record" in said
    assert [(row["cell"]["depth"], row["cell"]["batch"]) for row in rows["append"]] == [(1, 1), (8, 100)]
    for row in rows["append"]:
        assert min(row["records_per_s"], row["plain"], row["best"], row["best_p50_ms"], row["sockets"]) > 0
        assert 0 < row["p50_ms"] <= row["p99_ms"] <= row["p999_ms"]
    assert all(row["records_per_s"] > 0 for row in rows["read"])
    measured = [(row["name"], row["figures"]["records_per_s"]) for row in rows["peers"]]
    assert measured == [("Slow", 1.0), ("Store", 1.0), ("Slow", 100.0)]
    [encoding] = rows["encoding"]
    assert 0 < encoding["client_us"] < encoding["daemon_us"]
    assert "≥ 1,200,000" in printed
    assert "1 × 8 × 100, plain: Slow" in printed


def outcome(cell: Cell, records_per_s: float, p50_ms: float = 1.0) -> Outcome:
    rate = records_per_s
    return Outcome(cell, rate, p50_ms, 2.0, 3.0, 1.0, 1.0, 0.5, 1.0, 1.0, rate, rate, "")


def test_a_lone_writer_is_held_against_the_disk_and_encryption_against_none() -> None:
    alone, other = Cell(1, 1, 1), Cell(1, 1, 100)
    found = [outcome(alone, 10), outcome(Cell(1, 1, 100, "encrypted"), 90), outcome(other, 100)]
    reached = [wanted.reached for each in found if (wanted := aim(each, found)) is not None]
    assert reached == pytest.approx([0.65, 1.0, 100 / 400_000])


def test_a_daemon_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="setting"), Daemon(tmp_path / "db", "no.such=1"):
        pass
