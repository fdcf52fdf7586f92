from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import kimberlite.sync
from tests.cli.conftest import Call


@pytest.fixture
def long(path: Path) -> Path:
    """A database of several segments."""
    with kimberlite.sync.open(path, segment_bytes=64 * 1024) as db:
        for i in range(60):
            db.append("s", b"%d" % i)
    return path


def test_what_would_go_goes(long: Path, call: Call) -> None:
    would = call("retain", long, "--before", "40", "--dry-run", "--json").json()
    assert would["dry_run"] is True
    assert would["segments"] > 1
    assert call("info", long, "--json").json()["first_position"] == 0
    went = call("retain", long, "--before", "40", "--json").json()
    # What is packed meanwhile is shorter.
    assert went.pop("bytes") <= would["bytes"]
    assert went == {name: value for name, value in would.items() if name != "bytes"} | {"dry_run": False}
    assert call("info", long, "--json").json()["first_position"] == would["first"]
    verified = call("verify", long)
    assert verified.status == 0
    line = rb"dropped: positions 0 to %d, 20\S+\+00:00, by the rule 'before position 40'\n" % (would["first"] - 1)
    assert re.search(line, verified.out)
    assert re.search(line, call("info", long).out)
    [drop] = call("verify", long, "--json").json()["dropped"]
    assert (drop["from"], drop["to"], drop["rule"]) == (0, would["first"], "before position 40")


def test_size_and_age_are_said_in_units(long: Path, call: Call) -> None:
    assert call("retain", long, "--age", "1d", "--size", "10GiB", "--json").json()["segments"] == 0
    form = r"{}: [\d,]+ segments, [\d,]+ records, [\d,]+ bytes\nwhat is left begins with position [\d,]+\n"
    would = call("retain", long, "--size", "128KiB", "--dry-run").out.decode()
    assert re.fullmatch(form.format("would be dropped"), would)
    assert re.fullmatch(form.format("dropped"), call("retain", long, "--size", "128KiB").out.decode())
    assert call("retain", long, "--age", "0s", "--json").json()["segments"] > 0


@pytest.mark.parametrize("wrong", ["1", "d", "-1d", "1.5h", "1w", "1e3s", ""])
def test_what_is_no_age_is_a_usage_error(long: Path, call: Call, wrong: str) -> None:
    outcome = call("retain", long, f"--age={wrong}")
    assert (outcome.status, outcome.out) == (64, b"")


@pytest.mark.parametrize("wrong", ["GiB", "-1", "1.5GiB", "1GB", "9999999999TiB", ""])
def test_what_is_no_size_is_a_usage_error(long: Path, call: Call, wrong: str) -> None:
    assert call("retain", long, f"--size={wrong}").status == 64


def test_without_a_rule_nothing_goes(long: Path, call: Call) -> None:
    outcome = call("retain", long)
    assert (outcome.status, b"say what may go" in outcome.err) == (64, True)
    assert call("retain", long, "--confirm-clock").status == 0
    assert call("retain", long.with_name("nowhere"), "--before", "1").status == 64


def test_the_tail_of_what_is_dropped_goes_on_with_what_comes(long: Path, call: Call) -> None:
    with kimberlite.sync.open(long, segment_bytes=64 * 1024) as db:
        for _ in range(30):
            db.append("t", b"")
        db.retain(size=0)
    outcome = call("tail", long, "s")
    assert (outcome.status, outcome.out, outcome.err) == (0, b"", b"")


def test_a_dry_run_of_a_directory_takes_no_lock_and_leaves_it_as_it_is(long: Path, call: Call) -> None:
    def left() -> dict[str, bytes]:
        return {str(file): file.read_bytes() for file in sorted(long.rglob("*")) if file.is_file()}

    before = left()
    would = call("retain", long, "--before", "40", "--dry-run", "--json").json()
    assert left() == before
    with kimberlite.sync.open(long, segment_bytes=64 * 1024, pack=0) as db:
        db.append("s", b"more")
        assert call("retain", long, "--before", "40", "--dry-run", "--json").json() == would
    assert call("retain", long.with_name("nowhere"), "--before", "1", "--dry-run").status == 64


def test_an_error_in_json_says_where_to_go_on(long: Path, call: Call) -> None:
    first = call("retain", long, "--before", "40", "--json").json()["first"]
    for bounds in (("--start", "0"), ("--until", "3"), ("--start", "0", "--reverse")):
        said = call("read", long, "s", *bounds, "--json")
        assert said.status == 1
        error = json.loads(said.err)
        assert (error["code"], error["exit_code"]) == ("DROPPED", 1)
        kept = call("read", long, "s", "--start", str(error["first"]), "--limit", "1", "--json").json()
        assert kept["offset"] == error["first"] > 0
        assert call("read", long, *bounds, "--json").status == 1
        assert json.loads(call("read", long, *bounds, "--json").err)["first"] == first
    assert call("read", long, "s", "--start", "3", "--until", "3").status == 0
