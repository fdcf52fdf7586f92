"""`kimberlite bench`, on a daemon."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.cli.conftest import Call
from tests.cli.test_serve import ANY, Daemon
from tests.cli.test_terminal import terminal

#: What programs find in its JSON whatever else there is.
KEYS = {
    "records_per_s",
    "p50_ms",
    "p99_ms",
    "p999_ms",
    "disk_plain_batch_records_per_s",
    "disk_best_batch_records_per_s",
    "disk_plain_1mib_records_per_s",
    "disk_best_1mib_records_per_s",
}


def test_it_loads_a_daemon_and_says_what_came_of_it(tmp_path: Path, process: Call) -> None:
    daemon = Daemon(tmp_path / "db", *ANY)
    url = f"kimberlite://{daemon.listening()}"
    few = ("--clients", "2", "--batch", "20", "--seconds", "0.4", "--disk", tmp_path)
    curve, plot = tmp_path / "curve.csv", tmp_path / "curve.svg"
    said = process("bench", "append", url, *few, "--json", "--csv", curve, "--plot", plot, "--payload", "json").json()
    assert all(said[key] > 0 for key in KEYS)
    assert said["p50_ms"] <= said["p99_ms"] <= said["p999_ms"] <= said["max_ms"]
    assert said["records"] == 20 * said["requests"]
    rows = list(csv.DictReader(curve.read_text().splitlines()))
    assert [rows[0]["work"], float(rows[-1]["share"])] == ["append", 1.0]
    shares = [float(row["share"]) for row in rows]
    assert shares == sorted(shares)
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")
    mixed = process("bench", "mixed", url, *few, "--json", "--rate", "4000").json()
    assert mixed["append"]["records_per_s"] > 0
    assert mixed["read"]["records_per_s"] > 0
    text = process("bench", "read", url, *few).out.decode()
    assert "best, 1 MiB" in text
    assert text.splitlines()[3].split()[0] == "read"
    assert daemon.end() == 0


def test_a_terminal_is_told_how_far_it_is(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "db", *ANY)
    url = f"kimberlite://{daemon.listening()}"
    shown = terminal("bench", "append", url, "--seconds", "2", "--disk", tmp_path)
    assert daemon.end() == 0
    told = re.findall(r"\rround (\d)/4: (?:the raw disk|([\d,]+) records, ([\d,]+) a second)\x1b\[K", shown)
    assert {number for number, _, _ in told} == {"1", "2", "3", "4"}
    counts = [int(records.replace(",", "")) for _, records, _ in told if records]
    assert counts == sorted(counts)
    assert 0 < counts[0] < counts[-1]


@pytest.mark.parametrize(
    ("more", "status"),
    [
        (["append", "./directory"], 64),
        (["append", "kimberlite://127.0.0.1:1"], 74),
        (["write", "kimberlite://127.0.0.1:1"], 64),
        (["append", "kimberlite://127.0.0.1:1", "--clients", "0"], 64),
        (["append", "kimberlite://127.0.0.1:1", "--seconds", "nan"], 64),
        (["append", "kimberlite://127.0.0.1:1", "--rate", "-1"], 64),
        (["mixed", "kimberlite://127.0.0.1:1"], 64),
        (["append", "kimberlite://127.0.0.1:65536"], 64),
        (["append", "kimberlite://127.0.0.1:1", "--stream", "a\nb"], 64),
        (["append", "kimberlite://127.0.0.1:1", "--depth", "99999999999999"], 64),
        (["append", "kimberlite://127.0.0.1:1", "--csv", "/no/such/file"], 64),
        (["append", "kimberlite://127.0.0.1:1", "--disk", "/no/such/directory"], 64),
    ],
)
def test_what_it_cannot_do_is_said(process: Call, more: list[str], status: int) -> None:
    outcome = process("bench", *more)
    assert (outcome.status, len(outcome.err.splitlines())) == (status, 1)


def test_what_a_run_left_is_there_until_another_has_something_to_say(process: Call, tmp_path: Path) -> None:
    (tmp_path / "curve.csv").write_text("of an hour of load\n")
    outcome = process("bench", "append", "kimberlite://127.0.0.1:1", "--csv", tmp_path / "curve.csv")
    assert outcome.status == 74
    assert (tmp_path / "curve.csv").read_text() == "of an hour of load\n"
