"""What came of a load, beside the raw disk: as text, as JSON and as a table of latencies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from kimberlite import _native
from kimberlite.load.disk import MIB, rate
from kimberlite.load.plan import Plan
from kimberlite.load.run import Disk, Outcome

QUANTILES: Final = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999, "max_ms": 1.0}


@dataclass(frozen=True, slots=True)
class Report:
    plan: Plan
    outcome: Outcome
    disk: Disk

    def form(self) -> dict[str, Any]:
        """For programs."""
        plan, outcome = self.plan, self.outcome
        form: dict[str, Any] = {
            "work": plan.work,
            "clients": plan.clients,
            "batch": plan.batch,
            "size": plan.size,
            "payload": "json" if plan.json else "random",
            "depth": plan.depth,
            "rate": plan.rate,
            "sync": plan.sync,
            "processes": plan.processes,
            "seconds": outcome.seconds,
            "records_per_s": outcome.records_per_s,
            **quantiles(outcome.times),
            "requests": outcome.appends.requests + outcome.reads.requests,
            "records": outcome.appends.records + outcome.reads.records,
        }
        if plan.work == "mixed":
            for name, count, times in self._parts():
                form[name] = {"records_per_s": count / outcome.seconds, **quantiles(times)}
        return form | {"disk": str(self.disk.directory)} | self.disk_rates()

    def disk_rates(self) -> dict[str, float]:
        """Records a second, one write after another."""
        disk, plan = self.disk, self.plan
        in_a_mib = MIB / plan.size
        return {
            "disk_plain_batch_records_per_s": rate(disk.plain_batch) * plan.batch,
            "disk_best_batch_records_per_s": rate(disk.best_batch) * plan.batch,
            "disk_plain_1mib_records_per_s": rate(disk.plain_mib) * in_a_mib,
            "disk_best_1mib_records_per_s": rate(disk.best_mib) * in_a_mib,
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        plan, outcome = self.plan, self.outcome
        payload = "JSON events" if plan.json else "random bytes"
        pace = "as fast as they are answered" if plan.rate is None else f"{plan.rate:,.0f} records/s asked for"
        yield (
            f"{plan.work}: {plan.clients} clients × {plan.depth} in flight × {plan.batch} records × {plan.size} B of "
            f"{payload}, {pace}, {outcome.seconds:.1f} s"
        )
        yield ""
        yield f"{'':14}{'records/s':>12}{'MB/s':>9}{'p50 ms':>10}{'p99 ms':>10}{'p99.9 ms':>10}{'max ms':>10}"
        for name, records, times in self._parts():
            per_s = records / outcome.seconds
            figures = "".join(f"{value:>10.3f}" for value in quantiles(times).values())
            yield f"{name:14}{per_s:>12,.0f}{per_s * plan.size / 1e6:>9,.1f}{figures}"
        yield ""
        heading = f"{'raw disk':14}{'records/s':>12}{'p50 ms':>9}{'figure ÷ it':>14}"
        yield f"{heading}   one write after another, in {self.disk.directory}"
        disk = self.disk
        samples = (disk.plain_batch, disk.best_batch, disk.plain_mib, disk.best_mib)
        names = ("plain, batch", "best, batch", "plain, 1 MiB", "best, 1 MiB")
        for name, writes, per_s in zip(names, samples, self.disk_rates().values(), strict=True):
            yield f"{name:14}{per_s:>12,.0f}{median(writes) / 1e6:>9.3f}{outcome.records_per_s / per_s:>14.2f}"
        yield "plain: pwrite and fdatasync on a growing file; best: O_DIRECT | O_DSYNC on blocks zeroed before"

    def curves(self) -> dict[str, list[tuple[float, float]]]:
        """Of each kind of work the milliseconds that occur, and the share of requests that took no longer."""
        return {name: [(ns / 1e6, share) for ns, share in times.curve()] for name, _, times in self._parts()}

    def csv(self) -> str:
        rows = (f"{name},{ms:.6f},{share:.9f}" for name, curve in self.curves().items() for ms, share in curve)
        return "\n".join(["work,ms,share", *rows, ""])

    def _parts(self) -> Iterator[tuple[str, int, _native.Histogram]]:
        if self.plan.work != "read":
            yield "append", self.outcome.appends.records, self.outcome.append_times
        if self.plan.work != "append":
            yield "read", self.outcome.reads.records, self.outcome.read_times


def quantiles(times: _native.Histogram) -> dict[str, float]:
    return {name: times.quantile(share) / 1e6 for name, share in QUANTILES.items()}
