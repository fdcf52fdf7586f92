"""A four-digit PIN cannot be guessed from what is public of it, and the same attacker finds it with its own salt."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from kimberlite import Receipt
from kimberlite.storage.memory import Disk
from tests.model import Row, read_log
from tests.model.groups import Run, decode_run
from tests.model.hashes import encode_entry, run_seed, salts

from .databases import MASTER, Database, key_file, on_disk, read
from .forging import all_groups, keys_of
from .guessing import RUN, Target, beside, guess, possible_salts, strings

PINS = (b"4821", b"0000", b"1234", b"9376", b"5550")
EVERY_PIN = [b"%04d" % number for number in range(10_000)]
#: All that is left to somebody who knows nearly everything.
FEW = [b"0376", b"3376", b"6376", b"9376"]
#: The record that is guessed, by its place in the run.
WHICH = 3


@dataclass(frozen=True)
class Kept:
    """A database of one run of PINs, and the secrets of that run."""

    database: Database
    run: Run
    rows: tuple[Row, ...]
    declared: bytes
    salts: list[bytes]
    data_key: bytes

    @property
    def target(self) -> Target:
        row = self.rows[WHICH]
        return Target(row.sealed, row.last, row.stream, row.offset, row.timestamp, self.declared)

    def directory(self) -> set[bytes]:
        return strings(*self.database.files.values())


@cache
def kept(kind: str) -> Kept:
    master, disk = MASTER if kind == "encrypted" else None, Disk()
    with tempfile.TemporaryDirectory() as directory, on_disk(disk, key_file(Path(directory), master)) as db:
        receipt: Receipt = db.append("pins", PINS)
    database = read(disk, master, [receipt])
    log = read_log(database.files, None)
    [group] = all_groups(database)
    run = decode_run(group.group.runs[-1], "run")
    declared = log.streams[1].declared
    data_key = b"" if master is None else keys_of(database)[1][declared]
    seed = run.seed if master is None else run_seed(data_key, run.nonce)
    rows = tuple(row for row in log.rows if row.stream == run.stream)
    return Kept(database, run, rows, declared, salts(seed, RUN), data_key)


def derived(found: set[bytes], run: Run) -> Iterator[bytes]:
    nonces = [run.nonce] if run.encrypted else []
    for string in found:
        yield from possible_salts(string, nonces)


def test_a_pin_is_not_guessed_from_a_directory_without_its_keys() -> None:
    one = kept("encrypted")
    seen = one.directory()
    assert one.run.commitments[WHICH] in seen
    assert guess(one.target, seen, derived(seen, one.run), FEW) == set()


def test_the_same_attacker_guesses_it_from_a_plain_directory() -> None:
    one = kept("plain")
    seen = one.directory()
    assert one.run.seed in seen
    assert guess(one.target, seen, derived({one.run.seed}, one.run), EVERY_PIN) == {PINS[WHICH]}
    assert guess(one.target, seen, derived(strings(one.run.front()), one.run), FEW) == {PINS[WHICH]}


@pytest.mark.parametrize("kind", ["plain", "encrypted"])
def test_a_pin_is_not_guessed_from_the_salts_of_its_neighbours(kind: str) -> None:
    """He knows all that is public, and of every other record of the run payload and salt."""
    one = kept(kind)
    seen = {one.rows[WHICH].commitment, one.rows[WHICH].leaf}
    for place, salt in enumerate(one.salts):
        found = guess(one.target, seen, [salt], EVERY_PIN)
        found |= guess(one.target, seen, derived({salt, *beside(salt)}, one.run), FEW)
        assert found == ({PINS[WHICH]} if place == WHICH else set())


@pytest.mark.parametrize("kind", ["plain", "encrypted"])
def test_a_pin_is_not_guessed_from_entries_leaves_and_tree(kind: str) -> None:
    """What a proof of any record shows: no body, no seed."""
    one = kept(kind)
    entries = [
        encode_entry(
            encrypted=row.sealed,
            last=row.last,
            stream=row.stream,
            offset=row.offset,
            timestamp=row.timestamp,
            committed=row.commitment,
            declared=one.declared,
        )
        for row in one.rows
    ]
    receipt = one.database.receipts[0]
    shown = strings(
        one.database.files["hashes"], *entries, *(row.commitment for row in one.rows), receipt.root, receipt.chain
    )
    assert one.rows[WHICH].leaf in shown
    assert one.rows[WHICH].commitment in shown
    assert guess(one.target, shown, derived(shown, one.run), FEW) == set()
    assert guess(one.target, shown, [one.salts[WHICH]], EVERY_PIN) == {PINS[WHICH]}


def test_the_same_attacker_guesses_it_with_any_secret_of_its_run() -> None:
    one = kept("encrypted")
    seed = run_seed(one.data_key, one.run.nonce)
    for secret in (one.salts[WHICH], seed, one.data_key):
        candidates = possible_salts(secret, [one.run.nonce])
        assert guess(one.target, one.directory(), candidates, FEW) == {PINS[WHICH]}


def sizes(kind: str, payloads: list[bytes]) -> dict[str, int]:
    """Of every file, and of the run."""
    master, disk = MASTER if kind == "encrypted" else None, Disk()
    with tempfile.TemporaryDirectory() as directory, on_disk(disk, key_file(Path(directory), master)) as db:
        receipt = db.append("verdicts", payloads)
    database = read(disk, master, [receipt])
    [group] = all_groups(database)
    return {**{name: len(data) for name, data in database.files.items()}, "run": len(group.group.runs[-1])}


ALIKE = [(b"approved", b"rejected"), (b"0000", b"9376"), (b"yes", b"no"), (b"", b"a short remark"), (b"x", b"x" * 80)]


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_short_payloads_have_one_length_where_they_are_encrypted(one: bytes, other: bytes) -> None:
    assert sizes("encrypted", [one]) == sizes("encrypted", [other])
    assert (sizes("plain", [one]) == sizes("plain", [other])) == (len(one) == len(other))


def test_lengths_show_in_steps_of_128_bytes() -> None:
    found = {sizes("encrypted", [bytes(length)])["run"] for length in range(0, 600, 25)}
    assert {after - before for before, after in pairwise(sorted(found))} == {128}
