"""Iterators over records that come in batches."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Generic, Self, TypeVar

from kimberlite.records import Record

T = TypeVar("T")


class Listing(Generic[T]):
    """What is at hand, for loops of either kind."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items = iter(items)

    def __iter__(self) -> Iterator[T]:
        return self._items

    def __next__(self) -> T:
        return next(self._items)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        for item in self._items:
            return item
        raise StopAsyncIteration


class Batched(Generic[T]):
    """An async iterator of what comes in batches; `batches()` gives these, for speed.

    A wait for more that is cancelled loses nothing, and tasks that share an iterator share out what comes.
    """

    def __init__(self) -> None:
        self._batch: list[T] = []
        self._next = 0
        #: Held by whoever gets the next batch.
        self._turn = asyncio.Lock()

    async def _more(self) -> list[T]:
        """What comes next; nothing at the end. Nothing has moved on if it is cancelled."""
        raise NotImplementedError

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while self._next >= len(self._batch):
            async with self._turn:
                if self._next >= len(self._batch):
                    self._batch, self._next = await self._more(), 0
                    if not self._batch:
                        raise StopAsyncIteration
        item = self._batch[self._next]
        self._next += 1
        return item

    def batches(self) -> Batches[T]:
        """As lists of up to some thousands."""
        return Batches(self)

    async def _take(self) -> list[T]:
        async with self._turn:
            rest, self._batch, self._next = self._batch[self._next :], [], 0
            return rest or await self._more()

    async def aclose(self) -> None:
        self._batch = []


class Records(Batched[Record]):
    """An async iterator of records."""


class Batches(Generic[T]):
    """An async iterator of lists."""

    def __init__(self, batched: Batched[T]) -> None:
        self._batched = batched

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[T]:
        batch = await self._batched._take()
        if not batch:
            raise StopAsyncIteration
        return batch

    async def aclose(self) -> None:
        await self._batched.aclose()
