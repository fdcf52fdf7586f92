"""Two hours of what `just month` does for a month."""

from __future__ import annotations

from pathlib import Path

import pytest

from kimberlite.log import checkpoint, packing
from kimberlite.log.options import Options
from tests.crash.month import MOST, Taken, lived
from tests.test_documents import OPERATIONS, rows, section

RECORDS = 7_200
SEGMENT = 4 << 20


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second of the log takes a tenth of a millisecond: what is done in between is in as much of a hurry."""
    monkeypatch.setattr(checkpoint, "LEAST_INTERVAL", 0.01)
    monkeypatch.setattr(packing, "REST", 0)


def taken(directory: Path, kind: str, *, pack: float = 0.5) -> Taken:
    return lived(directory, RECORDS, Options(segment_bytes=SEGMENT, pack=pack), kind)


@pytest.mark.parametrize(("kind", "column"), [("plain", 1), ("encrypted", 2)])
def test_a_log_of_a_record_a_second_takes_what_is_said(kind: str, column: int, tmp_path: Path) -> None:
    found = taken(tmp_path, kind)
    assert found.fits
    assert found.ratio < MOST[kind]
    text = section(OPERATIONS, "Packing")
    assert all(f"less than {most} times" in text for most in MOST.values())
    said = {row[0]: int(row[column] or 0) for row in rows(text)}
    assert found.parts == said


@pytest.mark.parametrize("kind", MOST)
def test_what_is_not_packed_takes_a_block_a_record(kind: str, tmp_path: Path) -> None:
    found = taken(tmp_path, kind, pack=0)
    assert not found.fits
    assert found.ratio > 4096 / 256
