"""Files of what is closed, read past the page cache a piece at a time. What is wrong in them is said with its place."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Protocol, TypeVar

from kimberlite.errors import Corrupt, Unavailable
from kimberlite.storage.backend import BLOCK, File, read_around, written

T_co = TypeVar("T_co", covariant=True)


class Walk(Protocol[T_co]):
    """What native code makes of the groups of a segment."""

    @property
    def expected(self) -> tuple[int, int]: ...

    def take(self, place: int, data: bytes) -> tuple[T_co, tuple[int, str, int, str]]: ...


def read_sound(source: File, place: int, length: int) -> bytes:
    """Fewer bytes only at the end of the file."""
    unread: list[int] = []
    data = read_around(source, place, length, unread.append)
    if unread:
        raise Unavailable(f"the disk cannot read {source.name}, byte {unread[0]}")
    return data


def check_header(source: File, header: bytes, walk: Walk[object]) -> None:
    if read_sound(source, 0, BLOCK) != header:
        group, position = walk.expected
        what = "the header is not the one that was written"
        raise Corrupt(what, file=source.name, place=0, group=group, position=position)


def groups(source: File, walk: Walk[T_co], length: int) -> Iterator[tuple[T_co, int, int]]:
    """What comes of each piece of a closed segment, where its last group ends, and how many bytes were read for it."""
    place, data, stop = BLOCK, b"", "more"
    while stop == "more":
        piece = read_sound(source, place + len(data), length)
        data += piece
        out, (after, stop, _, what) = walk.take(place, data)
        place, data = after, data[after - place :]
        yield out, place, len(piece)
        if stop == "more" and not piece:
            stop, what = "bad", "the group is cut short"
    if stop != "closed":
        group, position = walk.expected
        raise Corrupt(what, file=source.name, place=place, group=group, position=position)


def check_rest(source: File, end: int, length: int) -> Generator[int]:
    """Nothing may be behind the last group; bytes that were read for it."""
    for place, size in written(source, end, source.size(), length):
        piece = read_sound(source, place, size)
        if behind := piece.lstrip(b"\0"):
            place += len(piece) - len(behind)
            raise Corrupt("there are bytes behind the closing group", file=source.name, place=place)
        yield len(piece)
