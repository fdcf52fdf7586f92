"""The report: every bench is asked, what they found is in one file, and the page shows it."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benches import report

#: The least that is measured at all.
SHORT = (
    ("limits", "--seconds 0.05", False),
    ("targets", "--seconds 0.05 --records 3000", True),
    ("sweep", "--seconds 0.1 --rounds 2 --clients 1 4 --batches 1 10", True),
    ("sizes", "--records 5000 20000", True),
    ("startup", "--gib 0.001 --streams 5 --producers 5 --rounds 1", True),
    ("network", "--seconds nothing", True),
)


def test_what_benches_find_is_one_file_and_one_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = tuple(report.Bench(module, module, "", said, on_disk) for module, said, on_disk in SHORT)
    monkeypatch.setattr(report, "BENCHES", short)
    monkeypatch.setattr("sys.argv", ["benches", "--quick", "--directory", str(tmp_path), "--out", f"{tmp_path}/out"])
    assert report.main() == 1
    found = json.loads((tmp_path / "out/bench.json").read_text())
    assert {"commit", "when", "machine", "versions", "minutes", "quick"} < found.keys()
    benches: dict[str, Any] = found["benches"]
    assert "nothing" in benches["network"]
    assert [each["records"] for each in benches["sizes"]["sizes"]] == [5_000, 20_000]
    targets = benches["targets"]["targets"]
    assert len({each["work"] for each in targets}) == len(targets) == 13
    assert all(0 < each["low"] <= each["figure"] <= each["high"] for each in targets)
    assert all(0 < each["low"] <= each["gigabytes_per_second"] <= each["high"] for each in benches["limits"]["limits"])
    assert all(len(each["looks"]) == 3 for each in benches["sizes"]["sizes"])
    for each in benches["sweep"]["sweep"]:
        assert 0 < each["low"] <= each["records_per_s"] <= each["high"]
        assert min(each["best"], each["plain"]) > 0
    text = (tmp_path / "out/bench.html").read_text()
    assert "Not measured: it ended with 2" in text
    pictures = [f"<svg{piece.partition('</svg>')[0]}</svg>" for piece in text.split("<svg")[1:]]
    assert len(pictures) == 3
    words = ["".join(ElementTree.fromstring(picture).itertext()) for picture in pictures]
    assert all(wanted in words[0] for wanted in ("raw disk, best", "batches of 10", "4 clients", "records/s"))
    assert all(wanted in words[1] for wanted in ("1 × 1 × 10", "milliseconds", "50%"))
    assert all(wanted in words[2] for wanted in ("get, p99", "open", "MB"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_every_bench_knows_what_it_is_told() -> None:
    for bench in report.BENCHES:
        module = import_module(f"benches.{bench.module}")
        for said in (bench.whole, bench.quick):
            parse = module.arguments().parse_args
            parse([*said.split(), "--json", "x", *(["--directory", "y"] if bench.on_disk else [])])
