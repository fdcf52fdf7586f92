"""Erasing through every door."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kimberlite import Client, Erased, Erasure, Invalid, Receipt
from tests.shared.conftest import Database, database

WHY = "on request"


async def test_a_stream_is_erased_and_says_so(db: Database, options: dict[str, Any]) -> None:
    receipts = [await db.append(stream, b"x") for stream in ("kept", "gone", "gone")]
    if "key_file" not in options:
        with pytest.raises(Invalid, match="plain"):
            await db.erase("gone", reason=WHY)
        return
    found = await db.erase("gone", reason=WHY)
    assert isinstance(found, Erasure)
    assert (found.stream, found.reason, found.pending) == ("gone", WHY, True)
    assert await db.erase("gone", reason="another") == found
    for attempt in (lambda: db.append("gone", b"y"), lambda: db.get(receipts[1].first_position)):
        with pytest.raises(Erased, match=WHY) as caught:
            await attempt()
        assert (caught.value.when, caught.value.reason) == (found.when, WHY)
    for read in (db.read("gone"), db.tail("gone")):
        with pytest.raises(Erased, match=WHY):
            await anext(read)
    assert [record.stream async for record in db.read()] == ["kept"]
    assert [(stream.name, stream.erased) async for stream in db.streams()] == [("kept", False), ("gone", True)]
    assert (await db.info())["erasures"] == [found._asdict()]
    assert isinstance(await db.append("kept", b"z"), Receipt)
    with pytest.raises(Invalid, match="of then"):
        await db.confirm_erasure("gone")
    for wrong in ("", 7, "x" * 2000):
        with pytest.raises(Invalid):
            await db.erase("gone", reason=wrong)  # type: ignore[arg-type]
        with pytest.raises(Invalid):
            await db.erase(wrong, reason=WHY)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["embedded", "tcp"])
async def test_a_master_key_is_named_to_an_open_database_and_to_no_daemon(
    how: str, tmp_path: Path, options: dict[str, Any]
) -> None:
    async with database(how, tmp_path / "db", **options) as db:
        await db.append("s", b"x")
        with pytest.raises(Invalid):
            await db.rotate()
        with pytest.raises(Invalid, match="does not travel" if isinstance(db, Client) else "master key|named"):
            await db.rotate(options.get("key_file", __file__) if isinstance(db, Client) or not options else None)
