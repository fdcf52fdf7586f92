"""What the command does ten thousand times."""

from __future__ import annotations

import pytest

from kimberlite.log.salvage import Finder
from tests.crash.salvaging import KINDS, Ruin, built, judge, tried


def test_what_is_whole_is_found_whatever_else_is_damaged() -> None:
    counts, wrong = tried(range(400))
    assert wrong == []
    assert counts["changed"] > 200
    assert counts["found"] >= counts["owed"] > 10_000


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_missing_where_nothing_is_damaged(kind: str) -> None:
    source = built(kind)
    files = {name: bytearray(data) for name, data in source.files.items()}
    ruin = Ruin(source, files, {name: name for name in files})
    owed, found, wrong = judge(ruin)
    assert (wrong, found) == ([], source.records)
    assert owed > found


def test_it_notices_what_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge itself, with a salvage that gives up at the first damage."""
    monkeypatch.setattr(Finder, "records", lambda _self: iter(()))
    assert tried(range(8))[1]
