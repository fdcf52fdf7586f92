"""Addresses in the Rust module as functions, those that were inlined too: by addr2line, from its line tables."""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Final

from benches.packages import Missing, Program, had

ADDR2LINE: Final = Program("addr2line", "binutils", r"binutils\S*", "usr/bin")
#: Where sources are that are ours, in whatever checkout they were compiled.
OURS: Final = re.compile(r".*/native/(?:core/)?src/(.*)\.rs$")
LOADED: Final = 1
#: Behind the addresses: where the table of segments is, and how long it and each of its lines are.
ELF_HEADER: Final = struct.Struct("<32xQ14xHH")
SEGMENT: Final = struct.Struct("<IIQQQQ")


class Rust:
    """A module, and what is at these places of its file."""

    def __init__(self, module: Path, places: Iterable[int]) -> None:
        segments = list(_segments(module.read_bytes()))
        virtual = {place: _virtual(segments, place) for place in places}
        program = had(ADDR2LINE)
        done = subprocess.run(
            [str(program.path), "-e", str(module), "-a", "-f", "-i", "-C"],
            input="".join(f"{address:x}\n" for address in virtual.values()),
            env=program.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise Missing(f"addr2line: {done.stderr.strip()}")
        found = dict(_answers(done.stdout))
        self._at = {place: found.get(address, []) for place, address in virtual.items()}

    def at(self, place: int, symbol: str) -> list[tuple[str, str]]:
        """Names, and where they are in the sources; the innermost comes first, and the symbol, which was not inlined,
        last. Of what others wrote and was inlined only the function of ours that it is in is told."""
        *inlined, (_, where) = self._at.get(place) or [("", "")]
        return [*inlined, (short(symbol), where)]


def _segments(elf: bytes) -> Iterator[tuple[int, int, int]]:
    """Place in the file, address and length of what is loaded."""
    start, size, count = ELF_HEADER.unpack_from(elf)
    for i in range(count):
        kind, _, place, address, _, length = SEGMENT.unpack_from(elf, start + i * size)
        if kind == LOADED:
            yield place, address, length


def _virtual(segments: Iterable[tuple[int, int, int]], place: int) -> int:
    return next((place - begin + address for begin, address, size in segments if begin <= place < begin + size), place)


def _answers(said: str) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """An address, and then of each function the name and `file:line`."""
    address = 0
    for is_address, lines in groupby(said.splitlines(), key=lambda line: line.startswith("0x")):
        if is_address:
            *_, last = lines
            address = int(last, 16)
            continue
        flat = list(lines)
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        *inlined, outer = pairs
        yield address, [*(found for pair in inlined for found in _inlined(*pair)), outer]


def _inlined(name: str, where: str) -> Iterator[tuple[str, str]]:
    """If it is ours. It has no path of its own, but its file has; one that does have a path is the symbol again, in
    place of a name that is not known."""
    ours = OURS.match(where.rpartition(":")[0])
    plain = re.sub(r"<.*", "", name)
    if ours and plain and "::" not in plain and not plain.startswith("{"):
        yield f"{ours[1].removesuffix('/mod').replace('/', '::')}::{plain}", where


def short(name: str) -> str:
    """Without what all of ours begin with: `a::<impl b::C>::d` as `b::C::d`, and a method of a Python class by the name
    that Python knows."""
    plain = re.sub(r"(?:\w+::)*<impl ([\w:]+)[^>]*>", r"\1", name)
    plain = re.sub(r"\b__pymethod_(\w+?)__$", r"\1", plain)
    return re.sub(r"\b(?:kimberlite_core|_native)::", "", plain)
