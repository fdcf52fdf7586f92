"""What the daemon shows of itself, in the words of OpenMetrics."""

from __future__ import annotations

import os
import resource
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kimberlite import _native
from kimberlite.log.serving import Serving

if TYPE_CHECKING:
    from kimberlite.server.server import Server

CONTENT: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
#: Of a histogram in nanoseconds, what is shown: 1, 2 and 5 of each power of ten from a microsecond to ten seconds.
TIMES: Final = [digit * 10**power for power in range(3, 10) for digit in (1, 2, 5)] + [10**10]
#: Of one in records.
COUNTS: Final = [digit * 10**power for power in range(5) for digit in (1, 2, 5)] + [10**5]

Sample = tuple[str, dict[str, str], float]


@dataclass(frozen=True, slots=True)
class Spread:
    """A sum and a histogram, in a unit that is so many of what is shown."""

    sum: int
    histogram: _native.Histogram
    unit: float
    bounds: list[int]

    def samples(self) -> Iterator[Sample]:
        for bound, count in zip(self.bounds, self.histogram.up_to(self.bounds), strict=True):
            yield "_bucket", {"le": f"{bound * self.unit:g}"}, count
        count = len(self.histogram)
        yield from (("_bucket", {"le": "+Inf"}, count), ("_count", {}, count), ("_sum", {}, self.sum * self.unit))


@dataclass(frozen=True, slots=True)
class Family:
    """One thing that is shown."""

    name: str
    kind: str
    about: str
    said: float | Spread | Mapping[str, float | str]
    #: By what `said` tells numbers apart, if it does.
    label: str = ""

    def samples(self) -> Iterator[Sample]:
        """In the words of OpenMetrics."""
        said = self.said
        if isinstance(said, Spread):
            yield from said.samples()
        elif not isinstance(said, Mapping):
            yield "_total" if self.kind == "counter" else "", {}, said
        elif self.label:
            for value, number in sorted(said.items()):
                yield "_total", {self.label: value}, float(number)
        else:
            yield "_info", {name: str(value) for name, value in said.items()}, 1.0

    def plain(self) -> Any:
        """As a client is told."""
        said = self.said
        if isinstance(said, Spread):
            return {"sum": said.sum * said.unit, "histogram": said.histogram.encode()}
        return said


class Metrics:
    """Counters that the server keeps, and how everything is shown.

    Appends and groups are counted in Rust as they pass; the rest is looked up when somebody asks.
    """

    def __init__(self) -> None:
        #: Errors that connections ended with; those of requests are counted in Rust.
        self.refusals: Counter[str] = Counter()
        self.connected = 0
        self.closed: Counter[str] = Counter()
        self.reads = self.read_records = self.read_bytes = 0
        #: Requests and seconds of appends when they were last looked at, and when that was.
        self._before = (0, 0.0, 0.0)
        self._rate = self._mean = 0.0

    def looked(self, serving: Serving, now: float) -> None:
        """What came since the last look: the rate of appends, and how long each took."""
        appends, _, _, _, nanoseconds = serving.meters.counts()
        before, waited, then = self._before
        if then and now > then:
            count = appends - before
            self._rate = count / (now - then)
            self._mean = (nanoseconds / 1e9 - waited) / count if count else 0.0
        self._before = appends, nanoseconds / 1e9, now

    def shown(self, server: Server) -> str:
        """In the words of OpenMetrics."""
        lines: list[str] = []
        for family in self.families(server):
            lines += [f"# TYPE {family.name} {family.kind}", f"# HELP {family.name} {family.about}"]
            lines += [line(f"{family.name}{suffix}", labels, value) for suffix, labels, value in family.samples()]
        return "\n".join([*lines, "# EOF", ""])

    def families(self, server: Server) -> Iterator[Family]:
        serving = server.serving
        state = serving.state()
        appends, records, size, written, _ = serving.meters.counts()
        append, wait, seal, sync, read, group_records = serving.meters.histograms()
        received, sent = serving.passed
        yield counter("kimberlite_appends", "Appends that were answered with a receipt.", appends)
        yield counter("kimberlite_append_records", "Their records.", records)
        yield counter("kimberlite_append_bytes", "Bytes of these as they are stored.", size)
        yield times("kimberlite_append_seconds", "From the pool to the receipt.", append)
        yield times("kimberlite_wait_seconds", "Of an append, from the pool to its group.", wait)
        yield times("kimberlite_seal_seconds", "Making the bytes of a group.", seal)
        yield times("kimberlite_sync_seconds", "From the sealing of a group to its being durable.", sync)
        about = "Records of a durable group."
        yield Family("kimberlite_group_records", "histogram", about, Spread(*group_records, 1, COUNTS))
        yield counter("kimberlite_written_bytes", "Bytes of durable groups, with their padding.", written)
        yield counter("kimberlite_reads", "Messages of records that were sent.", self.reads)
        yield counter("kimberlite_read_records", "Their records.", self.read_records)
        yield counter("kimberlite_read_bytes", "Their bytes.", self.read_bytes)
        yield times("kimberlite_read_seconds", "From a read to the first of its records.", read)
        codes = dict(self.refusals + Counter(serving.refused))
        yield Family("kimberlite_refusals", "counter", "Errors that clients were told, by their code.", codes, "code")
        yield gauge("kimberlite_queue_requests", "Appends that wait for a group.", state["queue"])
        yield gauge("kimberlite_queue_bytes", "Bytes of these.", state["queue_bytes"])
        opened = sum(connection.session.open[0] for connection in server.connections)
        yield gauge("kimberlite_open_requests", "Requests that are not answered yet.", opened)
        yield gauge(
            "kimberlite_open_requests_expected",
            "Appends that are open on average by Little's law: their rate times how long each took, lately.",
            self._rate * self._mean,
        )
        yield gauge("kimberlite_connections", "Clients.", server.clients)
        yield counter("kimberlite_connections_opened", "Clients that have connected.", self.connected)
        about = "Clients that are gone, by why."
        yield Family("kimberlite_connections_closed", "counter", about, dict(self.closed), "why")
        yield counter("kimberlite_received_bytes", "Bytes from clients.", received)
        yield counter("kimberlite_sent_bytes", "Bytes to clients.", sent)
        yield gauge("kimberlite_inbox_bytes", "Memory for messages that have arrived in part.", serving.inboxes)
        yield gauge("kimberlite_durable_position", "Records that are durable.", state["position"])
        yield gauge("kimberlite_durable_group", "The last durable group.", state["group"])
        yield gauge("kimberlite_segment", "The segment that is written.", state["segment"])
        yield gauge("kimberlite_streams", "Streams that have records.", state["streams"])
        yield gauge("kimberlite_prepared_bytes", "Room that is ready ahead of the log.", state["prepared_bytes"])
        yield gauge("kimberlite_prepared_segments", "Next segments that are being prepared.", state["prepared"])
        yield gauge("kimberlite_writable", "1 if appends are taken.", float(server.refusing is None))
        upkeep = serving.upkeep
        yield gauge("kimberlite_first_position", "Positions below this were dropped.", serving.first)
        yield counter("kimberlite_packed_segments", "Closed segments that were packed.", upkeep.packer.packed)
        yield counter("kimberlite_packed_saved_bytes", "Bytes that they are shorter for it.", upkeep.packer.saved)
        scrubber = upkeep.scrubber
        about = "Bytes of closed segments, and of what is derived of them, that were read again."
        yield counter("kimberlite_scrubbed_bytes", about, scrubber.read)
        yield gauge("kimberlite_scrub_left_segments", "Closed segments that this pass is still to read.", scrubber.left)
        yield gauge("kimberlite_scrub_pass_segments", "Segments of the last whole pass.", scrubber.passed)
        yield gauge("kimberlite_scrub_pass_seconds", "When it ended, since 1970; 0 before.", scrubber.ended / 1e9)
        about = "Places where damage was found while nobody asked for it."
        yield gauge("kimberlite_damage", about, upkeep.findings.count)
        about = "1 if what the settings let go is not dropped; `info` says why."
        yield gauge("kimberlite_retention_waits", about, float(upkeep.retention.waits is not None))
        backend = {"backend": serving.backend, "reason": serving.backend_reason}
        yield Family("kimberlite_backend", "info", "How the disk is written, and why so.", backend)
        yield gauge("kimberlite_resident_bytes", "Memory of the process.", resident())
        yield gauge("kimberlite_descriptors", "Open descriptors of the process.", len(os.listdir("/proc/self/fd")))
        usage = resource.getrusage(resource.RUSAGE_SELF)
        yield counter("kimberlite_cpu_seconds", "Of the process.", usage.ru_utime + usage.ru_stime)


def counter(name: str, about: str, value: float) -> Family:
    return Family(name, "counter", about, value)


def gauge(name: str, about: str, value: float) -> Family:
    return Family(name, "gauge", about, value)


def times(name: str, about: str, read: tuple[int, _native.Histogram]) -> Family:
    return Family(name, "histogram", about, Spread(*read, 1e-9, TIMES))


def line(name: str, labels: dict[str, str], value: float) -> str:
    written = ",".join(f'{label}="{escaped(text)}"' for label, text in labels.items())
    number = int(value) if value == int(value) else value
    return f"{name}{{{written}}} {number}" if labels else f"{name} {number}"


def escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
