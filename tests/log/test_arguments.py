"""What an append takes and what it refuses: records, names, policies, and the limits at and above."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from kimberlite import NEW, Conflict, Invalid, LimitExceeded, Record
from tests.log.simulated import Machine, payloads


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        (b"one", [b"one"]),
        (b"", [b""]),
        (Record(b"one"), [b"one"]),
        ([b"a", Record(b"b")], [b"a", b"b"]),
        ((b"a", b"b"), [b"a", b"b"]),
        ({b"a": 1}.keys(), [b"a"]),
    ],
)
@pytest.mark.parametrize("sync", ["group", "record"])
async def test_bytes_a_record_or_any_sequence_of_them(
    machine: Machine, records: Any, expected: list[bytes], sync: Any
) -> None:
    async with machine.open() as db:
        receipt = await db.append("s", records, sync=sync)
        assert (receipt.first_offset, receipt.last_offset) == (0, len(expected) - 1)
        assert await payloads(db.read("s")) == expected


@pytest.mark.parametrize("sync", ["group", "batch", "os", "record"])
async def test_a_generator_is_read_once_under_every_policy(machine: Machine, sync: Any) -> None:
    async with machine.open() as db:
        receipt = await db.append("s", (bytes([i]) for i in range(3)), sync=sync)
        assert (receipt.first_offset, receipt.last_offset) == (0, 2)


WRONG_RECORDS: dict[str, Any] = {
    "str": "text",
    "nothing": None,
    "number": 7,
    "empty list": [],
    "empty generator": iter(()),
    "str among bytes": [b"x", "y"],
    "bytearray": bytearray(b"x"),
    "list of lists": [[b"x"]],
    "mapping": {b"a": b"b"},
    "set": {b"a"},
    "event time a bool": Record(b"x", event_time=True),
    "event time of the last day": Record(b"x", event_time=datetime.max.replace(tzinfo=UTC)),
    "payload a str": Record("x"),  # type: ignore[arg-type]
    "key a str": Record(b"x", key="k"),  # type: ignore[arg-type]
    "header value a str": Record(b"x", headers={"a": "b"}),  # type: ignore[arg-type]
    "header name bytes": Record(b"x", headers=[(b"a", b"b")]),  # type: ignore[list-item]
    "header name empty": Record(b"x", headers={"": b"b"}),
    "header name too long": Record(b"x", headers={"a" * 65_536: b"b"}),
    "header name a lone surrogate": Record(b"x", headers={"\ud800": b"b"}),
    "header of three": Record(b"x", headers=[("a", b"b", b"c")]),  # type: ignore[list-item]
    "headers a number": Record(b"x", headers=3),  # type: ignore[arg-type]
    "event time naive": Record(b"x", event_time=datetime(2020, 1, 1)),
    "event time too late": Record(b"x", event_time=1 << 63),
    "event time too early": Record(b"x", event_time=datetime(1, 1, 1, tzinfo=UTC)),
    "event time beyond 64 bits": Record(b"x", event_time=datetime(9999, 1, 1, tzinfo=UTC)),
    "event time a float": Record(b"x", event_time=1.5),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("records", WRONG_RECORDS.values(), ids=WRONG_RECORDS)
async def test_what_is_no_record_is_invalid_and_consumes_nothing(machine: Machine, records: Any) -> None:
    async with machine.open() as db:
        with pytest.raises(Invalid):
            await db.append("s", records)
        with pytest.raises(Invalid):
            await db.append_many({"t": b"fine", "s": records})
        assert list(db.streams()) == []
        assert (await db.append("s", b"x", expect=NEW)).first_position == 1


@pytest.mark.parametrize("expect", [-1, 1 << 63, True, 1.0, "0"])
async def test_an_expect_that_is_no_offset_is_invalid(machine: Machine, expect: Any) -> None:
    async with machine.open() as db:
        await db.append("s", b"x")
        for stream in ("s", "new"):
            with pytest.raises(Invalid):
                await db.append(stream, b"y", expect=expect)


WRONG_PRODUCERS: dict[str, Any] = {
    "no pair": ("p",),
    "a list": ["p", 0],
    "empty id": ("", 0),
    "id a number": (7, 0),
    "id too long": ("p" * 129, 0),
    "id a lone surrogate": ("\ud800", 0),
    "sequence below 0": ("p", -1),
    "sequence a bool": ("p", True),
    "sequence a str": ("p", "0"),
    "sequence beyond 63 bits": ("p", 1 << 63),
}


@pytest.mark.parametrize("producer", WRONG_PRODUCERS.values(), ids=WRONG_PRODUCERS)
async def test_a_producer_that_is_none_is_invalid(machine: Machine, producer: Any) -> None:
    async with machine.open() as db:
        with pytest.raises(Invalid):
            await db.append("s", b"x", producer=producer)
        assert list(db.streams()) == []


async def test_a_sync_policy_that_is_none_is_invalid(machine: Machine) -> None:
    async with machine.open() as db:
        for sync in ("always", "", 7):
            with pytest.raises(Invalid, match="sync is one of"):
                await db.append("s", b"x", sync=sync)  # type: ignore[arg-type]


async def test_sync_record_refuses_what_needs_one_batch(machine: Machine) -> None:
    async with machine.open() as db:
        wants: list[dict[str, Any]] = [{"expect": 0}, {"producer": ("p", 0)}]
        for wanted in wants:
            with pytest.raises(Invalid):
                await db.append("s", [b"x", b"y"], sync="record", **wanted)
            receipt = await db.append(f"one {list(wanted)}", b"x", sync="record", **wanted)
            assert receipt.durable
        with pytest.raises(Invalid):
            await db.append_many({"s": b"x"}, sync="record")


# ---- limits, at and above


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127 + "n", "a/b c", "\u00a0"])
async def test_a_name_at_its_limit_is_taken(machine: Machine, name: str) -> None:
    async with machine.open() as db:
        assert (await db.append(name, b"x")).stream == name
        assert await payloads(db.read(name)) == [b"x"]


@pytest.mark.parametrize("name", ["", "n" * 256, "é" * 128, "a\nb", "\x7f", "\x9f", "\ud800", b"s", None, 7])
async def test_a_name_beyond_its_limits_is_invalid_everywhere(machine: Machine, name: Any) -> None:
    async with machine.open() as db:
        with pytest.raises(Invalid):
            await db.append(name, b"x")
        with pytest.raises(Invalid):
            await db.append_many({"fine": b"x", name: b"x"})
        if name is not None:
            with pytest.raises(Invalid):
                db.read(name)
            with pytest.raises(Invalid):
                db.tail(name)
        assert list(db.streams()) == []


async def test_a_batch_has_at_most_65_536_records(machine: Machine) -> None:
    async with machine.open(segment_bytes=16 << 20) as db:
        with pytest.raises(LimitExceeded):
            await db.append("s", [b""] * 65_537)
        assert (await db.append("s", [b""] * 65_536, expect=0)).last_offset == 65_535


async def test_a_batch_has_at_most_16_mib_as_stored(machine: Machine) -> None:
    head = 21
    async with machine.open(segment_bytes=32 << 20) as db:
        with pytest.raises(LimitExceeded):
            await db.append("s", bytes((16 << 20) - head + 1))
        with pytest.raises(LimitExceeded):
            await db.append("s", [bytes(8 << 20), bytes(8 << 20)])
        await db.append("s", bytes((16 << 20) - head), expect=0)
        assert len((await db.get(1)).payload) == (16 << 20) - head


async def test_a_batch_larger_than_a_segment_is_refused_and_consumes_nothing(machine: Machine) -> None:
    async with machine.open(segment_bytes=64 * 1024) as db:
        with pytest.raises(LimitExceeded):
            await db.append("s", bytes(64 * 1024), producer=("p", 0))
        with pytest.raises(LimitExceeded):
            await db.append_many({"s": bytes(40_000), "t": bytes(40_000)})
        assert (await db.append("s", bytes(40_000), producer=("p", 0))).first_offset == 0


async def test_headers_ids_and_sequences_at_their_limits_are_taken(machine: Machine) -> None:
    async with machine.open() as db:
        await db.append("s", Record(b"", headers=[("h" * 65_535, b"")]), producer=(b"p" * 128, 0))
        await db.append("s", Record(b"", headers=[("a", b"1")] * 2_000, event_time=-(1 << 63)))
        await db.append("s", Record(b"", event_time=(1 << 63) - 1))
        with pytest.raises(Conflict) as gap:
            await db.append("s", b"", producer=("q", (1 << 63) - 1))
        assert gap.value.expected == 0
        first, second, third = [record async for record in db.read("s")]
    assert next(iter(first.headers))[0] == "h" * 65_535
    assert len(list(second.headers)) == 2_000
    assert (second.event_time, third.event_time) == (-(1 << 63), (1 << 63) - 1)


async def test_what_append_many_is_not_given_as_mappings_is_invalid(machine: Machine) -> None:
    async with machine.open() as db:
        await db.append("s", b"x")
        for expect in (NEW, False, "", [], [("s", 0)]):
            with pytest.raises(Invalid, match="mapping"):
                await db.append_many({"s": b"x"}, expect=expect)  # type: ignore[arg-type]
        with pytest.raises(Invalid, match="mapping"):
            await db.append_many([("s", b"x")])  # type: ignore[arg-type]
        assert (await db.append("s", b"y")).first_offset == 1


async def test_positions_and_limits_are_integers(machine: Machine) -> None:
    async with machine.open() as db:
        await db.append("s", [b"x", b"y"])
        with pytest.raises(Invalid):
            await db.get(True)
        with pytest.raises(Invalid):
            await db.get_many(1)  # type: ignore[arg-type]
        with pytest.raises(Invalid):
            db.read("s", limit=True)


class Odd(str):
    """Equal to nothing but itself, and longer than it says."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def encode(self, *_: str) -> bytes:
        return b"x"


class Repeating(Mapping[str, bytes]):
    """A mapping that has a key twice, as those of some web frameworks do."""

    def __getitem__(self, key: str) -> bytes:
        return b"x"

    def __iter__(self) -> Iterator[str]:
        return iter(["a", "b", "a"])

    def __len__(self) -> int:
        return 3


async def test_a_stream_is_named_once_in_an_append_to_several_whatever_the_mapping_says(machine: Machine) -> None:
    batches: Any
    async with machine.open() as db:
        for batches in ({Odd("a"): b"1", Odd("a"): b"2"}, Repeating()):
            with pytest.raises(Invalid, match="twice"):
                await db.append_many(batches, producer=("p", 0))
        receipts = await db.append_many({Odd("a"): b"1", Odd("b"): b"2"}, producer=("p", 0))
        assert sorted(receipts) == ["a", "b"]
    machine.backend().unlink("checkpoint")
    async with machine.open() as db:
        assert await payloads(db.read()) == [b"1", b"2"]


async def test_a_name_is_what_it_has_in_it_and_not_what_its_class_makes_of_it(machine: Machine) -> None:
    async with machine.open() as db:
        await db.append(Odd("s"), b"1")
        assert [stream.name for stream in db.streams()] == ["s"]
        assert await payloads(db.read(Odd("s"))) == [b"1"]
        for name in (Odd("n" * 300), Odd("\ud800")):
            with pytest.raises(Invalid):
                await db.append(name, b"1")
            with pytest.raises(Invalid):
                db.read(name)


@pytest.mark.parametrize("sync", ["group", "record"])
async def test_what_the_callers_own_code_raises_is_the_callers(machine: Machine, sync: Any) -> None:
    def records(error: Exception) -> Iterator[bytes]:
        yield b"1"
        raise error

    async with machine.open() as db:
        for error in (ValueError("mine"), TypeError("mine"), KeyError("mine")):
            with pytest.raises(type(error), match="mine") as raised:
                await db.append("s", records(error), sync=sync)
            assert raised.value is error
        assert (await db.append("s", b"1")).first_offset == 0


async def test_a_headers_name_has_no_lone_surrogates(machine: Machine) -> None:
    async with machine.open() as db:
        with pytest.raises(Invalid, match="a header's name has no lone surrogates"):
            await db.append("s", Record(b"1", headers=[("\ud800", b"")]))
