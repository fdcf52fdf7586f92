"""What lies between the parts: a clock that goes back, writes that land late, files that are ahead or gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from random import Random

from kimberlite import Log
from kimberlite.log.opening import Injected, open_log
from kimberlite.log.options import Options
from kimberlite.log.verify import verify
from kimberlite.storage.memory import Disk, MemoryBackend
from tests.model.derived import with_mac

#: Longer than any of these tests: without the marks that follow a pause.
NEVER = 3600.0
QUIET = Options(idle=NEVER)


async def opened(
    disk: Disk,
    options: Options = QUIET,
    rng: Random | None = None,
    clock: Callable[[], int] | None = None,
) -> Log:
    return await open_log(
        "edges",
        create=True,
        read_only=False,
        key_file=None,
        backend=MemoryBackend(disk, rng),
        origin=None,
        anchor=None,
        options=options,
        injected=Injected() if clock is None else Injected(clock=clock),
    )


class Landing(Random):
    """Of the writes on their way the newest lands first; none does while they are held."""

    held = False

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        return 0 if self.held else start - 1


async def test_a_clock_that_goes_back_within_a_group_leaves_producers_that_load() -> None:
    disk = Disk()
    async with await opened(disk, clock=count(10**18, -1000).__next__) as db:
        sent = [db.append("a", b"%d" % i, producer=(b"p%d" % i, 0)) for i in range(5)]
        receipts = await asyncio.gather(*sent)
    assert len({receipt.group for receipt in receipts}) == 1
    async with await opened(disk) as db:
        again = await db.append("a", b"3", producer=(b"p3", 0))
        assert again == receipts[3]


async def test_producers_in_the_wrong_order_are_made_again_from_the_log() -> None:
    disk = Disk()
    async with await opened(disk) as db:
        receipts = [await db.append("a", b"x", producer=(name, 0)) for name in (b"p", b"q")]
    files = disk.files()
    entries = files["producers"][8:-32]
    assert len(entries) == 2 * 64
    files["producers"] = with_mac(files["producers"][:8] + entries[64:] + entries[:64], files["receipt.key"])
    async with await opened(Disk.from_files(files)) as db:
        assert [await db.append("a", b"x", producer=(name, 0)) for name in (b"p", b"q")] == receipts


async def test_a_durable_append_does_not_wait_for_a_timer_when_one_for_the_kernel_lands_after_it() -> None:
    db = await opened(Disk(), Options(idle=NEVER, group_bytes=1), Landing())
    await db.append("a", b"there")
    both = asyncio.gather(db.append("a", b"1", sync="os"), db.append("a", b"2"))
    kernel, durable = await asyncio.wait_for(both, 0.5)
    assert (kernel.group + 1, durable.durable) == (durable.group, True)
    await db.close()


async def test_an_append_for_the_kernel_does_not_wait_for_a_timer_when_a_durable_one_lands_after_it() -> None:
    db = await opened(Disk(), Options(idle=NEVER, group_bytes=1), Landing())
    await db.append("a", b"there")
    both = asyncio.gather(db.append("a", b"1"), db.append("a", b"2", sync="os"))
    durable, kernel = await asyncio.wait_for(both, 0.5)
    assert (durable.group + 1, durable.durable, kernel.durable) == (kernel.group, True, False)
    await db.close()


async def test_a_close_does_not_wait_for_a_timer_when_a_write_for_the_kernel_is_on_its_way() -> None:
    landing = Landing()
    db = await opened(Disk(), Options(idle=NEVER), landing)
    await db.append("a", b"there")
    landing.held = True
    kernel = asyncio.create_task(db.append("a", b"1", sync="os"))
    await some_turns()
    closing = asyncio.create_task(db.close())
    await some_turns()
    assert not kernel.done()
    landing.held = False
    await asyncio.wait_for(closing, 0.5)
    assert (await kernel).first_offset == 1


async def some_turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def with_checkpoint() -> tuple[Log, Disk]:
    """A log whose checkpoint is of its last group, before any mark says that this one is durable."""
    disk = Disk()
    db = await opened(disk, Options(idle=NEVER, checkpoint_records=1))
    await db.append("a", b"x")
    while "checkpoint" not in disk.tree:  # noqa: ASYNC110
        await asyncio.sleep(0)
    return db, disk


async def test_a_checkpoint_of_the_last_group_before_its_mark_is_no_rollback() -> None:
    db, disk = await with_checkpoint()
    report = verify(MemoryBackend(disk.copy()), None)
    assert (report.groups, report.records) == (1, 2)
    await db.close()


async def test_verify_beside_a_writer_reads_the_checkpoint_before_the_segments() -> None:
    db, disk = await with_checkpoint()
    seen: list[str] = []

    def look(verb: str, name: str, place: int, length: int) -> None:
        if verb == "open":
            seen.append(name.partition("/")[0])

    verify(MemoryBackend(disk.copy(), fault=look), None)
    assert seen.index("checkpoint") < seen.index("segments")
    await db.close()


async def test_a_segment_that_recovery_ended_gets_its_index_file() -> None:
    disk = Disk()
    options = Options(idle=NEVER, segment_bytes=64 * 1024)
    db = await opened(disk, options)
    for _ in range(20):
        await db.append("a", b"x" * 9000)
    left = disk.copy()
    await db.close()
    last = max(name[9:-4] for name in left.tree if name.startswith("segments/"))
    assert f"index/{last}.idx" not in left.tree
    async with await opened(left, options) as db:
        assert len([record async for record in db.read("a")]) == 20
    segments = sorted(name[9:-4] for name in left.tree if name.startswith("segments/"))
    indexes = sorted(name[6:-4] for name in left.tree if name.startswith("index/"))
    assert last in segments[:-1]
    assert indexes == segments[:-1]


async def test_a_copy_without_the_empty_directories_opens() -> None:
    disk = Disk()
    db = await opened(disk)
    await db.append("a", b"x")
    left = disk.files()
    await db.close()
    copied = Disk.from_files({name: data for name, data in left.items() if not name.startswith("prepare/")})
    assert copied.directories() == ["segments"]
    async with await opened(copied) as db:
        await db.append("a", b"y")
        assert [record.payload async for record in db.read("a")] == [b"x", b"y"]
    assert verify(MemoryBackend(copied), None).notes == []


async def test_a_simulated_disk_can_be_opened_again_after_a_close() -> None:
    disk = Disk()
    for n in range(3):
        async with await opened(disk) as db:
            assert (await db.append("a", b"x")).first_offset == n
