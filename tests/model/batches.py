"""Appends, and how their records are cut into runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .groups import RUN_PLAINTEXT
from .records import Entry, Mode, Producer, Record, encode_batch_entry, encode_plaintext


@dataclass(frozen=True)
class Sender:
    """A producer's id and its sequence number, as a client gives them."""

    identifier: bytes
    sequence: int


@dataclass(frozen=True)
class Batch:
    """`mode` is heard only by the first batch of a stream, which declares it."""

    stream: str
    records: tuple[Record, ...]
    mode: Mode = Mode.PLAIN
    producer: Sender | None = None


@dataclass(frozen=True)
class AppendMany:
    """One append to several streams; its batches have no producers of their own."""

    batches: tuple[Batch, ...]
    producer: Sender | None = None


@dataclass(frozen=True)
class Said:
    """A system record of its own, such as a piece of a retention record."""

    payload: bytes


Operation = Batch | AppendMany | Said


@dataclass(frozen=True)
class Item:
    """A record on its way into a run."""

    stream: int
    offset: int
    canonical: bytes
    first: bool
    last: bool
    producer: Producer | None

    def size(self, opens_run: bool) -> int:
        """What it adds to the plaintext: its batch entry where it needs one, and itself."""
        if not (self.first or opens_run):
            return len(self.canonical)
        entry = Entry(1, self.last, self.producer if self.first else None)
        return len(encode_batch_entry(entry)) + len(self.canonical)


def entries_of(items: Sequence[Item]) -> list[Entry]:
    """The batch entries of a run of these records."""
    starts = [i for i, item in enumerate(items) if i == 0 or item.first]
    entries = []
    for start, end in zip(starts, [*starts[1:], len(items)], strict=True):
        producer = items[start].producer if items[start].first else None
        entries.append(Entry(end - start, items[end - 1].last, producer))
    return entries


def cut(items: Sequence[Item], encrypted: set[int]) -> list[list[Item]]:
    """Neighbours of one stream (of an encrypted one: of one batch) in runs of at most 64 KiB."""
    runs: list[list[Item]] = []
    size = 0
    for item in items:
        together = bool(runs) and runs[-1][-1].stream == item.stream
        together = together and not (item.stream in encrypted and item.first)
        if together and size + item.size(False) <= RUN_PLAINTEXT:
            runs[-1].append(item)
            size += item.size(False)
        else:
            runs.append([item])
            size = len(encode_plaintext([], [])) + item.size(True)
    return runs
