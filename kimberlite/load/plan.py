"""What load there is to be."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final, Literal

from kimberlite import _native
from kimberlite.arguments import Sync

Work = Literal["append", "read", "mixed"]

#: Different batches that are appended in turn, and their bytes at most.
BATCHES: Final = 16
BATCHES_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Plan:
    """So many clients, each with so many requests of so many records open; of a mixed load every second one reads."""

    work: Work
    #: `host:port`, or the path of a Unix socket.
    address: str
    clients: int = 1
    batch: int = 100
    #: Bytes of a record's payload.
    size: int = 256
    #: Payloads are JSON events, which compress, instead of random bytes.
    json: bool = False
    #: Requests of a client that are open at a time.
    depth: int = 1
    #: Records a second of all clients together; None: as many as are answered.
    rate: float | None = None
    sync: Sync | None = None
    #: Clients append to `NAME/0`, `NAME/1`, …
    stream: str = "bench"
    processes: int = 1

    def appends(self, client: int) -> bool:
        return self.work == "append" or (self.work == "mixed" and client % 2 == 0)

    @property
    def interval(self) -> float | None:
        """Seconds from one request of a client to its next."""
        return None if self.rate is None else self.clients * self.batch / self.rate

    def batches(self) -> list[_native.Batch]:
        count = max(1, min(BATCHES, BATCHES_BYTES // (self.batch * self.size + 1)))
        return [_native.encode(self._payloads()) for _ in range(count)]

    def _payloads(self) -> list[bytes]:
        return events(self.batch, self.size) if self.json else [os.urandom(self.size) for _ in range(self.batch)]


def events(count: int, size: int) -> list[bytes]:
    """JSON events of about this size, that compress as events do."""
    made = (
        f'{{"id":{i},"type":"order.updated","customer":"c-{i % 97}","total":{i * 17 % 9973},"currency":"EUR",'
        f'"items":[{{"sku":"A-{i % 13}","quantity":{i % 5}}}],"status":"confirmed","source":"checkout"}}'
        for i in range(count)
    )
    return [event.encode().ljust(size)[:size] for event in made]
