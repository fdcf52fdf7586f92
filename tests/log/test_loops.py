"""The same behaviour on every event loop: the plain one, in its debug mode, and uvloop. Nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import kimberlite
from kimberlite import Closed, Conflict, Receipt, UnknownOutcome
from kimberlite.crypto.master import create_master
from kimberlite.log.opening import Opening
from kimberlite.storage.backend import File
from tests.log.simulated import Machine, failing, payloads

Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]
Open = Callable[..., Opening]


@pytest.fixture(params=["plain", "debug", "uvloop"])
def run(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Run:
    """Runs a scenario, and fails if the loop had anything to complain of, then or when all is collected."""
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if request.param == "uvloop":
        factory = pytest.importorskip("uvloop", reason="uvloop is not installed").new_event_loop

    def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with asyncio.Runner(debug=request.param == "debug", loop_factory=factory) as runner:
            loop = runner.get_loop()
            loop.slow_callback_duration = 60
            runner.run(scenario())
            left = asyncio.all_tasks(loop) | {each for each in every_task(loop) if not each.done()}
        gc.collect()
        assert not left
        assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []

    return run


def every_task(loop: asyncio.AbstractEventLoop) -> list[asyncio.Task[Any]]:
    """Also those that it does not know of."""
    return [each for each in gc.get_objects() if isinstance(each, asyncio.Task) and each.get_loop() is loop]


@pytest.fixture(params=["threads", "uring"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    create_master(tmp_path / "key")

    def again(**settings: Any) -> Opening:
        wanted = {"backend": request.param, "segment_bytes": 256 * 1024, "key_file": tmp_path / "key", **settings}
        return kimberlite.open(tmp_path / "db", **wanted)

    return again


def test_a_life_of_appends_reads_tails_rotations_and_readers(run: Run, opened: Open) -> None:
    async def scenario() -> None:
        async with opened() as db:
            tail = db.tail()
            following = asyncio.ensure_future(collected(lambda: anext(tail), 400))
            for i in range(10):
                await asyncio.gather(*(db.append(f"s{j}", [b"%d" % i * 700] * 4) for j in range(10)))
            assert len({record.position for record in await asyncio.wait_for(following, 10)}) == 400
            assert (await db.info())["segments"] > 1
            async with opened(read_only=True) as reader:
                # The end of the log is shown once a later group or a mark says that it is durable.
                for _ in range(1000):
                    if (await reader.info())["records"] == db.durable_position:
                        break
                    await asyncio.sleep(0.01)
                shown = reader.tail("s1")
                waiting = asyncio.ensure_future(anext(shown))
                await db.append("s1", b"seen")
                assert (await asyncio.wait_for(waiting, 10)).payload == b"seen"
                with pytest.raises(Conflict):
                    await db.append("s1", b"x", expect=1)
        async with opened() as db:
            assert len(await payloads(db.read())) == 401
            half = db.read("s3")
            await anext(half)

    run(scenario)


async def collected(call: Callable[[], Awaitable[Any]], count: int) -> list[Any]:
    return [await call() for _ in range(count)]


def test_cancelled_appends_tails_and_a_close_in_the_middle(run: Run, opened: Open) -> None:
    async def scenario() -> None:
        db = await opened()
        await db.append("s", b"x")
        tail = asyncio.ensure_future(anext(db.tail("s")))
        appends = [asyncio.ensure_future(db.append(f"s{i % 5}", bytes(2_000))) for i in range(60)]
        await asyncio.sleep(0)
        for append in appends[::7]:
            append.cancel()
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(db.close())
        outcomes = await asyncio.wait_for(asyncio.gather(*appends, return_exceptions=True), 10)
        await closing
        assert {type(outcome) for outcome in outcomes} == {Receipt, asyncio.CancelledError}
        with pytest.raises(Closed):
            await tail
        stored = [outcome for outcome in outcomes if isinstance(outcome, Receipt)]
        async with opened(anchor=max(stored, key=lambda receipt: receipt.tree_size)) as db:
            assert len(await payloads(db.read())) >= 1 + len(stored)

    run(scenario)


@pytest.mark.parametrize("verb", ["submit", "submit_sync", "sync", "allocate", "rename", "truncate"])
def test_a_disk_that_fails_leaves_no_task_and_no_error_that_nobody_took(run: Run, verb: str) -> None:
    async def scenario() -> None:
        machine = Machine()
        db = await machine.open(segment_bytes=64 * 1024, pool_bytes=50_000)
        await db.append("s", b"x")
        tail = asyncio.ensure_future(anext(db.tail("s")))
        machine.fault = failing(verb, "segments/")
        if verb in ("allocate", "rename"):
            machine.fault = failing(verb, "prepare/")
        await asyncio.sleep(0)
        appends = (db.append("s", bytes(9_000), sync="os" if i % 3 else None) for i in range(20))
        outcomes = await asyncio.wait_for(asyncio.gather(*appends, return_exceptions=True), 10)
        assert all(isinstance(outcome, Receipt | kimberlite.KimberliteError) for outcome in outcomes)
        machine.fault = None
        try:
            await asyncio.wait_for(db.close(), 10)
        except UnknownOutcome:
            assert verb != "allocate"
        await asyncio.wait([tail])
        assert not tail.cancelled()
        tail.exception()
        async with machine.open(segment_bytes=64 * 1024) as db:
            await db.append("s", b"more")
        machine.verify()

    run(scenario)


def test_an_open_that_fails_or_is_cancelled_leaves_nothing(run: Run, opened: Open) -> None:
    async def attempt() -> Any:
        return await opened()

    async def scenario() -> None:
        for turns in range(3):
            opening = asyncio.ensure_future(attempt())
            for _ in range(turns):
                await asyncio.sleep(0)
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
        async with opened():
            with pytest.raises(kimberlite.Busy):
                await opened()
        with pytest.raises(kimberlite.KeyUnavailable):
            await opened(key_file=None)

    run(scenario)


def test_a_program_that_cancels_all_tasks_stops_nothing_of_the_database(run: Run, opened: Open) -> None:
    acknowledged: list[Receipt] = []

    async def scenario() -> None:
        for _ in range(3):
            async with opened(segment_bytes=64 * 1024) as db:

                async def append_for_ever(number: int, db: kimberlite.Log = db) -> None:
                    for i in itertools.count():
                        receipt = await db.append(f"s{number}/{i}", [bytes(4_000)] * 2)
                        acknowledged.append(receipt)

                tasks = [asyncio.ensure_future(append_for_ever(number)) for number in range(4)]
                assert db._committer is not None
                while not db._committer.rotating:  # noqa: ASYNC110 (nothing else is told of it)
                    await asyncio.sleep(0)
                for task in asyncio.all_tasks() - {asyncio.current_task()}:
                    task.cancel()
                ends = await asyncio.gather(*tasks, return_exceptions=True)
                assert all(isinstance(end, asyncio.CancelledError) for end in ends)
                for _ in range(12):
                    receipt = await db.append("last", bytes(4_000))
                    acknowledged.append(receipt)
        async with opened(read_only=True) as db:
            lengths = {stream.name: stream.length for stream in db.streams()}
        assert all(lengths[receipt.stream] > receipt.last_offset for receipt in acknowledged)

    run(scenario)


def test_a_database_in_a_task_that_outlives_the_program_is_closed(opened: Open) -> None:
    async def hold(begun: asyncio.Event) -> None:
        async with opened() as db:
            await db.append("s", b"x")
            begun.set()
            await asyncio.Event().wait()

    async def program() -> None:
        begun = asyncio.Event()
        held.append(asyncio.ensure_future(hold(begun)))
        await begun.wait()

    held: list[asyncio.Future[None]] = []
    for _ in range(2):
        asyncio.run(program())
        assert held.pop().cancelled()


def test_a_close_that_is_cancelled_is_made_to_its_end(run: Run, opened: Open) -> None:
    async def scenario() -> None:
        for turns in range(4):
            db = await opened()
            appending = [asyncio.ensure_future(db.append("s", bytes(9_000))) for _ in range(20)]
            await asyncio.sleep(0)
            closing = asyncio.ensure_future(db.close())
            for _ in range(turns + 1):
                await asyncio.sleep(0)
            for _ in range(turns):
                closing.cancel()
                await asyncio.sleep(0)
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
            assert all(task.done() for task in appending)
            async with opened() as again:
                assert len(await payloads(again.read("s"))) == 20 * (turns + 1)

    run(scenario)


class Interrupted(BaseException):
    """As a program's handler of a signal may raise it anywhere."""


@pytest.mark.parametrize("what", ["prepare", "key", "checkpoint"])
def test_an_interrupt_in_the_databases_own_tasks_ends_the_handle_and_costs_nothing(
    run: Run, opened: Open, what: str
) -> None:
    """A thread may still be at what was interrupted: nothing may be written beside it."""
    acknowledged: list[Receipt] = []

    async def scenario() -> None:
        db = await opened(segment_bytes=64 * 1024)
        assert db._committer is not None
        assert db._streams is not None
        backend_run, slow = db._backend.run, threading.Event()
        named = {"prepare": "kimberlite-prepare", "key": "kimberlite-streams", "checkpoint": "kimberlite-checkpoint"}
        ended: list[asyncio.Task[Any]] = []

        async def interrupted(call: Callable[[], Any]) -> Any:
            task = asyncio.current_task()
            if task is None or task.get_name() != named[what] or ended:
                return await backend_run(call)

            def late() -> None:
                slow.wait(0.3)
                call()

            ended.append(task)
            asyncio.get_running_loop().create_task(backend_run(late))
            await asyncio.sleep(0)
            raise Interrupted

        db._backend.run = interrupted  # type: ignore[method-assign]

        async def append_all() -> None:
            for i in range(200):
                receipt = await asyncio.wait_for(db.append(f"s{i}", bytes(4_000)), 30)
                acknowledged.append(receipt)
                await asyncio.sleep(0.002)

        with pytest.raises(UnknownOutcome):
            await append_all()
        with pytest.raises(UnknownOutcome):
            await db.append("new", b"x")
        with pytest.raises(UnknownOutcome):
            await asyncio.wait_for(db.close(), 30)
        # Whether it goes on is the loop's own affair.
        with pytest.raises(Interrupted):
            await ended[0]
        async with opened() as db:
            lengths = {stream.name: stream.length for stream in db.streams()}
            assert all(lengths[receipt.stream] > receipt.last_offset for receipt in acknowledged)
            assert len(await payloads(db.read())) == sum(lengths.values())

    run(scenario)


def test_an_interrupt_while_a_key_is_made_ends_the_handle_and_not_the_wait_for_ever(run: Run, opened: Open) -> None:
    async def scenario() -> None:
        db = await opened()
        assert db._streams is not None
        receipt = await db.append("s", b"1")
        assert db._streams._keyring is not None
        vault = db._streams._keyring.vault

        def interrupted(*_: object) -> bytes:
            raise Interrupted

        vault.add = interrupted  # type: ignore[assignment,method-assign]
        for stream in ("t", "u"):
            with pytest.raises(UnknownOutcome):
                await asyncio.wait_for(db.append(stream, b"2"), 30)
        with pytest.raises(UnknownOutcome):
            await asyncio.wait_for(db.close(), 30)
        async with opened(anchor=receipt) as db:
            assert [stream.name for stream in db.streams()] == ["s"]

    run(scenario)


@pytest.mark.parametrize("error", [Interrupted, MemoryError])
def test_a_close_that_is_interrupted_lets_the_directory_go_and_answers_everybody_once(
    run: Run, opened: Open, error: type[BaseException]
) -> None:
    async def scenario() -> None:
        db = await opened()
        await db.append("s", b"1")
        committer = db._committer
        assert committer is not None
        drain = committer.drain

        async def interrupted() -> None:
            committer.drain = drain  # type: ignore[method-assign]
            raise error

        committer.drain = interrupted  # type: ignore[method-assign]
        waiting = [asyncio.ensure_future(db.append("s", b"2")) for _ in range(300)]
        await asyncio.sleep(0)
        for _ in range(3):
            with pytest.raises(UnknownOutcome, match=error.__name__):
                await db.close()
        outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 30)
        assert {type(outcome) for outcome in outcomes} <= {Receipt, UnknownOutcome}
        async with opened() as db:
            assert len(await payloads(db.read())) >= 1 + sum(type(outcome) is Receipt for outcome in outcomes)

    run(scenario)


def test_a_poisoned_handle_that_is_being_marked_clean_says_so(run: Run, opened: Open) -> None:
    async def scenario() -> None:
        db = await opened()
        await db.append("s", b"1")
        committer = db._committer
        assert committer is not None
        submit = committer.backend.submit

        def late(file: File, place: int, buffer: Any, durable: bool, done: Callable[[OSError | None], None]) -> None:
            def heard(error: OSError | None) -> None:
                committer.poison(Interrupted())
                asyncio.get_running_loop().call_soon(done, error)

            submit(file, place, buffer, durable, heard)

        await db.append("s", b"2")
        await committer.drain()
        committer.backend.submit = late  # type: ignore[method-assign]
        for _ in range(2):
            with pytest.raises(UnknownOutcome):
                await db.close()

    run(scenario)


def test_whoever_waits_for_a_key_when_a_close_is_interrupted_is_told(run: Run, opened: Open) -> None:
    async def scenario() -> None:
        db = await opened()
        await db.append("s", b"1")
        committer = db._committer
        assert committer is not None
        backend_run, slow = db._backend.run, threading.Event()

        async def late(call: Callable[[], Any]) -> Any:
            await backend_run(lambda: slow.wait(0.2))
            return await backend_run(call)

        async def interrupted() -> None:
            raise Interrupted

        db._backend.run = late  # type: ignore[method-assign]
        waiting = [asyncio.ensure_future(db.append("t", b"2"))]
        await asyncio.sleep(0)
        waiting += [asyncio.ensure_future(db.append(f"u{i}", b"2")) for i in range(3)]
        await asyncio.sleep(0)
        streams = db._streams
        assert streams is not None
        streams.drain = interrupted  # type: ignore[method-assign]
        with pytest.raises(UnknownOutcome):
            await db.close()
        outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 30)
        assert {type(outcome) for outcome in outcomes} == {UnknownOutcome}
        await asyncio.sleep(0.5)
        async with opened() as db:
            assert await payloads(db.read()) == [b"1"]

    run(scenario)
