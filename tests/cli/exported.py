"""A database that is moved, and what has to arrive."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from kimberlite import Record, sync

FORMS = {"lines": [], "binary": ["--binary"]}

RECORDS = [
    Record(b""),
    Record(b"\xff\0", key=b""),
    Record("ä\n".encode(), key=b"\xfe", headers=(("ключ", b"\xff"), ("h", b"")), event_time=-(1 << 63)),
    Record(b"x" * 100_000, event_time=(1 << 63) - 1),
]


def fill(path: Path) -> None:
    """With 201 records of every kind; some are missing."""
    with sync.open(path, segment_bytes=1 << 20) as db:
        for i in range(40):
            db.append(["a", "b/ü", "c"][i % 3], [*RECORDS, Record(b"%d" % i)])
        with db.importing(new_times=True) as into:
            into.gap("a", 100, 0, "lost")
            into.gap("gone", 7, 0, "lost")
        db.append("a", b"behind the gap")


#: What an export or an import says if nothing is lacking.
WHOLE: Final[dict[str, Any]] = {"missing": [], "erased": []}


def records(path: Path, stream: str | None = None) -> list[tuple[Any, ...]]:
    """All but positions."""
    with sync.open(path, read_only=True) as db:
        return [(*record[:6], record.timestamp) for record in db.read(stream)]


def lengths(path: Path) -> dict[str, int]:
    with sync.open(path, read_only=True) as db:
        return {info.name: info.length for info in db.streams()}
