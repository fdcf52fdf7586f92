"""Exports, in their two forms: JSON Lines, and frames of what the protocol sends. `docs/format.md` draws both.

An export is a head, how long the streams are, records in the order of the log, and an end. It is read as it comes, and
what is wrong is said with its place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, BinaryIO, Final, Literal, Protocol

from kimberlite import _native
from kimberlite.arguments import checked_name, checked_reason
from kimberlite.cli import forms
from kimberlite.cli.terminal import escaped, note
from kimberlite.client.client import Client
from kimberlite.errors import Corrupt, Invalid, KimberliteError
from kimberlite.importing import HIGHEST
from kimberlite.log.log import Log
from kimberlite.records import Record, Time

VERSION: Final = 1
MAGIC: Final = b"KIMBEXP1"
#: Streams of one piece.
STREAMS: Final = 1000
#: Read at a time.
PIECE: Final = 1 << 20
#: What a record can need: each of its bytes is at most six, as \u0001, and what stands around them is less than 4 KiB.
LONGEST_LINE: Final = 6 * _native.LARGEST_BATCH_BYTES + 4096
#: What stands in the line of a record, once, and in no other.
A_RECORD: Final = b'"payload":'
#: Streams that were erased and are named to whoever looks on.
MOST_NAMED: Final = 8

Kind = Literal["head", "lengths", "records", "end", "missing", "erased"]
KINDS: Final[tuple[Kind, ...]] = ("head", "lengths", "records", "end", "missing", "erased")
#: In JSON Lines, of what is no record.
FIELDS: Final[dict[str, Kind]] = {
    "export": "head",
    "lengths": "lengths",
    "end": "end",
    "missing": "missing",
    "erased": "erased",
}
Bound = int | Time | None
#: Stream, first offset, time, records, and what is said of them.
Run = tuple[str, int, int, _native.Batch, str]
#: Records of a run of lines, and about how many bytes of them.
RUN_RECORDS: Final = 4096
RUN_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Asked:
    """Which records: of these streams or of all, of one stream by its offsets."""

    streams: tuple[str, ...] | None
    start: Bound
    until: Bound

    @property
    def stream(self) -> str | None:
        """The one whose offsets the bounds are."""
        return self.streams[0] if self.streams is not None and len(self.streams) == 1 else None

    def form(self) -> dict[str, Any]:
        streams = None if self.streams is None else list(self.streams)
        return {"streams": streams, "start": bound_form(self.start), "until": bound_form(self.until)}


def bound_form(bound: Bound) -> Any:
    return {"time": bound.ns} if isinstance(bound, Time) else bound


def bound_of(value: Any) -> Bound:
    if isinstance(value, dict) and value.keys() == {"time"} and type(value["time"]) is int:
        return Time(value["time"])
    if value is None or (type(value) is int and 0 <= value <= HIGHEST):
        return value
    raise Invalid("a bound is a number from 0, a time or null")


@dataclass
class Lacking:
    """What is not in an export, though it was asked for."""

    #: Offsets if one stream was asked for, else positions, half open: they were dropped before they were written.
    missing: list[list[int]] = field(default_factory=list)
    #: Streams by their names.
    erased: dict[str, dict[str, Any]] = field(default_factory=dict)

    def take(self, kind: Kind, value: Any) -> None:
        if kind == "missing" and self.missing and self.missing[-1][1] == value[0]:
            self.missing[-1] = [self.missing[-1][0], value[1]]
        elif kind == "missing":
            self.missing.append(value)
        elif kind == "erased":
            self.erased |= {each["stream"]: each for each in value}

    def form(self) -> dict[str, Any]:
        return {"missing": self.missing, "erased": list(self.erased.values())}

    def tell(self, stream: str | None) -> None:
        """On stderr, of an export of this stream or of several."""
        places = "positions" if stream is None else f"{stream}, offsets"
        for first, end in self.missing[:MOST_NAMED]:
            note(escaped(f"missing: {places} {first} to {end - 1}: not there any more"))
        if (more := len(self.missing) - MOST_NAMED) > 0:
            note(f"missing: {more:,} more ranges")
        for name, each in list(self.erased.items())[:MOST_NAMED]:
            note(escaped(f"erased: {name}, {shown(each)}"))
        if (more := len(self.erased) - MOST_NAMED) > 0:
            note(f"erased: {more:,} more streams")


def shown(erasure: dict[str, Any]) -> str:
    when = datetime.fromtimestamp(erasure["when"] // 10**9, UTC).isoformat()
    return f"erased at {when}: {erasure['reason']}"


@dataclass
class Piece:
    """What comes next of an export, and what is said of it."""

    kind: Kind
    value: Any
    of: str
    #: Of records: how many, and offset and position of the last.
    records: int = 0
    last: tuple[int, int] = (0, 0)
    runs: Sequence[Run] = ()


class Form(Protocol):
    """One of the two, on its way out of a database or into one; it knows what has passed."""

    #: What is in front of the head, and what a file begins with.
    front: bytes
    mark: bytes
    records: int
    #: Bytes that have passed and were sound.
    passed: int
    lacking: Lacking

    def put(self, kind: Kind, value: Any) -> bytes: ...
    def end(self) -> bytes: ...
    def exported(
        self, db: Log | Client, asked: Asked, start: Bound, until: Bound
    ) -> AsyncIterator[tuple[bytes, tuple[int, int]]]: ...
    def pieces(self, source: Source) -> AsyncIterator[Piece]: ...


class Source:
    """Bytes that come a piece at a time, from somewhere with a name."""

    def __init__(self, name: str, read: Callable[[int], Awaitable[bytes]]) -> None:
        self.name, self._read = name, read
        self._ahead = bytearray()
        #: How much was taken.
        self.place = 0

    async def _more(self) -> bool:
        piece = await self._read(PIECE)
        self._ahead += piece
        return bool(piece)

    async def peek(self, length: int) -> bytes:
        while len(self._ahead) < length and await self._more():
            pass
        return bytes(self._ahead[:length])

    async def take(self, length: int) -> bytes:
        """Fewer only at the end."""
        taken = await self.peek(length)
        del self._ahead[: len(taken)]
        self.place += len(taken)
        return taken

    async def lines(self) -> AsyncIterator[list[bytes]]:
        """Those that have come, without their ends; of what is left in the end there is none."""
        while (at := self._ahead.rfind(b"\n")) >= 0 or len(self._ahead) <= LONGEST_LINE:
            if at >= 0:
                lines = await self.take(at + 1)
                yield lines[:-1].split(b"\n")
            if not await self._more():
                return
        raise Invalid(f"{self.name}, byte {self.place}: a line has at most {LONGEST_LINE} bytes")


async def form_of(source: Source) -> Form:
    return Frames() if await source.peek(len(MAGIC)) == MAGIC else Lines()


# ---- JSON Lines


def is_sound(file: BinaryIO) -> bool:
    """Whether the lines in front of an end are those that it was written behind; True of what has no end."""
    start, digest, records, kept = file.tell(), hashlib.sha256(), 0, b""
    try:
        while piece := file.read(PIECE):
            kept += piece
            if kept.startswith(MAGIC) or len(kept) > LONGEST_LINE + PIECE:
                return True
            at, done = kept.rfind(b"\n") + 1, 0
            while (found := kept.find(b'"end"', done, at)) >= 0:
                begin, after = kept.rfind(b"\n", done, found) + 1 or done, kept.index(b"\n", found) + 1
                digest.update(kept[done:begin])
                records += kept.count(A_RECORD, done, begin)
                if not is_end_of(kept[begin:after], {"records": records, "sha256": digest.hexdigest()}):
                    return False
                digest.update(kept[begin:after])
                records += kept.count(A_RECORD, begin, after)
                done = after
            digest.update(kept[done:at])
            records += kept.count(A_RECORD, done, at)
            kept = kept[at:]
        return True
    finally:
        file.seek(start)


def is_end_of(line: bytes, end: dict[str, Any]) -> bool:
    """If it is an end at all."""
    try:
        return bool(parsed(line).get("end", end) == end)
    except KimberliteError:
        return True


class Lines:
    """A JSON object a line: records as `read --json` prints them."""

    front = b""
    mark = b'{"export":'

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self.records = self.passed = 0
        self.lacking = Lacking()

    def put(self, kind: Kind, value: Any) -> bytes:
        [said] = [name for name, other in FIELDS.items() if other == kind]
        return self._passed(forms.line({said: value}))

    def end(self) -> bytes:
        return self.put("end", {"records": self.records, "sha256": self._digest.hexdigest()})

    async def exported(
        self, db: Log | Client, asked: Asked, start: Bound, until: Bound
    ) -> AsyncIterator[tuple[bytes, tuple[int, int]]]:
        wanted = None if asked.streams is None else set(asked.streams)
        async for batch in db.read(asked.stream, start=start, until=until).batches():  # type: ignore[arg-type]
            kept = [record for record in batch if wanted is None or record.stream in wanted]
            self.records += len(kept)
            data = b"".join(forms.line(forms.record_form(record)) for record in kept)
            yield self._passed(data), (batch[-1].offset, batch[-1].position)

    async def pieces(self, source: Source) -> AsyncIterator[Piece]:
        number = 1
        async for lines in source.lines():
            for piece in self._pieces(lines, source, number):
                yield piece
            number += len(lines)
        if await source.peek(1):
            raise cut_off(source)

    def _pieces(self, lines: list[bytes], source: Source, first: int) -> Iterator[Piece]:
        """Records that follow each other are one piece; what is before an error comes before it."""
        gathered = Gathered()
        for number, line in enumerate(lines, first):
            of = f"{source.name}, line {number}"
            try:
                value = parsed(line)
                if "payload" in value:
                    gathered.add(value, len(line), of)
                    self.records += 1
                    self._passed(line + b"\n")
                    continue
                piece = self._other(value, of)
            except KimberliteError as error:
                yield from gathered.pieces()
                if isinstance(error, Corrupt):
                    raise Corrupt(error.message, file=source.name, place=self.passed) from None
                raise Invalid(f"{of}: {error}") from None
            yield from gathered.pieces()
            gathered = Gathered()
            self._passed(line + b"\n")
            yield piece
        yield from gathered.pieces()

    def _other(self, value: dict[str, Any], of: str) -> Piece:
        if len(value) != 1 or (said := next(iter(value))) not in FIELDS:
            raise Invalid("this is neither a record nor anything else of an export")
        kind = FIELDS[said]
        if kind == "end":
            self._check_end(value["end"])
        return Piece(kind, checked(kind, value[said]), of)

    def _check_end(self, end: Any) -> None:
        if not isinstance(end, dict) or end.keys() != {"records", "sha256"}:
            raise Invalid("the end says how many records there are, and a digest")
        if end != {"records": self.records, "sha256": self._digest.hexdigest()}:
            raise Corrupt("what is before its end is not what was exported", file="")

    def _passed(self, data: bytes) -> bytes:
        self._digest.update(data)
        self.passed += len(data)
        return data


def parsed(line: bytes) -> dict[str, Any]:
    """An object, and nothing that JSON does not have or that could be read in two ways."""
    try:
        value = json.loads(line.decode(), object_pairs_hook=once, parse_constant=no_constant)
    except UnicodeDecodeError:
        raise Invalid("this is not UTF-8") from None
    except (ValueError, RecursionError):
        raise Invalid("this is not JSON") from None
    if not isinstance(value, dict):
        raise Invalid("this is not an object")
    return value


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise Invalid("an object has a key twice")
    return value


def no_constant(name: str) -> Any:
    raise Invalid(f"{name} is no number")


class Gathered:
    """Records, a line each, on their way to a piece: neighbours of one stream and time are one run."""

    def __init__(self) -> None:
        self._runs: list[Run] = []
        self._records: list[Record] = []
        self._size = self._count = 0
        self._begin: tuple[str, int, int, str] = ("", 0, 0, "")
        self._last = (0, 0)

    def add(self, value: dict[str, Any], size: int, of: str) -> None:
        """Its line is so long, and it is no longer itself."""
        for name in ("offset", "position", "timestamp"):
            if type(value.get(name)) is not int or not 0 <= value[name] <= HIGHEST:
                raise Invalid(f"{name} is a number from 0 to 2^63 - 1")
        if not isinstance(value.get("stream"), str):
            raise Invalid("stream is a string")
        stream, offset, time = value["stream"], value["offset"], value["timestamp"]
        record = forms.record_of(value)
        begun, first, when, _ = self._begin
        full = len(self._records) >= RUN_RECORDS or self._size + size > RUN_BYTES
        if full or (begun, first + len(self._records), when) != (stream, offset, time) or not self._records:
            checked_name(stream)
            self._end()
            self._begin = stream, offset, time, of
        # What is too large by itself is so here, with its place.
        if size > RUN_BYTES:
            _native.encode(record)
        self._records.append(record)
        self._size, self._count, self._last = self._size + size, self._count + 1, (offset, value["position"])

    def _end(self) -> None:
        if self._records:
            stream, offset, time, of = self._begin
            self._runs.append((stream, offset, time, _native.encode(self._records), of))
            self._records, self._size = [], 0

    def pieces(self) -> Iterator[Piece]:
        self._end()
        if self._runs:
            yield Piece("records", None, self._begin[3], self._count, self._last, self._runs)


# ---- frames


class Frames:
    """Frames that are bound to each other by their hashes: no Python object is made of a record."""

    front = mark = MAGIC

    def __init__(self) -> None:
        self._previous = bytes(32)
        self.records = 0
        self.passed = len(MAGIC)
        self.lacking = Lacking()

    def put(self, kind: Kind, value: Any) -> bytes:
        return self._sealed(kind, _native.pack(value))

    def end(self) -> bytes:
        return self.put("end", {"records": self.records})

    def _sealed(self, kind: Kind, body: bytes) -> bytes:
        frame = _native.seal_frame(KINDS.index(kind), body, self._previous)
        self._previous = hash_of(frame)
        self.passed += len(frame)
        return frame

    async def exported(
        self, db: Log | Client, asked: Asked, start: Bound, until: Bound
    ) -> AsyncIterator[tuple[bytes, tuple[int, int]]]:
        wanted = None if asked.streams is None else list(asked.streams)
        async for body in db.runs(asked.stream, start=start, until=until):  # type: ignore[arg-type]
            kept, records, offset, position = _native.pick_runs(body, wanted)
            self.records += records
            yield self._sealed("records", kept) if records else b"", (offset, position)

    async def pieces(self, source: Source) -> AsyncIterator[Piece]:
        await source.take(len(MAGIC))
        while head := await source.take(_native.FRAME_HEAD):
            place = source.place - len(head)
            kind, body = await self._open(source, head, place)
            of = f"{source.name}, frame at byte {place}"
            try:
                piece = self._piece(kind, body, of)
            except (KimberliteError, ValueError) as error:
                raise Invalid(f"{of}: {error}") from None
            yield piece

    async def _open(self, source: Source, head: bytes, place: int) -> tuple[int, bytes]:
        if len(head) < _native.FRAME_HEAD:
            raise cut_off(source)
        length = int.from_bytes(head[:4], "little")
        if length > _native.LARGEST_FRAME:
            raise Corrupt(f"a frame of {length} bytes is none", file=source.name, place=place)
        text = await source.take(length)
        if len(text) < length:
            raise cut_off(source)
        opened = _native.open_frame(head, text, self._previous)
        if opened is None:
            raise Corrupt("the frame is not what was exported", file=source.name, place=place)
        self._previous = hash_of(head)
        self.passed = source.place
        return opened

    def _piece(self, number: int, body: bytes, of: str) -> Piece:
        if number >= len(KINDS):
            raise Invalid(f"there is no frame of kind {number}")
        kind = KINDS[number]
        if kind == "records":
            _, records, offset, position = _native.pick_runs(body, None)
            self.records += records
            return Piece(kind, None, of, records, (offset, position), [(*run, of) for run in _native.decode_runs(body)])
        value = _native.unpack(body)
        if kind == "end" and value != {"records": self.records}:
            raise Invalid("the end does not say how many records there are")
        return Piece(kind, checked(kind, value), of)


def hash_of(frame: bytes) -> bytes:
    return frame[12 : _native.FRAME_HEAD]


# ---- both


def checked(kind: Kind, value: Any) -> Any:
    if kind == "head":
        if not isinstance(value, dict) or value.get("version") != VERSION:
            raise Invalid(f"this is no export of version {VERSION}")
        wanted = {"version": int, "database": str, "origin": str, "time": int, "incarnation": int, "asked": dict}
        if value.keys() != {*wanted, "until"} or any(type(value[name]) is not of for name, of in wanted.items()):
            raise Invalid("the head of an export is malformed")
        if value["asked"].keys() != {"streams", "start", "until"} or not 0 <= value["time"] <= HIGHEST:
            raise Invalid("the head of an export is malformed")
        streams = value["asked"]["streams"]
        if streams is not None and not (isinstance(streams, list) and all(isinstance(name, str) for name in streams)):
            raise Invalid("the head of an export is malformed")
        bound_of(value["until"])
    if kind == "lengths":
        if not isinstance(value, list) or not all(map(is_length, value)):
            raise Invalid("lengths are pairs of a stream and a number from 0 to 2^63 - 1")
        for name, _ in value:
            checked_name(name)
    if kind == "missing" and not is_range(value):
        raise Invalid("what is missing is from a number up to another, from 0 to 2^63 - 1")
    if kind == "erased":
        if not isinstance(value, list) or not all(map(is_erasure, value)):
            raise Invalid("of what was erased it is said which stream, when and for what reason")
        for each in value:
            checked_name(each["stream"])
            checked_reason(each["reason"])
    return value


def is_range(value: Any) -> bool:
    sound = isinstance(value, list) and len(value) == 2 and all(type(number) is int for number in value)
    return sound and 0 <= value[0] < value[1] <= HIGHEST


def is_erasure(value: Any) -> bool:
    wanted = {"stream": str, "when": int, "reason": str}
    sound = isinstance(value, dict) and value.keys() == wanted.keys()
    return sound and all(type(value[name]) is of for name, of in wanted.items()) and 0 <= value["when"] <= HIGHEST


def is_length(pair: Any) -> bool:
    sound = isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and type(pair[1]) is int
    return sound and 0 <= pair[1] <= HIGHEST


def cut_off(source: Source) -> Corrupt:
    return Corrupt("it is cut off: its end is not there", file=source.name, place=source.place)


async def read(source: Source, form: Form) -> AsyncIterator[Piece]:
    """The pieces of an export in the order in which they must be; damage is said where it is."""
    before: Kind | None = None
    async for piece in form.pieces(source):
        if before == "end":
            raise Invalid(f"{piece.of}: it goes on behind its end")
        if (piece.kind == "head") != (before is None):
            raise Invalid(f"{piece.of}: an export begins with its head, and has no other")
        if piece.kind == "lengths" and before not in ("head", "lengths"):
            raise Invalid(f"{piece.of}: how long streams are stands in front of all records")
        before = piece.kind
        yield piece
    if before is None:
        raise Invalid(f"{source.name}: this is no export")
    if before != "end":
        raise cut_off(source)
