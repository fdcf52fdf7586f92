"""What the daemon shows of itself, in the words of OpenMetrics."""

from __future__ import annotations

import os
import resource
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kimberlite.log.serving import Serving

if TYPE_CHECKING:
    from kimberlite.server.server import Server

CONTENT: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
#: Of a histogram, what is shown: buckets between 2^FIRST and 2^LAST, in its unit.
FIRST, LAST = 5, 24

Sample = tuple[str, dict[str, str], float]


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
        appends, (microseconds, _) = serving.meters.counts()[0], serving.meters.histograms()[0]
        before, waited, then = self._before
        if then and now > then:
            count = appends - before
            self._rate = count / (now - then)
            self._mean = (microseconds / 1e6 - waited) / count if count else 0.0
        self._before = appends, microseconds / 1e6, now

    def shown(self, server: Server) -> str:
        lines: list[str] = []
        for name, kind, about, samples in self._families(server):
            lines += [f"# TYPE {name} {kind}", f"# HELP {name} {about}"]
            lines += [line(f"{name}{suffix}", labels, value) for suffix, labels, value in samples]
        return "\n".join([*lines, "# EOF", ""])

    def _families(self, server: Server) -> Iterator[tuple[str, str, str, Iterable[Sample]]]:
        serving = server.serving
        state = serving.state()
        appends, records, size, written = serving.meters.counts()
        append_us, group_us, group_records = serving.meters.histograms()
        received, sent = serving.passed
        open_requests = sum(connection.session.open[0] for connection in server.connections)
        yield counter("kimberlite_appends", "Appends that were answered with a receipt.", appends)
        yield counter("kimberlite_append_records", "Their records.", records)
        yield counter("kimberlite_append_bytes", "Bytes of these as they are stored.", size)
        yield histogram("kimberlite_append_seconds", "From the pool to the receipt.", append_us, 1e-6)
        yield histogram("kimberlite_sync_seconds", "From the sealing of a group to its being durable.", group_us, 1e-6)
        yield histogram("kimberlite_group_records", "Records of a durable group.", group_records, 1)
        yield counter("kimberlite_written_bytes", "Bytes of durable groups, with their padding.", written)
        yield counter("kimberlite_reads", "Messages of records that were sent.", self.reads)
        yield counter("kimberlite_read_records", "Their records.", self.read_records)
        yield counter("kimberlite_read_bytes", "Their bytes.", self.read_bytes)
        codes = self.refusals + Counter(serving.refused)
        refused = (("_total", {"code": code}, float(count)) for code, count in sorted(codes.items()))
        yield "kimberlite_refusals", "counter", "Errors that clients were told, by their code.", refused
        yield gauge("kimberlite_queue_requests", "Appends that wait for a group.", state["queue"])
        yield gauge("kimberlite_queue_bytes", "Bytes of these.", state["queue_bytes"])
        yield gauge("kimberlite_open_requests", "Requests that are not answered yet.", open_requests)
        yield gauge(
            "kimberlite_open_requests_expected",
            "Appends that are open on average by Little's law: their rate times how long each took, lately.",
            self._rate * self._mean,
        )
        yield gauge("kimberlite_connections", "Clients.", server.clients)
        yield counter("kimberlite_connections_opened", "Clients that have connected.", self.connected)
        ended = (("_total", {"why": why}, float(count)) for why, count in sorted(self.closed.items()))
        yield "kimberlite_connections_closed", "counter", "Clients that are gone, by why.", ended
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
        backend = {"backend": serving.backend, "reason": serving.backend_reason}
        yield "kimberlite_backend", "info", "How the disk is written, and why so.", [("_info", backend, 1.0)]
        yield gauge("kimberlite_resident_bytes", "Memory of the process.", resident())
        yield gauge("kimberlite_descriptors", "Open descriptors of the process.", len(os.listdir("/proc/self/fd")))
        usage = resource.getrusage(resource.RUSAGE_SELF)
        yield counter("kimberlite_cpu_seconds", "Of the process.", usage.ru_utime + usage.ru_stime)


def counter(name: str, about: str, value: float) -> tuple[str, str, str, list[Sample]]:
    return name, "counter", about, [("_total", {}, value)]


def gauge(name: str, about: str, value: float) -> tuple[str, str, str, list[Sample]]:
    return name, "gauge", about, [("", {}, value)]


def histogram(name: str, about: str, read: tuple[int, list[int]], unit: float) -> tuple[str, str, str, list[Sample]]:
    total, buckets = read
    samples: list[Sample] = [
        ("_bucket", {"le": f"{2**i * unit:g}"}, float(sum(buckets[: i + 1]))) for i in range(FIRST, LAST + 1)
    ]
    count = float(sum(buckets))
    return name, "histogram", about, [*samples, ("_bucket", {"le": "+Inf"}, count), ("_count", {}, count),
                                      ("_sum", {}, total * unit)]  # fmt: skip


def line(name: str, labels: dict[str, str], value: float) -> str:
    written = ",".join(f'{label}="{escaped(text)}"' for label, text in labels.items())
    number = int(value) if value == int(value) else value
    return f"{name}{{{written}}} {number}" if labels else f"{name} {number}"


def escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
