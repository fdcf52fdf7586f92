"""What came of a load, as programs and people are told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kimberlite.load.plan import Plan
from kimberlite.load.report import Report
from kimberlite.load.run import Disk, Outcome
from kimberlite.load.worker import Count

#: Writes of a batch take 2 ms and 1 ms, of a MiB 8 ms and 4 ms.
DISK = Disk(Path("/disk"), [2_000_000] * 3, [500_000, 1_500_000], [8_000_000] * 5, [4_000_000])
RATES = {
    "disk_plain_batch_records_per_s": 500 * 20,
    "disk_best_batch_records_per_s": 1_000 * 20,
    "disk_plain_1mib_records_per_s": 125 * 1024,
    "disk_best_1mib_records_per_s": 250 * 1024,
}
REPORT = Report(Plan("append", "nowhere:1", batch=20, size=1024), Outcome(2.0, Count(4_000, 80_000)), DISK)


def test_rates_are_of_the_records_that_so_many_writes_hold() -> None:
    form = REPORT.form()
    assert form["records_per_s"] == 40_000
    assert {name: form[name] for name in RATES} == pytest.approx(RATES)


def test_the_figure_is_divided_by_what_the_disk_does() -> None:
    rows = [re.split(r"  +", line) for line in REPORT.lines()]
    found = {row[0]: row[1:] for row in rows if row[0].startswith(("plain,", "best,"))}
    assert found == {
        "plain, batch": ["10,000", "2.000", "4.00"],
        "best, batch": ["20,000", "1.000", "2.00"],
        "plain, 1 MiB": ["128,000", "8.000", "0.31"],
        "best, 1 MiB": ["256,000", "4.000", "0.16"],
    }
