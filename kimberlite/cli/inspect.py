"""inspect: print the files of a database, the groups and the runs, as their headers show them; no keys are needed.

It shows what is there and judges little: a header whose check does not hold ends a segment. `verify` judges.
"""

from __future__ import annotations

import argparse
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from kimberlite import _native
from kimberlite.cli import forms
from kimberlite.cli.target import directory
from kimberlite.cli.terminal import say
from kimberlite.errors import Corrupt, Invalid
from kimberlite.log.creation import read_small
from kimberlite.log.identity import Identity
from kimberlite.log.loading import load_identity, load_marks
from kimberlite.log.names import IDENTITY, MARKS, SEGMENTS, segment_name, segment_number
from kimberlite.log.refusals import UNFIT_TO_BEGIN, translate
from kimberlite.log.remains import SEGMENT
from kimberlite.storage import BLOCK, Backend, File, open_backend

#: `docs/format.md`, "Segment", "Group" and "Run".
GROUP: Final = struct.Struct("<8sIIQQIIQQI4x32s8s")
RUN: Final = struct.Struct("<IIB3xIQQI4x16s32s")
CHECK: Final = 8
CHAIN: Final = 32
TAG: Final = 16
COMMITMENT: Final = 32
PACKED, CLOSING = 1, 1
FLAGS: Final = {1: "encrypted", 2: "compressed", 4: "ends its batch"}

Line = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="DIR", help="the database's directory")
    parser.add_argument("--segment", metavar="N", type=forms.parse_number, help="this segment only")


def run(arguments: argparse.Namespace) -> int:
    path = directory(arguments.target)
    if not path.is_dir():
        raise Invalid(f"there is no database at {path}")
    try:
        backend = open_backend(path, read_only=True)
    except OSError as error:
        raise translate(error, str(path), UNFIT_TO_BEGIN) from error
    try:
        for line in lines(backend, path, arguments.segment):
            say(forms.line(line) if arguments.json else text(line))
    finally:
        backend.close()
    return 0


def lines(backend: Backend, path: Path, only: int | None) -> Iterator[Line]:
    """What the disk refuses is of the database, and what stdout refuses is not."""
    try:
        yield from describe(backend, only)
    except OSError as error:
        raise translate(error, str(path)) from error


def describe(backend: Backend, only: int | None) -> Iterator[Line]:
    identity = load_identity(backend)
    if identity is None:
        raise Invalid("there is no database here")
    numbers = sorted(n for name in backend.list(SEGMENTS) if (n := segment_number(name)) is not None)
    if only is not None and only not in numbers:
        raise Invalid(f"there is no segment {only}")
    if only is None:
        yield {
            "kind": IDENTITY,
            "origin": identity.origin,
            "database_id": identity.database_id.hex(),
            "created": identity.created,
            "tagged": identity.tagged,
            "quantum": identity.quantum,
        }
        yield from describe_marks(backend, identity)
    for number in numbers if only is None else [only]:
        yield from describe_segment(backend, number, tagged=identity.tagged)


def describe_marks(backend: Backend, identity: Identity) -> Iterator[Line]:
    if read_small(backend, MARKS) is None:
        yield {"kind": "damage", "file": MARKS, "place": 0, "what": "it is missing"}
        return
    try:
        marks = load_marks(backend, identity)
    except Corrupt as error:
        yield {"kind": "damage", "file": error.file, "place": error.place, "what": str(error)}
        return
    yield {"kind": "mark"} | marks.newest._asdict() | {"chain": marks.newest.chain.hex()}
    for block in marks.damaged:
        yield {"kind": "damage", "file": MARKS, "place": block * BLOCK, "what": "this block is damaged"}


def describe_segment(backend: Backend, number: int, *, tagged: bool) -> Iterator[Line]:
    name = segment_name(number)
    file = backend.open(name, "r")
    try:
        header = file.read(0, BLOCK)
        if len(header) < BLOCK:
            yield {"kind": "damage", "file": name, "place": 0, "what": "the header is cut short"}
            return
        _, _, flags, _, own, group, position, chain, salt = SEGMENT.unpack_from(header)
        sound = _native.blake3(header[:-CHECK], salt)[:CHECK] == header[-CHECK:]
        yield {
            "kind": "segment",
            "file": name,
            "segment": own,
            "bytes": file.size(),
            "first_group": group,
            "first_position": position,
            "previous_chain": chain.hex(),
            "packed": bool(flags & PACKED),
            "sound": sound,
        }
        if sound:
            yield from describe_groups(file, name, salt, tagged=tagged, step=8 if flags & PACKED else BLOCK)
    finally:
        file.close()


def describe_groups(file: File, name: str, salt: bytes, *, tagged: bool, step: int) -> Iterator[Line]:
    place, size = BLOCK, file.size()
    while place < size:
        head = file.read(place, GROUP.size)
        checked = head[:-CHECK] + place.to_bytes(8, "little")
        if len(head) < GROUP.size or _native.blake3(checked, salt)[:CHECK] != head[-CHECK:]:
            what = "zeros from here on" if not any(head) else "no group starts here"
            yield {"kind": "end", "file": name, "place": place, "what": what}
            return
        _, length, flags, number, position, records, runs, durable, time, incarnation, _, _ = GROUP.unpack(head)
        trailer = runs * CHECK + CHAIN + (TAG if tagged else 0)
        if length < GROUP.size + runs * RUN.size + trailer or place + length > size:
            yield {"kind": "end", "file": name, "place": place, "what": "the group is cut short"}
            return
        end = place + length - trailer
        yield {
            "kind": "group",
            "group": number,
            "place": place,
            "bytes": length,
            "position": position,
            "records": records,
            "runs": runs,
            "durable_upto": durable,
            "timestamp": time,
            "incarnation": incarnation,
            "closing": bool(flags & CLOSING),
            "chain": file.read(end + runs * CHECK, CHAIN).hex(),
        }
        yield from describe_runs(file, name, place + GROUP.size, runs, end)
        place += -(-length // step) * step


def describe_runs(file: File, name: str, place: int, runs: int, end: int) -> Iterator[Line]:
    for _ in range(runs):
        # Short also where somebody cuts the file meanwhile.
        head = file.read(place, min(RUN.size, end - place))
        if len(head) < RUN.size:
            yield {"kind": "damage", "file": name, "place": place, "what": "this run is cut short"}
            return
        length, stream, flags, records, offset, position, plaintext, key_id, _ = RUN.unpack(head)
        if not RUN.size <= length <= end - place:
            what = "this run's length does not fit in its group"
            yield {"kind": "damage", "file": name, "place": place, "what": what}
            return
        encrypted = bool(flags & 1)
        stored = length - RUN.size - (COMMITMENT * records if encrypted else 0)
        if stored < 0:
            what = "the commitments of this run do not fit in it"
            yield {"kind": "damage", "file": name, "place": place, "what": what}
            return
        yield {
            "kind": "run",
            "place": place,
            "bytes": length,
            "stream": stream,
            "offset": offset,
            "position": position,
            "records": records,
            "flags": [word for bit, word in FLAGS.items() if flags & bit],
            "text": stored,
            "plaintext": None if encrypted else plaintext,
            "key_id": key_id.hex() if encrypted else None,
        }
        place += length


def text(line: Line) -> str:
    """One line of what is meant for people; hashes are shortened."""
    kind = line["kind"]
    indent = {"group": "  ", "run": "    ", "end": "  "}.get(kind, "")
    title = {"segment": f"{line.get('file')}:", "group": f"group {line.get('group')}:"}.get(kind, f"{kind}:")
    left_out = ("kind", kind, "segment", "file") if kind == "segment" else ("kind", kind)
    shown = [f"{name} {written(name, value)}" for name, value in line.items() if name not in left_out and shows(value)]
    return f"{indent}{title} {', '.join(shown)}"


def shows(value: object) -> bool:
    return value is not None and value is not False and value != []


def written(name: str, value: object) -> str:
    if name in ("timestamp", "created") and isinstance(value, int):
        return datetime.fromtimestamp(value / 1e9, UTC).isoformat(timespec="milliseconds")
    if name in ("chain", "previous_chain"):
        return f"{value}"[:16] + "…"
    return " and ".join(value) if isinstance(value, list) else f"{value}"
