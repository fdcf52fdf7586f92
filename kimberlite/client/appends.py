"""Appends that are not answered yet, whatever becomes of connections: pure, without a socket."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import Final

from kimberlite import _native
from kimberlite.arguments import Sender
from kimberlite.errors import (
    Closed,
    Conflict,
    Duplicate,
    Invalid,
    KimberliteError,
    LimitExceeded,
    NoSpace,
    ProtocolError,
    RolledBack,
    Unavailable,
    UnknownOutcome,
)
from kimberlite.records import Receipt
from kimberlite.wire.messages import NOBODY

Part = tuple[str, _native.Batch, int | None]
Answer = Callable[[list[Receipt] | KimberliteError], None]

#: What appends to several streams count their sequences in; no stream is called so.
SEVERAL: Final = ""
FORGOTTEN: Final = "the server has forgotten what it was sent; it may be appended"
#: Before the server says one of these it looks whether what was sent before is appended.
JUDGED: Final = (Conflict, Duplicate, Invalid, LimitExceeded, NoSpace, RolledBack, Unavailable)
#: Of a producer's batches the server remembers the last so many.
REMEMBERED: Final = 1024
LARGEST_BATCH_BYTES: Final = _native.LARGEST_BATCH_BYTES


class Call:
    """One append."""

    __slots__ = (
        "again",
        "answer",
        "doubtful",
        "id",
        "lane",
        "parts",
        "producer",
        "sent",
        "several",
        "since",
        "sync",
        "weight",
    )

    def __init__(
        self,
        id: int,
        parts: list[Part],
        several: bool,
        producer: tuple[bytes, int] | None,
        sync: str | None,
        answer: Answer,
        lane: Lane | None,
    ) -> None:
        self.id, self.parts, self.several, self.producer, self.sync = id, parts, several, producer, sync
        self.answer, self.lane = answer, lane
        self.weight = sum(batch.size for _, batch, _ in parts)
        #: Whether it is on its way; and whether it was so on a connection that is gone, and so may be appended already.
        self.sent = self.doubtful = False
        #: The last group that was known to be durable when it was first sent with its sequence.
        self.since = 0
        #: Refused only for its sequence, and not appended: it gets another one.
        self.again = False

    @property
    def span(self) -> int:
        """How many sequences it takes."""
        return len(self.parts[0][1]) if self.sync == "record" else 1


class Lane:
    """The appends to one stream, numbered so that one that is sent again is not appended again.

    * Those that are `open` have sequences in a row, no more of them than the server remembers, and are sent in their
      order.
    * When one is refused, those behind it are too: when all of them are back they are numbered anew. Until then the
      lane is `broken`, and what comes waits.
    * One that is likely to be refused, since it expects an offset, has a lane to itself as long as it is open.
    """

    def __init__(self, free: list[Lane] | None = None) -> None:
        #: Where it goes when it is empty, if it takes one at a time.
        self.free, self.taken = free, False
        self.producer = os.urandom(16)
        #: The next sequence; and the one behind the highest that is known to be appended.
        self.next = self.known = 0
        self.open: list[Call] = []
        self.waiting: deque[Call] = deque()
        self.broken = False
        #: Where to go on when it is whole again: what the server says, or the lowest that was refused.
        self.resume: int | None = None
        #: Whether it needs another producer: of this one the server has forgotten something, or has something else.
        self.spent = False

    def stumble(self, at: int) -> None:
        """Something was refused: it goes on at this sequence, unless at a lower one."""
        self.broken = True
        self.resume = at if self.resume is None else min(self.resume, at)


class Appends:
    """What has been asked for and not been answered. `send` is None while there is no connection."""

    def __init__(self, ids: Iterator[int]) -> None:
        self._ids = ids
        self._send: Callable[[bytes], None] | None = None
        self._default = "group"
        self._calls: dict[int, Call] = {}
        self._names: dict[int, tuple[str, ...]] = {}
        self._lanes: dict[str, Lane] = {}
        #: Of each stream, those for one at a time that are free; and all of them.
        self._free: dict[str, list[Lane]] = {}
        self._alone: list[Lane] = []
        #: Bytes of all that is open.
        self.weight = 0
        #: The last group that is known to be durable.
        self.group = 0

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def calls(self) -> Collection[Call]:
        return self._calls.values()

    def __contains__(self, id: int) -> bool:
        return id in self._calls

    def begin(
        self, parts: list[Part], producer: tuple[bytes, int] | None, sync: str | None, answer: Answer, *, several: bool
    ) -> Call:
        checked_size(parts, producer, sync, several=several)
        lane = None
        if producer is None:
            stream = SEVERAL if several else parts[0][0]
            lane = self._lane(stream, alone=any(expect is not None for _, _, expect in parts))
        call = Call(next(self._ids), parts, several, producer, sync, answer, lane)
        self._calls[call.id] = call
        self._names[call.id] = tuple(name for name, _, _ in parts)
        self.weight += call.weight
        try:
            if lane is not None and (self._send is None or lane.waiting or not self._fits(lane, call)):
                lane.waiting.append(call)
            elif lane is not None:
                self._number(lane, call)
            elif self._send is not None:
                self._transmit(call)
        except KimberliteError:
            self._forget(call)
            raise
        return call

    def _lane(self, stream: str, *, alone: bool) -> Lane:
        if not alone:
            if (lane := self._lanes.get(stream)) is None:
                lane = self._lanes[stream] = Lane()
            return lane
        free = self._free.setdefault(stream, [])
        if not free:
            self._alone.append(Lane(free))
            free.append(self._alone[-1])
        lane = free.pop()
        lane.taken = True
        return lane

    def connected(self, send: Callable[[bytes], None], default: str, group: int) -> None:
        """Sends again what was on its way, in its order, and then what waits."""
        # Where the log is now, should it be another copy.
        self._send, self._default, self.group = send, default, group
        lanes = [*self._lanes.values(), *self._alone]
        waiting = {call.id for lane in lanes for call in lane.waiting}
        for call in sorted(self._calls.values(), key=lambda call: call.id):
            if call.id not in waiting:
                call.doubtful = call.doubtful or call.sent
                call.again = False
                try:
                    self._transmit(call)
                except KimberliteError as error:
                    self._end(call, error)
        for lane in lanes:
            self._settle(lane)

    def disconnected(self) -> None:
        self._send = None

    def give_up(self, why: str) -> None:
        """Nobody answers: who was never sent is Unavailable, of the others nobody knows."""
        calls = list(self._calls.values())
        self._calls, self._names, self.weight = {}, {}, 0
        self._lanes, self._free, self._alone = {}, {}, []
        for call in calls:
            sent = call.sent or call.doubtful
            call.answer(UnknownOutcome(f"{why}; it may be appended") if sent else Unavailable(why))

    def drop(self, call: Call) -> None:
        """Nobody waits for it any more: if it was not sent, it is not."""
        if call.lane is not None and call in call.lane.waiting:
            call.lane.waiting.remove(call)
            self._forget(call)

    # ---- answers

    def receipts(self, body: bytes) -> Receipt | None:
        """One of these, if they are durable: they all say the same of the log."""
        durable = None
        for id, receipts in _native.decode_receipts(body, self._names):
            call = self._calls.get(id)
            if call is None:
                continue
            if len(receipts) != len(call.parts):
                raise ProtocolError("an append gets a receipt for each of its parts")
            if receipts[-1].durable:
                durable = receipts[-1]
                self.group = max(self.group, durable.group)
            self._forget(call)
            lane = call.lane
            if lane is not None:
                assert call.producer is not None
                lane.open.remove(call)
                lane.known = max(lane.known, call.producer[1] + call.span)
            call.answer(receipts)
            if lane is not None:
                self._settle(lane)
        return durable

    def refused(self, id: int, error: KimberliteError) -> bool:
        """False if this is no answer: the server does not know, or is ending, and it is to be asked again."""
        call = self._calls[id]
        if isinstance(error, UnknownOutcome | Closed):
            return False
        about = error.about if isinstance(error, Conflict) else None
        if about == "forgotten":
            self._refused_forgotten(call, error.expected if isinstance(error, Conflict) else None)
        elif call.lane is None:
            self._end(call, self._outcome(call, error))
        elif about == "producer" and isinstance(error, Conflict):
            # Another sequence is the next, or this one is something else's: it is not appended.
            call.again = True
            call.lane.broken = True
            call.lane.spent = call.lane.spent or error.expected is None
            call.lane.resume = error.expected if error.expected is not None else call.lane.resume
        elif isinstance(error, Duplicate) and not call.doubtful:
            # The server remembers fewer than are on their way, and takes it for one of them.
            call.again = call.lane.broken = call.lane.spent = True
        else:
            outcome = self._outcome(call, error)
            # Of several sequences the first may be used.
            used = call.span > 1 or isinstance(outcome, UnknownOutcome | Duplicate)
            call.lane.spent = call.lane.spent or used
            self._end(call, outcome)
        if call.lane is not None:
            self._settle(call.lane)
        return True

    def _refused_forgotten(self, call: Call, group: int | None) -> None:
        """The server does not know its producer, and has forgotten some since the group that was named."""
        if call.doubtful or group is None or group == call.since:
            if call.lane is not None:
                call.lane.spent = True
            self._end(call, UnknownOutcome(FORGOTTEN))
            return
        # What was sent but once and is refused is not appended. Where the log is now is what it says.
        self.group = group
        if call.lane is None:
            self._transmit(call)
        else:
            call.again = call.lane.broken = call.lane.spent = True

    def _outcome(self, call: Call, error: KimberliteError) -> KimberliteError:
        """What is known of an append that was refused."""
        judged = JUDGED if call.span == 1 else (Conflict, Duplicate)
        if call.doubtful and not isinstance(error, judged):
            return UnknownOutcome(f"{error.code}: {error}; it may be appended, since it was sent before")
        return error

    def _end(self, call: Call, error: KimberliteError) -> None:
        self._forget(call)
        if call.lane is not None:
            assert call.producer is not None
            call.lane.stumble(call.producer[1])
            call.lane.open.remove(call)
        call.answer(error)

    # ---- lanes

    def _settle(self, lane: Lane) -> None:
        """Goes on with a lane that is whole, or will be when those that were refused are numbered anew."""
        if self._send is None or any(not call.again for call in lane.open if lane.broken):
            return
        if lane.broken:
            again, lane.open = lane.open, []
            if lane.spent or lane.resume is None or lane.resume < lane.known:
                # What it is called now is new to the server, whatever that remembers.
                lane.producer, lane.resume = os.urandom(16), 0
            lane.next = lane.known = lane.resume
            lane.broken, lane.spent, lane.resume = False, False, None
            for call in again:
                call.again = False
                self._number(lane, call)
        while lane.waiting and self._fits(lane, lane.waiting[0]):
            call = lane.waiting.popleft()
            try:
                self._number(lane, call)
            except KimberliteError as error:
                self._forget(call)
                call.answer(error)
        if lane.free is not None and lane.taken and not lane.open:
            lane.taken = False
            lane.free.append(lane)

    def _fits(self, lane: Lane, call: Call) -> bool:
        """Whether it can be sent now: of what a lane has open, the server remembers every sequence."""
        call.sync = call.sync or self._default
        sequences = [each.producer[1] for each in lane.open[:1] if each.producer is not None]
        return not lane.broken and all(lane.next + call.span - first <= REMEMBERED for first in sequences)

    def _number(self, lane: Lane, call: Call) -> None:
        call.producer = lane.producer, lane.next
        call.doubtful = False
        self._transmit(call)
        lane.open.append(call)
        lane.next += call.span

    def _transmit(self, call: Call) -> None:
        assert self._send is not None
        # Sent again it means the same, whatever the server's own policy is by then.
        call.sync = call.sync or self._default
        if call.lane is None and call.span > 1 and not call.doubtful:
            raise Invalid(
                "the server's sync is 'record', which makes a batch of every record: a producer needs one batch"
            )
        if not call.doubtful:
            call.since = self.group
        producer: Sender | None = None if call.producer is None else (*call.producer, call.since)
        message = _native.encode_append(call.id, call.parts, call.several, producer, call.sync)
        call.sent = True
        self._send(message)

    def _forget(self, call: Call) -> None:
        del self._calls[call.id], self._names[call.id]
        self.weight -= call.weight


def checked_size(parts: list[Part], producer: tuple[bytes, int] | None, sync: str | None, *, several: bool) -> None:
    """LimitExceeded now, and not when it is sent, if it may make a message that is too large."""
    if sum(batch.size + 1024 for _, batch, _ in parts) + 4096 > LARGEST_BATCH_BYTES:
        by = (b"" if producer is None else producer[0]).ljust(16), (1 << 63) - 1
        _native.encode_append(NOBODY, parts, several, by, sync or "record")


def request_ids() -> Iterator[int]:
    """Numbers for requests, none of them twice until all have been."""
    return (i % NOBODY for i in itertools.count(1))
