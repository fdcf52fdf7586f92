"""Blocking calls off the loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from kimberlite.storage.background import Background


async def test_calls_overlap_up_to_the_number_of_threads_and_the_others_wait() -> None:
    background, barrier = Background(2), threading.Barrier(2, timeout=10)
    names = await asyncio.gather(
        *(background.run(lambda: (barrier.wait(), threading.current_thread().name)[1]) for _ in range(6))
    )
    background.close()
    assert len(names) == 6
    assert set(names) == {"kimberlite-background"}
    assert not [t for t in threading.enumerate() if t.name == "kimberlite-background"]


async def test_one_thread_does_one_call_after_another_in_their_order() -> None:
    background = Background(1)
    done: list[int] = []
    await asyncio.gather(*(background.run(lambda i=i: done.append(i)) for i in range(50)))  # type: ignore[misc]
    background.close()
    assert done == list(range(50))


async def test_an_error_comes_to_whoever_called() -> None:
    background = Background(1)

    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await background.run(fail)
    assert await background.run(lambda: 7) == 7
    background.close()


async def test_a_call_that_was_cancelled_before_it_began_is_not_made() -> None:
    background, go, made = Background(1), threading.Event(), list[int]()
    first = asyncio.ensure_future(background.run(go.wait))
    second = asyncio.ensure_future(background.run(lambda: made.append(2)))
    third = asyncio.ensure_future(background.run(lambda: made.append(3)))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.sleep(0)
    go.set()
    await asyncio.gather(first, third)
    background.close()
    assert made == [3]


async def test_close_waits_for_what_was_asked_for() -> None:
    background, done = Background(2), list[int]()
    waiting = [asyncio.ensure_future(background.run(lambda i=i: done.append(i))) for i in range(20)]  # type: ignore[misc]
    await asyncio.sleep(0)
    background.close()
    assert sorted(done) == list(range(20))
    await asyncio.gather(*waiting)


def test_a_loop_that_ends_before_its_call_does_is_no_fault_of_the_next() -> None:
    background, go = Background(1), threading.Event()

    async def left() -> None:
        asyncio.ensure_future(background.run(go.wait))  # noqa: RUF006
        await asyncio.sleep(0)

    asyncio.run(left())
    go.set()
    assert asyncio.run(background.run(lambda: 5)) == 5
    background.close()
