"""What load is asked for."""

from __future__ import annotations

import json
import zlib

from kimberlite.load.plan import BATCHES_BYTES, Plan, events


def test_of_a_mixed_load_every_second_client_reads() -> None:
    plan = Plan("mixed", "nowhere:1", clients=5)
    assert [plan.appends(client) for client in range(5)] == [True, False, True, False, True]
    assert all(Plan("append", "nowhere:1").appends(client) for client in range(3))
    assert not any(Plan("read", "nowhere:1").appends(client) for client in range(3))


def test_a_rate_is_of_all_clients_together() -> None:
    assert Plan("append", "nowhere:1", clients=4, batch=10, rate=1_000).interval == 0.04
    assert Plan("append", "nowhere:1").interval is None


def test_batches_differ_and_are_fewer_when_they_are_large() -> None:
    batches = Plan("append", "nowhere:1", batch=3, size=100).batches()
    assert [len(batch) for batch in batches] == [3] * 16
    assert len(Plan("append", "nowhere:1", batch=100, size=160_000).batches()) == BATCHES_BYTES // 16_000_001


def test_events_are_json_of_that_size_and_compress_as_events_do() -> None:
    made = events(100, 256)
    assert {len(event) for event in made} == {256}
    assert json.loads(made[7])["id"] == 7
    whole = b"".join(made)
    assert len(zlib.compress(whole)) < len(whole) / 8
