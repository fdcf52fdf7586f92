"""The reference benches, very small: they end, they leave nothing behind, and their figures make sense."""

from __future__ import annotations

import json
import re
import shlex
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from benches import disk, limits, peers, table
from kimberlite.load import disk as raw

MIB = 1 << 20
DOCUMENT = Path(__file__).parents[2] / "docs" / "disk.md"


def test_the_burst_measures_every_file_call_and_size(place: Path) -> None:
    found = disk.burst(place, seconds=0.002, rounds=1, region=2 * MIB)
    assert len({(each.size, each.file, each.call) for each in found}) == len(found) == 4 * 3 * 6
    assert all(each.writes > 0 and 0 < each.p50_ns <= each.p99_ns for each in found)
    assert not list(place.iterdir())
    printed = disk.write_table(found).text()
    assert all(f"{file}: {call.name}" in printed for file in disk.FILES for call in disk.CALLS)


def test_each_depth_is_kept_in_flight(place: Path) -> None:
    if missing := disk.without_uring():
        pytest.skip(missing)
    found = disk.depths(place, seconds=0.002, rounds=1, region=16 * MIB)
    assert [(each.size, each.depth) for each in found] == [(size, n) for size in disk.DEPTH_SIZES for n in range(1, 9)]
    assert all(each.mib_per_second > 0 and each.p50_ns > 0 for each in found)
    assert not list(place.iterdir())


def test_depths_are_refused_where_there_is_no_ring(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "without_uring", lambda: "the kernel gives no ring")
    with pytest.raises(RuntimeError, match="no ring"):
        disk.depths(place, seconds=0.002)


def test_the_sustained_run_counts_preparation(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(path: Path, file: str, length: int) -> None:
        time.sleep(0.1)
        prepare(path, file, length)

    prepare = raw.prepare
    monkeypatch.setattr(disk, "prepare", slow)
    found = disk.sustained(place, seconds=0, segment=2 * MIB, segments=2)
    assert [(each.size, each.preparation) for each in found] == [
        (size, preparation) for size in disk.SUSTAINED_SIZES for preparation in disk.PREPARATIONS
    ]
    for each in found:
        assert each.files == 1
        assert 0 < each.slowest_mib_per_second <= each.mib_per_second
        assert 0 < each.p50_ns <= each.p99_ns
        if each.preparation != "overwrite old files":
            assert each.mib_per_second < 2 / 0.1


@pytest.mark.parametrize("write", [disk.plain, disk.best])
@pytest.mark.parametrize("batch_bytes", [300, 25_600])
def test_the_raw_disk_is_measured_in_batches(
    place: Path, write: Callable[[Path, int, float], float], batch_bytes: int
) -> None:
    assert 1 < write(place, batch_bytes, 0.02) < 1e6
    assert not list(place.iterdir())


def test_a_prepared_file_is_what_its_name_says(place: Path) -> None:
    for file, size, blocks in (("growing", 0, 0), ("fallocated", MIB, MIB), ("zeroed", MIB, MIB)):
        raw.prepare(place / file, file, MIB)
        found = (place / file).stat()
        assert (found.st_size, found.st_blocks * 512 >= blocks) == (size, True)
        assert not (place / file).read_bytes().strip(b"\0")


def test_a_full_file_ends_the_round_before_the_time_is_up(place: Path) -> None:
    raw.prepare(place / "file", "zeroed", MIB)
    assert len(raw.timed_writes(place / "file", raw.BEST, 4096, MIB, seconds=3600)) == MIB // 4096
    assert (place / "file").stat().st_size == MIB


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("name", list(peers.PEERS))
def test_a_peer_returns_what_it_was_given(place: Path, name: str, sync: bool) -> None:
    if name in peers.PACKAGES:
        pytest.importorskip(peers.PACKAGES[name])
    peer = peers.PEERS[name](place, sync=sync)
    records = [number.to_bytes(4, "big") for number in range(300)]
    for first in range(0, 300, 100):
        peer.append(first, records[first : first + 100])
    assert [peer.get(offset) for offset in (0, 99, 100, 299)] == [records[offset] for offset in (0, 99, 100, 299)]
    assert peer.get(300) is None
    assert list(peer.scan()) == records
    peer.close()


def test_the_peers_are_compared_with_the_raw_disk(place: Path) -> None:
    makers, _ = peers.available()
    found = peers.compare(place, peers.Work(batch=10, size=100, seconds=0.02, without_sync=True), makers, rounds=2)
    assert len(found) == len(peers.RAW) + 2 * len(makers)
    assert all(each.records_per_second > 0 and each.settings for each in found)
    for each in found:
        if each.peer not in peers.RAW:
            assert each.get_p50_ns is not None
            assert each.get_p99_ns is not None
            assert each.scanned_per_second is not None
            assert 0 < each.get_p50_ns <= each.get_p99_ns
            assert each.scanned_per_second > 0
    assert not list(place.iterdir())
    assert all(each.peer in peers.peer_table(found).text() for each in found)


def test_a_peer_writes_at_the_rate_it_reports(place: Path) -> None:
    assert 10 < peers.run(peers.SQLite, place, batch=10, size=100, seconds=0.02) < 1e8


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PACKAGES", {"LMDB": "a_package_that_nobody_has"})
    makers, lines = peers.available()
    assert peers.LMDB not in makers
    assert peers.SQLite in makers
    assert lines == ["LMDB is left out: pip install a_package_that_nobody_has"]


def test_the_limits_are_positive_for_all_work_and_sizes() -> None:
    found = limits.rates(seconds=0.002, rounds=1)
    assert len(found) == len(limits.WORK) * len(limits.SIZES)
    assert all(0.001 < each.gigabytes_per_second < 10_000 for each in found)
    assert set(limits.WORK) <= {row[0] for row in limits.rate_table(found).rows}


def test_quantiles_are_samples() -> None:
    samples = [30, 10, 20, 40]
    assert [table.quantile(samples, part) for part in (0.01, 0.25, 0.5, 0.75, 0.99, 1.0)] == [10, 10, 20, 30, 40, 40]
    assert table.quantile([7], 0.5) == 7


def test_tables_are_aligned_and_escape_their_cells_in_markdown() -> None:
    small = table.Table("T", ("call", "µs"), (("a | b", "1"), ("c", "1,000")))
    assert small.text() == "T\n\ncall      µs\na | b      1\nc      1,000"
    assert small.markdown() == "**T**\n\n| call | µs |\n|---|---:|\n| a \\| b | 1 |\n| c | 1,000 |"
    with pytest.raises(ValueError, match="1 cells"):
        table.Table("T", ("one",), (("two", "cells"),))


def test_the_command_line_writes_its_rows_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "rows.json"
    monkeypatch.setattr(sys, "argv", ["limits", "--seconds", "0.001", "--markdown", "--json", str(target)])
    limits.main()
    assert "| BLAKE3 |" in capsys.readouterr().out
    rows = json.loads(target.read_text())
    assert rows["machine"]
    assert len(rows["limits"]) == len(limits.WORK) * len(limits.SIZES)


def test_every_command_in_the_document_is_one_that_runs() -> None:
    commands = re.findall(r"python -m (benches\.\w+)([^`\n]*)", DOCUMENT.read_text(encoding="utf-8"))
    assert commands
    for module, options in commands:
        import_module(module).arguments().parse_args(shlex.split(options))


def test_the_document_names_every_candidate() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in (*disk.FILES, *(call.name for call in disk.CALLS), *disk.PREPARATIONS, *peers.PEERS, *peers.RAW):
        assert f"`{name}`" in text, name
