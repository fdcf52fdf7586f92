"""Groups between sealing and durability."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import takewhile
from typing import Final

from kimberlite import _native
from kimberlite.errors import KimberliteError

#: An append that is in no new group: its error, or the number of the group that it is in already.
Answer = tuple[_native.Request, KimberliteError | int]

#: Behind every group.
NO_LIMIT: Final = (1 << 64) - 1


class Flight:
    """A sealed group on its way to the disk."""

    __slots__ = ("acks", "alone", "buffer", "durable", "refused", "sealed", "since", "synced", "written")

    def __init__(self, sealed: _native.Sealed, buffer: _native.Buffer, durable: bool, since: float) -> None:
        self.sealed, self.since = sealed, since
        self.buffer: _native.Buffer | None = buffer
        #: Whether somebody waits for it to be on the disk.
        self.durable = durable
        #: Whether its own write makes it durable, with no sync behind it.
        self.alone = False
        self.written = False
        self.synced = False
        self.acks: list[_native.Request] = []
        #: Refusals that cite what is durable once this group is.
        self.refused: list[Answer] = []


class Flights:
    """The groups that are sealed and not durable, in order.

    * They leave only from the left, when they and all before them are synced: what has left is durable and answered.
    * A sync covers those that were written when it was submitted, and no others.
    * At most the depth of them are awaited, and as many are being written. Those that nobody awaits are synced in time.
    """

    def __init__(self) -> None:
        self._all: deque[Flight] = deque()
        #: Of those, in order, the ones that are being written.
        self.writing: list[Flight] = []
        #: How many somebody waits for, and the last of those; 0 if nobody ever did.
        self.awaited = 0
        self.wanted = 0
        #: Of those, in order, the ones whose waiters are content with the kernel, until they are answered.
        self._unanswered: deque[Flight] = deque()

    def __iter__(self) -> Iterator[Flight]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def last(self) -> Flight:
        return self._all[-1]

    def add(self, flight: Flight) -> None:
        # A write that is durable by itself says nothing of those before it that are not.
        flight.alone = flight.durable and all(other.alone for other in self._all)
        self._all.append(flight)
        self.writing.append(flight)
        if flight.durable:
            self.awaited += 1
            self.wanted = flight.sealed.number
        else:
            self._unanswered.append(flight)

    def written(self, flight: Flight) -> None:
        flight.written = True
        flight.synced = flight.synced or flight.alone
        flight.buffer = None
        self.writing.remove(flight)

    def covered(self) -> list[Flight]:
        """What a sync that is submitted now covers."""
        return [flight for flight in self._all if flight.written and not flight.synced]

    def sync_due(self, *, everything: bool) -> bool:
        """Whether somebody waits for a group that is written and not synced, or for one behind it."""
        last = NO_LIMIT if everything else self.wanted
        for flight in self._all:
            if flight.sealed.number > last:
                return False
            if flight.written and not flight.synced:
                return True
        return False

    def take_taken(self) -> list[Flight]:
        """Those that the kernel has taken with all before them, whose waiters are content with that; each once."""
        limit = self.writing[0].sealed.number if self.writing else NO_LIMIT
        taken = []
        while self._unanswered and self._unanswered[0].sealed.number < limit:
            taken.append(self._unanswered.popleft())
        return taken

    def synced(self) -> list[Flight]:
        """The prefix that is synced; each `leaves` when its waiters are answered."""
        return list(takewhile(lambda flight: flight.synced, self._all))

    def leaves(self, flight: Flight) -> None:
        assert self._all[0] is flight
        self._all.popleft()
        self.awaited -= flight.durable
