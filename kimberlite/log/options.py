"""What can be set about a log, with unit, default and consequence."""

from __future__ import annotations

from dataclasses import dataclass
from types import UnionType
from typing import Final

from kimberlite import _native
from kimberlite.arguments import Sync, checked_sync
from kimberlite.errors import Invalid

MIB: Final = 1 << 20
LARGEST_SEGMENT: Final = 2048 * MIB


@dataclass(frozen=True, slots=True)
class Options:
    """How a writer runs. None of it changes what is already on disk."""

    #: Who waits for which sync: every record, every batch, all that is waiting, or nobody.
    sync: Sync = "group"
    #: Bytes of a segment file. Larger files mean fewer rotations; a batch must fit in one.
    segment_bytes: int = 256 * MIB
    #: Groups being written at a time, 1 to 8. More of them help when the disk takes longer than sealing.
    depth: int = 4
    #: While a group is being written, the next one waits until this much is in the pool.
    group_bytes: int = 256 * 1024
    #: A group takes no further batch beyond this.
    largest_group: int = 4 * MIB
    #: Bytes waiting to be sealed before `append` itself waits.
    pool_bytes: int = 64 * MIB
    #: Seconds to gather more before a lone group is sealed. 0 never waits.
    max_delay: float = 0.0
    #: Seconds without work before a mark is written.
    idle: float = 0.005
    #: zstd level of runs, None for none. Runs that do not shrink are stored as they are.
    compression: int | None = None
    #: Bytes of opened runs kept for point reads.
    cache_bytes: int = 64 * MIB
    #: An index checkpoint is written after this many records or bytes, at most two a second.
    checkpoint_records: int = 100_000
    checkpoint_bytes: int = 64 * MIB

    #: A closed segment is packed in the background when that leaves at most this share of it; 0 packs none.
    pack: float = 0.5
    #: Closed segments whose newest record is older than so many seconds are dropped; 0 keeps them.
    retain_age: float = 0.0
    #: The oldest closed segments are dropped as long as the log takes more bytes than this; 0 keeps them.
    retain_size: int = 0
    #: Bytes a second that are read of closed segments in the background, to find what was damaged on the disk; 0 reads
    #: none.
    scrub: int = 4 * MIB

    def __post_init__(self) -> None:
        checked_sync(self.sync)
        if not is_within(self.segment_bytes, 64 * 1024, LARGEST_SEGMENT) or self.segment_bytes % 4096:
            raise Invalid("segment_bytes is from 64 KiB to 2 GiB, a multiple of 4,096")
        if not is_within(self.depth, 1, 8):
            raise Invalid("depth is from 1 to 8")
        if self.compression is not None and not is_within(self.compression, -7, 19):
            raise Invalid("compression is a zstd level from -7 to 19, or None")
        if not is_within(self.max_delay, 0, 1, int | float):
            raise Invalid("max_delay is from 0 to 1 second")
        if not is_within(self.idle, 0, 1 << 40, int | float) or not self.idle:
            raise Invalid("idle is a number of seconds above 0")
        for name in ("group_bytes", "largest_group", "pool_bytes", "checkpoint_records", "checkpoint_bytes"):
            if not is_within(getattr(self, name), 1, 1 << 62):
                raise Invalid(f"{name} is a number above 0")
        if not is_within(self.pack, 0, 1, int | float):
            raise Invalid("pack is a share from 0 to 1")
        if not is_within(self.scrub, 0, 1 << 40):
            raise Invalid("scrub is a number of bytes a second from 0 to 1 TiB")
        if not is_within(self.retain_age, 0, 1 << 33, int | float):
            raise Invalid("retain_age is a number of seconds from 0")
        for name in ("cache_bytes", "retain_size"):
            if not is_within(getattr(self, name), 0, 1 << 62):
                raise Invalid(f"{name} is a number from 0")


def is_within(value: object, least: int, most: int, kind: type | UnionType = int) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and least <= value <= most  # type: ignore[operator]


#: Records in a batch.
LARGEST_BATCH: Final = _native.LARGEST_BATCH
#: Bytes of a batch as it is stored.
LARGEST_BATCH_BYTES: Final = _native.LARGEST_BATCH_BYTES
