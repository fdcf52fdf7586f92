"""What was found damaged while nobody asked for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kimberlite.errors import KimberliteError

#: Of more it is only known how many.
MOST: Final = 100


class Findings:
    """Damage to what was acknowledged, which nothing that runs by itself repairs or hides. Each is told once."""

    def __init__(self) -> None:
        self.found: dict[str, KimberliteError] = {}
        self.count = 0
        #: Told of each.
        self.on_found: Callable[[KimberliteError], None] = lambda _error: None

    def add(self, error: KimberliteError) -> None:
        if str(error) in self.found:
            return
        self.count += 1
        if len(self.found) < MOST:
            self.found[str(error)] = error
        self.on_found(error)
