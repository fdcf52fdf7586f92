"""From the pool to the disk to the receipts: policies, order, marks, a full disk and a failing one."""

from __future__ import annotations

import asyncio
import errno
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from kimberlite import Closed, LimitExceeded, Log, NoSpace, Receipt, Record, UnknownOutcome
from kimberlite._native import RECORD_HEADER
from kimberlite.log import committer
from kimberlite.log.committer import Committer
from kimberlite.log.creation import read_small
from kimberlite.log.identity import Identity
from kimberlite.log.marks import Mark, decode_marks
from kimberlite.log.names import IDENTITY, MARKS
from kimberlite.storage.backend import Done, File
from kimberlite.storage.memory import MemoryBackend
from tests.log import simulated
from tests.log.simulated import Machine, failing, payloads
from tests.model import read_log

if TYPE_CHECKING:
    from typing_extensions import Buffer

SEGMENT = "segments/00000000000000000000.seg"


def newest_mark(machine: Machine) -> Mark:
    backend = MemoryBackend(machine.disk)
    identity = Identity.decode(read_small(backend, IDENTITY) or b"")
    return decode_marks(read_small(backend, MARKS) or b"", identity.database_id, identity.hash).newest


async def until(holds: Callable[[], bool]) -> None:
    async def condition() -> bool:
        return holds()

    await simulated.until(condition)


async def test_a_segment_ends_before_its_index_cannot_count_its_records(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "MOST_RECORDS", 60_000)
    async with machine.open(segment_bytes=1 << 20, compression=1, pack=0) as db:
        for _ in range(40):
            await db.append("s", [b""] * 1000)
        assert await payloads(db.read("s")) == [b""] * 40_000
    assert machine.verify().notes == []
    segments = Counter[int]()
    for group in read_log(machine.disk.files()).groups:
        segments[group.segment] += group.records
    # A group of the smallest records that fills a segment would still have had room.
    assert max(segments.values()) <= 60_000 - (1 << 20) // RECORD_HEADER + 1001
    assert len(segments) == 4


# ---- policies


async def test_group_shares_groups_batch_and_record_do_not(machine: Machine) -> None:
    async with machine.open() as db:
        await db.append("s", b"first")
        shared = await asyncio.gather(*(db.append("s", b"x", sync="group") for _ in range(20)))
        alone = await asyncio.gather(*(db.append("s", b"x", sync="batch") for _ in range(5)))
        single = await db.append("s", [b"x"] * 5, sync="record")
        info = await db.info()
    assert machine.forge(single) == single
    assert len({receipt.group for receipt in shared}) <= 3
    assert len({receipt.group for receipt in alone}) == 5
    assert info["group"] == alone[-1].group + 5
    assert (single.first_offset, single.last_offset) == (alone[-1].last_offset + 1, alone[-1].last_offset + 5)


class Moving:
    """A sequence that is another one each time that it is read."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[bytes | Record]:
        self.read += 1
        return iter([Record(b"%d" % self.read, headers=iter([("a", b"1")])), b"last"])


async def test_records_with_a_sync_each_are_read_once(machine: Machine) -> None:
    async with machine.open() as db:
        await db.append("s", Moving(), sync="record")
        assert [(r.payload, r.headers) async for r in db.read("s")] == [(b"1", (("a", b"1"),)), (b"last", ())]


@pytest.mark.parametrize("records", [[b"a", b"b", bytes(100_000), b"c"], [b""] * 65_537, [bytes(9_000)] * 2_000])
async def test_records_with_a_sync_each_of_which_one_is_beyond_a_limit_are_all_refused(
    either: Machine, records: list[bytes]
) -> None:
    async with either.open(segment_bytes=64 * 1024) as db:
        with pytest.raises(LimitExceeded):
            await db.append("s", records, sync="record")
        await db.append("t", b"x")
        assert [stream.name for stream in db.streams()] == ["t"]


async def test_records_with_a_sync_each_stay_appended_before_one_that_finds_no_room(machine: Machine) -> None:
    async with machine.open(segment_bytes=64 * 1024) as db:
        machine.fault = failing("open", "prepare/", errno.ENOSPC)
        with pytest.raises(NoSpace, match="this is record 4 of 6, and those before it are appended"):
            await db.append("s", [bytes(15_000)] * 6, sync="record")
        machine.fault = None
        assert (await db.append("s", b"room")).first_offset == 3
    machine.verify()


async def test_records_with_a_sync_each_stay_appended_before_one_whose_write_fails(machine: Machine) -> None:
    db = await machine.open(depth=1)
    await db.append("s", b"0")
    writes = iter([None, None, OSError(errno.EIO, "broken")])
    machine.fault = lambda verb, name, *_: next(writes, None) if (verb, name[:9]) == ("submit", "segments/") else None
    with pytest.raises(UnknownOutcome, match="this is record 3 of 5, and those before it are appended"):
        await db.append("s", [b"1", b"2", b"3", b"4", b"5"], sync="record")
    with pytest.raises(UnknownOutcome):
        await db.close()
    machine.fault = None
    machine.kill()
    async with machine.open() as db:
        assert (await payloads(db.read("s")))[:3] == [b"0", b"1", b"2"]


@pytest.mark.parametrize("depth", [1, 3, 8])
@pytest.mark.parametrize("policies", [("batch",), ("group",), ("os", "batch")])
async def test_no_more_groups_are_awaited_than_the_depth(
    either: Machine, depth: int, policies: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    seal, most = Committer._seal, 0

    def counted(self: Committer, *arguments: Any, **options: Any) -> Any:
        nonlocal most
        flight = seal(self, *arguments, **options)
        most = max(most, sum(flight.durable for flight in self._flights))
        return flight

    monkeypatch.setattr(Committer, "_seal", counted)
    async with either.open(depth=depth, group_bytes=1, backend=either.backend(Random(depth))) as db:

        async def append(task: int) -> None:
            for i in range(12):
                await db.append(f"s{task % 5}", bytes(5_000), sync=policies[(task + i) % len(policies)])

        await asyncio.gather(*(append(task) for task in range(20)))
    assert most == depth


async def test_the_policy_of_the_handle_holds_where_an_append_names_none(machine: Machine) -> None:
    async with machine.open(sync="os") as db:
        assert not (await db.append("s", b"x")).durable
        assert (await db.append("s", b"x", sync="batch")).durable


async def test_a_durable_receipt_comes_when_its_group_and_all_before_it_are_on_the_disk(either: Machine) -> None:
    async with either.open(depth=8, group_bytes=1, backend=either.backend(Random(5))) as db:

        async def append(i: int) -> None:
            receipt = await db.append("s", bytes([i]) * 3_000, sync="os" if i % 3 == 0 else "group")
            if receipt.durable:
                cut = Machine(either.key)
                cut.disk = either.disk.crash(Random(i))
                async with cut.open() as after:
                    assert after.durable_position > receipt.last_position

        await asyncio.gather(*(append(i) for i in range(24)))


async def test_at_most_depth_groups_are_in_flight(machine: Machine) -> None:
    for depth in (1, 3):
        machine = Machine()
        async with machine.open(depth=depth, group_bytes=1) as db:
            await db.append("s", b"x")
            machine.disk.trace = []
            await asyncio.gather(*(db.append("s", bytes(4_000), sync="batch") for _ in range(12)))
            verbs = [verb for verb, name, *_ in machine.disk.trace if name == SEGMENT and verb in ("submit", "durable")]
        flying = most = 0
        for verb in verbs:
            flying += 1 if verb == "submit" else -1
            most = max(most, flying)
        assert most == depth


async def test_os_records_are_hidden_until_they_are_synced_and_synced_when_idle(machine: Machine) -> None:
    async with machine.open(idle=0.02) as db:
        receipt = await db.append("s", b"soon", sync="os")
        assert not receipt.durable
        assert db.durable_position == 0
        assert await payloads(db.read("s")) == []
        await until(lambda: db.durable_position == 2)
        assert await payloads(db.read("s")) == [b"soon"]


async def test_os_records_are_synced_after_a_second_of_a_log_that_is_never_idle(machine: Machine) -> None:
    async with machine.open(idle=1, segment_bytes=4 << 20) as db:
        await db.append("s", b"soon", sync="os")
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while db.durable_position == 0 and loop.time() < begun + 3:
            await asyncio.sleep(0.02)
            last = await db.append("s", b"more", sync="os")
        assert 0.8 < loop.time() - begun < 2.5
        assert last.last_position >= db.durable_position - 1


async def test_what_an_os_append_loses_in_a_cut_is_a_suffix(machine: Machine) -> None:
    async with machine.open(idle=1) as db:
        await db.append("s", b"0")
        for i in range(1, 6):
            await db.append("s", b"%d" % i, sync="os")
        machine.kill()
        machine.cut()
    async with machine.open() as db:
        found = await payloads(db.read("s"))
        assert found == [b"%d" % i for i in range(len(found))]
        assert found[:1] == [b"0"]


async def test_max_delay_gathers_into_one_group_and_is_no_longer_than_it_says(machine: Machine) -> None:
    async with machine.open(max_delay=0.05) as db:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        first = asyncio.ensure_future(db.append("s", b"x"))
        await asyncio.sleep(0.01)
        second = await db.append("s", b"y")
        assert 0.045 < loop.time() - begun < 1
        assert (await first).group == second.group


async def test_a_close_waits_for_appends_that_wait_for_the_pool(machine: Machine) -> None:
    db = await machine.open(pool_bytes=3_000)
    appends = [asyncio.ensure_future(db.append("s", bytes(1_500))) for _ in range(12)]
    await asyncio.sleep(0)
    await asyncio.wait_for(db.close(), 5)
    assert [(await append).first_offset for append in appends] == list(range(12))
    assert machine.verify().records == 13


async def test_appends_beyond_the_pool_wait_and_are_all_answered(machine: Machine) -> None:
    async with machine.open(pool_bytes=10_000, segment_bytes=256 * 1024) as db:
        appends = [asyncio.ensure_future(db.append("s", bytes(3_000))) for _ in range(60)]
        await asyncio.sleep(0)
        for victim in appends[20:25]:
            victim.cancel()
        outcomes = await asyncio.gather(*appends, return_exceptions=True)
        stored = [outcome.first_offset for outcome in outcomes if isinstance(outcome, Receipt)]
        assert stored == sorted(stored)
        assert len(stored) == 55


# ---- marks


async def test_a_mark_covers_the_last_group_after_a_while_without_work(machine: Machine) -> None:
    async with machine.open() as db:
        for _ in range(3):
            receipt = await db.append("s", b"x")
            await until(lambda group=receipt.group: newest_mark(machine).group == group)  # type: ignore[misc]
            assert newest_mark(machine).chain == receipt.chain
            assert not newest_mark(machine).clean


async def test_idling_writes_one_mark_and_no_more(machine: Machine) -> None:
    async with machine.open() as db:
        receipt = await db.append("s", b"x")
        await until(lambda: newest_mark(machine).group == receipt.group)
        counter = newest_mark(machine).counter
        await asyncio.sleep(0.02)
        assert newest_mark(machine).counter == counter


async def test_a_clean_close_writes_both_marks_clean(machine: Machine) -> None:
    async with machine.open() as db:
        receipt = await db.append("s", b"x")
    image = machine.disk.files()[MARKS]
    identity = Identity.decode(machine.disk.files()[IDENTITY])
    for kept, lost in ((slice(0, 4096), 0), (slice(4096, 8192), 1)):
        block = image[kept]
        pair = block + bytes(4096) if lost == 0 else bytes(4096) + block
        mark = decode_marks(pair, identity.database_id, identity.hash).newest
        assert (mark.clean, mark.group, mark.chain) == (True, receipt.group, receipt.chain)


class SlowMarks(MemoryBackend):
    """A disk that keeps the watermarks' file waiting until it is told."""

    held: list[Callable[[], None]] | None = None

    def submit(self, file: File, place: int, buffer: Buffer, durable: bool, done: Done) -> None:
        def go() -> None:
            MemoryBackend.submit(self, file, place, buffer, durable, done)

        if file.name == MARKS and self.held is not None:
            self.held.append(go)
        else:
            go()


async def test_what_became_durable_while_a_mark_was_written_gets_a_mark_too(machine: Machine) -> None:
    backend = SlowMarks(machine.disk)
    async with machine.open(backend=backend) as db:
        held: list[Callable[[], None]] = []
        backend.held = held
        await db.append("s", b"x")
        await until(lambda: len(held) == 1)
        last = await db.append("s", b"y")
        await asyncio.sleep(0.01)
        backend.held = None
        held[0]()
        await until(lambda: newest_mark(machine).group == last.group)


async def test_a_mark_that_cannot_be_written_kills_the_handle(machine: Machine) -> None:
    db = await machine.open()
    machine.fault = failing("submit", MARKS)
    assert (await db.append("s", b"x")).durable
    await until(lambda: db._committer is not None and db._committer.poisoned is not None)
    with pytest.raises(UnknownOutcome):
        await db.append("s", b"y")
    with pytest.raises(UnknownOutcome):
        await db.close()


# ---- a failing disk


async def dead(machine: Machine, verb: str) -> tuple[Log, list[BaseException | Receipt]]:
    """A handle with an acknowledged record, and what eight appends got while the disk failed."""
    db = await machine.open(depth=2, group_bytes=1)
    await db.append("s", b"kept")
    await db.append("late", b"kept", sync="os")
    machine.fault = failing(verb, "segments/")
    appends = (db.append(f"s{i % 2}", bytes(3_000), sync="os" if i == 5 else None) for i in range(8))
    outcomes = await asyncio.wait_for(asyncio.gather(*appends, return_exceptions=True), 5)
    machine.fault = None
    return db, outcomes


@pytest.mark.parametrize("verb", ["submit", "submit_sync"])
async def test_after_a_failed_write_everybody_waiting_is_told_that_the_outcome_is_unknown(
    either: Machine, verb: str
) -> None:
    db, outcomes = await dead(either, verb)
    assert [type(o) for o in outcomes if not (isinstance(o, Receipt) and not o.durable)] == [UnknownOutcome] * (
        8 - sum(isinstance(o, Receipt) for o in outcomes)
    )
    assert sum(isinstance(o, UnknownOutcome) for o in outcomes) >= 7
    with pytest.raises(UnknownOutcome):
        await db.close()


async def test_a_dead_handle_stays_dead_though_the_disk_works_again(machine: Machine) -> None:
    db, _ = await dead(machine, "submit")
    machine.disk.trace = []
    for call in (db.append("s", b"x"), db.append("fresh", b"x"), db.info(), db.get(0)):
        with pytest.raises(UnknownOutcome, match="dead"):
            await call
    with pytest.raises(UnknownOutcome, match="dead"):
        db.read()
    await asyncio.sleep(0.01)
    writes = [verb for verb, name, *_ in machine.disk.trace if name.startswith("segments/") or name == MARKS]
    assert not set(writes) & {"submit", "submit_sync", "sync", "write"}
    for _ in range(2):
        with pytest.raises(UnknownOutcome):
            await db.close()
    with pytest.raises(Closed):
        await db.append("s", b"x")


async def test_a_dead_handle_lets_the_directory_go_and_the_next_one_has_all_receipts(either: Machine) -> None:
    db, _ = await dead(either, "submit")
    with pytest.raises(UnknownOutcome):
        await db.close()
    async with either.open() as db:
        assert (await payloads(db.read("s")))[:1] == [b"kept"]
        await db.append("s", b"more")
    either.verify()


async def test_a_waiting_tail_is_told_when_the_handle_dies(machine: Machine) -> None:
    db = await machine.open()
    waiting = asyncio.ensure_future(anext(db.tail("s")))
    await asyncio.sleep(0)
    machine.fault = failing("submit", "segments/")
    with pytest.raises(UnknownOutcome):
        await db.append("s", b"x")
    with pytest.raises(UnknownOutcome):
        await asyncio.wait_for(waiting, 5)
    with pytest.raises(UnknownOutcome):
        await db.close()


async def test_appends_that_wait_for_the_pool_are_told_when_the_handle_dies(machine: Machine) -> None:
    db = await machine.open(pool_bytes=2_000)
    await db.append("s", b"x")
    machine.fault = failing("submit", "segments/")
    appends = [asyncio.ensure_future(db.append("s", bytes(1_500))) for _ in range(10)]
    outcomes = await asyncio.wait_for(asyncio.gather(*appends, return_exceptions=True), 5)
    assert {type(outcome) for outcome in outcomes} == {UnknownOutcome}
    with pytest.raises(UnknownOutcome):
        await db.close()


async def test_a_short_write_is_completed_with_the_identical_bytes(either: Machine) -> None:
    async with either.open() as db:
        await db.append("s", b"x")
        either.fault = lambda verb, name, place, length: 4096 if verb == "submit" and length > 4096 else None
        await db.append("s", [bytes([i]) * 900 for i in range(50)])
        either.fault = None
    assert either.verify().records == 52


# ---- a full disk


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_refuses_appends_and_takes_them_again_when_there_is_room(
    either: Machine, number: int
) -> None:
    async with either.open(segment_bytes=8 << 20) as db:
        first = await db.append("s", b"0", producer=("p", 0))
        either.fault = failing("allocate", number=number)

        async def fill() -> None:
            for _ in range(100):
                await asyncio.wait_for(db.append("s", bytes(100_000)), 5)

        with pytest.raises(NoSpace) as refused:
            await fill()
        assert refused.value.code == "NO_SPACE"
        assert (await db.get(first.first_position)).payload == b"0"
        length = next(db.streams()).length
        either.fault = None
        assert (await db.append("s", b"room", producer=("p", 1), expect=length)).durable
    either.verify()


async def test_a_full_disk_refuses_all_that_wait_and_numbers_none_of_them(machine: Machine) -> None:
    async with machine.open(segment_bytes=64 * 1024) as db:
        await db.append("s", bytes(20_000))
        machine.fault = failing("open", "prepare/", errno.ENOSPC)
        outcomes = await asyncio.gather(*(db.append("s", bytes(30_000)) for _ in range(6)), return_exceptions=True)
        stored = [outcome for outcome in outcomes if isinstance(outcome, Receipt)]
        assert {type(o) for o in outcomes} <= {Receipt, NoSpace}
        assert len(stored) < 6
        machine.fault = None
        assert (await db.append("s", b"room")).first_offset == 1 + len(stored)
    machine.verify()


async def test_appends_that_were_taken_when_something_broke_are_told(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(self: Committer, bound: int) -> None:
        raise MemoryError("no memory")

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)
    db = await machine.open()
    await db.append("s", b"x")
    monkeypatch.setattr(Committer, "_buffer", none)
    outcomes = await asyncio.wait_for(
        asyncio.gather(*(db.append("s", b"y") for _ in range(3)), return_exceptions=True), 5
    )
    assert [type(outcome) for outcome in outcomes] == [UnknownOutcome] * 3
    with pytest.raises(UnknownOutcome):
        await db.close()
