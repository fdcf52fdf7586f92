"""What was found damaged while nobody asked for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kimberlite.errors import KimberliteError

#: Of more it is only known how many.
MOST: Final = 100


class Findings:
    """Damage on the disk, each told once. Nothing that runs by itself repairs or hides what was acknowledged."""

    def __init__(self) -> None:
        self.found: dict[str, KimberliteError] = {}
        self._told: set[str] = set()
        #: Told of each.
        self.on_found: Callable[[KimberliteError], None] = lambda _error: None

    def add(self, error: KimberliteError) -> None:
        if str(error) in self._told:
            return
        self._told.add(str(error))
        if len(self.found) < MOST:
            self.found[str(error)] = error
        self.on_found(error)

    @property
    def count(self) -> int:
        return len(self._told)
