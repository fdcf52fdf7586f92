"""What goes in and what comes out: records and receipts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


#: `expect` for a stream that must not exist yet: the offset its first record gets.
NEW: Final = 0


class Record(NamedTuple):
    """One record. The first four fields are the client's; the log fills in the others.

    Times are integers: nanoseconds since 1970, UTC. `event_time` may be given as an aware datetime.
    """

    payload: bytes
    key: bytes | None = None
    #: Ordered; a name may occur twice. A mapping is accepted when appending.
    headers: tuple[tuple[str, bytes], ...] | Mapping[str, bytes] | Iterable[tuple[str, bytes]] = ()
    event_time: int | datetime | None = None
    stream: str = ""
    offset: int = -1
    position: int = -1
    timestamp: int = -1


class Receipt(NamedTuple):
    """What an acknowledged append returns: where its records are, and the log at the end of their group."""

    stream: str
    first_offset: int
    last_offset: int
    first_position: int
    last_position: int
    timestamp: int
    durable: bool
    tree_size: int
    root: bytes
    chain: bytes
    incarnation: int
    group: int
    mac: bytes


class Dropping(NamedTuple):
    """What a retention dropped, or would drop: segments, the oldest first."""

    segments: int
    #: Records, those of the log itself too; and bytes of the disk.
    records: int
    bytes: int
    #: What is left begins with this position.
    first: int
    #: When the last of them was appended; None if there are none.
    until: int | None


class StreamInfo(NamedTuple):
    """A stream that has records."""

    name: str
    #: The offset that its next record gets.
    length: int
    encrypted: bool
    erased: bool = False


class Erasure(NamedTuple):
    """What the log says of a stream that was erased."""

    stream: str
    #: ns since 1970, UTC.
    when: int
    reason: str
    #: Of the record that says so: the stream's are before it.
    position: int
    #: Whether copies of the vault made before may still open: nobody has confirmed that their master key is no more.
    pending: bool


class Time(NamedTuple):
    """A moment, where a plain integer is a place."""

    ns: int


def nanoseconds(moment: datetime) -> int:
    """An aware datetime as ns since 1970, exactly."""
    return (moment - EPOCH) // timedelta(microseconds=1) * 1000
