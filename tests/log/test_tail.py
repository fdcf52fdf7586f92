"""Where groups go: room that is there before it is used, bytes that are written once, and the way to the next file."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from pathlib import Path
from typing import Literal

import pytest

import kimberlite
from kimberlite import Busy, KimberliteError, NoSpace, Receipt, Unavailable
from kimberlite.log.log import Log
from kimberlite.log.names import MARKS, PREPARE, prepared_name, segment_name
from kimberlite.log.tail import RESERVE, Tail
from kimberlite.storage.backend import BLOCK
from kimberlite.storage.memory import Disk, MemoryBackend
from tests.log.simulated import Machine, failing, payloads, until

SMALL = 64 * 1024


@pytest.fixture
def tail() -> Tail:
    backend = MemoryBackend(Disk())
    backend.mkdir("segments")
    file = backend.open(segment_name(0), "x")
    file.allocate(0, SMALL)
    return Tail(backend, 0, file, BLOCK, SMALL)


async def rotated(machine: Machine) -> list[tuple[str, str, int, int]]:
    """What was done to the disk by appends across some segments, with a new stream among them and a clean end."""
    async with machine.open(segment_bytes=SMALL) as db:
        trace = machine.watch()
        for i in range(30):
            await asyncio.gather(*(db.append(f"s{i % 7}", bytes(2_500)) for _ in range(3)))
    assert len([name for name in machine.disk.files() if name.startswith("segments/")]) > 4
    return trace


def segment_of(name: str) -> str:
    """A prepared file is the segment that it becomes."""
    return name.replace("prepare/", "segments/")


async def test_a_group_that_leaves_room_for_the_closing_one_is_not_too_much(tail: Tail) -> None:
    assert not tail.full(SMALL - 2 * BLOCK)
    assert tail.full(SMALL - 2 * BLOCK + 1)


async def test_the_reserve_is_kept_until_the_whole_segment_is_allocated(tail: Tail) -> None:
    assert tail.has_room(SMALL - 2 * BLOCK)
    assert not tail.has_room(SMALL - 2 * BLOCK + 1)
    tail.segment_bytes *= 4
    assert not tail.has_room(1)
    with tail.to_the_last():
        assert tail.has_room(SMALL - 2 * BLOCK)
    assert not tail.has_room(1)
    tail.current.ready += RESERVE
    assert tail.has_room(SMALL - BLOCK)
    assert not tail.has_room(SMALL - BLOCK + 1)


async def test_bytes_of_a_group_are_written_once_and_only_into_room_that_was_there(either: Machine) -> None:
    trace = await rotated(either)
    room: dict[str, int] = {segment_name(0): 1 << 20}
    written: dict[str, int] = {}
    groups = 0
    for verb, name, place, length in trace:
        segment = segment_of(name)
        if verb == "allocate":
            room[segment] = max(room.get(segment, 0), place + length)
        elif verb == "submit" and name.startswith("segments/"):
            assert place == written.get(segment, BLOCK)
            assert place % BLOCK == length % BLOCK == 0
            assert place + length <= room[segment]
            written[segment] = place + length
            groups += 1
        elif verb == "write" and segment.startswith("segments/") and place:
            assert place >= written.get(segment, 0)
        elif verb == "truncate" and name.startswith("segments/"):
            assert place == written[segment]
    assert groups > 30


async def test_the_way_to_the_next_segment_is_rename_directories_header_sync_and_then_groups(either: Machine) -> None:
    trace = await rotated(either)
    begun = trace.index(("rename", f"{prepared_name(1)} -> {segment_name(1)}", 0, 0))
    first = next(i for i, (verb, name, *_) in enumerate(trace) if verb == "submit" and name == segment_name(1))
    dance = [(verb, name) for verb, name, *_ in trace[begun:first] if verb in ("sync_directory", "write", "sync")]
    assert [step for step in dance if not step[1].startswith(("prepare/", "vault"))] == [
        ("sync_directory", "segments"),
        ("sync_directory", "prepare"),
        ("write", segment_name(1)),
        ("sync", segment_name(1)),
    ]
    before = [entry for entry in trace[:begun] if entry[1] == segment_name(0)]
    last_group = max(i for i, (verb, *_) in enumerate(before) if verb == "submit")
    assert {"durable", "synced"} & {verb for verb, *_ in before[last_group:]}


async def test_segments_end_where_their_last_group_does(either: Machine) -> None:
    await rotated(either)
    for name, data in either.disk.files().items():
        if name.startswith("segments/"):
            assert data[-BLOCK:].strip(b"\0")
    assert either.verify().notes == []


def prepared(machine: Machine) -> list[str]:
    return [name for name in machine.disk.files() if name.startswith("prepare/")]


@pytest.mark.parametrize("refused", [False, True])
async def test_a_clean_close_takes_back_the_room_for_a_next_segment(either: Machine, refused: bool) -> None:
    async with either.open(segment_bytes=SMALL) as db:
        await db.append("s", b"x")

        async def is_prepared() -> bool:
            return prepared(either) != []

        await until(is_prepared)
        if refused:
            either.fault = failing("unlink", "prepare/")
    either.fault = None
    assert (prepared(either) != []) == refused
    assert either.verify().notes == []
    async with either.open(segment_bytes=SMALL) as db:
        assert await payloads(db.read("s")) == [b"x"]


async def test_rotation_under_load_keeps_order_and_loses_nothing(either: Machine) -> None:
    async with either.open(segment_bytes=SMALL, depth=8, group_bytes=1) as db:
        receipts = await asyncio.gather(
            *(db.append("s", b"%d" % i * 300, sync="os" if i % 5 == 0 else "group") for i in range(200))
        )
        assert [receipt.first_offset for receipt in receipts] == list(range(200))
        assert await payloads(db.read("s")) == [b"%d" % i * 300 for i in range(200)]
        assert (await db.info())["segments"] > 2
    assert either.verify().notes == []


async def test_a_fresh_database_takes_less_than_eight_mib(machine: Machine) -> None:
    async with machine.open(segment_bytes=256 << 20) as db:
        await db.append("s", b"x")
        await asyncio.sleep(0.02)
        assert sum(map(len, machine.disk.files().values())) < 8 << 20


async def test_room_is_prepared_before_it_is_needed(machine: Machine) -> None:
    async with machine.open(segment_bytes=4 << 20) as db:
        await db.append("s", b"x")
        await asyncio.sleep(0.02)
        machine.fault = failing("allocate", number=errno.ENOSPC)
        for _ in range(4):
            assert (await db.append("s", bytes(60_000))).durable
        machine.fault = None


async def test_an_error_of_what_is_being_prepared_costs_room_and_not_the_handle(either: Machine) -> None:
    for verb in ("allocate", "open", "write", "sync"):
        async with either.open(segment_bytes=SMALL) as db:
            either.fault = failing(verb, "prepare/")
            outcomes = await asyncio.gather(*(db.append(verb, bytes(9_000)) for _ in range(20)), return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} <= {Receipt, Unavailable}
            either.fault = None
            stored = [outcome for outcome in outcomes if isinstance(outcome, Receipt)]
            assert (await db.append(verb, b"room again")).first_offset == len(stored)
    either.verify()


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, NoSpace), (errno.EIO, Unavailable), (errno.EMFILE, Unavailable)]
)
async def test_an_append_without_room_says_what_the_disk_said(
    machine: Machine, number: int, kind: type[KimberliteError]
) -> None:
    async with machine.open(segment_bytes=SMALL) as db:
        await db.append("s", b"x")
        machine.fault = failing("allocate", number=number)
        outcomes = await asyncio.gather(*(db.append("s", bytes(30_000)) for _ in range(20)), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} - {Receipt} == {kind}
        machine.fault = None
        assert (await db.append("s", b"room again")).durable


async def test_what_was_being_prepared_is_thrown_away_by_the_next_writer(machine: Machine) -> None:
    async with machine.open(segment_bytes=SMALL) as db:
        for _ in range(5):
            await db.append("s", bytes(9_000))
        await asyncio.sleep(0.01)
        left = machine.image()
    assert [name for name in left.disk.files() if name.startswith("prepare/")]
    left.disk.create("prepare/something")
    left.write("prepare/something", 0, b"left over")
    async with left.open(segment_bytes=SMALL) as db:
        assert "prepare/something" not in left.disk.files()
        assert len(await payloads(db.read("s"))) == 5


async def third_segment(db: Log) -> str:
    """The name of the active segment, two rotations later."""
    while (await db.info())["segments"] < 3:
        await db.append("s", bytes(9_000))
    return segment_name(2)


async def test_a_segment_is_locked_after_a_rotation_too(either: Machine) -> None:
    async with either.open(segment_bytes=SMALL) as db:
        active = await third_segment(db)
        files = either.disk.tree[MARKS], either.disk.tree[segment_name(0)], either.disk.tree[segment_name(1)]
        held = [(file, file.holder) for file in (either.disk, *files) if file is not None]
        # As if its process were gone, and only a write to the active segment on its way.
        for file, _ in held:
            file.holder = None
        with pytest.raises(Busy, match=active):
            await either.open()
        for file, holder in held:
            file.holder = holder
        await db.append("s", b"last")
    async with either.open() as db:
        assert (await payloads(db.read("s")))[-1] == b"last"


@pytest.mark.parametrize("backend", ["threads", "uring"])
async def test_a_segment_on_a_real_disk_is_locked_after_a_rotation_too(
    backend: Literal["threads", "uring"], tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    async with kimberlite.open(first, backend=backend, segment_bytes=SMALL) as db:
        active = await third_segment(db)
        [stream] = db.streams()

        def shared(source: str, target: str) -> None:
            copy = os.link if source.endswith(active) else shutil.copy
            copy(source, target)

        # Of what its process holds, this directory shares the active segment only.
        shutil.copytree(first, second, copy_function=shared, ignore=shutil.ignore_patterns(PREPARE))
        with pytest.raises(Busy, match=active):
            await kimberlite.open(second, backend=backend)
    async with kimberlite.open(second, backend=backend) as db:
        assert list(db.streams()) == [stream]
