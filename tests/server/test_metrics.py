"""Every metric that is described is shown, and moves when what it counts happens."""

from __future__ import annotations

import asyncio
import base64
import re
import socket
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]

import kimberlite
from kimberlite import KimberliteError, NoSpace
from kimberlite.log import scrub
from kimberlite.log.names import index_name, segment_name
from kimberlite.log.options import Options
from kimberlite.log.serving import Serving
from kimberlite.server import http
from kimberlite.server.http import MOST, Probes
from kimberlite.server.limits import Limits
from kimberlite.wire.messages import Kind
from tests.server.wires import Served, served, until

ROOT = Path(__file__).parents[2]
DESCRIBED = dict(
    re.findall(r"^\| `(kimberlite_\w+)` \| (\w+) \|", (ROOT / "docs/operations.md").read_text(), flags=re.M)
)
#: What is as it is, whatever is done here.
STILL = {"kimberlite_backend", "kimberlite_retention_waits"}


def parsed(text: str) -> dict[str, dict[str, float]]:
    """The samples of each family, by name and labels; refuses what is no OpenMetrics."""
    families: dict[str, dict[str, float]] = {}
    assert text.endswith("\n# EOF\n")
    name = ""
    for line in text.splitlines()[:-1]:
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in families
            assert DESCRIBED.get(name) == kind, line
            families[name] = {}
        elif not line.startswith(f"# HELP {name} "):
            sample, value = re.fullmatch(r"(\w+(?:\{.*\})?) (\S+)", line).groups()  # type: ignore[union-attr]
            assert sample.startswith(name)
            families[name][sample] = float(value)
    return families


def shown(there: Served) -> dict[str, dict[str, float]]:
    return parsed(there.server.metrics.shown(there.server))


async def test_every_metric_is_described_and_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "LATER", 0.0)
    limits = Limits(handshake=0.5)
    async with served(tmp_path / "db", limits, segment_bytes=64 * 1024) as there:
        begun = shown(there)
        assert begun.keys() == DESCRIBED.keys()
        seen: list[dict[str, dict[str, float]]] = [begun]
        done = False

        async def look() -> None:
            while not done:
                seen.append(shown(there))
                await asyncio.sleep(0.001)

        looking = asyncio.create_task(look())
        async with kimberlite.connect(f"kimberlite://127.0.0.1:{there.port}") as db:
            for _ in range(30):
                outcomes = await asyncio.gather(
                    *(db.append(f"s{i % 5}", [bytes(500)] * 5, expect=i % 2 or None) for i in range(50)),
                    return_exceptions=True,
                )
                assert any(isinstance(outcome, KimberliteError) for outcome in outcomes)
            receipt = await db.append("s0", [bytes(500)] * 5)
            assert len([record async for record in db.read()]) > 100
            wire = await there.greeted()
            wire.raw(Kind.APPEND, 1, bytes(300_000), 1 << 20)
            await until(lambda: shown(there)["kimberlite_inbox_bytes"]["kimberlite_inbox_bytes"] > 0)
            silent = await there.connect()
            assert await silent.broken() == "PROTOCOL_ERROR"
            await asyncio.sleep(0.6)
        await asyncio.sleep(0.3)
        await one_by_one(there.log, tmp_path / "db")
        await until(lambda: shown(there)["kimberlite_scrub_pass_seconds"]["kimberlite_scrub_pass_seconds"] > 0)
        await there.log.retain(before=receipt.first_position)
        await there.greeted(anchor=there.ahead(receipt))
        seen.append(shown(there))
        done = True
        await looking
    unmoved = {name for name in DESCRIBED if all(each[name] == begun[name] for each in seen)}
    assert unmoved == STILL
    last = seen[-1]
    assert last["kimberlite_refusals"]['kimberlite_refusals_total{code="CONFLICT"}'] > 100
    assert last["kimberlite_refusals"]['kimberlite_refusals_total{code="PROTOCOL_ERROR"}'] == 1
    assert last["kimberlite_connections_closed"]['kimberlite_connections_closed_total{why="PROTOCOL_ERROR"}'] == 1
    appends = last["kimberlite_appends"]["kimberlite_appends_total"]
    assert last["kimberlite_append_seconds"]["kimberlite_append_seconds_count"] == appends
    # The record that says what was dropped is one by itself.
    assert last["kimberlite_append_records"]["kimberlite_append_records_total"] == 5 * (appends - 1) + 1
    buckets = [value for name, value in last["kimberlite_append_seconds"].items() if "_bucket" in name]
    assert buckets == sorted(buckets)
    assert max(each["kimberlite_open_requests_expected"]["kimberlite_open_requests_expected"] for each in seen) > 1
    assert 'backend="' in next(iter(last["kimberlite_backend"]))


async def test_times_are_in_seconds_and_what_is_expected_to_be_open_follows_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path / "db") as there:
        loop, metrics = asyncio.get_running_loop(), there.server.metrics
        backend = there.server.serving.committer.backend
        submit, look = backend.submit, metrics.looked
        looks: list[tuple[float, dict[str, float]]] = []

        def slow(*write: Any) -> None:
            loop.call_later(0.05, submit, *write)

        def looked(serving: Serving, now: float) -> None:
            look(serving, now)
            looks.append((now, {name: value for each in shown(there).values() for name, value in each.items()}))

        monkeypatch.setattr(backend, "submit", slow)
        monkeypatch.setattr(metrics, "looked", looked)
        wire = await there.greeted()
        begun = loop.time()
        for i in range(10):
            wire.send(Kind.APPEND, i, ["s", [b"x"], None, None, None])
            await wire.answers(1)
        took = loop.time() - begun
        seen = len(looks)
        await until(lambda: len(looks) > seen)
        monkeypatch.undo()
    last = looks[-1][1]
    for name in ("append", "sync"):
        assert 0.4 <= last[f"kimberlite_{name}_seconds_sum"] <= took
        # None took less than the disk does.
        assert last[f'kimberlite_{name}_seconds_bucket{{le="0.02"}}'] == 0
        assert last[f"kimberlite_{name}_seconds_count"] == 10
    for (then, before), (now, after) in pairwise(looks):
        waited = after["kimberlite_append_seconds_sum"] - before["kimberlite_append_seconds_sum"]
        assert after["kimberlite_open_requests_expected"] == pytest.approx(waited / (now - then))
    assert any(each["kimberlite_open_requests_expected"] > 0 for _, each in looks)


async def test_a_client_is_told_the_same(tmp_path: Path) -> None:
    async with served(tmp_path / "db") as there:
        async with kimberlite.connect(f"kimberlite://127.0.0.1:{there.port}") as db:
            for _ in range(20):
                await db.append("s", [b"x"] * 3)
            with pytest.raises(kimberlite.Conflict):
                await db.append("s", [b"x"], expect=0)
            assert len([record async for record in db.read(limit=5)]) == 5
            assert (await db.get(3)).payload == b"x"
            told = await db.metrics()
        said = shown(there)
    assert told.keys() == DESCRIBED.keys()
    assert told["kimberlite_refusals"] == {"CONFLICT": 1}
    assert told["kimberlite_backend"]["backend"] in ("uring", "threads")
    assert told["kimberlite_append_records"] == 60
    for name, kind in DESCRIBED.items():
        if kind == "histogram":
            histogram = HdrHistogram.decode(base64.b64encode(told[name]["histogram"]))
            assert histogram.get_total_count() == said[name][f"{name}_count"] > 0
            assert told[name]["sum"] == pytest.approx(said[name][f"{name}_sum"])
            # It is known to one part in a hundred, in ns or records.
            sum_ = histogram.get_mean_value() * histogram.get_total_count()
            assert sum_ * (1e-9 if name.endswith("_seconds") else 1) == pytest.approx(told[name]["sum"], rel=0.02)
    assert said["kimberlite_read_seconds"]["kimberlite_read_seconds_count"] == 2
    append, wait, sync = (told[f"kimberlite_{name}_seconds"]["sum"] for name in ("append", "wait", "sync"))
    assert wait + sync < append


async def test_a_read_that_waits_for_its_client_is_not_timed(tmp_path: Path) -> None:
    async with served(tmp_path / "db") as there:
        wire = await there.greeted()
        wire.send(Kind.APPEND, 1, ["s", [b"x"], None, None, None])
        await wire.answers(1)
        wire.send(Kind.READ, 2, {"credit": 0})
        wire.send(Kind.CREDIT, 2, 1000)
        assert [(await wire.next())[0] for _ in range(2)] == [Kind.RECORDS, Kind.END]
        wire.send(Kind.TAIL, 3, {"credit": 1000, "start": 0})
        assert [(await wire.next())[0] for _ in range(2)] == [Kind.RESULT, Kind.RECORDS]
        assert shown(there)["kimberlite_read_seconds"]["kimberlite_read_seconds_count"] == 0
        wire.send(Kind.READ, 4, {"credit": 1000})
        assert [(await wire.next())[0] for _ in range(2)] == [Kind.RECORDS, Kind.END]
        assert shown(there)["kimberlite_read_seconds"]["kimberlite_read_seconds_count"] == 1


async def test_a_full_disk_is_counted_by_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(tmp_path / "db") as there:
        wire = await there.greeted()
        wire.send(Kind.APPEND, 1, ["s", [b"x"], None, None, None])
        await wire.answers(1)
        committer = there.server.serving.committer

        async def full(_: int) -> None:
            raise NoSpace("no room")

        monkeypatch.setattr(committer.tail, "has_room", lambda _: False)
        monkeypatch.setattr(committer.tail, "make_room", full)
        wire.send(Kind.APPEND, 2, ["s", [b"x"], None, None, None])
        assert (await wire.answers(1))[2] == "NO_SPACE"
        monkeypatch.undo()
        wire.send(Kind.APPEND, 3, ["s", [b"x"], None, None, None])
        assert not isinstance((await wire.answers(1))[3], str)
        assert shown(there)["kimberlite_refusals"] == {'kimberlite_refusals_total{code="NO_SPACE"}': 1}


async def asked(port: int, request: bytes) -> tuple[int, dict[str, str], str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    whole = (await asyncio.wait_for(reader.read(), 20)).decode()
    writer.close()
    head, _, body = whole.partition("\r\n\r\n")
    status, *headers = head.split("\r\n")
    return int(status.split(" ")[1]), dict(header.split(": ", 1) for header in headers), body


async def one_by_one(log: kimberlite.Log, directory: Path) -> None:
    """Segments that are mostly padding; in the last of them a bit of what is acknowledged is flipped."""
    receipts = [await log.append("lone", [b"x"] * 5) for _ in range(40)]
    active = log._native.segment_of(receipts[-1].first_position)
    spoil(directory / segment_name(active), 4096 + 200)
    assert log.upkeep is not None
    async with asyncio.timeout(20):
        # Until a checkpoint is behind it, and it is its turn.
        while log.upkeep.findings.count == 0:
            await log.append("lone", [b"x"] * 5)
            await asyncio.sleep(0.02)


async def test_damage_that_is_found_while_nobody_asks_is_said_and_what_is_sound_is_served(tmp_path: Path) -> None:
    async with served(tmp_path / "db", segment_bytes=64 * 1024) as there:
        where = socket.create_server(("127.0.0.1", 0))
        port = where.getsockname()[1]
        probes = Probes()
        await probes.listen(where)
        probes.server = there.server
        assert await asked(port, b"GET /readyz HTTP/1.1\r\n\r\n") == (200, ANY, "ready\n")
        first = await there.log.append("s", b"sound")
        await one_by_one(there.log, tmp_path / "db")
        assert shown(there)["kimberlite_damage"]["kimberlite_damage"] == 1
        status, _, said = await asked(port, b"GET /readyz HTTP/1.1\r\n\r\n")
        place = r"segments/\d{20}\.seg, byte 4096, group \d+, position \d+: .+"
        assert status == 200
        assert re.fullmatch(rf"ready\ndamage: {place}\n", said)
        assert any(re.fullmatch(place, note) for note in (await there.log.info())["notes"])
        assert (await there.log.get(first.first_position)).payload == b"sound"
        assert shown(there)["kimberlite_packed_segments"]["kimberlite_packed_segments_total"] > 0
        probes.close()


async def test_what_is_not_dropped_though_the_settings_let_it_go_is_said(tmp_path: Path) -> None:
    options: dict[str, Any] = {"segment_bytes": 64 * 1024, "pack": 0, "scrub": 0}
    async with served(tmp_path / "db", retain_size=256 * 1024, **options) as there:
        for _ in range(20):
            await there.log.append("s", b"x")
        assert shown(there)["kimberlite_retention_waits"]["kimberlite_retention_waits"] == 0
        # Where the hashes are to go.
        (tmp_path / "db" / "past").mkdir()
        async with asyncio.timeout(20):
            while shown(there)["kimberlite_retention_waits"]["kimberlite_retention_waits"] == 0:
                await there.log.append("s", b"x")
                await asyncio.sleep(0.01)
        assert any("retention: not all that was to be dropped" in note for note in (await there.log.info())["notes"])
        (tmp_path / "db" / "past").rmdir()
        async with asyncio.timeout(20):
            while shown(there)["kimberlite_retention_waits"]["kimberlite_retention_waits"] == 1:
                await there.log.append("s", b"x")
                await asyncio.sleep(0.01)
        assert shown(there)["kimberlite_first_position"]["kimberlite_first_position"] > 0


async def test_hashes_that_retention_finds_damaged_are_said_and_hold_it_up_no_further(tmp_path: Path) -> None:
    options: dict[str, Any] = {"segment_bytes": 64 * 1024, "pack": 0, "scrub": 0}
    async with served(tmp_path / "db", **options) as there:
        for _ in range(40):
            await there.log.append("s", b"x")
    spoil(tmp_path / "db/hashes", 4096 + 3 * 32)
    async with served(tmp_path / "db", retain_size=64 * 1024, **options) as there:
        await until(lambda: shown(there)["kimberlite_first_position"]["kimberlite_first_position"] > 0)
        assert shown(there)["kimberlite_retention_waits"]["kimberlite_retention_waits"] == 0
        assert shown(there)["kimberlite_damage"]["kimberlite_damage"] > 0
        assert any("hashes, byte 4" in note for note in (await there.log.info())["notes"])


async def test_what_is_lost_of_a_closed_segment_is_said_though_nobody_packs_or_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrub, "LATER", 0.0)
    monkeypatch.setattr(scrub, "PASS", 0.0)
    every = Options(segment_bytes=64 * 1024, pack=0.0, checkpoint_records=1)
    async with served(tmp_path / "db", every=every) as there:
        where = socket.create_server(("127.0.0.1", 0))
        port = where.getsockname()[1]
        probes = Probes()
        await probes.listen(where)
        probes.server = there.server

        def value(name: str) -> float:
            return shown(there)[f"kimberlite_{name}"][f"kimberlite_{name}"]

        first = await there.log.append("s", b"sound")
        while value("scrub_pass_segments") < 4:
            await there.log.append("s", bytes(30_000))
            await asyncio.sleep(0.02)
        status, _, said = await asked(port, b"GET /readyz HTTP/1.1\r\n\r\n")
        assert (status, said, value("damage")) == (200, "ready\n", 0)
        spoil(tmp_path / "db" / segment_name(1), 4096 + 200)
        await until(lambda: value("damage") == 1, 20)
        spoil(tmp_path / "db" / index_name(2), 200)
        await until(lambda: value("damage") == 2, 20)
        status, _, said = await asked(port, b"GET /readyz HTTP/1.1\r\n\r\n")
        segment = rf"{segment_name(1)}, byte 4096, group \d+, position \d+: .+"
        assert status == 200
        assert re.fullmatch(rf"ready\ndamage: {segment}\ndamage: {index_name(2)}, byte 200: .+\n", said)
        assert any(re.fullmatch(segment, note) for note in (await there.log.info())["notes"])
        assert (await there.log.get(first.first_position)).payload == b"sound"
        assert 1_700_000_000 < value("scrub_pass_seconds") < 1 << 33
        probes.close()


def spoil(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        [byte] = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1]))


async def test_it_is_asked_over_http(tmp_path: Path) -> None:
    async with served(tmp_path / "db") as there:
        where = socket.create_server(("127.0.0.1", 0))
        port = where.getsockname()[1]
        probes = Probes()
        await probes.listen(where)
        # Before there is a server.
        assert (await asked(port, b"GET /healthz HTTP/1.0\n\n"))[::2] == (200, "ok\n")
        for path in (b"/readyz", b"/metrics"):
            assert (await asked(port, b"GET " + path + b" HTTP/1.1\r\n\r\n"))[::2] == (503, "it is recovering\n")
        probes.server = there.server
        status, headers, body = await asked(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (status, headers["Content-Type"].split(";")[0]) == (200, "application/openmetrics-text")
        assert parsed(body).keys() == DESCRIBED.keys()
        assert int(headers["Content-Length"]) == len(body.encode())
        assert (await asked(port, b"GET /healthz HTTP/1.0\n\n"))[::2] == (200, "ok\n")
        assert (await asked(port, b"HEAD /readyz HTTP/1.1\r\n\r\n"))[::2] == (200, "")
        requests: dict[bytes, int] = {
            b"GET / HTTP/1.1\r\n\r\n": 404,
            b"POST /metrics HTTP/1.1\r\n\r\n": 405,
            b"nonsense\r\n\r\n": 400,
            b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 5_000: 400,
            struct.pack("<III", 2, 1, 0) + b"\n\n": 400,
        }
        for request, expected in requests.items():
            assert (await asked(port, request))[0] == expected
        await there.greeted(anchor=there.ahead(await there.log.append("s", b"x")))
        status, _, why = await asked(port, b"GET /readyz HTTP/1.1\r\n\r\n")
        assert (status, why.split(":")[0]) == (503, "nothing is appended any more")
        many: list[Any] = [await asyncio.open_connection("127.0.0.1", port) for _ in range(100)]
        await until(lambda: len(probes._asking) == MOST)
        # Whoever says nothing keeps nobody out.
        assert (await asked(port, b"GET /healthz HTTP/1.0\n\n"))[0] == 200
        for _, writer in many:
            writer.close()
        await until(lambda: not probes._asking)
        probes.close()


async def test_whoever_asks_and_does_not_get_on_is_gone_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    # No test has the time for all of it.
    monkeypatch.setattr(http, "DEADLINE", http.DEADLINE / 20)
    where = socket.create_server(("127.0.0.1", 0))
    probes = Probes()
    await probes.listen(where)
    writers = [(await asyncio.open_connection(*where.getsockname()))[1] for _ in range(3)]
    _, slow, answered = writers

    def gone() -> bool:
        if not slow.is_closing():
            slow.write(b"X")
        return not probes._asking

    try:
        answered.write(b"GET /healthz HTTP/1.1\r\n\r\n")
        await until(lambda: len(probes._asking) == 3)
        await until(gone, 5)
    finally:
        for writer in writers:
            writer.close()
        probes.close()
