"""What a handle shows, a tail of it, and a reader beside it, held against the list."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterable
from contextlib import suppress
from typing import Any

from kimberlite import Closed, Dropped, Log, Record, StreamInfo, UnknownOutcome
from tests.log.expected import Expected, State


async def everything(records: AsyncIterable[Record]) -> list[Record]:
    return [record async for record in records]


async def check_handle(log: Log, expected: Expected, *, encrypted: bool) -> None:
    """It shows all that was acknowledged as durable, and all that it says of itself agrees with what it shows."""
    rows: list[Record] | None = None
    info: dict[str, Any] = {}
    while rows is None or not info["records"] == info["first_position"] + len(rows) == log.durable_position:
        # More may become durable while it is read, and while it says what it is.
        rows = await everything(log.read(system=True))
        info = await log.info()
    expected.observe(rows, info["first_position"])
    rows = expected.rows
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
        #: What it was told to go on with, if it came too late.
        self.dropped: int | None = None
        self._tail = log.tail(stream, start=start, system=system)
        self.task = asyncio.get_running_loop().create_task(self._collect())

    async def _collect(self) -> None:
        with suppress(Closed, UnknownOutcome):
            try:
                async for record in self._tail:
                    self.found.append(record)
            except Dropped as error:
                self.dropped = error.first

    def window(self, expected: Expected) -> list[Record]:
        """All since it began, what was dropped meanwhile too."""
        return [row for row in expected.of_stream(self.stream)[self.start :] if self.system or row.stream]

    def check(self, expected: Expected, least: int) -> None:
        shown = self.window(expected)
        assert self.found == shown[: len(self.found)]
        if self.dropped is None:
            assert len(self.found) >= least, f"a tail of {self.stream} lags behind"
            return
        first = expected.first_of(self.stream)
        assert self.start < self.dropped <= first, (
            f"a tail from {self.start} on is told {self.dropped}, and not {first}"
        )
        assert len(self.found) == len(shown) or self._place(shown[len(self.found)]) < self.dropped

    def _place(self, record: Record) -> int:
        return record.position if self.stream is None else record.offset


class Beside:
    """A reader that was opened while somebody writes, and how much it showed last."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.rows: list[Record] = []
        self.first = 0

    @property
    def shown(self) -> int:
        return self.first + len(self.rows)

    async def read(self) -> None:
        """What was dropped is shown no more once that was seen."""
        first, shown = self.first, self.shown
        try:
            self.rows = await everything(self.log.read(system=True))
        except Dropped:
            # It looked before the writer dropped it, and looks again.
            self.rows = await everything(self.log.read(system=True))
        self.first = self.rows[0].position if self.rows else first
        assert self.first >= first, "a reader shows what it knew to be dropped"
        assert self.shown >= shown, "a reader shows less than it did"

    def check(self, expected: Expected) -> None:
        assert self.first <= expected.first, "a reader has dropped what the writer has not"
        there = expected.rows[self.first : self.shown]
        assert self.rows == there, "a reader beside the writer shows what the writer does not"
