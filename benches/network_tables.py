"""What the bench over the network finds, and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from benches.daemon import Mode
from benches.engine import AIM_ALONE, AIM_ENCRYPTED, AIMS
from benches.rivals import Figures
from benches.table import Table

#: Bytes of a record.
SIZE: Final = 256


@dataclass(frozen=True, slots=True)
class Cell:
    clients: int
    depth: int
    batch: int
    mode: Mode = "plain"

    def label(self) -> str:
        return f"{self.clients} × {self.depth} × {self.batch}, {self.mode}"

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.clients, self.depth, self.batch


@dataclass(frozen=True, slots=True)
class Outcome:
    cell: Cell
    records_per_s: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    #: One such batch a sync, one at a time, in the same minutes: records a second, and how long the best write takes.
    plain: float
    best: float
    best_p50_ms: float
    #: What the same clients reach when a server does nothing but answer.
    sockets: float
    #: Microseconds of processor that the daemon spends on a record, the kernel's for it included.
    cpu_us: float
    #: The slowest round and the fastest.
    low: float
    high: float
    #: Every latency of all rounds, as HdrHistogram encodes them, in base64.
    times: str


@dataclass(frozen=True, slots=True)
class Aim:
    words: str
    #: Figure ÷ aim.
    reached: float


def aim(outcome: Outcome, found: Sequence[Outcome]) -> Aim | None:
    cell = outcome.cell
    twin = next((each for each in found if each.cell == replace(cell, mode="plain")), None)
    if cell.mode != "plain":
        if twin is None:
            return None
        wanted = twin.records_per_s * (AIM_ENCRYPTED if cell.mode == "encrypted" else 1)
    elif cell.shape == (1, 1, 1):
        longest = AIM_ALONE * outcome.best_p50_ms
        return Aim(f"p50 ≤ {longest:.3f} ms", longest / outcome.p50_ms)
    else:
        wanted = AIMS[cell.shape]
    return Aim(f"≥ {wanted:,.0f}", outcome.records_per_s / wanted)


def append_table(found: Sequence[Outcome]) -> Table:
    rows = []
    for each in found:
        wanted = aim(each, found)
        rows.append(
            (
                each.cell.label(),
                f"{each.records_per_s:,.0f}",
                f"{each.p50_ms:.3f}",
                f"{each.p99_ms:.3f}",
                f"{each.p999_ms:.3f}",
                "" if wanted is None else wanted.words,
                "" if wanted is None else f"{wanted.reached:.2f}",
                f"{each.plain:,.0f}",
                f"{each.best:,.0f}",
                f"{each.records_per_s / each.best:.2f}",
                f"{each.sockets:,.0f}",
                f"{each.records_per_s / each.sockets:.2f}",
                f"{each.cpu_us:.2f}",
            )
        )
    headings = (
        "clients × in flight × batch",
        "records/s",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "aim",
        "reached",
        "raw plain/s",
        "raw best/s",
        "÷ best",
        "only answered/s",
        "÷ that",
        "daemon µs/record",
    )
    title = (
        f"Appends of {SIZE}-byte records over loopback; raw: one such batch a sync, one at a time; "
        "only answered: by a server that does nothing else"
    )
    return Table(title, headings, tuple(rows))


@dataclass(frozen=True, slots=True)
class Encoding:
    """Microseconds of processor for a record of a batch of 100: the client's, and the daemon's until it is answered."""

    client_us: float
    daemon_us: float


def encoding_table(found: Encoding) -> Table:
    row = (
        "100 records a batch",
        f"{found.client_us:.3f}",
        f"{found.daemon_us:.3f}",
        f"{found.client_us / found.daemon_us:.2f}",
    )
    return Table("Encoding, µs of processor for a record", ("", "client", "daemon", "client ÷ daemon"), (row,))


@dataclass(frozen=True, slots=True)
class Reading:
    """Records a second, from one end of the log to the other."""

    kind: str
    records_per_s: float
    aim: float
    #: Records a second whose bytes a loopback socket carries when nobody looks at them.
    carried: float


def read_table(found: Sequence[Reading]) -> Table:
    rows = tuple(
        (
            each.kind,
            f"{each.records_per_s:,.0f}",
            f"≥ {each.aim:,.0f}",
            f"{each.records_per_s / each.aim:.2f}",
            f"{each.carried:,.0f}",
            f"{each.records_per_s / each.carried:.2f}",
        )
        for each in found
    )
    headings = ("", "records/s", "aim", "reached", "only carried/s", "÷ that")
    return Table("Reading in order over loopback, one client; only carried: as many bytes, by a socket", headings, rows)


@dataclass(frozen=True, slots=True)
class Peer:
    """Another server at the work of a cell."""

    cell: Cell
    name: str
    figures: Figures


def peer_table(found: Sequence[Outcome], peers: Sequence[Peer]) -> Table:
    """Each work with ours first."""
    rows = []
    for ours in found:
        rows.append((f"{ours.cell.label()}: Kimberlite", *shown(ours), "", f"{ours.records_per_s / ours.plain:.2f}"))
        for peer in peers:
            if peer.cell == ours.cell:
                figures = peer.figures
                ratio = ours.records_per_s / figures.records_per_s
                words = f"{peer.cell.label()}: {peer.name}"
                rows.append((words, *shown(figures), f"{ratio:.2f}", f"{figures.records_per_s / ours.plain:.2f}"))
    headings = (
        "clients × in flight × batch: peer",
        "records/s",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "ours ÷ it",
        "÷ raw plain",
    )
    return Table(f"Durable appends of {SIZE}-byte records over loopback, beside peers", headings, tuple(rows))


def shown(figures: Outcome | Figures) -> tuple[str, ...]:
    times = (figures.p50_ms, figures.p99_ms, figures.p999_ms)
    return (f"{figures.records_per_s:,.0f}", *(f"{ms:.3f}" for ms in times))
