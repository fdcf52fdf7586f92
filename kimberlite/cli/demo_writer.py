"""What `demo` runs and kills: appends without end, and tells its parent of every acknowledgement."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Final

import kimberlite
from kimberlite.cli import forms

#: Tasks that append at the same time, each to a stream of its own.
STREAMS: Final = 8
BATCH: Final = 50
SEGMENT_BYTES: Final = 8 << 20


def stream(number: int) -> str:
    return f"demo/{number}"


def payload(name: str, offset: int) -> bytes:
    """What stands at an offset, so that anybody can tell whether it is the right record."""
    return b'{"stream":"%s","n":%d,"amount":%d}' % (name.encode(), offset, offset * 7919 % 100_000)


async def append_for_ever(database: kimberlite.Log, name: str) -> None:
    offset = 0
    while True:
        batch = [payload(name, offset + i) for i in range(BATCH)]
        receipt = await database.append(name, batch, expect=offset)
        # One write of less than PIPE_BUF: the parent gets the whole line or nothing of it.
        os.write(1, forms.line(forms.receipt_form(receipt)))
        offset += BATCH


async def run(path: str, key_file: str) -> None:
    async with kimberlite.open(path, key_file=key_file, segment_bytes=SEGMENT_BYTES) as database:
        await asyncio.gather(*(append_for_ever(database, stream(number)) for number in range(STREAMS)))


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], sys.argv[2]))
