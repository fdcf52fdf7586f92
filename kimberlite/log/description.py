"""What a log is and where it stands, in words."""

from __future__ import annotations

from typing import Any, Final

from kimberlite import _native
from kimberlite.errors import KimberliteError, Unavailable
from kimberlite.log.identity import Identity
from kimberlite.records import Erasure
from kimberlite.storage.backend import Backend

#: Looked at before others have their turn.
STREAMS: Final = 1_000


def describe(identity: Identity, native: _native.Log, backend: Backend, notes: list[str]) -> dict[str, Any]:
    """What `info` says."""
    size, root = native.root()
    if size > native.durable:
        # The rest is sealed, and a cut may take it back.
        size = native.durable
        durable = native.root_at(size)
        if durable is None:
            raise Unavailable(f"the root at {size} records does not follow from the hashes on the disk")
        root = durable
    group, chain = native.durable_group()
    names = backend.list("segments")
    said: list[dict[str, Any]] = []
    try:
        said = repairs(native)
        notes = [*notes, *unsaid_repairs(native)]
    except KimberliteError as error:
        notes = [*notes, f"what was repaired cannot be read: {error}"]
    return {
        "origin": identity.origin,
        "database_id": identity.database_id.hex(),
        "records": native.durable,
        "streams": native.stream_count,
        "tree_size": size,
        "root": root.hex(),
        "chain": chain.hex(),
        "group": group,
        "segments": len(names),
        "first_position": native.first,
        "dropped": dropped(native),
        # Of very many streams: they are filled in off the loop.
        "erasures": [],
        "repairs": said,
        "bytes": sum(size_now(backend, f"segments/{name}") for name in names),
        "encrypted": identity.tagged,
        "backend": backend.name,
        "backend_reason": backend.reason,
        "durable_position": native.durable,
        "notes": list(notes),
    }


def dropped(native: _native.Log) -> list[dict[str, Any]]:
    """What was dropped: positions from and up to, when the first and the last of them, and by what rule."""
    return [
        {"from": start, "to": end, "first": first, "last": last, "rule": rule}
        for start, end, first, last, rule in native.dropped[1]
    ]


def erasures(native: _native.Log) -> list[dict[str, Any]]:
    """Those that are durable."""
    found: list[dict[str, Any]] = []
    start = 0
    while (some := native.erasures_of(start, STREAMS)) is not None:
        found += [Erasure(*each)._asdict() for each in some]
        start += STREAMS
    return found


def repairs(native: _native.Log) -> list[dict[str, Any]]:
    """What was given up, by the records that say so: of this log, or of those that it was salvaged from. Of a record
    that is damaged only its position is known."""
    fields = ("salvaged", "database_id", "when", "position", "incarnation", "before", "kept", "lost", "exact")
    nothing = dict.fromkeys(fields)
    unsaid = [nothing | {"position": position} for position, _ in native.damaged_repairs(native.durable)]
    said = [
        {
            "salvaged": salvaged,
            "database_id": database.hex(),
            "when": when,
            "position": position,
            "incarnation": after,
            "before": before,
            "kept": kept,
            "lost": [list(each) for each in lost],
            "exact": not coarse,
        }
        for position, salvaged, database, when, before, after, kept, lost, coarse in native.repairs()
    ]
    return sorted(unsaid + said, key=lambda each: each["position"])


def unsaid_repairs(native: _native.Log) -> list[str]:
    """Notes of those that cannot be told any more."""
    damaged = native.damaged_repairs(native.durable)
    notes = [
        f"position {position}: the record of what was given up there {'was' if error is None else 'is'} damaged, "
        "and nothing else tells it" + ("" if error is None else f": {error}")
        for position, error in damaged
    ]
    # Each repair and each salvage raises the incarnation by one.
    said = sorted(after for _, _, _, _, _, after, *_ in native.repairs())
    if native.incarnation - len(said) > len(damaged):
        steps = zip([0, *said], [*said, native.incarnation + 1], strict=True)
        gaps = [(before + 1, after) for before, after in steps if after > before + 1]
        named = (f"{first:,}" if end == first + 1 else ranged(first, end) for first, end in gaps)
        notes.append(
            f"incarnations {', '.join(named)}: nothing tells what was given up with them; "
            "the records that said it are lost, or a mark was forged"
        )
    return notes


def ranged(start: int, end: int) -> str:
    """What is half open elsewhere, for people. Of the last nobody may know where it ends."""
    return f"{start:,} to {end - 1:,}" if end > start else f"from {start:,} on"


def size_now(backend: Backend, name: str) -> int:
    """Nothing if it was dropped since it was listed."""
    try:
        return size_of(backend, name)
    except FileNotFoundError:
        return 0


def size_of(backend: Backend, name: str) -> int:
    file = backend.open(name, "r")
    try:
        return file.size()
    finally:
        file.close()
