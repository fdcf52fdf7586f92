"""What calls are given, checked, and as plain as the core takes it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Final, Literal, NamedTuple, get_args

from kimberlite import _native
from kimberlite.errors import Invalid
from kimberlite.records import Receipt, Record, Time, nanoseconds

Sync = Literal["record", "batch", "group", "os"]
POLICIES: Final[tuple[str, ...]] = get_args(Sync)

#: Bytes of a stream's name, and of a producer's id.
LONGEST_NAME: Final = 255
LONGEST_PRODUCER: Final = _native.LONGEST_PRODUCER

Records = bytes | Record | Iterable[bytes | Record]
Producer = tuple[str | bytes, int]
#: A producer's id and sequence and, of what may have been sent before, the last group that it knew of then.
Sender = tuple[bytes, int] | tuple[bytes, int, int]


def checked_name(name: object) -> str:
    if not isinstance(name, str):
        raise Invalid(f"a stream's name is a str, not {type(name).__name__}")
    # What a subclass makes of itself, and when it is equal to what, is its own.
    name = str.__str__(name)
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise Invalid("a stream's name has no lone surrogates") from None
    if not 1 <= length <= LONGEST_NAME:
        raise Invalid(f"a stream's name has 1 to {LONGEST_NAME} bytes of UTF-8")
    if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in name):
        raise Invalid("a stream's name has no control characters")
    return name


def checked_reason(reason: object) -> str:
    if not isinstance(reason, str):
        raise Invalid(f"a reason is a str, not {type(reason).__name__}")
    try:
        length = len(reason.encode())
    except UnicodeEncodeError:
        raise Invalid("a reason has no lone surrogates") from None
    if not 1 <= length <= _native.LONGEST_REASON:
        raise Invalid(f"a reason has 1 to {_native.LONGEST_REASON:,} bytes of UTF-8")
    return str.__str__(reason)


def checked_producer(producer: object) -> tuple[bytes, int]:
    if not isinstance(producer, tuple) or len(producer) != 2:
        raise Invalid("producer is a pair of an id and a sequence")
    name, sequence = producer
    if isinstance(name, str):
        try:
            name = name.encode()
        except UnicodeEncodeError:
            raise Invalid("a producer's id has no lone surrogates") from None
    if not isinstance(name, bytes) or not 1 <= len(name) <= LONGEST_PRODUCER:
        raise Invalid(f"a producer's id is 1 to {LONGEST_PRODUCER} bytes, or a str of as many")
    if not isinstance(sequence, int) or isinstance(sequence, bool) or not 0 <= sequence < 1 << 63:
        raise Invalid("a producer's sequence counts from 0")
    return name, sequence


def checked_bound(bound: object) -> int | Time | None:
    if bound is None or (isinstance(bound, int) and not isinstance(bound, bool)):
        if isinstance(bound, int) and bound < 0:
            raise Invalid("offsets and positions count from 0")
        return bound
    if isinstance(bound, datetime):
        if bound.utcoffset() is None:
            raise Invalid("a time must be aware: it has no time zone")
        return Time(nanoseconds(bound))
    if isinstance(bound, Time):
        return bound
    raise Invalid("a bound is an int or an aware datetime")


def checked_several(batches: object, expect: object) -> list[tuple[str, _native.Batch, int | None]]:
    """A batch for each of several streams, and the offset that its first record must get."""
    named, expected = checked_batches(batches), checked_expect(expect)
    if not expected.keys() <= named.keys():
        raise Invalid("expect names a stream that gets no records")
    return [
        (stream, _native.encode(records), checked_offset(expected.get(stream))) for stream, records in named.items()
    ]


def checked_batches(batches: object) -> dict[str, Records]:
    """A mapping may have a key twice by its own lights."""
    if not isinstance(batches, Mapping):
        raise Invalid("append_many takes a mapping of streams to their records")
    named = [(checked_name(stream), records) for stream, records in batches.items()]
    if len(dict(named)) != len(named):
        raise Invalid("a stream is named twice")
    if not named:
        raise Invalid("there are no records to append")
    return dict(named)


def checked_expect(expect: object) -> dict[str, int]:
    """The offsets that the first records of several streams must get."""
    if expect is None:
        return {}
    if not isinstance(expect, Mapping):
        raise Invalid("append_many takes a mapping of streams to the offsets that they must have")
    return {checked_name(stream): offset for stream, offset in expect.items()}


def checked_limit(limit: object) -> int | None:
    if limit is not None and (type(limit) is not int or limit < 0):
        raise Invalid("limit is a number of records")
    return limit


def checked_offset(offset: object) -> int | None:
    if offset is not None and (type(offset) is not int or not 0 <= offset < 1 << 63):
        raise Invalid("expect is an offset, kimberlite.NEW or None")
    return offset


def checked_sync(sync: object) -> None:
    if sync not in POLICIES:
        raise Invalid(f"sync is one of {', '.join(POLICIES)}, not {sync!r}")


#: How the words of a rule with a position begin.
BEFORE: Final = re.compile("before position ([0-9]+)")


class Rule(NamedTuple):
    """What may go: whatever one of these lets go."""

    #: Before this position.
    before: int | None = None
    #: What is older than so many ns.
    age: int | None = None
    #: The oldest, as long as there are more bytes than this.
    size: int | None = None

    def __str__(self) -> str:
        said = []
        if self.before is not None:
            said.append(f"before position {self.before}")
        if self.age is not None:
            said.append(f"older than {spelled(self.age)}")
        if self.size is not None:
            said.append(f"beyond {self.size} bytes")
        return " or ".join(said)

    def covers(self, said: str) -> bool:
        """Whether it lets go all that a rule of these words did, and differs in no more than a position."""
        found = BEFORE.match(said)
        if found is None or self.before is None:
            return said == str(self)
        before = int(found[1])
        return before <= self.before and said == str(self._replace(before=before))


#: ns in each.
UNITS: Final = {"d": 86_400 * 10**9, "h": 3_600 * 10**9, "min": 60 * 10**9, "s": 10**9}


def spelled(ns: int) -> str:
    """In the largest unit of which it is a whole number, or in seconds."""
    for name, unit in UNITS.items():
        if ns >= unit and ns % unit == 0:
            return f"{ns // unit} {name}"
    return f"{ns / 10**9:g} s"


def checked_rule(before: object, age: object, size: object) -> Rule:
    if before is not None and (type(before) is not int or not 0 <= before < 1 << 63):
        raise Invalid(f"a position is a number from 0, not {before!r}")
    if size is not None and (type(size) is not int or not 0 <= size < 1 << 63):
        raise Invalid(f"a size is a number of bytes, not {size!r}")
    if isinstance(age, timedelta):
        age = age / timedelta(seconds=1)
    if age is None:
        return Rule(before, None, size)
    if not isinstance(age, int | float) or isinstance(age, bool) or not 0 <= age < 1 << 33:
        raise Invalid(f"an age is a timedelta or a number of seconds, from 0, not {age!r}")
    return Rule(before, round(age * 10**9), size)


def check_receipt(anchor: object) -> None:
    """Whether this can be a receipt at all."""
    if anchor is None:
        return
    if not isinstance(anchor, Receipt):
        raise Invalid(f"an anchor is a receipt, not {type(anchor).__name__}")
    numbers = (*anchor[1:6], anchor.tree_size, anchor.incarnation, anchor.group)
    hashes = ((anchor.root, 32), (anchor.chain, 32), (anchor.mac, 16))
    sound = all(type(n) is int and 0 <= n < 1 << 63 for n in numbers) and anchor.incarnation < 1 << 32
    if (
        not sound
        or type(anchor.stream) is not str
        or not all(type(data) is bytes and len(data) == length for data, length in hashes)
    ):
        raise Invalid("the anchor is not as a receipt is given")
    if anchor.durable is not True:
        raise Invalid("an anchor is a durable receipt")
