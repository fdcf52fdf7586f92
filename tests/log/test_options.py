"""What can be set, and what cannot."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import kimberlite
import kimberlite.sync
from kimberlite import Invalid
from kimberlite.arguments import POLICIES
from kimberlite.log.options import Options

MIB = 1 << 20

FINE: dict[str, list[Any]] = {
    "sync": ["record", "batch", "group", "os"],
    "segment_bytes": [64 * 1024, 68 * 1024, 256 * MIB, 2048 * MIB],
    "depth": [1, 8],
    "compression": [None, -7, 0, 19],
    "max_delay": [0, 0.0, 0.001, 1, 1.0],
}
WRONG: dict[str, list[Any]] = {
    "sync": ["", "GROUP", "fsync", None, 1],
    "segment_bytes": [0, -4096, 64 * 1024 - 4096, 64 * 1024 + 1, 2048 * MIB + 4096, 1048576.0, "1048576", None],
    "depth": [0, -1, 9, 2.0, "4", None, True],
    "compression": [-8, 20, 3.0, "3", True],
    "max_delay": [-0.001, 1.001, float("nan"), float("inf"), "0", None],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in FINE for value in FINE[name]])
def test_an_option_at_its_limit_is_taken(name: str, value: Any) -> None:
    assert getattr(Options(**{name: value}), name) == value


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in WRONG for value in WRONG[name]])
def test_an_option_beyond_its_limits_is_invalid_and_named_and_nothing_is_made(
    name: str, value: Any, tmp_path: Path
) -> None:
    with pytest.raises(Invalid, match=name) as refused:
        Options(**{name: value})
    assert refused.value.code == "INVALID"
    for face in (kimberlite.open, kimberlite.sync.open):
        with pytest.raises(Invalid, match=name):
            face(tmp_path / "db", **{name: value})
    assert not (tmp_path / "db").exists()


async def test_an_unknown_backend_is_invalid_and_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="backend"):
        await kimberlite.open(tmp_path / "db", backend="floppy")  # type: ignore[arg-type]
    assert not (tmp_path / "db").exists()


def test_options_do_not_change_once_they_are_given() -> None:
    options = Options()
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.depth = 2  # type: ignore[misc]
    assert Options() == options
    assert POLICIES == ("record", "batch", "group", "os")


@pytest.mark.parametrize("level", [None, -7, 1, 19])
async def test_records_come_back_whatever_the_compression(tmp_path: Path, level: int | None) -> None:
    sent = [b"the same words again and again, " * 100, bytes(range(256)), b""]
    async with kimberlite.open(tmp_path / "db", backend="threads", compression=level) as db:
        await db.append("s", sent)
    async with kimberlite.open(tmp_path / "db", backend="threads") as db:
        assert [record.payload async for record in db.read("s")] == sent
        size = (await db.info())["bytes"]
    async with kimberlite.open(tmp_path / "db", backend="threads", segment_bytes=64 * 1024, compression=3) as db:
        await db.append("s", sent * 5)
        assert len([record async for record in db.read("s")]) == 18
    assert size > 0
