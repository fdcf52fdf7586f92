"""What messages there are, and the bodies of those that are not made in Rust."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from kimberlite import _native, errors
from kimberlite.arguments import Rule
from kimberlite.errors import KimberliteError, ProtocolError
from kimberlite.records import Receipt, Time

VERSION: Final = 1
#: The id of what is about the connection and not about a request.
NOBODY: Final = _native.NOBODY
#: Bytes in front of a body.
HEADER: Final = _native.HEADER

#: Of a list in one message: as many as fit, whatever `info` and `verify` have lists of.
ELEMENTS: Final = 64

Bound = int | Time | None


KINDS: Final = dict(_native.KINDS)


class Kind(IntEnum):
    HELLO = KINDS["HELLO"]
    APPEND = KINDS["APPEND"]
    APPEND_MANY = KINDS["APPEND_MANY"]
    READ = KINDS["READ"]
    GET = KINDS["GET"]
    TAIL = KINDS["TAIL"]
    CREDIT = KINDS["CREDIT"]
    STOP = KINDS["STOP"]
    STREAMS = KINDS["STREAMS"]
    INFO = KINDS["INFO"]
    PING = KINDS["PING"]
    VERIFY = KINDS["VERIFY"]
    METRICS = KINDS["METRICS"]
    RETAIN = KINDS["RETAIN"]
    ERASE = KINDS["ERASE"]
    ROTATE = KINDS["ROTATE"]
    IMPORT = KINDS["IMPORT"]
    WELCOME = KINDS["WELCOME"]
    RECEIPTS = KINDS["RECEIPTS"]
    RECORDS = KINDS["RECORDS"]
    END = KINDS["END"]
    RESULT = KINDS["RESULT"]
    ERROR = KINDS["ERROR"]
    PART = KINDS["PART"]


def fields(body: bytes, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
    """A map that has these keys and no others; one whose value may be None may be left out."""
    value = _native.unpack(body)
    if not isinstance(value, dict):
        raise ProtocolError("a map is wanted")
    for name in value:
        if name not in kinds:
            raise ProtocolError(f"{name!r} is not known here")
    for name, kind in kinds.items():
        if not is_a(value.setdefault(name, None), kind):
            raise ProtocolError(f"{name!r} is of another type, or missing")
    return value


def is_a(value: object, kind: type | tuple[type, ...]) -> bool:
    """Not every bool is an int here."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return type(value) in kinds


NONE: Final = type(None)


#: Of numbers in messages. No offset or position is above, and no record's time is beyond.
HIGHEST: Final = _native.HIGHEST


def pack_bound(bound: Bound) -> Any:
    if isinstance(bound, Time):
        return {"time": max(-HIGHEST, min(bound.ns, HIGHEST))}
    return None if bound is None else min(bound, HIGHEST)


def bound(value: Any) -> Bound:
    if isinstance(value, dict):
        if set(value) != {"time"} or type(value["time"]) is not int:
            raise ProtocolError("a time is a map with the key 'time'")
        return Time(value["time"])
    if value is not None and (type(value) is not int or value < 0):
        raise ProtocolError("a bound is an integer from 0, a time, or nil")
    return None if value is None else int(value)


def receipt(said: list[Any]) -> Receipt:
    if len(said) != len(Receipt._fields):
        raise ProtocolError("an anchor is a receipt, or nil")
    return Receipt(*said)


@dataclass(frozen=True, slots=True)
class Hello:
    """What a client says first."""

    version: int
    anchor: Receipt | None
    database: str | None
    #: Which client this is, and its how manieth connection.
    client: tuple[bytes, int] | None = None

    def pack(self) -> bytes:
        anchor = None if self.anchor is None else list(self.anchor)
        said = {"version": self.version, "anchor": anchor, "database": self.database, "client": self.client}
        return _native.pack(said)

    @classmethod
    def unpack(cls, body: bytes) -> Hello:
        said = fields(body, version=int, anchor=(list, NONE), database=(str, NONE), client=(list, NONE))
        anchor, client = said["anchor"], said["client"]
        if anchor is not None:
            anchor = receipt(anchor)
        if client is not None and not is_client(client):
            raise ProtocolError("a client is 16 bytes and a count")
        return cls(said["version"], anchor, said["database"], client and (client[0], client[1]))


def is_client(said: list[Any]) -> bool:
    return len(said) == 2 and is_a(said[0], bytes) and len(said[0]) == 16 and is_a(said[1], int) and said[1] >= 0


@dataclass(frozen=True, slots=True)
class Reading:
    """What to read, or to follow."""

    stream: str | None
    start: Bound
    until: Bound
    limit: int | None
    reverse: bool
    system: bool
    credit: int
    #: That of the log when somebody came to the start, if it may be another by now; and the position behind the
    #: highest record that they have had.
    incarnation: int | None = None
    reached: int | None = None

    def pack(self) -> bytes:
        return _native.pack(
            {
                "stream": self.stream,
                "start": pack_bound(self.start),
                "until": pack_bound(self.until),
                "limit": None if self.limit is None else min(self.limit, HIGHEST),
                "reverse": self.reverse,
                "system": self.system,
                "credit": self.credit,
                "incarnation": self.incarnation,
                "reached": self.reached,
            }
        )

    @classmethod
    def unpack(cls, body: bytes) -> Reading:
        said = fields(
            body,
            stream=(str, NONE),
            start=(int, dict, NONE),
            until=(int, dict, NONE),
            limit=(int, NONE),
            reverse=(bool, NONE),
            system=(bool, NONE),
            credit=int,
            incarnation=(int, NONE),
            reached=(int, NONE),
        )
        return cls(
            said["stream"],
            bound(said["start"]),
            bound(said["until"]),
            said["limit"],
            bool(said["reverse"]),
            bool(said["system"]),
            count(said["credit"]),
            None if said["incarnation"] is None else count(said["incarnation"]),
            None if said["reached"] is None else count(said["reached"]),
        )


@dataclass(frozen=True, slots=True)
class Retaining:
    """What may go of the log."""

    rule: Rule
    dry_run: bool
    confirm_clock: bool

    def pack(self) -> bytes:
        return _native.pack(self.rule._asdict() | {"dry_run": self.dry_run, "confirm_clock": self.confirm_clock})

    @classmethod
    def unpack(cls, body: bytes) -> Retaining:
        numbers = dict.fromkeys(Rule._fields, (int, NONE))
        said = fields(body, **numbers, dry_run=(bool, NONE), confirm_clock=(bool, NONE))
        rule = Rule(*(None if said[name] is None else count(said[name]) for name in Rule._fields))
        return cls(rule, bool(said["dry_run"]), bool(said["confirm_clock"]))


def in_parts(said: dict[str, Any]) -> Iterator[tuple[Kind, bytes]]:
    """The answer that says this. Of a list that is long its end is in the result, and what is before that in parts."""
    ends: dict[str, Any] = {}
    for name, value in said.items():
        ends[name] = value
        if isinstance(value, list):
            last = max(0, len(value) - ELEMENTS)
            for start in range(0, last, ELEMENTS):
                yield Kind.PART, _native.pack([name, value[start : min(start + ELEMENTS, last)]])
            ends[name] = value[last:]
    yield Kind.RESULT, _native.pack(ends)


class Parts:
    """What came of an answer before its result."""

    def __init__(self) -> None:
        self._lists: dict[str, list[Any]] = {}

    def take(self, body: bytes) -> None:
        said = _native.unpack(body)
        if not is_a(said, list) or len(said) != 2 or not is_a(said[0], str) or not is_a(said[1], list):
            raise ProtocolError("a part is the name of a list, and elements of it")
        self._lists.setdefault(said[0], []).extend(said[1])

    def before(self, said: Any) -> dict[str, Any]:
        """All of it, now that the result has come."""
        if not isinstance(said, dict) or not all(is_a(said.get(name), list) for name in self._lists):
            raise ProtocolError("what parts were of is not in the result")
        return said | {name: elements + said[name] for name, elements in self._lists.items()}


def welcome(body: bytes) -> dict[str, Any]:
    """What a server says first; it may say more than a client knows of."""
    said = _native.unpack(body)
    wanted = {"database": str, "position": int, "group": int, "incarnation": int, "sync": str}
    if not isinstance(said, dict) or not all(is_a(said.get(name), kind) for name, kind in wanted.items()):
        raise ProtocolError("a welcome says which database it is, where it stands and what is its policy")
    return said


def count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ProtocolError("a number from 0 is wanted")
    return value


BY_CODE: Final[dict[str, type[KimberliteError]]] = {
    each.code: each
    for each in vars(errors).values()
    if isinstance(each, type) and issubclass(each, KimberliteError) and "code" in vars(each)
}


def unpack_error(body: bytes) -> KimberliteError:
    """The error of another process as it was raised there."""
    said = _native.unpack(body)
    if not isinstance(said, dict) or type(said.get("code")) is not str or type(said.get("message")) is not str:
        raise ProtocolError("an error has a code and a message")
    code, message = said.pop("code"), said.pop("message")
    kind = BY_CODE.get(code)
    if kind is None:
        raise ProtocolError(f"there is no error {code}: {message}")
    try:
        return kind(message, **said)
    except TypeError:
        raise ProtocolError(f"{code} says what it cannot: {', '.join(said)}") from None
