"""Hashes of what was dropped, which nothing else on the disk gives: old receipts are held against them.

hashes that are about to be the only ones → checked → past, fsync → (fsync directory) → what they are of is dropped
→ their place in hashes given back

A full disk leaves them in `hashes`, until there is room. So what `hashes` has of what was dropped was not moved yet, or
a crash came before its place was given back: what `past` has not, or not as it must be, is moved again, and until then
`hashes` keeps it.

What is new shares a block with what was there, which a power cut could take with it: that is set aside before.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator
from typing import Final

from kimberlite import _native
from kimberlite.errors import Corrupt
from kimberlite.log.creation import discard, read_small, write_small
from kimberlite.log.names import HASHES, PAST, PAST_BLOCK
from kimberlite.log.refusals import FULL
from kimberlite.storage.backend import BLOCK, Backend, File, read_around, written

#: Before the first hash.
HASHES_HEADER: Final = _native.HASHES_HEADER
#: Leaves whose hashes are read, checked and written at a time.
PIECE: Final = 1 << 14
NOWHERE: Final = bytes(32)
#: Of a block that is set aside: magic, database id and where its bytes are, which follow, and a check.
ASIDE: Final = struct.Struct("<8s16sQ")
MAGIC: Final = b"KIMBPSB1"
CHECK: Final = 8


def keep(
    backend: Backend,
    native: _native.Log,
    database_id: bytes,
    position: int,
    told: Callable[[Corrupt], None],
    *,
    anyhow: bool = False,
) -> bool:
    """The hashes of what is before this position; False if a full disk keeps them where they are. What is wrong is
    Corrupt, or `told`, and left out; what was nowhere before is told."""
    restore(backend, database_id)
    with contextlib.ExitStack() as closing:
        hashes = backend.open(HASHES, "r") if backend.exists(HASHES) else None
        if hashes is not None:
            closing.callback(hashes.close)
        try:
            past = backend.open(PAST, "w" if backend.exists(PAST) else "x")
        except OSError as error:
            if error.errno not in FULL:
                raise
            return False
        closing.callback(past.close)
        end, kept = place_of(native.first), True
        try:
            past.write(0, (b"KIMBPST1" + database_id).ljust(HASHES_HEADER, b"\0"))
            if native.first and (past.size() < end or has_some(hashes, end)):
                _catch_up(past, hashes, native, told, lambda place: _set_aside(backend, database_id, past, place))
                past.sync()
                _give_up_aside(backend)
            # What a crash has left of an earlier copy may be there in part.
            past.truncate(end)
            _set_aside(backend, database_id, past, end)
            _copy(past, hashes, native, position, told if anyhow else None)
        except OSError as error:
            if error.errno not in FULL:
                raise
            kept = False
            past.truncate(min(past.size(), end))
        past.sync()
    # The other may be new since a call that found something wrong.
    _give_up_aside(backend)
    attach(backend, native)
    return kept


def restore(backend: Backend, database_id: bytes) -> None:
    """What a block had before a write to it that was cut off."""
    data = read_small(backend, PAST_BLOCK, 2 * BLOCK)
    if data is None:
        return
    head, kept, check = data[: ASIDE.size], data[ASIDE.size : -CHECK], data[-CHECK:]
    if len(head) == ASIDE.size and _native.blake3(head + kept)[:CHECK] == check and backend.exists(PAST):
        magic, database, place = ASIDE.unpack(head)
        past = backend.open(PAST, "w")
        try:
            if (magic, database) == (MAGIC, database_id) and place + len(kept) <= past.size():
                past.write(place, kept)
                past.sync()
        finally:
            past.close()
    _give_up_aside(backend)


def let_go(backend: Backend, position: int) -> None:
    """Of what is kept here the other file needs nothing more; where the file system cannot give room back, it stays."""
    if not position or not reaches(backend, position) or not backend.exists(HASHES):
        return
    hashes = backend.open(HASHES, "w")
    try:
        hashes.punch(HASHES_HEADER, 32 * stored(position))
    except OSError:
        with contextlib.suppress(OSError):
            hashes.write(place_of(position) - 32, NOWHERE)
    finally:
        hashes.close()


def is_moved(backend: Backend, position: int) -> bool:
    """Whether the other file has nothing of what is before this position that may not be here."""
    if not position or not backend.exists(HASHES):
        return True
    return reaches(backend, position) and not is_left(backend, position)


def is_left(backend: Backend, position: int) -> bool:
    """Whether the other file still has something of what is before this position."""
    if not position or not backend.exists(HASHES):
        return False
    hashes = backend.open(HASHES, "r")
    try:
        return has_some(hashes, place_of(position))
    finally:
        hashes.close()


def reaches(backend: Backend, position: int) -> bool:
    if not backend.exists(PAST):
        return False
    past = backend.open(PAST, "r")
    try:
        return past.size() >= place_of(position)
    finally:
        past.close()


def has_some(hashes: File | None, end: int) -> bool:
    """Whether there is something in front of this place, where what was moved leaves zeros."""
    return hashes is not None and read_around(hashes, end - 32, 32) not in (b"", NOWHERE)


def moved(backend: Backend, place: int, found: bytes) -> bytes:
    """What the other file has in this place, and what this one has where that has nothing any more."""
    if not backend.exists(PAST):
        return found
    past = backend.open(PAST, "r")
    try:
        return _merged(found, read_around(past, place, len(found)).ljust(len(found), b"\0"))
    finally:
        past.close()


def attach(backend: Backend, native: _native.Log) -> None:
    native.set_past(backend.open(PAST, "r") if backend.exists(PAST) else None)


def wrong(backend: Backend, native: _native.Log) -> str | None:
    """What is not as it should be, of a log that has dropped something. What goes over meanwhile from the other file is
    looked for once more."""
    found = None
    for _ in range(2):
        try:
            for _ in check(backend, native, PIECE, lambda name: backend.open(name, "r")):
                pass
        except Corrupt as error:
            found = error.message
        else:
            return None
    return found


def check(backend: Backend, native: _native.Log, piece: int, opened: Callable[[str], File]) -> Iterator[bytes]:
    """Holds it, and what the other file has of it, against itself and the tree, the hashes of so many leaves at a time,
    which it gives before they are judged."""
    proving, first = native.proving(0), native.first
    assert proving is not None, "an empty tree has no hashes"
    with contextlib.ExitStack() as closing:
        files = []
        for name in (PAST, HASHES):
            if backend.exists(name):
                files.append(opened(name))
                closing.callback(files[-1].close)
        for start in range(0, first, piece):
            end = min(start + piece, first)
            data, length = b"", 32 * (stored(end) - stored(start))
            for file in files:
                data += read_around(file, place_of(start) + len(data), length - len(data))
                data = data[: len(data) // 32 * 32]
            yield data
            found = proving.take(data)
            if found is None and len(data) == length:
                continue
            if not backend.exists(PAST):
                raise Corrupt("it is missing", file=PAST)
            if found is None or len(data) < length:
                raise Corrupt(f"it ends before position {first}", file=PAST)
            raise Corrupt(f"hash {found} is wrong", file=PAST, place=HASHES_HEADER + 32 * found)
    if proving.root != _root(native, first):
        raise Corrupt("it is of another tree", file=PAST)


def _set_aside(backend: Backend, database_id: bytes, past: File, place: int) -> None:
    """What is written from here on begins in a block that may have something. If the disk cannot say what, it stays."""
    start, unread = place // BLOCK * BLOCK, list[int]()
    if (kept := read_around(past, start, BLOCK, unread.append)) and not unread:
        data = ASIDE.pack(MAGIC, database_id, start) + kept
        write_small(backend, PAST_BLOCK, data + _native.blake3(data)[:CHECK])


def _give_up_aside(backend: Backend) -> None:
    """Before anything is taken away that the file has now."""
    discard(backend, PAST_BLOCK)
    backend.sync_directory()


def _copy(
    past: File, hashes: File | None, native: _native.Log, position: int, told: Callable[[Corrupt], None] | None
) -> None:
    """From the first that is kept on. What is not there any more leaves a hole."""
    start, proving = native.first, native.proving(native.first)
    assert proving is not None, "what was dropped last is known"
    wrong: int | None = None
    while start < position:
        end = min(start + PIECE, position)
        data = b"" if hashes is None else _piece(hashes, start, end)
        length = 32 * (stored(end) - stored(start))
        if wrong is None:
            wrong = stored(start) + len(data) // 32 if len(data) < length else proving.take(data)
            if wrong is not None and told is None:
                raise wrong_at(wrong, "it is not what the records say; it is made again")
        # It is believed in nothing, and beside what is wrong it still proves something.
        past.write(place_of(start), data)
        start = end
    if wrong is not None and told is not None:
        what = f"nothing tells what is right: receipts of before position {position} may prove nothing"
        told(wrong_at(wrong, what))
        past.truncate(place_of(position))


def _catch_up(
    past: File,
    hashes: File | None,
    native: _native.Log,
    told: Callable[[Corrupt], None],
    before: Callable[[int], None],
) -> None:
    """What was left in the other file, which has nothing of what was moved from there before. Nothing is written
    `before` it is said where that begins."""
    first = native.first
    there = place = min(place_of(first), HASHES_HEADER + (past.size() - HASHES_HEADER) // 32 * 32)
    if hashes is not None:
        # What is there already may be what a crash has left of it.
        place = next((start for start, _ in written(hashes, HASHES_HEADER, place)), place)
    start, proving = _sound(past, native, leaves_of((place - HASHES_HEADER) // 32))
    if start == first:
        return
    before(place_of(start))
    nowhere: int | None = None
    wrong: int | None = None
    while start < first:
        end = min(start + PIECE, first)
        place, length = place_of(start), 32 * (stored(end) - stored(start))
        known = read_around(past, place, length).ljust(length, b"\0")
        found = known if hashes is None else _merged(read_around(hashes, place, length), known)
        if proving is not None and wrong is None:
            wrong = proving.take(found)
            if wrong is not None and proving.take(known) is None:
                found, wrong = known, None
        if nowhere is None and NOWHERE in found[max(0, there - place) :]:
            missing = (i for i in range(max(0, there - place), length, 32) if found[i : i + 32] == NOWHERE)
            nowhere = next((place + i for i in missing), None)
        past.write(place, found)
        start = end
    if nowhere is not None:
        what = "from here on hashes of what was dropped are in no file any more: its receipts may prove nothing"
        told(Corrupt(what, file=PAST, place=nowhere))
    elif wrong is not None or (proving is not None and proving.root != _root(native, first)):
        what = "nothing tells what is right: receipts of what was dropped may prove nothing"
        told(Corrupt(what, file=PAST, place=None if wrong is None else HASHES_HEADER + 32 * wrong))


def _sound(past: File, native: _native.Log, start: int) -> tuple[int, _native.Proving | None]:
    """Up to which leaf it is from this one on as it must be, and what goes on behind that; None if nobody knows."""
    begun, first, proving = start, native.first, native.proving(start)
    while proving is not None and start < first:
        end = min(start + PIECE, first)
        data = _piece(past, start, end)
        if len(data) < 32 * (stored(end) - stored(start)) or proving.take(data) is not None:
            return start, proving
        start = end
    if proving is None or proving.root == _root(native, first):
        return (begun if proving is None else first), proving
    return begun, native.proving(begun)


def _root(native: _native.Log, first: int) -> bytes | None:
    """Of all that was dropped. It is known, whatever has become of the hashes."""
    proving = native.proving(first)
    return None if proving is None else proving.root


def _merged(found: bytes, known: bytes) -> bytes:
    """Hashes of the first, and of the other where that has none."""
    if NOWHERE not in found and len(found) == len(known):
        return found
    pieces = [found[i : i + 32] for i in range(0, len(known), 32)]
    both = zip(pieces, range(0, len(known), 32), strict=True)
    return b"".join(one if len(one) == 32 and one != NOWHERE else known[i : i + 32] for one, i in both)


def wrong_at(index: int, what: str) -> Corrupt:
    return Corrupt(what, file=HASHES, place=HASHES_HEADER + 32 * index)


def _piece(file: File, start: int, end: int) -> bytes:
    """The hashes that come with these leaves."""
    return read_around(file, place_of(start), place_of(end) - place_of(start))


def leaves_in(file: File) -> int:
    """How many have all their hashes in it."""
    return leaves_of(max(0, file.size() - HASHES_HEADER) // 32)


def leaves_of(count: int) -> int:
    """How many have all their hashes in so many."""
    leaves = count // 2
    while stored(leaves + 1) <= count:
        leaves += 1
    return leaves


def place_of(leaf: int) -> int:
    """Where the hashes begin that come with it."""
    return HASHES_HEADER + 32 * stored(leaf)


def stored(leaves: int) -> int:
    """How many hashes come with so many leaves."""
    return 2 * leaves - leaves.bit_count()
