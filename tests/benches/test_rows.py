"""The rows of what is aimed at, from the results of a run, into a document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benches import rows
from benches.report import BENCHES


def cell(clients: int, depth: int, batch: int, mode: str = "plain") -> dict[str, Any]:
    return {"clients": clients, "depth": depth, "batch": batch, "mode": mode}


def outcome(shape: tuple[int, int, int], rate: float) -> dict[str, Any]:
    beside = {"plain": 100_000.0, "best": 200_000.0, "best_p50_ms": 0.1, "sockets": 3_000_000.0}
    return {"cell": cell(*shape), "records_per_s": rate, "p50_ms": 0.26, **beside}


def peer(name: str, shape: tuple[int, int, int], rate: float) -> dict[str, Any]:
    return {"cell": cell(*shape), "name": name, "figures": {"records_per_s": rate, "p50_ms": 1e3 / rate}}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Of the network, and of nothing else."""
    network = {
        "append": [outcome((1, 1, 1), 3_000), *(outcome(shape, 1_000_000) for shape in rows.SHAPES)],
        "read": [{"kind": "as batches", "records_per_s": 3_000_000, "aim": 2_000_000, "carried": 9_000_000}],
        "peers": [
            peer("fast", (32, 1, 100), 400_000),
            peer("slow", (32, 1, 100), 1_000),
            peer("near (embedded)", (32, 1, 100), 900_000),
            peer("slow", (1, 1, 1), 1_000),
            peer("fast", (1, 1, 1), 4_000),
        ],
    }
    benches: dict[str, Any] = {bench.module: "it was not asked for" for bench in BENCHES} | {"network": network}
    path = tmp_path / "bench.json"
    about = {"machine": "a machine", "commit": "abc", "when": "today", "quick": False}
    path.write_text(json.dumps(about | {"benches": benches}), encoding="utf-8")
    return path


def told(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["rows", *words])
    rows.main()


def test_each_row_has_the_aim_the_figure_and_what_stands_beside_it(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told(monkeypatch, str(results))
    lines = {line.split(" | ")[0].strip("| "): line for line in capsys.readouterr().out.splitlines() if "|" in line}
    alone = lines["single records, 1 client: p50"]
    assert "| ≤ 0.130 ms | 0.260 ms | best raw write 0.100 ms; fast 0.250 ms | 0.50 |" in alone
    many = lines["batches of 100, 32 clients"]
    assert "| ≥ 2,000,000/s | 1,000,000/s |" in many
    assert "plain 100,000, best 200,000; only answered: 3,000,000; fast: 400,000 | 0.50 |" in many
    assert "fast" not in lines["single records, 64 clients, one in flight each"]


def test_what_upkeep_leaves_of_a_rate_and_adds_to_a_latency_stands_beside_what_is_without_it(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = [
        {"cell": {"clients": 32, "batch": 100}, "upkeep": work, "records_per_s": rate, "p99_ns": p99}
        | {"rate": rate / 1_000_000, "p99": p99 / 2e6, "packed": 3, "scrubbed": 1e6, "dropped": 0}
        for work, rate, p99 in (("nothing", 1_000_000, 2e6), ("packing", 1, 1), ("all of it", 900_000, 4e6))
    ]
    found = json.loads(results.read_text())
    found["benches"]["upkeep"] = {"upkeep": outcomes}
    results.write_text(json.dumps(found))
    told(monkeypatch, str(results))
    lines = [line for line in capsys.readouterr().out.splitlines() if "while packing" in line]
    words = "| 32 clients, batches of 100, while packing, scrubbing"
    assert lines == [
        f"{words} | ≥ 0.8 × without | 900,000/s | 1,000,000/s | 1.12 |",
        f"{words}: p99 | ≤ 1.5 × without | 4.00 ms | 2.00 ms | 0.75 |",
    ]


def test_they_stand_between_their_marks_however_often(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = tmp_path / "document.md"
    document.write_text(f"before\n{rows.BEGIN}\nold\n{rows.END}\nbehind\n", encoding="utf-8")
    told(monkeypatch, str(results), "--into", str(document))
    once = document.read_text(encoding="utf-8")
    assert once.startswith("before\n")
    assert once.endswith("behind\n")
    assert "old" not in once
    assert "batches of 100, 32 clients" in once
    told(monkeypatch, str(results), "--into", str(document))
    assert document.read_text(encoding="utf-8") == once
