"""What every bench prints with: tables, quantiles, and the machine that the figures belong to."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as they are printed; the first column is words, the others are figures."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if any(len(row) != len(self.headings) for row in self.rows):
            raise ValueError(f"a row of {self.title!r} does not have {len(self.headings)} cells")

    def text(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.headings, *self.rows, strict=True)]
        lines = [
            "  ".join(cell.rjust(width) if index else cell.ljust(width) for index, (cell, width) in enumerate(cells))
            for cells in (zip(row, widths, strict=True) for row in (self.headings, *self.rows))
        ]
        return "\n".join([self.title, "", *(line.rstrip() for line in lines)])

    def markdown(self) -> str:
        rule = "|".join(["", "---", *["---:"] * (len(self.headings) - 1), ""])
        lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in self.rows]
        return "\n".join([f"**{self.title}**", "", f"| {' | '.join(self.headings)} |", rule, *lines])


def quantile(samples: Sequence[int], part: float) -> int:
    """The smallest sample that at least `part` of them do not exceed."""
    ordered = sorted(samples)
    return ordered[max(0, -int(-part * len(ordered) // 1) - 1)]


def microseconds(nanoseconds: float) -> str:
    micro = nanoseconds / 1000
    return f"{micro:.1f}" if micro < 100 else f"{micro:,.0f}"


def byte_count(size: int) -> str:
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


def machine(directory: Path | None = None) -> str:
    """The processor and the kernel, and what `directory` is on."""
    parts = [f"{os.cpu_count()} × {_processor()}", f"Linux {platform.release()}", f"Python {platform.python_version()}"]
    return ", ".join(parts if directory is None else [*parts, _file_system(directory)])


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(directory: Path) -> str:
    device = directory.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        mount, _, kind = line.partition(" - ")
        if mount.split()[2] == wanted:
            return "{} on {}".format(*kind.split()[:2])
    return "a file system that mountinfo does not name"


def show(where: str, tables: Sequence[Table], *, markdown: bool) -> None:
    parts = [table.markdown() if markdown else table.text() for table in tables]
    print("\n\n".join([where, *parts]))


def asked(module: str, about: str | None, *, on_disk: bool = True) -> argparse.ArgumentParser:
    """What every bench can be told; `publish` takes what it was told."""
    parser = argparse.ArgumentParser(prog=f"python -m benches.{module}", description=about)
    if on_disk:
        parser.add_argument(
            "--directory", type=Path, default=Path(), help="on the disk in question; here by default, and nothing stays"
        )
    parser.add_argument("--json", type=Path, metavar="FILE", help="what it found, besides")
    parser.add_argument("--markdown", action="store_true", help="tables as Markdown has them")
    return parser


def publish(
    where: str, tables: Sequence[Table], rows: Mapping[str, Sequence[Any]], options: argparse.Namespace
) -> None:
    """Shows the tables, and writes them and their rows, dataclasses by a name of theirs, to a file if there is one."""
    show(where, tables, markdown=options.markdown)
    if options.json is not None:
        found = {name: [asdict(row) for row in group] for name, group in rows.items()}
        content = {"machine": where, **found, "tables": [asdict(table) for table in tables]}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
