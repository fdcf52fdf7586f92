"""The golden directories: `python -m tests.golden.make` writes them once, with fixed randomness and time.

They are what other versions of this code must go on reading, and writing to the byte. Only a new format makes new ones;
with `--force` those that are there are overwritten.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import lzma
import tarfile
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from kimberlite import Log, Record
from kimberlite.cli import forms
from kimberlite.cli.inspect import describe
from kimberlite.crypto.master import PREFIX, load_master
from kimberlite.log import checkpoint
from kimberlite.log.clock import Moment
from kimberlite.log.names import CLOCK
from kimberlite.log.opening import Injected, open_log
from kimberlite.log.options import Options
from kimberlite.log.verify import verify
from kimberlite.storage import BLOCK
from kimberlite.storage.memory import Disk, MemoryBackend

HERE = Path(__file__).parent / "1"
KEY = f"{PREFIX}a2ltYmVybGl0ZSBnb2xkZW4gbWFzdGVyIGtleSAhISE=\n"
NEXT_KEY = f"{PREFIX}a2ltYmVybGl0ZSBnb2xkZW4gbWFzdGVyIGtleSAyISE=\n"
#: 14 November 2023.
BEGAN = 1_700_000_000_000_000_000
#: Payloads that are longer are described by their length and hash.
LONGEST_SHOWN = 200

Session = Callable[[Log], Awaitable[None]]


async def first(db: Log) -> None:
    """What a record, a batch, a producer and an append to several streams can look like."""
    await db.append("orders", [Record(b'{"order":%d,"total":"19.90"}' % number) for number in range(20)])
    await db.append(
        "orders", Record(b"keyed", b"key", (("trace", b"1"), ("trace", b"2")), BEGAN), producer=(b"till 7", 0)
    )
    await db.append("events/café", [b"", Record(b"before 1970", b"", (), -1), bytes(range(256))])
    both: dict[str, list[bytes] | list[Record]] = {
        "orders": [b"several", b"at once"],
        "ledger": [Record(b"entry", b"k")],
    }
    await db.append_many(both, producer=(b"till 7", 0))
    await db.append("orders", b"again", producer=(b"till 7", 1))
    await db.append("blobs", b"long " * 16_000)


async def second(db: Log) -> None:
    await db.append_many({"ledger": [b"without a producer"], "events/café": [b"too"]})
    await asyncio.gather(*(db.append("orders", [b"one group %d" % number] * 3) for number in range(4)))


async def filling(db: Log) -> None:
    for number in range(24):
        records = [b"%d %d " % (number, i) + b"x" * 2_500 for i in range(4)]
        await db.append(f"stream {number % 5}", records)


async def torn(db: Log) -> None:
    """The last group of it does not get to the disk whole."""
    await db.append("a", [b"acknowledged", b"too"])
    await db.append("b", b"the last that was")
    await db.append("a", [b"never acknowledged " * 100] * 3)


async def little(db: Log) -> None:
    """Records with times and offsets of their own, and then segments that are mostly padding."""
    async with db.importing() as into:
        await into.gap("moved", 5, BEGAN - 1000, "dropped")
        await into.add("moved", 5, BEGAN - 1000, [b"the sixth", b"the seventh"])
        await into.gap("moved", 11, BEGAN - 100, "lost")
        await into.add("moved", 11, BEGAN - 10, [b"the twelfth"])
    for number in range(100):
        await db.append(
            ("orders", "ledger", "blobs")[number % 3], b"little %d" % number, producer=(b"till 7", number // 3)
        )


async def kept(db: Log) -> None:
    """The oldest are dropped, and what is left is packed."""
    assert db.upkeep is not None
    await db.retain(before=40)
    while db.upkeep.packer.packed < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)


async def left(db: Log) -> None:
    """Somebody is forgotten, for good."""
    for number in range(3):
        await db.append("people/7", b"a secret %d" % number)
        await db.append("people/8", b"another %d" % number, producer=(b"desk", number))
    await db.erase("people/7", reason="asked to be forgotten")
    with tempfile.TemporaryDirectory() as name:
        await db.rotate(keep_key(Path(name), NEXT_KEY))
    await db.confirm_erasure("people/7")
    await db.erase("people/8", reason="asked, too")


@dataclass(frozen=True)
class Golden:
    name: str
    sessions: tuple[Session, ...]
    #: What is in the file of the master key, before the first session and behind the last, if it is encrypted.
    key: str | None = None
    last_key: str | None = None
    #: Whether the power goes while a group of more than a block is written, in the last session.
    torn: bool = False
    segment_bytes: int = 256 * 1024
    compression: int | None = None

    def options(self, session: int) -> Options:
        """Without the marks that follow a pause: when there is one depends on the machine. So does when a segment is
        packed: only the last session waits for it, and draws nothing else meanwhile."""
        pack = 0.5 if session == len(self.sessions) - 1 else 0
        return Options(segment_bytes=self.segment_bytes, compression=self.compression, idle=3600.0, pack=pack)


GOLDEN = (
    Golden("plain", (first, second)),
    Golden("encrypted", (first, second), key=KEY, last_key=KEY, compression=1),
    Golden("segments", (filling, second), segment_bytes=128 * 1024),
    Golden("torn", (second, torn), torn=True),
    Golden("kept", (little, kept), segment_bytes=128 * 1024),
    Golden("left", (first, left), key=KEY, last_key=NEXT_KEY),
)


@contextmanager
def unhurried() -> Iterator[None]:
    """How long a machine takes makes no difference to when checkpoints are taken."""
    usual = checkpoint.LEAST_INTERVAL
    checkpoint.LEAST_INTERVAL = 3600.0  # type: ignore[misc]
    try:
        yield
    finally:
        checkpoint.LEAST_INTERVAL = usual  # type: ignore[misc]


async def written(golden: Golden, key: Path | None) -> Disk:
    """The disk after the sessions, each closed but one that the power ends."""
    disk, draw, time = Disk(), Random(f"golden {golden.name}"), count(BEGAN, 1_000_003)
    for number, session in enumerate(golden.sessions):
        seed = hashlib.sha256(b"%s %d" % (golden.name.encode(), number)).digest()
        cut = Cut(disk, wanted=golden.torn and number == len(golden.sessions) - 1)
        db = await open_log(
            "golden",
            create=True,
            read_only=False,
            key_file=key,
            backend=MemoryBackend(disk, fault=cut.asked),
            origin="example.com/golden",
            anchor=None,
            options=golden.options(number),
            injected=Injected(draw.randbytes, time.__next__, seed, moment=lambda: Moment(BEGAN, bytes(16), 0)),
        )
        disk.on_step = cut.stepped
        with unhurried():
            await session(db)
            await db.close()
        disk.on_step = None
        disk = cut.left or disk
    return disk


class Cut:
    """Takes the disk when a group is on its way: all of it gets there but the fourth of its sectors."""

    def __init__(self, disk: Disk, *, wanted: bool) -> None:
        self.disk, self.wanted = disk, wanted
        self.submitted = False
        self.left: Disk | None = None

    def asked(self, verb: str, name: str, place: int, length: int) -> None:
        if verb == "submit" and name.startswith("segments/") and length > BLOCK:
            self.submitted = self.wanted

    def stepped(self) -> None:
        if self.submitted and self.left is None:
            loose = self.disk.unsynced()
            self.left = self.disk.persist(loose.operations, loose.resizes, (1 << loose.sectors) - 1 - (1 << 3))


def text_of(disk: Disk, key: Path | None) -> str:
    """What is on the disk: a line for each mark, segment, group and run, then one for each record, then the verdict.

    What is said in words is left out: the words may become better ones.
    """
    found = describe(MemoryBackend(disk.copy()), None)
    inspected = ({name: value for name, value in line.items() if name != "what"} for line in found)
    lines = [*inspected, *records_of(disk, key)]
    report = verify(MemoryBackend(disk.copy()), load_master(key))
    verdict = {"kind": "verified", "records": report.records, "groups": report.groups, "streams": report.streams}
    verdict |= {"root": report.root.hex(), "chain": report.chain.hex()}
    return b"".join(forms.line(line) for line in [*lines, verdict]).decode()


def records_of(disk: Disk, key: Path | None) -> Iterator[dict[str, Any]]:
    for record in asyncio.run(_read(disk.copy(), key)):
        shown = forms.record_form(record)
        if len(record.payload) > LONGEST_SHOWN:
            digest = hashlib.sha256(record.payload).hexdigest()
            shown["payload"] = {"bytes": len(record.payload), "sha256": digest}
        yield {"kind": "record"} | shown


async def _read(disk: Disk, key: Path | None) -> list[Record]:
    opened = open_log(
        "golden",
        create=False,
        read_only=True,
        key_file=key,
        backend=MemoryBackend(disk),
        origin=None,
        anchor=None,
        options=Options(),
    )
    async with opened as db:
        return [record async for record in db.read(system=True)]


def keep_key(directory: Path, text: str) -> Path:
    """The key in a file that only its owner can read, as a checkout does not have it."""
    path = directory / f"{hashlib.sha256(text.encode()).hexdigest()[:8]}.key"
    path.write_text(text)
    path.chmod(0o400)
    return path


def pack(disk: Disk) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in disk.directories():
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o700
            tar.addfile(entry)
        for name, data in disk.files().items():
            if name == CLOCK:
                # It says which machine this was, and when.
                continue
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o600
            tar.addfile(entry, io.BytesIO(data))
    return lzma.compress(out.getvalue(), preset=9)


def unpack(path: Path, directory: Path) -> None:
    directory.mkdir(mode=0o700)
    with tarfile.open(path, "r:xz") as tar:
        tar.extractall(directory, filter="data")


def make(golden: Golden, directory: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        key = keep_key(Path(name), golden.key) if golden.key else None
        disk = asyncio.run(written(golden, key))
        last_key = keep_key(Path(name), golden.last_key) if golden.last_key else None
        text = text_of(disk, last_key)
    (directory / f"{golden.name}.tar.xz").write_bytes(pack(disk))
    (directory / f"{golden.name}.txt").write_text(text)
    if golden.last_key:
        (directory / f"{golden.name}.key").write_text(golden.last_key)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="these only; all by default")
    parser.add_argument("--force", action="store_true", help="overwrite what is there")
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args(arguments)
    options.out.mkdir(exist_ok=True)
    wanted = [golden for golden in GOLDEN if not options.names or golden.name in options.names]
    there = sorted(path.name for golden in wanted for path in options.out.glob(f"{golden.name}.*"))
    if there and not options.force:
        raise SystemExit(f"{options.out} has {', '.join(there)}: these are for good; --force overwrites them")
    for golden in wanted:
        make(golden, options.out)
        print(f"{golden.name}: {(options.out / f'{golden.name}.tar.xz').stat().st_size} bytes")


if __name__ == "__main__":
    main()
