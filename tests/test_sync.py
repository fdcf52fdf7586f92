"""The blocking face: what the asynchronous one does, for any number of threads."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import kimberlite.sync
from kimberlite import Busy, Closed, Conflict, Invalid, Record, Unavailable, UnknownOutcome
from kimberlite._native import decode_runs
from kimberlite.log import reading
from kimberlite.storage.memory import Disk, MemoryBackend
from kimberlite.sync import NEW, Database
from tests.log.simulated import failing

PACKAGE = Path(kimberlite.__file__).parents[1]
PATIENCE = 10

CALLS: dict[str, Callable[[Database], Any]] = {
    "append": lambda db: db.append("s", b"x"),
    "append_many": lambda db: db.append_many({"s": b"x"}),
    "read": lambda db: list(db.read("s")),
    "tail": lambda db: next(db.tail("s", start=0)),
    "get": lambda db: db.get(0),
    "get_many": lambda db: db.get_many([0]),
    "streams": lambda db: list(db.streams()),
    "info": lambda db: db.info(),
    "runs": lambda db: next(db.runs()),
}


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    with kimberlite.sync.open(tmp_path / "db", backend="threads", segment_bytes=1 << 20) as db:
        yield db


def soon(call: Callable[[], Any]) -> Any:
    """What a call gives in a thread of its own; a call that hangs fails the test and not the run."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert outcome, "it hangs"
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def test_every_call_does_what_the_asynchronous_one_does(db: Database) -> None:
    receipt = db.append("s", [b"0", Record(b"1", key=b"k")], expect=NEW, producer=("p", 0))
    assert (receipt.first_offset, receipt.last_offset, receipt.durable) == (0, 1, True)
    assert db.append("s", [b"0", Record(b"1", key=b"k")], producer=("p", 0)) == receipt
    many = db.append_many({"s": b"2", "t": b"0"}, expect={"s": 2}, sync="batch")
    assert many["s"].group == many["t"].group
    with pytest.raises(Conflict):
        db.append("s", b"x", expect=1)
    assert [r.payload for r in db.read("s")] == [b"0", b"1", b"2"]
    assert [r.payload for r in db.read("s", start=1, until=2)] == [b"1"]
    assert [r.payload for r in db.read("s", reverse=True, limit=1)] == [b"2"]
    assert [r.payload for r in db.read(start=datetime(1970, 1, 1, tzinfo=UTC), limit=2)] == [b"0", b"1"]
    assert [run.count(b"s") > 0 for run in db.runs("s")] == [True]
    assert list(db.runs("none")) == []
    assert [record.stream for record in db.read(system=True)].count("") == 2
    assert db.get(receipt.last_position).key == b"k"
    assert [r.payload for r in db.get_many(iter([2, 1]))] == [b"1", b"0"]
    assert [(s.name, s.length) for s in db.streams()] == [("s", 3), ("t", 1)]
    assert db.info()["records"] == db.durable_position == 6
    assert [[r.payload for r in batch] for batch in db.read("s").batches()] == [[b"0", b"1", b"2"]]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_every_call_after_the_close_says_closed(tmp_path: Path, call: Callable[[Database], Any]) -> None:
    db = kimberlite.sync.open(tmp_path / "db", backend="threads")
    db.append("s", b"x")
    db.close()
    db.close()
    with pytest.raises(Closed):
        soon(lambda: call(db))


def test_an_open_that_fails_leaves_no_thread(tmp_path: Path, db: Database) -> None:
    before = threading.active_count()
    with pytest.raises(Busy):
        kimberlite.sync.open(tmp_path / "db", backend="threads")
    with pytest.raises(Invalid):
        kimberlite.sync.open(tmp_path / "nothing", create=False)
    until = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() <= before
    assert db.append("s", b"x").durable


def test_eight_threads_share_a_handle_and_each_keeps_its_order(db: Database) -> None:
    def hammer(name: str) -> list[int]:
        offsets = []
        for i in range(60):
            offsets.append(db.append("shared", f"{name}{i}".encode()).first_offset)
            if i % 10 == 0:
                db.append(name, b"own", expect=i // 10)
                assert len(list(db.read(name))) == i // 10 + 1
                assert db.get(db.durable_position - 1) is not None
        return offsets

    with ThreadPoolExecutor(8) as pool:
        everyone = list(pool.map(hammer, "abcdefgh"))
    assert sorted(offset for offsets in everyone for offset in offsets) == list(range(480))
    assert all(offsets == sorted(offsets) for offsets in everyone)
    found = [record.payload.decode() for record in db.read("shared")]
    for name in "abcdefgh":
        assert [payload for payload in found if payload[0] == name] == [f"{name}{i}" for i in range(60)]


def test_a_tail_in_a_thread_gets_what_others_append(db: Database) -> None:
    tail = db.tail("s")
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(lambda: [next(tail).payload for _ in range(20)])
        for i in range(20):
            db.append("s", b"%d" % i)
        assert found.result(PATIENCE) == [b"%d" % i for i in range(20)]


def test_a_tail_that_is_closed_ends_for_whoever_waits_on_it(db: Database) -> None:
    tail = db.tail("s")
    waiting = ThreadPoolExecutor(1)
    ended = waiting.submit(lambda: list(tail))
    time.sleep(0.02)
    soon(tail.close)
    assert ended.result(PATIENCE) == []
    waiting.shutdown()


def test_a_read_may_be_left_and_closed_halfway(db: Database) -> None:
    for _ in range(5):
        db.append("s", [bytes(100)] * 4_000)
    reading = db.read("s")
    assert next(reading).offset == 0
    reading.close()
    reading.close()
    assert list(reading) == []
    abandoned = db.read("s")
    next(abandoned)
    del abandoned
    assert db.append("s", b"x").durable


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("live", [False, True], ids=["read", "tail"])
@pytest.mark.parametrize("batches", [False, True], ids=["records", "batches"])
def test_threads_that_share_an_iterator_share_its_records_out(db: Database, live: bool, batches: bool) -> None:
    shared = db.tail("s", start=0) if live else db.read("s")
    found: list[list[int]] = [[] for _ in range(5)]

    def work(mine: list[int]) -> None:
        if batches:
            for batch in shared.batches():
                mine.extend(record.offset for record in batch)
        else:
            mine.extend(record.offset for record in shared)

    def fill() -> None:
        for i in range(20):
            db.append("s", [bytes(100)] * (3_000 if i % 2 else 1))

    if not live:
        fill()
    with ThreadPoolExecutor(len(found)) as pool:
        workers = [pool.submit(work, mine) for mine in found]
        if live:
            fill()
            until = time.monotonic() + PATIENCE
            while sum(map(len, found)) < 30_010 and time.monotonic() < until:
                time.sleep(0.01)
            soon(shared.close)
        for worker in workers:
            worker.result(PATIENCE)
    assert sorted(offset for mine in found for offset in mine) == list(range(30_010))
    assert all(mine == sorted(mine) for mine in found)


@pytest.mark.usefixtures("restless")
def test_threads_that_share_runs_share_them_out(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "FIRST_BYTES", 1)
    monkeypatch.setattr(reading, "BATCH_BYTES", 1)
    for i in range(200):
        db.append("s", b"%d" % i)
    shared = db.runs("s")
    found: list[list[int]] = [[] for _ in range(5)]

    def work(mine: list[int]) -> None:
        for body in shared:
            mine.extend(
                offset for _, offset, _, batch in decode_runs(body) for offset in range(offset, offset + len(batch))
            )

    with ThreadPoolExecutor(len(found)) as pool:
        for worker in [pool.submit(work, mine) for mine in found]:
            worker.result(PATIENCE)
    assert sorted(offset for mine in found for offset in mine) == list(range(200))
    assert all(mine == sorted(mine) for mine in found)


def test_a_record_of_a_batch_costs_no_turn_of_the_loop(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    db.append("s", [b"x"] * 1_000)
    calls: list[Any] = []
    call: Any = db._call

    def counted(coroutine: Any) -> Any:
        calls.append(coroutine)
        return call(coroutine)

    monkeypatch.setattr(db, "_call", counted)
    assert len(list(db.read("s"))) == 1_000
    assert len(calls) == 2


def test_what_is_left_of_a_batch_is_a_batch(db: Database) -> None:
    db.append("s", [b"0", b"1", b"2"])
    reading = db.read("s")
    assert next(reading).payload == b"0"
    assert [[r.payload for r in batch] for batch in reading.batches()] == [[b"1", b"2"]]


def test_a_wait_that_was_interrupted_loses_nothing(db: Database) -> None:
    tail = db.tail("s")
    main = threading.main_thread().ident
    assert main is not None
    for i in range(3):
        interrupt = threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT))
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            next(tail)
        interrupt.join()
        db.append("s", b"%d" % i)
        assert soon(lambda: next(tail)).payload == b"%d" % i


def test_a_close_wakes_whoever_waits(tmp_path: Path) -> None:
    db = kimberlite.sync.open(tmp_path / "db", backend="threads")
    tail = db.tail("s")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: next(tail))
        time.sleep(0.02)
        soon(db.close)
        assert isinstance(waiting.exception(PATIENCE), Closed)


def test_threads_that_append_during_a_close_get_a_receipt_or_closed(tmp_path: Path) -> None:
    for turn in range(15):
        db = kimberlite.sync.open(tmp_path / f"db{turn}", backend="threads")

        def hammer(name: int, db: Database = db) -> int:
            for count in range(100_000):
                try:
                    db.append(f"s{name}", b"x")
                except Closed:
                    return count
            raise AssertionError("it was never closed")

        with ThreadPoolExecutor(6) as pool:
            counts = [pool.submit(hammer, i) for i in range(4)]
            time.sleep(0.003 * (turn % 4))
            closers = [pool.submit(soon, db.close), pool.submit(soon, db.close)]
            stored = [count.result(PATIENCE) for count in counts]
            for closer in closers:
                closer.result(PATIENCE)
        with kimberlite.sync.open(tmp_path / f"db{turn}", backend="threads") as again:
            found = {stream.name: stream.length for stream in again.streams()}
        assert [found.get(f"s{i}", 0) for i in range(4)] == stored


def test_records_may_come_from_a_read_of_the_same_database(db: Database) -> None:
    db.append("s", [b"0", b"1", b"2"])
    receipt = soon(lambda: db.append("copy", (record.payload for record in db.read("s"))))
    assert receipt.last_offset == 2
    receipts = soon(lambda: db.append_many({"more": (record.payload for record in db.read("s"))}))
    assert receipts["more"].last_offset == 2


def test_a_call_from_the_databases_own_thread_is_refused_and_not_for_ever(db: Database) -> None:
    async def call() -> None:
        db.append("s", b"x")

    with pytest.raises(Invalid, match="own thread"):
        soon(lambda: asyncio.run_coroutine_threadsafe(call(), db._loop).result(PATIENCE))
    assert db.append("s", b"x").durable


async def test_it_may_be_called_from_a_thread_that_runs_a_loop_of_its_own(db: Database) -> None:
    assert db.append("s", b"blocks this loop, and no more").durable
    assert await asyncio.to_thread(lambda: len(list(db.read("s")))) == 1


def test_a_dead_handle_says_so_and_can_be_closed() -> None:
    disk = Disk()
    fault = failing("submit", "segments/")
    backend = MemoryBackend(disk, None, lambda *asked: fault(*asked) if disk.holder and broken else None)
    broken: list[bool] = []
    db = kimberlite.sync.open("x", backend=backend)
    db.append("s", b"x")
    broken.append(True)
    with pytest.raises(UnknownOutcome):
        db.append("s", b"y")
    with pytest.raises(UnknownOutcome):
        db.info()
    with pytest.raises(UnknownOutcome):
        db.close()
    db.close()
    assert not db._thread.is_alive()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_is_refused_and_its_close_does_nothing(db: Database) -> None:
    db.append("s", b"x")
    child = os.fork()
    if child == 0:
        wrong = 99
        try:
            wrong = sum(not refused(call, db) for call in CALLS.values())
            db.close()
        finally:
            os._exit(wrong)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert db.append("s", b"y").first_offset == 1


def refused(call: Callable[[Database], Any], db: Database) -> bool:
    try:
        call(db)
    except Closed:
        return True
    return False


EXIT = """
import sys, threading, kimberlite.sync
db = kimberlite.sync.open(sys.argv[1], backend="threads")
for i in range(3):
    db.append("s", b"%d" % i)
tail = db.tail("s")
if sys.argv[2] == "waiting":
    threading.Thread(target=lambda: next(tail), daemon=True).start()
if sys.argv[2] == "raising":
    raise SystemExit(5)
"""


@pytest.mark.parametrize(("how", "status"), [("plain", 0), ("waiting", 0), ("raising", 5)])
def test_an_interpreter_may_end_without_a_close_and_loses_nothing(tmp_path: Path, how: str, status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", EXIT, tmp_path / "db", how],
        env=os.environ | {"PYTHONPATH": str(PACKAGE)},
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (status, b"")
    # In development mode the interpreter may say of the tasks it takes down that they were pending, and no more.
    told = done.stderr.decode()
    assert told == "" or (told.startswith("Task was destroyed but it is pending!") and "Exception" not in told)
    with kimberlite.sync.open(tmp_path / "db", backend="threads") as db:
        assert [record.payload for record in db.read("s")] == [b"0", b"1", b"2"]


AT_EXIT = """
import atexit, sys, kimberlite.sync
db = kimberlite.sync.open(sys.argv[1], backend="threads")
class Late:
    def __init__(self, db): self.db = db
    def __del__(self): self.db.close()
if sys.argv[2] == "atexit":
    atexit.register(db.close)
else:
    late = Late(db)
    del db
"""


@pytest.mark.parametrize(("how", "told"), [("atexit", ""), ("destructor", "the interpreter is ending")])
def test_a_close_while_the_interpreter_ends_works_or_says_why_not(tmp_path: Path, how: str, told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT, tmp_path / "db", how],
        env=os.environ | {"PYTHONPATH": str(PACKAGE)},
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0
    assert told in done.stderr.decode()
    assert told or not done.stderr
    kimberlite.sync.open(tmp_path / "db", backend="threads").close()


def test_a_child_that_lives_on_does_not_keep_the_directory_locked(tmp_path: Path) -> None:
    first = kimberlite.sync.open(tmp_path / "db", backend="threads")
    first.append("s", b"x")
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    try:
        first.close()
        with kimberlite.sync.open(tmp_path / "db", backend="threads") as again:
            assert again.append("s", b"y").first_offset == 1
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_handle_that_is_dropped_closes_itself_and_says_so(tmp_path: Path) -> None:
    held = [kimberlite.sync.open(tmp_path / "db", backend="threads")]
    held[0].append("s", b"x")
    with pytest.warns(ResourceWarning, match="without a close"):
        held.clear()
    with kimberlite.sync.open(tmp_path / "db", backend="threads") as again:
        assert again.append("s", b"y").first_offset == 1


def test_an_append_that_is_handed_over_is_made_though_its_caller_is_interrupted(tmp_path: Path) -> None:
    with kimberlite.sync.open(tmp_path / "db") as db:
        hand_over = db._loop.call_soon_threadsafe

        def interrupted(*arguments: Any) -> None:
            hand_over(*arguments)
            # The database's own threads hand over too.
            if threading.current_thread() is threading.main_thread():
                # It has begun when the caller is told.
                time.sleep(0.02)
                raise KeyboardInterrupt

        db._loop.call_soon_threadsafe = interrupted  # type: ignore[assignment,method-assign]
        with pytest.raises(KeyboardInterrupt):
            db.append("s", b"1")
        db._loop.call_soon_threadsafe = hand_over  # type: ignore[method-assign]
        db.append("s", b"2")
        assert [record.payload for record in db.read("s")] == [b"1", b"2"]


def test_what_is_no_mapping_or_sequence_is_invalid(tmp_path: Path) -> None:
    with kimberlite.sync.open(tmp_path / "db") as db:
        db.append("s", [b"1", b"2"])
        nothing: Any
        for nothing in (None, 5, [("a", b"1")]):
            with pytest.raises(Invalid):
                db.append_many(nothing)
        for nothing in (None, 5):
            with pytest.raises(Invalid):
                db.get_many(nothing)
        assert [record.payload for record in db.get_many(position for position in (2, 1))] == [b"2", b"1"]


def test_a_close_that_its_caller_is_interrupted_in_goes_on_and_can_be_waited_for_again(tmp_path: Path) -> None:
    db = kimberlite.sync.open(tmp_path / "db")
    db.append("s", b"1")
    committer = log_of(db)._committer
    assert committer is not None
    drain = committer.drain

    async def slow() -> None:
        await asyncio.sleep(2)
        await drain()

    committer.drain = slow  # type: ignore[method-assign]
    interrupt = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        db.close()
    interrupt.join()
    db.close()
    with kimberlite.sync.open(tmp_path / "db") as again:
        assert [record.payload for record in again.read("s")] == [b"1"]


def test_a_close_that_the_disk_complains_of_lets_everything_go_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = kimberlite.sync.open(tmp_path / "db", backend="threads")
    db.append("s", b"1")
    close, closed = os.close, []

    def complaining(fd: int) -> None:
        close(fd)
        closed.append(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("kimberlite.storage.files.os.close", complaining)
    with pytest.raises(Unavailable, match="with everything durable"):
        db.close()
    monkeypatch.undo()
    assert len(closed) > 3
    with kimberlite.sync.open(tmp_path / "db") as again:
        assert [record.payload for record in again.read("s")] == [b"1"]


def test_a_close_that_has_begun_is_its_own_loops(tmp_path: Path) -> None:
    with kimberlite.sync.open(tmp_path / "db") as db:
        log, begun = log_of(db), threading.Event()
        committer = log._committer
        assert committer is not None
        drain = committer.drain

        async def slow() -> None:
            begun.set()
            await asyncio.sleep(0.3)
            await drain()

        committer.drain = slow  # type: ignore[method-assign]
        closing = threading.Thread(target=db.close)
        closing.start()
        begun.wait()
        with pytest.raises(Invalid, match="another event loop"):
            asyncio.run(log.close())
        closing.join()


@pytest.mark.parametrize("thread", ["loop", "background"])
def test_a_handle_that_is_dropped_in_its_own_thread_closes_itself(tmp_path: Path, thread: str) -> None:
    """The collector runs anywhere."""
    held = [kimberlite.sync.open(tmp_path / "db", backend="threads")]
    held[0].append("s", b"x")
    loop, backend = held[0]._loop, log_of(held[0])._backend
    dropped = threading.Event()

    def drop() -> None:
        held.clear()
        dropped.set()

    def handed_over() -> bool:
        if thread == "loop":
            loop.call_soon_threadsafe(drop)
        else:
            asyncio.run_coroutine_threadsafe(backend.run(drop), loop)
        return dropped.wait(10)

    with pytest.warns(ResourceWarning, match="without a close"):
        assert handed_over()
    for _ in range(200):
        try:
            with kimberlite.sync.open(tmp_path / "db", backend="threads") as again:
                assert again.append("s", b"y").first_offset == 1
            return
        except Busy:
            time.sleep(0.02)
    pytest.fail("the directory was never let go")


def log_of(db: Database) -> kimberlite.Log:
    assert isinstance(db._log, kimberlite.Log)
    return db._log
