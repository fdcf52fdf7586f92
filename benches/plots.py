"""Pictures of what benches found, as SVG for a page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from io import StringIO
from itertools import cycle, product
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

#: Inches; text stays text, which a page's reader can search.
SIZE: Final = (11.0, 4.6)
matplotlib.use("svg")
matplotlib.rcParams.update({"svg.fonttype": "none", "font.size": 9, "axes.grid": True, "grid.color": "#ddd"})
#: Shares that a scale of nines has a line for.
SHARES: Final = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)
#: Of lines, when there are more of them than colours.
DASHES: Final = ("-", "--", ":")

Curves = Mapping[str, Sequence[tuple[float, float]]]


def throughput(sweep: Sequence[Mapping[str, Any]]) -> str:
    """Records a second against clients, a line for each batch; and against batches, beside the raw disk."""
    figure = Figure(figsize=SIZE)
    by_clients, by_batch = figure.subplots(1, 2)
    lines: dict[str, dict[int, dict[int, Mapping[str, Any]]]] = {
        "batch": defaultdict(dict),
        "clients": defaultdict(dict),
    }
    for each in sweep:
        clients, batch = each["cell"]["clients"], each["cell"]["batch"]
        lines["batch"][batch][clients] = lines["clients"][clients][batch] = each
    for batch, points in lines["batch"].items():
        line(by_clients, points, f"batches of {batch:,}")
    for clients, points in lines["clients"].items():
        line(by_batch, points, f"{clients} client{'s' if clients > 1 else ''}")
    raw = {batch: next(iter(points.values())) for batch, points in lines["batch"].items()}
    for name, words, style in (("best", "raw disk, best", "--"), ("plain", "raw disk, plain", ":")):
        by_batch.plot(list(raw), [each[name] for each in raw.values()], style, color="#555", label=words)
    titled(by_clients, "Records a second by clients", "clients, one batch in flight each", "records/s")
    titled(by_batch, "Records a second by batch", "records of a batch", "")
    return drawn(figure)


def line(axes: Axes, points: Mapping[int, Mapping[str, Any]], label: str) -> None:
    """Medians, and as bars from the slowest round to the fastest."""
    at = sorted(points)
    middle = [points[x]["records_per_s"] for x in at]
    below = [points[x]["records_per_s"] - points[x]["low"] for x in at]
    above = [points[x]["high"] - points[x]["records_per_s"] for x in at]
    axes.errorbar(at, middle, yerr=[below, above], marker="o", markersize=4, capsize=3, label=label)


def latencies(title: str, curves: Curves) -> str:
    """What share of requests took no longer than so many milliseconds, with room for the last of them."""
    figure = Figure(figsize=SIZE)
    axes = figure.subplots()
    least = min((1 - share for curve in curves.values() for _, share in curve if share < 1), default=0.01)
    colours = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
    for (name, curve), (dashes, colour) in zip(curves.items(), cycle(product(DASHES, colours)), strict=False):
        axes.plot(
            [ms for ms, _ in curve],
            [1 / max(1 - share, least) for _, share in curve],
            dashes,
            color=colour,
            label=name,
            drawstyle="steps-post",
        )
    shares = [share for share in SHARES if 1 - share >= least]
    titled(axes, title, "milliseconds", "share of requests that took no longer")
    axes.set_yticks([1 / (1 - share) for share in shares], [f"{100 * share:g}%" for share in shares])
    axes.minorticks_off()
    return drawn(figure)


def costs(sizes: Sequence[Mapping[str, Any]]) -> str:
    """What grows with the log, and what does not."""
    figure = Figure(figsize=SIZE)
    times, memory = figure.subplots(1, 2)
    at = [each["records"] for each in sizes]
    for name, words in (
        ("get_p50_ns", "get, p50"),
        ("get_p99_ns", "get, p99"),
        ("append_p50_ns", "append, p50"),
        ("append_p99_ns", "append, p99"),
    ):
        times.plot(at, [each[name] / 1e6 for each in sizes], marker="o", markersize=4, label=words)
    times.plot(at, [each["opened_s"] * 1e3 for each in sizes], marker="s", markersize=4, color="#555", label="open")
    titled(times, "Times by records of the log", "records", "milliseconds")
    for name, words in (("opened_bytes", "when it is open"), ("read_bytes", "after reads anywhere")):
        memory.plot(at, [each[name] / 1e6 for each in sizes], marker="o", markersize=4, label=words)
    titled(memory, "Memory of the process by records of the log", "records", "MB")
    memory.set_yscale("linear")
    most = max(max(each["opened_bytes"], each["read_bytes"]) for each in sizes)
    memory.set_ylim(0, 1.15 * most / 1e6)
    return drawn(figure)


def titled(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(title, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(fontsize=8)


def drawn(figure: Figure) -> str:
    """As an element of a page."""
    figure.tight_layout()
    out = StringIO()
    figure.savefig(out, format="svg")
    return out.getvalue()[out.getvalue().index("<svg") :]
