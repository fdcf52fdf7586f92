"""The log as a list: what an engine that keeps its word shows and answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum

from kimberlite import Receipt, Record
from kimberlite.records import EPOCH
from tests.model.records import Declaration, decode_system
from tests.model.records import Record as Given

#: ns of log time after which an idle producer is forgotten.
FORGOTTEN = 7 * 86_400_000_000_000
#: Batches of a producer that return their receipt.
REMEMBERED = 1024

Bound = int | datetime | None


class State(Enum):
    """What may be found of an append: `SENT` whole or nothing, `TAKEN` the same but only a crash can take it."""

    SENT = "sent"
    TAKEN = "taken"
    DURABLE = "durable"
    GONE = "gone"


@dataclass(eq=False)
class Unit:
    """What is in the log whole or not at all. Every payload begins with its number."""

    number: int
    parts: dict[str, list[Record]]
    #: The producer and whose table it counts in: a stream's, or None for appends to several.
    producer: tuple[str, int] | None = None
    scope: str | None = None
    state: State = State.SENT
    receipts: list[Receipt] = field(default_factory=list)
    #: Where each part begins: offset, position, timestamp.
    places: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    def records(self) -> Iterator[tuple[str, Record]]:
        return ((stream, record) for stream, records in self.parts.items() for record in records)

    @property
    def order(self) -> int:
        return min([position for _, position, _ in self.places.values()] or [r.first_position for r in self.receipts])

    @property
    def timestamp(self) -> int:
        return ([when for _, _, when in self.places.values()] or [r.timestamp for r in self.receipts])[0]

    def lost(self) -> None:
        self.state = State.GONE
        self.receipts, self.places = [], {}


@dataclass(frozen=True)
class Answer:
    """`new`, `again` with the unit it repeats, `conflict` with what it expected, or `duplicate`."""

    kind: str
    unit: Unit | None = None
    expected: int | None = None


@dataclass
class _Producer:
    time: int
    first: int
    batches: list[Unit]

    @property
    def next(self) -> int:
        return self.first + len(self.batches)


class Forming:
    """Lengths of streams and tables of producers, as of the last append that was admitted."""

    def __init__(self, units: Iterable[Unit] = (), dropped: range = range(0)) -> None:
        self.lengths: Counter[str] = Counter()
        #: Positions below its start are dropped, and below its end they may be.
        self._dropped = dropped
        self._producers: dict[tuple[str | None, str], _Producer] = {}
        for unit in units:
            self.add(unit, unit.timestamp)

    def judge(self, unit: Unit, expect: dict[str, int | None]) -> list[Answer]:
        """What may be said: where several streams do not fit, any of them."""
        if unit.producer is not None:
            answers = self._check(unit)
            if answers[0].kind != "new":
                # That a stream is not there at all is seen before its producer is asked for.
                absent = any(offset and not self.lengths[stream] for stream, offset in expect.items())
                return [*answers, Answer("conflict", expected=0)] if absent else answers
        wrong = [s for s, offset in expect.items() if offset is not None and offset != self.lengths[s]]
        return [Answer("conflict", expected=self.lengths[stream]) for stream in wrong] or [Answer("new")]

    def next_of(self, scope: str | None, name: str) -> int:
        known = self._producers.get((scope, name))
        return 0 if known is None else known.next

    def _check(self, unit: Unit) -> list[Answer]:
        assert unit.producer is not None
        name, sequence = unit.producer
        known = self._producers.get((unit.scope, name))
        if known is None or sequence >= known.next:
            expected = 0 if known is None else known.next
            return [Answer("new") if sequence == expected else Answer("conflict", expected=expected)]
        if sequence < known.first:
            return [Answer("duplicate")]
        had = known.batches[sequence - known.first]
        same = list(had.parts.items()) == list(unit.parts.items())
        answer = Answer("again", had) if same else Answer("conflict")
        if not had.places or had.order >= self._dropped.stop or (had is known.batches[-1] and not same):
            return [answer]
        # Of what was dropped there is no receipt, and of each producer only the last batch is sure to be remembered.
        gone = same and had.order < self._dropped.start
        return [Answer("duplicate")] if gone else [Answer("duplicate"), answer]

    def add(self, unit: Unit, now: int) -> None:
        for stream, records in unit.parts.items():
            self.lengths[stream] += len(records)
        if unit.producer is None:
            return
        name, sequence = unit.producer
        for key, known in list(self._producers.items()):
            if now >= known.time + FORGOTTEN:
                del self._producers[key]
        had = self._producers.get((unit.scope, name))
        if had is None or had.next != sequence:
            had = self._producers[unit.scope, name] = _Producer(now, sequence, [])
        had.time = max(had.time, now)
        had.batches.append(unit)
        if len(had.batches) > REMEMBERED:
            had.batches.pop(0)
            had.first += 1


class Expected:
    """`rows` is what has been seen, system records too: it stays, whatever happens, but for what is before `first`,
    which was dropped and stays so. `units` are all that was sent."""

    def __init__(self) -> None:
        self.rows: list[Record] = []
        self.first = 0
        #: Below this it was asked to be dropped: by the next time that it is looked at it may be.
        self.asked = 0
        #: Whether the disk was full when it was: then hashes of what was dropped are not kept.
        self.full = False
        self.units: dict[int, Unit] = {}
        #: Receipts of several units each.
        self.joined: list[Receipt] = []
        self.made = 0

    def unit(self, parts: dict[str, list[Record]]) -> Unit:
        unit = Unit(self.made, parts)
        self.units[unit.number] = unit
        self.made += 1
        return unit

    def of(self, *states: State) -> list[Unit]:
        return [unit for unit in self.units.values() if unit.state in states]

    def forming(self) -> Forming:
        """Where the next append goes, when nothing is undecided."""
        units = sorted(self.of(State.TAKEN, State.DURABLE), key=lambda unit: unit.order)
        return Forming(units, range(self.first, max(self.first, self.asked)))

    def observe(self, shown: Sequence[Record], first: int) -> None:
        """What a handle shows is what it showed before and whole units that were sent and not refused. It begins with
        position `first`."""
        assert self.first <= first <= max(self.first, self.asked), f"{first} is first, and {self.first} was"
        self.first = first
        known = len(self.rows)
        assert list(shown[: known - first]) == self.rows[first:], "what was shown is gone or another"
        rows = [*self.rows[:first], *shown]
        lengths = Counter(row.stream for row in self.rows)
        latest = self.rows[-1].timestamp if self.rows else 0
        for position, row in enumerate(rows[known:], known):
            assert (row.position, row.offset) == (position, lengths[row.stream])
            assert row.timestamp >= latest
            lengths[row.stream] += 1
            latest = row.timestamp
        at = known
        while at < len(rows):
            at += 1 if rows[at].stream == "" else self._place(rows, at)
        self.rows = rows

    def _place(self, rows: Sequence[Record], at: int) -> int:
        unit = self.units[int(rows[at].payload.partition(b".")[0])]
        assert unit.state is not State.GONE, f"unit {unit.number} was refused or lost, and is back"
        assert not unit.places, f"unit {unit.number} is there twice"
        given = list(unit.records())
        found = [(row.stream, Record(*row[:4])) for row in rows[at : at + len(given)]]
        assert found == given, f"unit {unit.number} is there in part or altered"
        for row in reversed(rows[at : at + len(given)]):
            unit.places[row.stream] = (row.offset, row.position, row.timestamp)
        unit.state = State.DURABLE
        for receipt in unit.receipts:
            self.agrees(unit, receipt)
        return len(given)

    def agrees(self, unit: Unit, receipt: Receipt) -> None:
        """A receipt says where the records are that it is for."""
        count = len(unit.parts[receipt.stream])
        offset, position, timestamp = unit.places[receipt.stream]
        said = (receipt.first_offset, receipt.last_offset, receipt.first_position, receipt.last_position)
        assert said == (offset, offset + count - 1, position, position + count - 1)
        assert receipt.timestamp == timestamp
        assert receipt.tree_size > receipt.last_position

    def declared(self) -> list[str]:
        """The streams that have records, in the order in which the log declares them."""
        system = [decode_system(Given(row.payload), "stream 0") for row in self.rows if row.stream == ""]
        there = {row.stream for row in self.rows}
        return [said.name for said in system if isinstance(said, Declaration) and said.name in there]

    def of_stream(self, stream: str | None) -> list[Record]:
        return self.rows if stream is None else [row for row in self.rows if row.stream == stream]

    def first_of(self, stream: str | None) -> int:
        """The first offset of a stream, or position of the log, that was not dropped."""
        return self.first if stream is None else sum(row.stream == stream for row in self.rows[: self.first])

    def window(
        self, stream: str | None, start: Bound, until: Bound, limit: int | None, *, reverse: bool, system: bool
    ) -> tuple[list[Record], bool]:
        """What `read` gives for these arguments, and whether it comes upon what was dropped then."""
        rows, kept = self.of_stream(stream), self.first_of(stream)
        numbers = [bound for bound in (start, until) if isinstance(bound, int)]
        if any(bound < kept for bound in numbers) and (len(numbers) < 2 or numbers[0] < numbers[1]):
            return [], True
        first = kept if start is None else self._bound(start, rows, kept)
        last = min(len(rows), len(rows) if until is None else self._bound(until, rows, kept))
        shown = [row for row in rows[max(first, kept) : last] if system or row.stream]
        return (shown[::-1] if reverse else shown)[:limit], False

    @staticmethod
    def _bound(bound: int | datetime, rows: Sequence[Record], kept: int) -> int:
        if isinstance(bound, int):
            return bound
        moment = (bound - EPOCH) // timedelta(microseconds=1) * 1000
        return max(kept, sum(row.timestamp < moment for row in rows))
