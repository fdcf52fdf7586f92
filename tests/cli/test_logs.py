"""What the daemon says of itself, on stderr."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kimberlite.cli.logs import Json, Text
from kimberlite.wire.messages import Kind
from tests.cli.test_serve import Daemon
from tests.server.wires import Wire

#: What a client says, that is cited.
SAID = 'x\n{"level": "critical"}\r\u2028\x1b[2J\x00"'


def lines(path: Path, form: str) -> list[str]:
    """Of a daemon that a client is refused by, and that is stopped."""
    where = path / "socket"
    daemon = Daemon(path / "db", "--listen", f"unix:{where}", "--set", f"log_format={form}")
    daemon.listening()

    async def refused() -> None:
        wire = Wire(*await asyncio.open_unix_connection(where))
        wire.send(Kind.HELLO, 0, {"version": 1, "database": SAID})
        assert await wire.broken() == "INVALID"
        await wire.close()

    asyncio.run(refused())
    assert daemon.end() == 0
    return [line.rstrip("\n") for line in daemon.said]


def test_every_line_is_one_object(tmp_path: Path) -> None:
    found = [json.loads(line) for line in lines(tmp_path, "json")]
    for each in found:
        assert {"time", "level", "from", "message"} <= each.keys()
        assert each["level"] in ("info", "warning")
        assert timedelta() <= datetime.now(UTC) - datetime.fromisoformat(each["time"]) < timedelta(minutes=5)
    assert found[-1]["message"] == "stopped"
    [cited] = [each for each in found if SAID in each["message"]]
    assert cited["peer"] == "unix"


def test_as_text_every_line_is_a_level_and_what_is_said(tmp_path: Path) -> None:
    found = lines(tmp_path, "text")
    assert {line.split(": ")[0] for line in found} <= {"info", "warning"}
    assert all(line.isprintable() for line in found)
    [cited] = [line for line in found if line.startswith("info: closing a connection: INVALID: ")]
    assert cited.endswith(" peer=unix")


def test_an_exception_is_in_its_line_of_json_and_below_its_line_of_text() -> None:
    try:
        raise ValueError("one\ntwo")
    except ValueError:
        record = logging.LogRecord("a", logging.ERROR, __file__, 1, "it\nfailed", (), sys.exc_info())
    [line] = Json().format(record).splitlines()
    assert json.loads(line)["error"].endswith("ValueError: one\ntwo")
    first, *trace = Text().format(record).splitlines()
    assert first == "error: it failed"
    assert trace[-2:] == ["ValueError: one", "two"]
