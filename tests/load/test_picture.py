"""Curves as a picture."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from kimberlite.load.picture import HEIGHT, POINTS, WIDTH, picture

SVG = "{http://www.w3.org/2000/svg}"


def drawn(text: str) -> list[str]:
    """The curves' paths."""
    paths = ElementTree.fromstring(text).iter(f"{SVG}path")
    return [path.attrib["d"] for path in paths if path.get("fill") == "none"]


def test_a_curve_rises_within_the_picture() -> None:
    curve = [(0.1 * 1.01**i, (i + 1) / 10_000) for i in range(10_000)]
    [path] = drawn(picture("a < b", {"append": curve[:1_000]}))
    xs = [float(x) for x in re.findall(r"H([\d.]+)", path)]
    ys = [float(y) for y in re.findall(r"V([\d.]+)", path)]
    assert all(a <= b for a, b in pairwise(xs))
    assert all(a >= b for a, b in pairwise(ys))
    assert 0 < min(xs) <= max(xs) < WIDTH
    assert 0 < min(ys) <= max(ys) < HEIGHT


def test_each_curve_has_a_name_and_the_tail_has_room() -> None:
    text = picture("t", {"append": [(1.0, 0.5), (2.0, 0.99), (50.0, 0.9999), (70.0, 1.0)], "read": [(3.0, 1.0)]})
    words = [each.text for each in ElementTree.fromstring(text).iter(f"{SVG}text")]
    assert {"append", "read", "1", "10", "100", "99%", "99.99%"} <= set(words)
    assert len(drawn(text)) == 2


@pytest.mark.parametrize("curves", [{}, {"read": []}, {"read": [(5.0, 1.0)]}])
def test_little_can_be_drawn_too(curves: dict[str, list[tuple[float, float]]]) -> None:
    ElementTree.fromstring(picture("t", curves))


def test_many_points_are_thinned() -> None:
    curve = [(1 + i / 1e6, (i + 1) / 1e6) for i in range(1_000_000)]
    [path] = drawn(picture("t", {"append": curve}))
    assert path.count("H") <= POINTS + 2
