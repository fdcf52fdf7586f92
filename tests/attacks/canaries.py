"""Strings that are easy to find, in every part of a record that is encrypted; and whoever looks for them on the disk.

`python -m tests.attacks.canaries DIRECTORY KEY` appends them until it is killed, and writes a byte for each receipt.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator, Mapping
from random import Random

import zstandard

import kimberlite
from kimberlite import Log, Record

ZSTD = bytes.fromhex("28b52ffd")
#: A time that is as good as a name: both ways round it is found nowhere by chance.
MOMENT = 0x1B5E_C2A7_93D1_64F8
STREAM = "the-name-of-this-stream-shows"


def token(what: str) -> bytes:
    """Thirty characters that occur once in the world."""
    return f"canary {what:<7} {Random(what).getrandbits(60):015x}".encode()


PAYLOAD, KEY, HEADER, VALUE, PRODUCER, SEVERAL = map(token, ("payload", "key", "header", "value", "sender", "several"))
TOKENS = (PAYLOAD, KEY, HEADER, VALUE, PRODUCER, SEVERAL)


def needles() -> list[bytes]:
    """Not only whole ones: what is torn or compressed may leave a part."""
    halves = [half for whole in TOKENS for half in (whole[:15], whole[-15:])]
    return [*halves, *(MOMENT.to_bytes(8, order) for order in ("little", "big"))]


def records(number: int, size: int = 0) -> list[Record]:
    """Ones that shrink and ones that do not."""
    filler = PAYLOAD * (size // 60) + Random(number).randbytes(size // 2)
    return [
        Record(PAYLOAD + b" %d " % number + filler, KEY, ((HEADER.decode(), VALUE),), MOMENT),
        Record(filler + PAYLOAD, KEY + b"%d" % number),
    ]


async def work(db: Log, batches: int, *, largest: int = 6_000, seed: int = 0) -> None:
    """Every way to append, a few at a time."""
    rng = Random(seed)

    async def some(task: int) -> None:
        for number in range(batches):
            stream = f"{STREAM} {task % 3}"
            if rng.random() < 0.2:
                both = {stream: records(number), f"{stream} too": records(number, rng.randrange(largest))}
                await db.append_many(both)
            else:
                await db.append(stream, records(number, rng.randrange(largest)))

    await asyncio.gather(*(some(task) for task in range(4)))
    for sequence in range(3):
        producer = PRODUCER + b"%d" % seed, sequence
        await db.append(f"{STREAM} of {seed}", records(sequence, 500), producer=producer)
        both = {f"{STREAM} {i}": records(sequence) for i in range(2)}
        await db.append_many(both, producer=(SEVERAL + b"%d" % seed, sequence))


def frames(data: bytes) -> Iterator[bytes]:
    """What is in every zstd frame, or the beginning of one, that starts anywhere."""
    place = data.find(ZSTD)
    while place >= 0:
        whole, reader = b"", zstandard.ZstdDecompressor().decompressobj()
        try:
            for at in range(place, len(data), 256):
                whole += reader.decompress(data[at : at + 256])
                if reader.eof:
                    break
        except zstandard.ZstdError:
            pass  # what came before the error counts
        yield whole
        place = data.find(ZSTD, place + 1)


def found(files: Mapping[str, bytes]) -> set[tuple[str, bytes]]:
    """Which parts of canaries are in which files, in their names, their bytes or what was compressed."""
    return {
        (name, needle)
        for name, data in files.items()
        for text in (name.encode(), data, *frames(data))
        for needle in needles()
        if needle in text
    }


async def append_for_ever(path: str, key: str) -> None:
    sender = PRODUCER + b" %d" % os.getpid()
    async with kimberlite.open(path, key_file=key, segment_bytes=256 * 1024, compression=1) as db:

        async def some(task: int) -> None:
            number = 0
            while True:
                await db.append(f"{STREAM} {task}", records(number, 2_000), producer=(sender, number))
                os.write(1, b".")
                number += 1

        await asyncio.gather(*(some(task) for task in range(4)))


if __name__ == "__main__":
    asyncio.run(append_for_ever(*sys.argv[1:]))
