"""Where the offsets of a stream end: nothing is numbered beyond, and all who read the format agree on where that is."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from kimberlite import Conflict, Invalid, KimberliteError, LimitExceeded, Log, _native
from kimberlite.crypto.master import load_master
from kimberlite.importing import HIGHEST
from kimberlite.log.names import CHECKPOINT
from tests.log.simulated import Machine, payloads
from tests.log.test_copying import salvaged
from tests.model import read_log
from tests.model.derived import with_mac

SEGMENT = 64 * 1024

Rows = list[tuple[str, int, bytes]]


class Near:
    """A stream that comes to its end, and what it has."""

    def __init__(self, db: Log, rng: Random) -> None:
        self.db, self.rng = db, rng
        self.length = 0
        self.rows: Rows = []
        self.others = 0

    async def step(self, number: int) -> None:
        kind, at = self.rng.choice(["append", "expect", "many", "add", "gap", "far"]), self.length
        records = [b"%d.%d" % (number, i) for i in range(0 if kind == "gap" else self.rng.randrange(1, 4))]
        if kind in ("gap", "far"):
            at = self.rng.choice([HIGHEST - self.rng.randrange(9), HIGHEST + self.rng.choice([1, 2, 1 << 63, 1 << 64])])
        refused = self.refused(at, records)
        # Another's append at the same time is not concerned.
        calls = self.call(kind, at, records), self.db.append("t", b".")
        outcome, receipt = await asyncio.gather(*calls, return_exceptions=True)
        assert not isinstance(receipt, BaseException)
        assert refused is (None if outcome is None else type(outcome)), (kind, at, self.length, outcome)
        self.others += 1
        if refused is None:
            self.others += kind == "many"
            self.length = at + len(records)
            self.rows += [("s", at + i, data) for i, data in enumerate(records)]

    def refused(self, at: int, records: list[bytes]) -> type[KimberliteError] | None:
        if at > HIGHEST:
            return Invalid
        if at < self.length or (at == self.length and not records):
            return Conflict
        return LimitExceeded if at + len(records) > HIGHEST else None

    async def call(self, kind: str, at: int, records: list[bytes]) -> None:
        db = self.db
        if kind == "append":
            assert (await db.append("s", records)).first_offset == at
        elif kind == "expect":
            await db.append("s", records, expect=at)
        elif kind == "many":
            await db.append_many({"s": records, "t": b"."}, expect={"s": at})
        else:
            async with db.importing(new_times=True) as into:
                if kind == "gap":
                    await into.gap("s", at, 0, "lost")
                elif kind == "far":
                    await into._put("s", at, 0, _native.encode(records), "lost", None)
                else:
                    await into.add("s", at, 0, records)

    async def holds(self, db: Log) -> None:
        assert [(r.stream, r.offset, r.payload) async for r in db.read("s")] == self.rows
        assert [r.offset async for r in db.read("s", reverse=True)] == [offset for _, offset, _ in self.rows][::-1]
        assert len(await payloads(db.read("t"))) == self.others
        assert {info.name: info.length for info in db.streams()}["s"] == self.length


@pytest.mark.parametrize("seed", range(8))
async def test_nothing_is_numbered_beyond_the_end(either: Machine, seed: int) -> None:
    rng = Random(seed)
    async with either.open(segment_bytes=SEGMENT) as db:
        near = Near(db, rng)
        for number in range(40):
            await near.step(number)
        await near.holds(db)
        killed = either.image()
    for machine in (killed, either):
        log = read_log(machine.disk.files(), load_master(machine.key))
        assert [(row.name, row.offset, row.payload) for row in log.rows if row.name == "s"] == near.rows
        for gone in ([], [CHECKPOINT]):
            other = machine.image()
            for name in gone:
                if name in other.disk.files():
                    other.backend().unlink(name)
            # Of one that was killed it notes what no watermark covers.
            assert other.verify().notes == [] or machine is killed
            async with other.open(segment_bytes=SEGMENT) as db:
                await near.holds(db)
                if near.length == HIGHEST:
                    with pytest.raises(LimitExceeded):
                        await db.append("s", b"x")
            new, finder = await salvaged(other)
            assert finder.report.complete
            async with new.open() as db:
                assert [(r.stream, r.offset, r.payload) async for r in db.read("s")] == near.rows


async def test_a_stream_is_full_and_all_others_go_on(either: Machine) -> None:
    async with either.open(segment_bytes=SEGMENT) as db:
        async with db.importing(new_times=True) as into:
            await into.gap("s", HIGHEST - 2, 0, "lost")
        calls = [db.append("s", [b"a", b"b", b"c"]), db.append("s", [b"a"]), db.append("s", [b"b", b"c"])]
        three, one, two = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(three, LimitExceeded)
        assert isinstance(two, LimitExceeded)
        assert not isinstance(one, BaseException)
        assert one.first_offset == HIGHEST - 2
        sent = await db.append("s", b"b", producer=("p", 0))
        assert sent.last_offset == HIGHEST - 1
        # What is in the log is answered as it was, and what is not uses up no sequence.
        assert await db.append("s", b"b", producer=("p", 0)) == sent
        for _ in range(2):
            with pytest.raises(LimitExceeded):
                await db.append("s", b"c", producer=("p", 1))
            with pytest.raises(LimitExceeded):
                await db.append_many({"t": b"x", "s": b"c"}, producer=("q", 0))
        assert [info.name for info in db.streams()] == ["s"]
        await db.append_many({"t": b"x"}, producer=("q", 0))
        assert [r.offset async for r in db.read("s")] == [HIGHEST - 2, HIGHEST - 1]
        assert (await anext(db.tail("s", start=HIGHEST - 1))).payload == b"b"
    assert either.verify().notes == []


async def test_a_checkpoint_that_says_otherwise_is_not_used(machine: Machine) -> None:
    async with machine.open(segment_bytes=SEGMENT) as db, db.importing(new_times=True) as into:
        await into.gap("s", HIGHEST, 0, "lost")
    files = machine.disk.files()
    length = HIGHEST.to_bytes(8, "little")
    data = files[CHECKPOINT][:-32]
    assert data.count(length) == 2
    forged = with_mac(data.replace(length, (HIGHEST + 1).to_bytes(8, "little")), files["receipt.key"])
    machine.write(CHECKPOINT, 0, forged)
    async with machine.open(segment_bytes=SEGMENT) as db:
        assert [info.length for info in db.streams()] == [HIGHEST]


@pytest.mark.parametrize("payload", [(HIGHEST + 1).to_bytes(8, "little"), b"\xff" * 8])
async def test_nobody_says_a_gap_beyond_the_end(machine: Machine, payload: bytes) -> None:
    async with machine.open() as db:
        await db.append("s", b"0")
        committer, _ = db._writer()
        gap = (6).to_bytes(2, "little") + (1).to_bytes(4, "little") + (1).to_bytes(8, "little") + payload
        with pytest.raises(Invalid, match="a gap is malformed"):
            await committer.say([gap])
        await db.append("s", b"1")
    assert machine.verify().notes == []
