"""What is on its way at a time, and what an error leaves, wherever records are imported into."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kimberlite import Conflict, NoSpace, importing
from kimberlite.importing import Import


class Line:
    """Answers are in the test's hands."""

    def __init__(self) -> None:
        self.entered: list[tuple[Any, ...]] = []
        self.futures: list[asyncio.Future[None]] = []
        self.settled = 0

    async def enter(self, *what: Any) -> asyncio.Future[None]:
        self.entered.append(what)
        self.futures.append(asyncio.get_running_loop().create_future())
        return self.futures[-1]

    async def settle(self) -> None:
        self.settled += 1

    def into(self) -> Import:
        return Import(self.enter, self.settle, new_times=False)


async def test_nothing_enters_behind_what_was_refused_though_what_was_before_it_is_open() -> None:
    line = Line()
    into = line.into()
    await into.add("s", 0, 1, b"0")
    await into.add("s", 1, 1, b"1")
    line.futures[1].set_exception(NoSpace("there is no room"))
    adding = asyncio.create_task(into.add("s", 2, 1, b"2"))
    await asyncio.sleep(0)
    line.futures[0].set_result(None)
    with pytest.raises(NoSpace, match="'s', offset 1: there is no room"):
        await adding
    assert len(line.entered) == 2
    assert line.settled == 1


async def test_the_first_error_is_raised_and_what_is_behind_it_is_nobodys() -> None:
    line = Line()
    into = line.into()
    for offset in range(3):
        await into.add("s", offset, 1, b"x", of=f"line {offset}")
    line.futures[1].set_exception(Conflict("first"))
    line.futures[2].set_exception(Conflict("second"))
    line.futures[0].set_result(None)
    for _ in range(2):
        with pytest.raises(Conflict, match="line 1: first"):
            await into.finish()
    assert line.settled == 1


async def test_no_more_is_on_its_way_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "MOST_OPEN", 3)
    monkeypatch.setattr(importing, "MOST_BYTES", 1000)
    for size, most in ((10, 3), (400, 2), (5000, 1)):
        line = Line()
        into = line.into()

        async def add(into: Import, size: int) -> None:
            for offset in range(9):
                await into.add("s", offset, 1, bytes(size))
            await into.finish()

        adding = asyncio.create_task(add(into, size))
        for answered in range(9):
            for _ in range(5):
                await asyncio.sleep(0)
            assert len(line.entered) == min(9, answered + most)
            line.futures[answered].set_result(None)
        await adding
        assert line.settled == 1
