"""Load from processes, on a server in this one."""

from __future__ import annotations

import asyncio
import base64
import fcntl
import os
import time
from collections import Counter
from collections.abc import Sequence
from mmap import mmap
from pathlib import Path

import pytest
from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]

from kimberlite import _native
from kimberlite.errors import Invalid, KimberliteError, LimitExceeded, Unavailable
from kimberlite.load.plan import Plan
from kimberlite.load.run import Disk, Outcome, Processes
from kimberlite.load.worker import Count
from tests.server.wires import served, until


def done(plan: Plan, seconds: float, rounds: int = 1) -> tuple[Outcome, list[int]]:
    told: list[int] = []
    with Processes(plan) as processes:
        processes.run(0.1, warm=True)
        outcome = Outcome()
        for _ in range(rounds):
            outcome = processes.run(seconds / rounds, lambda appends, reads: told.append((appends + reads).records))
    return outcome, told


async def test_what_it_counts_is_in_the_log(tmp_path: Path) -> None:
    async with served(tmp_path / "db") as there:
        plan = Plan("append", f"127.0.0.1:{there.port}", clients=3, batch=7, size=30, depth=2, processes=2)
        outcome, told = await asyncio.to_thread(done, plan, 0.6, 2)
        lengths = {stream.name: stream.length async for stream in there.log.streams()}
        assert sorted(lengths) == ["bench/0", "bench/1", "bench/2"]
        # The rest was to warm up.
        assert 0 < outcome.appends.records <= sum(lengths.values())
        assert outcome.appends.records == 7 * outcome.appends.requests == 7 * len(outcome.append_times)
        assert outcome.reads == Count()
        assert told == sorted(told)
        assert 0 < told[-1] <= outcome.appends.records
        assert outcome.records_per_s == outcome.appends.records / outcome.seconds
        records = [record async for record in there.log.read("bench/1", limit=7)]
        assert {len(record.payload) for record in records} == {30}


async def test_a_mixed_load_reads_what_is_there(tmp_path: Path) -> None:
    async with served(tmp_path / "db") as there:
        await there.log.append("s", [b"%d" % i for i in range(500)])
        plan = Plan("mixed", f"127.0.0.1:{there.port}", clients=4, batch=50, depth=2)
        outcome, _ = await asyncio.to_thread(done, plan, 0.4)
        assert outcome.appends.requests > 0
        assert outcome.reads.requests > 0
        assert outcome.reads.records == 50 * outcome.reads.requests


async def test_at_a_rate_it_asks_as_often_whatever_is_answered(tmp_path: Path) -> None:
    async with served(tmp_path / "db") as there:
        plan = Plan("append", f"127.0.0.1:{there.port}", clients=2, batch=1, size=10, rate=500, depth=8)
        outcome, _ = await asyncio.to_thread(done, plan, 1.0)
        assert 350 <= outcome.appends.requests <= 510


async def test_what_a_stalled_server_makes_wait_is_as_late_as_it_is(tmp_path: Path) -> None:
    """One slow answer in a closed loop is one slow answer; at a pace it is all that were due meanwhile."""
    stalls = [0.4]

    def stall(_appends: Count, _reads: Count) -> None:
        if stalls:
            loop.call_soon_threadsafe(time.sleep, stalls.pop())

    def work() -> Outcome:
        with Processes(Plan("append", f"127.0.0.1:{there.port}", batch=1, size=10, rate=200)) as processes:
            processes.run(0.1, warm=True)
            return processes.run(1.5, stall)

    loop = asyncio.get_running_loop()
    async with served(tmp_path / "db") as there:
        times = (await asyncio.to_thread(work)).times
        assert times.quantile(1.0) > 350_000_000
        late = 1 - max((share for ns, share in times.curve() if ns < 100_000_000), default=0.0)
        assert late * len(times) > 30


@pytest.mark.parametrize(
    ("plan", "error"),
    [
        (Plan("append", "127.0.0.1:1"), Unavailable),
        (Plan("append", "/no/such/socket"), Unavailable),
        (Plan("append", "127.0.0.1:1", batch=70_000), LimitExceeded),
    ],
)
def test_what_cannot_be_is_said(plan: Plan, error: type[KimberliteError]) -> None:
    with pytest.raises(error):
        done(plan, 0.1)


async def test_a_refusal_ends_it(tmp_path: Path) -> None:
    async with served(tmp_path / "db") as there:
        address = f"127.0.0.1:{there.port}"
        with pytest.raises(Invalid, match="0 records"):
            await asyncio.to_thread(done, Plan("read", address), 0.1)
        with pytest.raises(Invalid, match="name"):
            await asyncio.to_thread(done, Plan("append", address, stream="\n"), 0.1)


async def test_a_server_that_goes_away_is_said(tmp_path: Path) -> None:
    async with served(tmp_path / "db") as there:
        work = asyncio.create_task(asyncio.to_thread(done, Plan("append", f"127.0.0.1:{there.port}"), 5.0))
        await until(lambda: there.server.connections)
        await asyncio.sleep(0.3)
        await there.close()
        with pytest.raises(Unavailable):
            await work


def test_the_disk_is_measured_in_four_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: Counter[tuple[int, int]] = Counter()
    write, sync = os.pwritev, os.fdatasync
    synced: list[int] = []

    def seen(fd: int, buffers: Sequence[mmap], *more: int) -> int:
        [buffer] = buffers
        written[fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_DIRECT | os.O_DSYNC), len(buffer)] += 1
        return write(fd, buffers, *more)

    def sync_seen(fd: int) -> None:
        synced.append(fd)
        sync(fd)

    monkeypatch.setattr(os, "pwritev", seen)
    monkeypatch.setattr(os, "fdatasync", sync_seen)
    disk = Disk(tmp_path)
    disk.measure(5_000, 0.1)
    disk.measure(5_000, 0.1)
    assert min(written.values()) >= 2
    assert written == {
        (0, 5_000): len(disk.plain_batch),
        (os.O_DIRECT | os.O_DSYNC, 8_192): len(disk.best_batch),
        (0, 1 << 20): len(disk.plain_mib),
        (os.O_DIRECT | os.O_DSYNC, 1 << 20): len(disk.best_mib),
    }
    assert len(synced) == len(disk.plain_batch) + len(disk.plain_mib)
    assert not list(tmp_path.iterdir())


def test_times_are_read_by_another_implementation_of_their_encoding() -> None:
    theirs = HdrHistogram(1, 3_600_000_000_000, 3)
    for i in range(1, 1_001):
        theirs.record_value(i * i * 1_000)
    ours = _native.Histogram.decode(base64.b64decode(theirs.encode()))
    again = HdrHistogram.decode(base64.b64encode(ours.plus(ours).encode()))
    assert (len(ours), again.get_total_count()) == (1_000, 2_000)
    for share in (0.5, 0.99, 0.999, 1.0):
        assert ours.quantile(share) == theirs.get_value_at_percentile(100 * share)
        assert again.get_value_at_percentile(100 * share) == ours.quantile(share)
    with pytest.raises(ValueError, match="no histogram"):
        _native.Histogram.decode(b"nothing")
