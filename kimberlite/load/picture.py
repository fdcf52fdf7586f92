"""Curves of latencies as a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Final

WIDTH: Final = 860
HEIGHT: Final = 460
LEFT: Final = 70
RIGHT: Final = 30
TOP: Final = 56
BOTTOM: Final = 60
COLOURS: Final = ("#1f6fb4", "#d1651b", "#3a8f3f", "#8a4fb0", "#b8932a", "#2a9d9d", "#7a7a7a")
#: Columns of a letter of a curve's name, nearly, and of its line and the room behind it.
LETTER: Final = 7.2
NAMED: Final = 46
#: Shares that have a line of their own, as far as the picture goes: at most to that of one request in so many powers of
#: ten.
SHARES: Final = ("0%", "50%", "90%", "99%", "99.9%", "99.99%", "99.999%", "99.9999%")
MOST_NINES: Final = 6
#: Points of a curve; more are not told apart.
POINTS: Final = 2_000

Curve = Sequence[tuple[float, float]]


def picture(title: str, curves: Mapping[str, Curve]) -> str:
    """An SVG of empirical distributions: milliseconds, and the share that took no longer, which the nearer it is to all
    the more room has."""
    times = [ms for curve in curves.values() for ms, _ in curve] or [1.0]
    first, last = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)))
    rest = min((1 - share for curve in curves.values() for _, share in curve if share < 1), default=0.1)
    axes = Axes(first, max(last, first + 1), min(MOST_NINES, max(2, math.ceil(-math.log10(rest)))))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
            'font-size="12">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
            f'<text x="{LEFT}" y="24" font-size="13">{escape(title)}</text>',
            *axes.lines(),
            *(line for i, curve in enumerate(curves.values()) for line in drawn(axes, i, curve)),
            *named(list(curves)),
            "</svg>",
            "",
        ]
    )


class Axes:
    """From one power of ten of milliseconds to another, and up to so many nines of the requests."""

    def __init__(self, first: int, last: int, nines: int) -> None:
        self._first, self._last, self._nines = first, last, nines

    def x(self, ms: float) -> float:
        share = (math.log10(ms) - self._first) / (self._last - self._first)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, share: float) -> float:
        nines = self._nines if share >= 1 else min(self._nines, -math.log10(1 - share))
        return HEIGHT - BOTTOM - nines / self._nines * (HEIGHT - TOP - BOTTOM)

    def lines(self) -> Iterator[str]:
        top, bottom, right = self.y(1), self.y(0), WIDTH - RIGHT
        for power in range(self._first, self._last + 1):
            x = self.x(10**power)
            yield f'<path d="M{x:.1f} {top:.1f}V{bottom:.1f}" stroke="#bbb"/>'
            yield f'<text x="{x:.1f}" y="{bottom + 18:.1f}" text-anchor="middle">{10.0**power:g}</text>'
            if power < self._last:
                minor = (self.x(n * 10**power) for n in range(2, 10))
                yield "".join(f'<path d="M{x:.1f} {top:.1f}V{bottom:.1f}" stroke="#eee"/>' for x in minor)
        for label in SHARES[: self._nines + 2]:
            y = self.y(float(label[:-1]) / 100)
            yield f'<path d="M{LEFT} {y:.1f}H{right}" stroke="#ddd"/>'
            yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
        yield f'<text x="{(LEFT + right) / 2:.1f}" y="{HEIGHT - 14}" text-anchor="middle">milliseconds</text>'


def drawn(axes: Axes, number: int, curve: Curve) -> Iterator[str]:
    if curve:
        kept = [*curve[:: len(curve) // POINTS + 1], curve[-1]]
        # A share is reached where it is, and not on the way there.
        steps = "".join(f"H{axes.x(ms):.1f}V{axes.y(share):.1f}" for ms, share in kept)
        start = f"M{axes.x(kept[0][0]):.1f} {axes.y(0):.1f}"
        colour = COLOURS[number % len(COLOURS)]
        yield f'<path d="{start}{steps}" fill="none" stroke="{colour}" stroke-width="2"/>'


def named(names: Sequence[str]) -> Iterator[str]:
    x: float = LEFT
    for number, name in enumerate(names):
        yield f'<path d="M{x:.1f} 40h22" stroke="{COLOURS[number % len(COLOURS)]}" stroke-width="2"/>'
        yield f'<text x="{x + 28:.1f}" y="44">{escape(name)}</text>'
        x += NAMED + LETTER * len(name)
