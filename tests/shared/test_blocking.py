"""The blocking face of both."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import kimberlite.sync
from kimberlite import Closed, Conflict, Invalid, StreamInfo
from kimberlite.sync import Database
from tests.cli.test_serve import ANY, Daemon


@pytest.fixture(params=["embedded", "tcp"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "embedded":
        with kimberlite.sync.open(tmp_path / "db") as opened:
            yield opened
        return
    daemon = Daemon(tmp_path / "db", *ANY)
    with kimberlite.sync.connect(f"kimberlite://{daemon.listening()}") as opened:
        yield opened
    assert daemon.end() == 0


def test_threads_share_a_handle(db: Database) -> None:
    def append(i: int) -> int:
        return db.append(f"s{i % 3}", [b"%d" % i] * 2, expect=None).first_offset

    with ThreadPoolExecutor(16) as pool:
        offsets = list(pool.map(append, range(300)))
    assert sorted(offsets) == sorted(2 * (i // 3) for i in range(300))
    assert list(db.streams()) == [StreamInfo(name, 200, False) for name in (s.name for s in db.streams())]
    records = list(db.read())
    assert len(records) == 600
    assert list(db.read(reverse=True)) == records[::-1]
    assert [record for batch in db.read("s1").batches() for record in batch] == [r for r in records if r.stream == "s1"]
    assert db.get(records[7].position) == records[7]
    assert db.get_many([record.position for record in records]) == records
    assert db.info()["records"] == db.durable_position == records[-1].position + 1


def test_errors_tails_and_the_end(db: Database) -> None:
    db.append("s", b"1")
    with pytest.raises(Conflict):
        db.append("s", b"2", expect=0)
    with pytest.raises(Invalid):
        db.append("s", "text")  # type: ignore[arg-type]
    assert list(db.append_many({"a": b"1", "b": [b"2"]})) == ["a", "b"]
    tail = db.tail("s")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, tail)
        db.append("s", b"2")
        assert waiting.result(20).payload == b"2"
    tail.close()
    db.close()
    db.close()
    with pytest.raises(Closed):
        db.append("s", b"3")
