"""The bench of hostile clients, very small: every attack attacks, and none outlives its turn."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from benches import hostile


def test_every_attack_is_felt_beside_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "result.json"
    monkeypatch.setattr(hostile, "SETTLING", 0.1)
    small = ["--directory", str(tmp_path), "--seconds", "0.1", "--rounds", "1", "--json", str(result)]
    monkeypatch.setattr("sys.argv", ["hostile", *small])
    hostile.main()
    found = json.loads(result.read_text())["hostile"]
    assert [each["attack"] for each in found] == list(hostile.ATTACKS)
    assert all(each["attacks"] > 0 and each["alone_p99_ms"] > 0 for each in found)
    answered = {each["attack"] for each in found if each["answer_p50_ms"] is not None}
    assert {"HTTP", "8 MiB of empty maps", "lengths that no message has"} <= answered
    assert "p99 ÷ alone" in capsys.readouterr().out
    assert not multiprocessing.active_children()
