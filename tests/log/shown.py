"""What a handle shows, a tail of it, and a reader beside it, held against the list."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterable
from contextlib import suppress
from typing import Any

from kimberlite import Closed, Log, Record, StreamInfo, UnknownOutcome
from tests.log.expected import Expected, State


async def everything(records: AsyncIterable[Record]) -> list[Record]:
    return [record async for record in records]


async def check_handle(log: Log, expected: Expected, *, encrypted: bool) -> None:
    """It shows all that was acknowledged as durable, and all that it says of itself agrees with what it shows."""
    rows: list[Record] | None = None
    info: dict[str, Any] = {}
    while rows is None or info["records"] != len(rows):
        # More may become durable while it is read.
        rows = await everything(log.read(system=True))
        info = await log.info()
    expected.observe(rows)
    for unit in expected.of(State.DURABLE):
        assert unit.places, f"unit {unit.number} was acknowledged and is not there"
    durable = max((r.group for unit in expected.of(State.DURABLE) for r in unit.receipts), default=0)
    for unit in expected.of(State.TAKEN):
        assert all(receipt.group > durable for receipt in unit.receipts), "durable is not a prefix"
    said = (info["tree_size"], info["durable_position"], log.durable_position)
    assert said == (len(rows),) * 3
    lengths = Counter(row.stream for row in rows)
    assert list(log.streams()) == [StreamInfo(name, lengths[name], encrypted) for name in expected.declared()]


class Following:
    """A tail that is read all the time, and the window of the log that it must have shown."""

    def __init__(self, log: Log, stream: str | None, start: int | None, *, system: bool) -> None:
        lengths = {info.name: info.length for info in log.streams()}
        end = log.durable_position if stream is None else lengths.get(stream, 0)
        self.stream, self.system, self.start = stream, system, end if start is None else start
        self.found: list[Record] = []
        self._tail = log.tail(stream, start=start, system=system)
        self.task = asyncio.get_running_loop().create_task(self._collect())

    async def _collect(self) -> None:
        with suppress(Closed, UnknownOutcome):
            async for record in self._tail:
                self.found.append(record)

    def window(self, expected: Expected) -> list[Record]:
        return expected.window(self.stream, self.start, None, None, reverse=False, system=self.system)


class Beside:
    """A reader that was opened while somebody writes, and how much it showed last."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self._shown = 0

    async def read(self) -> list[Record]:
        rows = await everything(self.log.read(system=True))
        assert len(rows) >= self._shown, "a reader shows less than it did"
        self._shown = len(rows)
        return rows
