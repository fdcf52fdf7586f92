"""Random damages of one database, and what is salvaged of each: `python -m tests.crash.salvaging`.

Every record whose bytes are whole, and something that proves it, is found; and what is found is what was written. What
is whole is judged by `tests/model`, which knows where every byte of a run, of its check and of its leaf is.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import Pool
from pathlib import Path
from random import Random
from typing import Final, NamedTuple
from unittest.mock import patch

from kimberlite import Invalid, Record
from kimberlite.crypto.master import PREFIX
from kimberlite.log import checkpoint, packing
from kimberlite.log.salvage import Finder
from kimberlite.storage.memory import Disk, MemoryBackend
from tests.log.simulated import Machine, until
from tests.model import Log, Row, read_log
from tests.model.cursor import Cursor
from tests.model.derived import placed_runs
from tests.model.files import leaf_index, segment_name
from tests.model.groups import BLOCK, GROUP_HEADER
from tests.model.records import encode_record, take_record

SEGMENT: Final = 64 * 1024
MASTER: Final = b"the master key of what is broken"
KINDS: Final = (
    *(f"{mode} {form}" for mode in ("plain", "encrypted") for form in ("padded", "packed", "dropped", "pressed")),
    "encrypted erased",
)
GONE: Final = "stream 2"
VAULTS: Final = ("vault.0", "vault.1")

Files = dict[str, bytes]


class Placed(NamedTuple):
    """Where a record's run is, its check, and the header of its group."""

    name: str
    run: range
    check: range
    header: range


@dataclass(frozen=True)
class Source:
    """A database before anything happened to it."""

    kind: str
    files: Files
    log: Log
    #: By position, of those that are in segments.
    placed: dict[int, Placed]
    master: bytes | None
    #: Positions below this were dropped.
    first: int

    @property
    def segments(self) -> list[str]:
        return [name for name in self.files if name.startswith("segments/")]

    @property
    def records(self) -> int:
        """Of streams, that were not dropped or erased."""
        return sum(self.is_kept(self.log.rows[p]) and p >= self.first for p in self.placed)

    def is_kept(self, row: Row) -> bool:
        return row.stream > 0 and all(erasure.stream != row.stream for erasure in self.log.erasures)

    @property
    def encrypted(self) -> bool:
        return self.master is not None


@cache
def built(kind: str, copy: int = 0) -> Source:
    """`copy`: the same again, as another database."""
    return asyncio.run(_build(kind, copy))


async def _build(kind: str, copy: int) -> Source:
    mode, form = kind.split()
    master = MASTER if mode == "encrypted" else None
    with (
        patch.multiple(checkpoint, LEAST_INTERVAL=0.002),
        patch.multiple(packing, REST=0),
        tempfile.TemporaryDirectory() as directory,
    ):
        machine = Machine(_key(Path(directory), master))
        await _fill(machine, form, copy)
        before = machine.disk.files()
        first = await _drop(machine) if form == "dropped" else 0
        if form == "erased":
            await _erase(machine)
            before = machine.disk.files()
    files = _kept(machine.disk.files())
    log = read_log(_kept(before), master)
    placed = {position: place for position, place in _places(_kept(before), log) if place.name in files}
    return Source(kind, files, log, placed, master, first)


def _key(directory: Path, master: bytes | None) -> Path | None:
    if master is None:
        return None
    path = directory / "key"
    path.touch(0o600)
    path.write_text(f"{PREFIX}{base64.b64encode(master).decode()}\n")
    return path


def _kept(files: Files) -> Files:
    return {name: data for name, data in files.items() if not name.startswith(("prepare/", "reserve"))}


async def _fill(machine: Machine, form: str, copy: int) -> None:
    rng = Random(f"{form} {copy}")
    compression = 1 if form == "pressed" else None
    for session in range(3):
        async with machine.open(segment_bytes=SEGMENT, pack=0, compression=compression) as db:
            for turn in range(9):
                machine.now += rng.randrange(1, 10**9)
                sizes = [[rng.choice((5, 40, 300, 3000)) for _ in range(rng.randrange(1, 7))] for _ in range(4)]
                appends = [
                    db.append(f"stream {(turn + i) % 5}", [_record(rng, size) for size in several])
                    for i, several in enumerate(sizes)
                ]
                await asyncio.gather(*appends)
            await db.append(f"session {session}", _record(rng, 20_000), producer=("till", 0))
    if form == "packed":
        async with machine.open(segment_bytes=SEGMENT, pack=1.0) as db:
            upkeep = db.upkeep
            assert upkeep is not None

            async def packed() -> bool:
                return upkeep.packer.packed >= 2

            await until(packed)


def _record(rng: Random, size: int) -> Record:
    payload = rng.randbytes(size) if rng.random() < 0.5 else b"%d " % rng.randrange(10**6) * (size // 7)
    key = rng.randbytes(4) if rng.random() < 0.3 else None
    headers = (("name", rng.randbytes(3)),) if rng.random() < 0.3 else ()
    return Record(payload, key, headers, rng.randrange(10**9) if rng.random() < 0.3 else None)


async def _drop(machine: Machine) -> int:
    async with machine.open(segment_bytes=SEGMENT, pack=0) as db:
        end = (await db.info())["records"]
        await db.retain(before=end // 2)
        first: int = (await db.info())["first_position"]
    assert 0 < first < end
    return first


async def _erase(machine: Machine) -> None:
    """With something before it and behind."""
    async with machine.open(segment_bytes=SEGMENT, pack=0) as db:
        machine.now += 10**9
        await db.erase(GONE, reason="on request")
        for i in range(9):
            machine.now += 10**9
            await db.append("stream 1", b"behind %d" % i)


def _places(files: Files, log: Log) -> Iterator[tuple[int, Placed]]:
    for group in log.groups:
        runs = placed_runs(files, log, group)
        if not runs:
            continue
        checks = runs[-1][0] + runs[-1][1]
        for i, (place, length, run) in enumerate(runs):
            header = range(group.place, group.place + GROUP_HEADER)
            check = range(checks + 8 * i, checks + 8 * i + 8)
            where = Placed(segment_name(group.segment), range(place, place + length), check, header)
            yield from ((run.position + j, where) for j in range(run.records))


# ---- damage


@dataclass
class Ruin:
    """What is left: bytes by name, and of which file they were."""

    source: Source
    files: dict[str, bytearray]
    origin: dict[str, str | None]
    done: list[str] = field(default_factory=list)

    def whole(self, name: str, places: range, of: str) -> bool:
        """Whether these bytes of a file are what they were, in the file of this name."""
        data = self.files.get(name)
        if data is None or self.origin[name] != of:
            return False
        return data[places.start : places.stop] == self.source.files[of][places.start : places.stop]

    def copies(self, of: str) -> list[str]:
        return [name for name, origin in self.origin.items() if origin == of and name in self.files]


#: Changes a file, or two; says what it did.
Kind = Callable[[Random, Ruin, str], str]


def _bits(rng: Random, ruin: Ruin, name: str) -> str:
    data = ruin.files[name]
    for _ in range(rng.choice((1, 1, 3, 8)) if data else 0):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return "bits"


def _bytes(rng: Random, ruin: Ruin, name: str) -> str:
    data, length = ruin.files[name], rng.choice((1, 2, 16, 100))
    place = rng.randrange(max(1, len(data)))
    data[place : place + length] = rng.randbytes(min(length, len(data) - place))
    return "bytes"


def _block(rng: Random, ruin: Ruin, name: str) -> str:
    data, size = ruin.files[name], rng.choice((512, BLOCK, 4 * BLOCK))
    place = rng.randrange(max(1, len(data))) // size * size
    length = min(size, len(data) - place)
    data[place : place + length] = rng.choice((bytes(length), b"\xff" * length, rng.randbytes(length)))
    return "block"


def _cut(rng: Random, ruin: Ruin, name: str) -> str:
    data = ruin.files[name]
    del data[rng.randrange(len(data) + 1) :]
    return "cut"


def _missing(rng: Random, ruin: Ruin, name: str) -> str:
    del ruin.files[name]
    return "missing"


def _swapped(rng: Random, ruin: Ruin, name: str) -> str:
    other = rng.choice(sorted(ruin.files))
    files, origin = ruin.files, ruin.origin
    files[name], files[other] = files[other], files[name]
    origin[name], origin[other] = origin[other], origin[name]
    return f"swapped with {other}"


def _copied(rng: Random, ruin: Ruin, name: str) -> str:
    other = rng.choice(sorted(ruin.files))
    ruin.files[other], ruin.origin[other] = bytearray(ruin.files[name]), ruin.origin[name]
    return f"copied over {other}"


def _moved(rng: Random, ruin: Ruin, name: str) -> str:
    """A block of it is where another one was."""
    data = ruin.files[name]
    blocks = len(data) // BLOCK
    if blocks > 1:
        one, other = (rng.randrange(blocks) * BLOCK for _ in range(2))
        data[one : one + BLOCK] = data[other : other + BLOCK]
    return "moved"


def _strange(rng: Random, ruin: Ruin, name: str) -> str:
    other = built(ruin.source.kind, 1).files
    if name in other:
        ruin.files[name], ruin.origin[name] = bytearray(other[name]), None
    return "strange"


DAMAGES: Final[tuple[Kind, ...]] = (
    *(_bits,) * 4,
    *(_bytes,) * 3,
    *(_block,) * 4,
    _cut,
    _missing,
    _swapped,
    _copied,
    _moved,
    _strange,
)


def damaged(source: Source, rng: Random) -> Ruin:
    files = {name: bytearray(data) for name, data in source.files.items()}
    ruin = Ruin(source, files, {name: name for name in files})
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        segments = [name for name in sorted(ruin.files) if name.startswith("segments/")]
        name = rng.choice(segments if segments and rng.random() < 0.7 else sorted(ruin.files))
        kind = rng.choice(DAMAGES)
        ruin.done.append(f"{name}: {kind(rng, ruin, name)}")
    return ruin


# ---- judging


def owed(ruin: Ruin) -> set[int]:
    """Positions of records that are whole and proven by something that is."""
    source, files = ruin.source, ruin.files
    if not ruin.whole("identity", range(512), "identity"):
        return set()
    keys = any(ruin.whole(name, range(len(source.files.get(name, b""))), name) for name in VAULTS)
    if source.encrypted and not keys:
        return set()
    #: A segment's bytes are looked for where they are called so, or begin so.
    beginnings = {name: bytes(data[:8]) for name, data in files.items()}
    found = set()
    for position, placed in source.placed.items():
        if position < source.first:
            continue
        row = source.log.rows[position]
        if row.stream > 0 and not source.is_kept(row):
            continue
        for name in ruin.copies(placed.name):
            if beginnings[name] != b"KIMBSEG1" and not name.startswith("segments/"):
                continue
            if not ruin.whole(name, placed.run, placed.name):
                continue
            salted = ruin.whole(name, range(BLOCK), placed.name)
            checked = salted and ruin.whole(name, placed.check, placed.name)
            headed = salted and ruin.whole(name, placed.header, placed.name)
            if checked or row.encrypted or (headed and _has_leaf(ruin, position) and _is_declared(ruin, row)):
                found.add(position)
    return found


def _has_leaf(ruin: Ruin, position: int) -> bool:
    place = BLOCK + 32 * leaf_index(position)
    leaf = ruin.source.files["hashes"][place : place + 32]
    others = [name for name, data in ruin.files.items() if name != "hashes" and data[:8] == b"KIMBTRE1"]
    return (
        len(leaf) == 32
        and ruin.whole("hashes", range(place, place + 32), "hashes")
        and not others
        and (ruin.whole("hashes", range(8), "hashes"))
    )


def _is_declared(ruin: Ruin, row: Row) -> bool:
    """Whether the record that declares its stream is where it was, or nothing of what is kept says it."""
    if row.stream == 0:
        return True
    declared = next(
        r for r in ruin.source.log.rows if r.stream == 0 and r.payload[2:6] == row.stream.to_bytes(4, "little")
    )
    placed = ruin.source.placed.get(declared.position)
    if placed is None or declared.position < ruin.source.first:
        return False
    whole = [ruin.whole(placed.name, places, placed.name) for places in (range(BLOCK), placed.run, placed.check)]
    return all(whole)


def judge(ruin: Ruin) -> tuple[int, int, list[str]]:
    """How many records are owed, how many were found, and what is wrong."""
    source = ruin.source
    wrong: list[str] = []
    disk = Disk.from_files({name: bytes(data) for name, data in ruin.files.items()})
    for directory in ("segments", "index"):
        disk.tree.setdefault(directory, None)
    must = owed(ruin)
    try:
        finder = Finder(MemoryBackend(disk), source.master)
    except Invalid as error:
        return len(must), 0, [f"refused: {error}"] if must else []
    truth = {(row.name, row.offset): row for row in source.log.rows if source.is_kept(row)}
    names = {f"unnamed/{row.stream}": row.name for row in source.log.rows}
    found: dict[int, int] = {}
    for name, offset, when, batch in finder.records():
        cursor = Cursor(batch.stored, "what was salvaged")
        for i in range(len(batch)):
            start = cursor.place
            take_record(cursor)
            row = truth.get((names.get(name, name), offset + i))
            if row is None or encode_record(row.opened) != cursor.data[start : cursor.place]:
                wrong.append(f"{name}, offset {offset + i} is not what was written")
            elif row.position in found or (found and row.position < max(found)):
                wrong.append(f"position {row.position} comes again, or late")
            else:
                found[row.position] = when
        cursor.end()
    report = finder.report
    guessed = {p for each in report.times for p in range(each.first, each.end)}
    late = [p for p, when in found.items() if when != source.log.rows[p].timestamp and p not in guessed]
    wrong += [f"position {position} has another time" for position in late[:3]]
    missing = {p for each in report.missing for p in range(each.first, min(each.end, len(source.log.rows)))}
    wrong += [f"position {position} is said to be missing" for position in sorted(missing & found.keys())[:3]]
    lost = {p for p in must if source.log.rows[p].stream > 0} - found.keys()
    wrong += [f"position {position} is whole and was not found" for position in sorted(lost)[:3]]
    end = max(found, default=0)
    if _checkpointed(ruin):
        end = len(source.log.rows)
        lengths = Counter(row.stream for row in source.log.rows if row.stream > 0)
        short = [stream for stream, length in lengths.items() if finder.lengths.get(stream) != length]
        wrong += [f"stream {stream} has another length" for stream in short]
    for erasure in source.log.erasures:
        if erasure.position in must or _checkpointed(ruin):
            times = [(gone.when, gone.reason) for gone in finder.erasures if gone.stream == erasure.stream]
            known = (erasure.timestamp, erasure.reason), (0, erasure.reason)
            wrong += [] if times and times[0] in known else [f"the erasure of stream {erasure.stream}: {times}"]
    silent = {row.position for row in source.log.rows[:end] if row.stream > 0} - found.keys() - missing
    wrong += [f"position {position} is missing and nobody says so" for position in sorted(silent)[:3]]
    return len(must), len(found), wrong


def _checkpointed(ruin: Ruin) -> bool:
    """Whether it is known how far the log had come."""
    source = ruin.source
    needed = ["identity", "checkpoint", *(["receipt.key"] if source.master is None else [])]
    whole = [name for name in source.files if ruin.whole(name, range(len(source.files[name])), name)]
    return set(needed) <= set(whole) and (source.master is None or any(name in whole for name in VAULTS))


def tried(seeds: range, kinds: tuple[str, ...] = KINDS) -> tuple[Counter[str], list[str]]:
    counts: Counter[str] = Counter()
    wrong = []
    for seed in seeds:
        rng = Random(seed)
        source = built(kinds[seed % len(kinds)])
        ruin = damaged(source, rng)
        must, found, what = judge(ruin)
        counts.update(damages=1, owed=must, found=found, changed=found < source.records)
        wrong += [f"seed {seed}, {source.kind}: {each}; {'; '.join(ruin.done)}" for each in what]
    return counts, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    begun = time.monotonic()
    end = options.seed + options.count
    parts = [range(start, min(end, start + 250)) for start in range(options.seed, end, 250)]
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    with Pool(options.jobs) as pool:
        for some, errors in pool.imap(tried, parts):
            counts.update(some)
            wrong += errors
    print(f"{dict(counts)} in {time.monotonic() - begun:.0f} s; {len(wrong)} wrong", *wrong[:50], sep="\n")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
