"""The stores of benches.peers beside the servers: one writer, one transaction after another, no network."""

from __future__ import annotations

import os
import time
from contextlib import closing
from pathlib import Path

from benches.clients import BATCHES, Load, Tally
from benches.peers import Maker
from benches.rivals import WARM, Figures, figures, fresh


class Embedded:
    alone = True

    def __init__(self, make: Maker, parent: Path) -> None:
        self._make, self._parent = make, parent
        with fresh(parent) as place, closing(make(place)) as store:
            self.name, self.settings = f"{store.name} (embedded)", store.settings

    def run(self, load: Load) -> Figures:
        if load.clients * load.depth > 1:
            raise ValueError(f"{self.name} has one writer")
        ready = [[os.urandom(load.size) for _ in range(load.batch)] for _ in range(BATCHES)]
        took: list[int] = []
        written = 0
        with fresh(self._parent) as place, closing(self._make(place)) as store:
            begin = sent = time.monotonic_ns()
            begin += int(min(WARM, load.seconds) * 1e9)
            end = begin + int(load.seconds * 1e9)
            while sent < end:
                store.append(written * load.batch, ready[written % BATCHES])
                written += 1
                now = time.monotonic_ns()
                if begin <= now < end:
                    took.append(now - sent)
                sent = now
            stored = sum(1 for _ in store.scan())
        return figures(self.name, load, Tally(written, took), stored)
