"""top: watch a daemon at work: rates, times, queue, log, process."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Any, Final, Self

from kimberlite import _native, api
from kimberlite.cli import forms
from kimberlite.cli.target import RETRY, is_url
from kimberlite.cli.terminal import Ink, escaped, say
from kimberlite.client.client import Client
from kimberlite.errors import Invalid

#: What is timed, in the order in which it happens to an append.
TIMES: Final = ("append", "wait", "seal", "sync", "read")
QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
BARS: Final = " ▁▂▃▄▅▆▇█"
#: Rates that the picture of the last while remembers.
REMEMBERED: Final = 500
#: Columns of what a line is about.
LABEL: Final = 11
#: The terminal's other screen, without a cursor; and back.
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="URL", help="kimberlite://HOST:PORT")
    parser.add_argument(
        "--interval", metavar="SECONDS", type=float, default=1.0, help="between two looks; 1 by default"
    )
    parser.add_argument("--count", metavar="N", type=forms.parse_number, help="end after so many")


def run(arguments: argparse.Namespace) -> int:
    if not is_url(arguments.target):
        raise Invalid(f"{arguments.target}: top watches a daemon; start one with kimberlite serve, and give its URL")
    if not 0.05 <= arguments.interval <= 3600:
        raise Invalid("--interval is from 0.05 to 3600 seconds")
    asyncio.run(watch(arguments))
    return 0


class Moment:
    """What happened between two looks at a daemon's metrics."""

    def __init__(self, before: dict[str, Any], after: dict[str, Any], seconds: float) -> None:
        self._before, self._after, self.seconds = before, after, seconds

    def now(self, name: str) -> float:
        said = self._after[f"kimberlite_{name}"]
        return float(sum(said.values()) if isinstance(said, dict) else said)

    def rate(self, name: str) -> float:
        """A second. A daemon that was started again counts from nothing."""
        said = self._before[f"kimberlite_{name}"]
        before = sum(said.values()) if isinstance(said, dict) else said
        return (self.now(name) - before if self.now(name) >= before else self.now(name)) / self.seconds

    def histogram(self, name: str) -> _native.Histogram:
        before, after = (
            _native.Histogram.decode(said[f"kimberlite_{name}"]["histogram"]) for said in (self._before, self._after)
        )
        try:
            return after.minus(before)
        except ValueError:
            return after

    def form(self) -> dict[str, Any]:
        times: dict[str, Any] = {}
        for name in TIMES:
            histogram = self.histogram(f"{name}_seconds")
            shown = {
                f"{quantile}_ms": histogram.quantile(share) / 1e6 if len(histogram) else None
                for quantile, share in QUANTILES.items()
            }
            times[name] = {"per_s": len(histogram) / self.seconds, **shown}
        numbers = {name: value for name, value in self._after.items() if not isinstance(value, dict)}
        backend = self._after["kimberlite_backend"]["backend"]
        return {"seconds": self.seconds, "backend": backend, "times": times, "metrics": numbers}

    def lines(self) -> Iterator[str]:
        now, rate = self.now, self.rate
        groups = len(self.histogram("group_records"))
        per_group = rate("append_records") * self.seconds / groups if groups else 0.0
        backend = self._after["kimberlite_backend"]["backend"]
        appending = "appends are taken" if now("writable") else "no appends are taken"
        yield labelled(
            "appends",
            f"{rate('appends'):,.0f}/s",
            f"{rate('append_records'):,.0f} records/s",
            f"{size(rate('append_bytes'))}/s",
            f"{size(rate('written_bytes'))}/s to disk",
            f"{per_group:,.1f} records a group",
        )
        yield labelled(
            "reads",
            f"{rate('reads'):,.0f}/s",
            f"{rate('read_records'):,.0f} records/s",
            f"{size(rate('read_bytes'))}/s",
            f"{rate('refusals'):,.0f} refusals/s",
        )
        yield labelled(
            "queue",
            f"{now('queue_requests'):,.0f} appends",
            size(now("queue_bytes")),
            f"{now('open_requests'):,.0f} requests open",
            f"{now('open_requests_expected'):,.1f} expected",
            f"{now('connections'):,.0f} clients",
        )
        yield labelled(
            "log",
            f"position {now('durable_position'):,.0f}",
            f"segment {now('segment'):,.0f}",
            f"{now('prepared_segments'):,.0f} prepared",
            f"{size(now('prepared_bytes'))} ready",
            f"{now('streams'):,.0f} streams",
        )
        yield labelled(
            "process",
            f"{rate('cpu_seconds'):.0%} of a core",
            size(now("resident_bytes")),
            f"{now('descriptors'):,.0f} descriptors",
            backend,
            appending,
        )
        yield ""
        yield f"{'':{LABEL}}{'a second':>12}" + "".join(f"{name:>10}" for name in QUANTILES)
        for name in TIMES:
            histogram = self.histogram(f"{name}_seconds")
            shown = [span(histogram.quantile(share)) if len(histogram) else "" for share in QUANTILES.values()]
            yield f"{name:{LABEL}}{len(histogram) / self.seconds:>12,.0f}" + "".join(f"{time:>10}" for time in shown)


def labelled(label: str, *values: str) -> str:
    return f"{label:{LABEL}}" + "  ".join(values)


def size(count: float) -> str:
    """Bytes, to three digits."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} GB" if count < 1000 else f"{count:,.0f} GB"


def span(ns: int) -> str:
    """A time, to three digits."""
    for unit, many in (("µs", 1e3), ("ms", 1e6)):
        if ns < 999.5 * many:
            return f"{ns / many:.3g} {unit}"
    return f"{ns / 1e9:.3g} s"


def history(rates: deque[float], width: int) -> str:
    """The last rates as bars, the newest at the right."""
    shown = list(rates)[-max(1, width - LABEL) :]
    most = max(shown)
    bars = (BARS[0 if rate == 0 else 1 + int(rate / most * (len(BARS) - 2))] for rate in shown)
    return f"{'records/s':{LABEL}}" + "".join(bars)


async def watch(arguments: argparse.Namespace) -> None:
    async with api.connect(arguments.target, retry=RETRY) as client:
        if sys.stdout.isatty() and not arguments.json:
            about = await client.info()
            with Screen(f"{arguments.target}  {about['origin']}") as screen:
                await follow(client, arguments, screen.show, screen.waiting, screen.quit)
        else:
            show = show_form if arguments.json else show_lines
            await follow(client, arguments, show, lambda seconds: None, asyncio.Event())


async def follow(
    client: Client,
    arguments: argparse.Namespace,
    show: Callable[[Moment], None],
    waiting: Callable[[float], None],
    quit: asyncio.Event,
) -> None:
    before: dict[str, Any] = {}
    then, seen = 0.0, 0
    async for after in looks(client, arguments.interval, waiting, quit):
        now = time.monotonic()
        if before:
            show(Moment(before, after, now - then))
            seen += 1
        if seen == arguments.count:
            return
        before, then = after, now


async def looks(
    client: Client, interval: float, waiting: Callable[[float], None], quit: asyncio.Event
) -> AsyncIterator[dict[str, Any]]:
    """What the daemon says, again and again until somebody quits; while it says nothing, how long that is."""
    quitting = asyncio.ensure_future(quit.wait())
    try:
        while True:
            asking, since = asyncio.ensure_future(client.metrics()), time.monotonic()
            try:
                while not asking.done():
                    await asyncio.wait((asking, quitting), timeout=interval, return_when=asyncio.FIRST_COMPLETED)
                    if quitting.done():
                        return
                    if not asking.done():
                        waiting(time.monotonic() - since)
            finally:
                asking.cancel()
            yield asking.result()
            await asyncio.wait((quitting,), timeout=interval)
            if quitting.done():
                return
    finally:
        quitting.cancel()


def show_form(moment: Moment) -> None:
    say(forms.line(moment.form()))


def show_lines(moment: Moment) -> None:
    say("\n".join([*moment.lines(), ""]))


class Screen:
    """The terminal's other screen, for as long as `with` lasts; q quits, and so does SIGTERM."""

    def __init__(self, title: str) -> None:
        self.quit = asyncio.Event()
        self._title = escaped(title)
        self._rates: deque[float] = deque(maxlen=REMEMBERED)
        self._lines: list[str] = []
        self._modes: list[Any] | None = None

    def show(self, moment: Moment) -> None:
        self._rates.append(moment.rate("append_records"))
        self._lines = [*moment.lines(), "", history(self._rates, shutil.get_terminal_size().columns)]
        self._draw("q quits")

    def waiting(self, seconds: float) -> None:
        self._draw(f"no answer for {seconds:.0f} s; q quits")

    def _draw(self, note: str) -> None:
        width, height = shutil.get_terminal_size()
        lines = [self._title, "", *self._lines, "", note][:height]
        shown = [self._inked(line[:width]) for line in lines]
        # From the top, each line to its end, and nothing below: nothing flickers.
        say(("\x1b[H" + "\x1b[K\r\n".join(shown) + "\x1b[K\x1b[J").encode())

    def _inked(self, line: str) -> str:
        return Ink.BOLD.on(sys.stdout, line[:LABEL]) + line[LABEL:] if line is not self._title else line

    def _pressed(self) -> None:
        if not (pressed := os.read(0, 64)) or b"q" in pressed.lower():
            self.quit.set()

    def __enter__(self) -> Self:
        if sys.stdin is not None and sys.stdin.isatty():
            self._modes = termios.tcgetattr(0)
            tty.setcbreak(0)
            asyncio.get_running_loop().add_reader(0, self._pressed)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.quit.set)
        say(ENTER.encode())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
        if self._modes is not None:
            asyncio.get_running_loop().remove_reader(0)
            termios.tcsetattr(0, termios.TCSADRAIN, self._modes)
        say(LEAVE.encode())
