"""One flipped bit in every byte of a closed database: `python -m tests.attacks.every_byte`.

Segments, identity and marks, the zeros between groups too. `verify` must refuse each; a mark whose twin is sound is
only reported.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random

from kimberlite import Corrupt, Record
from kimberlite.log.verify import verify
from kimberlite.storage.memory import Disk, MemoryBackend
from tests.model.groups import BLOCK

from .databases import MASTER, Database, key_file, on_disk, read
from .forging import all_groups

#: A file and a place in it.
Byte = tuple[str, int]


def small(kind: str) -> Database:
    """Twenty groups with records in four segments, each but the last ended by a recovery: so they are short."""
    master, disk, receipts = MASTER if kind == "encrypted" else None, Disk(), []
    with tempfile.TemporaryDirectory() as directory, ExitStack() as dead:
        key = key_file(Path(directory), master)
        for session in range(4):
            db = on_disk(disk, key)
            dead.callback(db.close)
            for number in range(session * 5, session * 5 + 5):
                record = Record(b"payload %d" % number, b"key", (("name", b"value"),), number)
                receipts.append(db.append(f"stream {number % 3}", [record, b"second"], producer=(b"till", number // 3)))
            if session < 3:
                disk = Disk.from_files(disk.files())
    return read(disk, master, receipts)


def attacked(database: Database) -> list[Byte]:
    names = ["identity", "marks", *database.segments]
    return [(name, place) for name in names for place in range(len(database.files[name]))]


def structured(database: Database) -> Iterator[Byte]:
    """Everything but zeros that are padding: fields, hashes, checks and what they are of."""
    yield from (("identity", place) for place in range(512))
    ends = [*range(80), *range(4_088, BLOCK)]
    yield from (("marks", block + place) for block in (0, BLOCK) for place in ends)
    for name in database.segments:
        yield from ((name, place) for place in [*range(136), *range(4_088, BLOCK)])
    for placed in all_groups(database):
        yield from ((placed.name, placed.place + i) for i in range(placed.length))


def verdict(disk: Disk, master: bytes | None) -> str:
    try:
        report = verify(MemoryBackend(disk), master)
    except Corrupt as refused:
        return f"refused {refused.file}"
    return "; ".join(report.notes) or "sound"


def expected(name: str, place: int) -> str:
    return f"marks: block {place // BLOCK} is damaged; its twin is sound" if name == "marks" else f"refused {name}"


def survivors(database: Database, flipped: Iterable[Byte], seed: int) -> list[str]:
    """Flips a bit of each byte, verifies, and flips it back. Returns what the verdict was where it was a wrong one."""
    rng, disk, wrong = Random(seed), Disk.from_files(database.files), []
    for name, place in flipped:
        bit = 8 * place + rng.randrange(8)
        disk.flip(name, bit)
        found = verdict(disk, database.master)
        disk.flip(name, bit)
        if found != expected(name, place):
            wrong.append(f"{name}, bit {bit}: {found}")
    assert verdict(disk, database.master) == "sound"
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=1, help="only every so many bytes")
    options = parser.parse_args()
    failed = False
    for kind in ("plain", "encrypted"):
        database = small(kind)
        chosen = attacked(database)[:: options.every]
        begun = time.monotonic()
        wrong = survivors(database, chosen, options.seed)
        failed = failed or bool(wrong)
        print(
            f"{kind}: {len(chosen)} bytes in {time.monotonic() - begun:.0f} s, {len(wrong)} not noticed",
            *wrong,
            sep="\n",
        )
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
