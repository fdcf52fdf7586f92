"""Small logs, made alike every time."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import count

import pytest

from . import Batch, Identity, Keys, Log, Mode, Operation, Record, Sender, read_log, write_log
from .groups import BLOCK

Operations = Sequence[Sequence[Operation]]
MASTER = b"m" * 32


def identity_of(tagged: bool) -> Identity:
    return Identity(b"database 16 byte", 1_700_000_000, "example.com/log", tagged)


def written(
    operations: Operations,
    *,
    tagged: bool,
    segment_bytes: int = 1 << 20,
    compress: bool = False,
    zeros: int = 0,
) -> dict[str, bytes]:
    draw = random.Random(5)
    return write_log(
        identity_of(tagged),
        operations,
        keys=Keys(draw.randbytes(32), draw.randbytes(32), MASTER if tagged else None),
        entropy=draw.randbytes,
        clock=count(1_000).__next__,
        segment_bytes=segment_bytes,
        compress=compress,
        zeros_behind=zeros,
    )


def read(files: Mapping[str, bytes]) -> Log:
    return read_log(files, MASTER if "vault.0" in files or "vault.1" in files else None)


def small_operations(mode: Mode) -> Operations:
    first = (Record(b"x", b"k", (("h", b"v"),), 9), Record(b"y"))
    return [[Batch("a", first, mode, Sender(b"p", 0))], [Batch("a", (Record(b"z"),), mode)]]


@pytest.fixture(params=[False, True], ids=["plain", "encrypted"])
def small(request: pytest.FixtureRequest) -> dict[str, bytes]:
    """A log of two segments, of three records and a declaration."""
    tagged = bool(request.param)
    files = written(small_operations(Mode(tagged)), tagged=tagged, segment_bytes=3 * BLOCK)
    assert read(files).groups[-1].segment == 1
    return files
