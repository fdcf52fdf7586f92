"""Which sectors persist: every style draws what it says, and a slow model allows exactly what is left."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kimberlite.storage.backend import BLOCK
from kimberlite.storage.memory import Disk
from kimberlite.storage.memory.image import SECTOR, STYLES, Write, scatter

from .cuts import left, on_loop, opened


@pytest.mark.parametrize(
    ("style", "possible"),
    [
        ("all", {0xFFFFFF}),
        ("none", {0}),
        ("prefix", {(1 << n) - 1 for n in range(25)}),
        ("one missing", {0xFFFFFF ^ 1 << n for n in range(24)}),
        ("one present", {1 << n for n in range(24)}),
        ("whole writes", {0, 0xFF, 0xFFFF00, 0xFFFFFF}),
        ("whole blocks", {a | b << 8 | c << 16 for a, b, c in product((0, 0xFF), repeat=3)}),
    ],
)
def test_a_style_draws_all_of_its_masks_and_no_others(style: str, possible: set[int]) -> None:
    writes = [Write(1, 0, bytes(BLOCK)), Write(2, 5 * BLOCK, bytes(2 * BLOCK))]
    rng = Random(1)
    assert {STYLES[style](rng, writes, 24) for _ in range(1000)} == possible


def test_blocks_are_those_of_the_file_and_not_of_the_write() -> None:
    writes = [Write(1, BLOCK - SECTOR, bytes(BLOCK))]
    rng = Random(1)
    assert {STYLES["whole blocks"](rng, writes, 8) for _ in range(100)} == {0, 1, 0xFE, 0xFF}


def test_torn_blocks_lose_one_end_of_each() -> None:
    rng = Random(1)
    ends = {(1 << n) - 1 for n in range(9)} | {0xFF ^ (1 << n) - 1 for n in range(9)}
    drawn = {STYLES["torn blocks"](rng, [Write(1, 0, bytes(2 * BLOCK))], 16) for _ in range(5000)}
    assert drawn == {a | b << 8 for a, b in product(ends, repeat=2)}


@given(st.integers(), st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), max_size=5))
def test_no_mask_is_longer_than_the_writes(seed: int, shapes: list[tuple[int, int]]) -> None:
    writes = [Write(n, at * SECTOR, bytes(count * SECTOR)) for n, (at, count) in enumerate(shapes)]
    assert 0 <= scatter(Random(seed), writes) < 1 << sum(write.sectors for write in writes)


class Sectors:
    """The slow model of one file of a fixed size: what each sector may hold after a cut."""

    def __init__(self, count: int) -> None:
        self.landed: list[list[tuple[int, bytes]]] = [[(0, bytes(SECTOR))] for _ in range(count)]
        self.flying: list[tuple[int, bytes]] = []
        self.order = 0

    def write(self, place: int, data: bytes, durable: bool = False) -> None:
        self.order += 1
        for at, piece in pieces(place, data):
            if durable:
                self.landed[at].clear()
            self.landed[at].append((self.order, piece))

    def settle(self, upto: int) -> None:
        for versions in self.landed:
            while len(versions) > 1 and versions[1][0] <= upto:
                versions.pop(0)

    def possible(self) -> list[set[bytes]]:
        found = [{piece for _, piece in versions} for versions in self.landed]
        for place, data in self.flying:
            for at, piece in pieces(place, data):
                found[at].add(piece)
        return found


def pieces(place: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    for at in range(0, len(data), SECTOR):
        yield (place + at) // SECTOR, data[at : at + SECTOR]


async def drive(disk: Disk, verbs: list[tuple[str, int]], seed: int) -> None:
    rng = Random(seed)
    backend, file = opened(disk, rng=rng)
    model = Sectors(16)
    for number, (verb, block) in enumerate(verbs, 1):
        data = b"".join(bytes([number, at]) * (SECTOR // 2) for at in range(8))
        if verb == "write":
            file.write(block * SECTOR, data)
            model.write(block * SECTOR, data)
        elif verb == "sync":
            file.sync()
            model.settle(model.order)
        elif verb == "submit_sync":
            backend.submit_sync(file, lambda _, upto=model.order: model.settle(upto))  # type: ignore[misc]
        elif verb == "turn":
            await asyncio.sleep(0)
        else:
            flight = (block // 8 * BLOCK, data)
            model.flying.append(flight)

            def done(
                problem: OSError | None, flight: tuple[int, bytes] = flight, durable: bool = verb == "durable"
            ) -> None:
                assert problem is None
                model.flying.remove(flight)
                model.write(*flight, durable)

            backend.submit(file, *flight, verb == "durable", done)
        check(disk, model, rng)


def check(disk: Disk, model: Sectors, rng: Random) -> None:
    """All that the model allows can be left, sector by sector, and nothing else is."""
    seen: list[set[bytes]] = [set() for _ in model.landed]
    masks = [0, *(1 << n for n in range(disk.unsynced().sectors))]
    for state in [*(left(disk, mask) for mask in masks), *(disk.crash(rng) for _ in range(5))]:
        for at, piece in pieces(0, state.files()["a"]):
            seen[at].add(piece)
    assert seen == model.possible()


VERBS = st.sampled_from(["write", "sync", "submit", "durable", "submit_sync", "turn", "turn"])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(VERBS, st.integers(0, 8)), max_size=12), st.integers(0, 1000))
def test_every_sector_may_hold_exactly_what_the_model_says(verbs: list[tuple[str, int]], seed: int) -> None:
    disk = Disk.from_files({"a": bytes(2 * BLOCK)})
    on_loop(lambda: drive(disk, verbs, seed))
