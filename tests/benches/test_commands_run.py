"""The benches of the package itself, very small and through their command lines: each ends, prints every row that it
should have with the limit or the aim beside it, and leaves nothing behind but what it was asked to write."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import dropwhile, takewhile
from pathlib import Path

import pytest

from benches import engine
from benches.reads import MODES
from benches.upkeep import CELLS, EVERYTHING, NOTHING

ROOT = Path(__file__).parents[2]


def python(*arguments: str, cwd: Path) -> str:
    """What it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def rows(printed: str, heading: str) -> dict[str, dict[str, str]]:
    """Of the table in Markdown whose first heading this is: by its first cell, the others by their headings."""
    lines = dropwhile(lambda line: not line.startswith(f"| {heading} |"), printed.splitlines())
    headings, _, *table = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in takewhile(lambda line: line != "", lines)
    )
    return {cells[0]: dict(zip(headings, cells, strict=True)) for cells in table}


def figure(cell: str) -> float:
    return float(cell.replace(",", ""))


def test_the_engine_is_measured_beside_the_raw_disk_and_its_aims(place: Path) -> None:
    small = ("--seconds", "0.02", "--rounds", "1", "--markdown", "--json", "rows.json")
    printed = rows(python("-m", "benches.engine", *small, cwd=place), "clients × in flight × batch × size")
    assert [path.name for path in place.iterdir()] == ["rows.json"]
    assert list(printed) == [cell.label() for cell in engine.headline()]
    for row in printed.values():
        assert figure(row["records/s"]) > 0
        assert 0 < figure(row["p50 µs"]) <= figure(row["p99 µs"])
        assert figure(row["raw plain/s"]) > 0
        assert figure(row["raw best/s"]) > 0
        assert figure(row["stored ÷ payload"]) > 0

    written = json.loads((place / "rows.json").read_text(encoding="utf-8"))
    assert [engine.Cell(**each["cell"]).label() for each in written["append"]] == list(printed)
    rates = {engine.Cell(**each["cell"]): each["records_per_s"] for each in written["append"]}
    aims = {engine.Cell(**each["cell"]): each for each in written["aims"]}
    assert {cell.label(): (each["words"], f"{each['reached']:.2f}") for cell, each in aims.items()} == {
        label: (row["aim"], row["reached"]) for label, row in printed.items() if row["aim"]
    }
    assert all(each["reached"] > 0 for each in aims.values())
    for shape, wanted in engine.AIMS.items():
        plain = engine.Cell(*shape)
        assert aims[plain]["words"] == f"≥ {wanted:,}/s"
        assert aims[plain]["reached"] == pytest.approx(rates[plain] / wanted)
    for cell in rates:
        if cell.mode == "encrypted" and cell.sync == "group":
            unencrypted = rates[replace(cell, mode="plain")]
            assert aims[cell]["reached"] == pytest.approx(rates[cell] / unencrypted / engine.AIM_ENCRYPTED)
    [raw] = [each for each in written["raw"] if each["batch"] == 1]
    [alone] = [each for each in written["append"] if engine.Cell(**each["cell"]) == engine.Cell(1, batch=1)]
    assert aims[engine.Cell(1, batch=1)]["reached"] == pytest.approx(1.3 * raw["best_p50_ns"] / alone["p50_ns"])


def test_as_many_appends_are_in_flight_as_a_cell_says(tmp_path: Path) -> None:
    lone = asyncio.run(engine.append(engine.Cell(1, batch=1, sync="os"), tmp_path, 0.05))
    many = asyncio.run(engine.append(engine.Cell(1, 64, batch=1, sync="os"), tmp_path, 0.05))
    assert many.p50_ns > lone.p50_ns
    assert not list(tmp_path.iterdir())


def test_reads_are_measured_in_every_mode_beside_a_limit(tmp_path: Path) -> None:
    small = ("--records", "3200", "--rounds", "1", "--seconds", "0.02", "--markdown", "--json", "rows.json")
    printed = rows(python("-m", "benches.reads", *small, cwd=tmp_path), "work")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]
    gets = [f"get, {where}, {part}" for where in ("in the cache", "anywhere") for part in ("p50", "p99")]
    rates = ["scan of the log", "scan of a stream", "verify", "recovery from segments"]
    assert list(printed) == [f"{work}, {mode}" for mode in MODES for work in (*gets, *rates)]
    written = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))["reads"]
    assert [f"{each['work']}, {each['mode']}" for each in written] == list(printed)
    for each, row in zip(written, printed.values(), strict=True):
        assert each["value"] > 0
        assert each["limit"] > 0
        assert row["unit"] == each["unit"] == ("µs" if each["work"] in gets else "records/s")
        assert row["figure ÷ that"] == f"{each['value'] / each['limit']:.2f}"
        assert row["which is"]


def test_appends_are_measured_with_and_without_upkeep_that_is_at_work(tmp_path: Path) -> None:
    small = ("--seconds", "0.4", "--rounds", "1", "--mib", "1", "--segments", "40")
    said = python("-m", "benches.upkeep", *small, "--markdown", "--json", "rows.json", cwd=tmp_path)
    printed = rows(said, "clients × batch × size, upkeep")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]
    assert list(printed) == [f"{cell.label()}, {work}" for cell in CELLS for work in (NOTHING, EVERYTHING)]
    for label, row in printed.items():
        assert figure(row["records/s"]) > 0
        assert 0 < figure(row["p50 µs"]) <= figure(row["p99 µs"])
        assert label.endswith(EVERYTHING) or (figure(row["MiB scrubbed"]), figure(row["to be packed"])) == (0, 40)
        ratios = [float(cell) for heading, cell in row.items() if "÷ without" in heading]
        assert ratios == [1, 1] or label.endswith(EVERYTHING)
    # Where all else is busy, not in each of so short a time.
    assert any(figure(row["MiB scrubbed"]) > 0 for row in printed.values())
    assert any(figure(row["to be packed"]) < 40 for row in printed.values())


def test_a_start_after_a_kill_is_timed_beside_one_that_only_imports(tmp_path: Path) -> None:
    small = ("--gib", "0.01", "--streams", "20", "--producers", "20", "--rounds", "1")
    lines = python("-m", "benches.startup", *small, cwd=tmp_path).splitlines()
    assert not list(tmp_path.iterdir())
    headings, cells = (re.split(r" {2,}", line) for line in lines[-2:])
    row = dict(zip(headings, cells, strict=True))
    assert row["log"] == "0.01 GiB, 20 streams, 20 producers"
    assert 0 < figure(row["only import s"]) < figure(row["median s"]) <= figure(row["worst s"])
    assert figure(row["GiB on disk"]) >= 0.01
    assert row["caches dropped"] in ("yes", "no")


def test_who_may_not_drop_the_caches_is_told_that_they_were_not(tmp_path: Path) -> None:
    program = "import os; from benches import startup; os.geteuid() or os.setuid(65534); print(startup.drop_caches())"
    assert python("-c", program, cwd=tmp_path) == "False\n"
