"""Who may do what: every request that has to do with the log passes here."""

from __future__ import annotations

from typing import Literal, Protocol

Action = Literal["append", "read", "inspect", "maintain"]


class Access(Protocol):
    """What one client may do."""

    def check(self, action: Action, stream: str | None) -> None:
        """Raises what the client is told if it may not. `stream` is None for all of them."""


class Everything:
    """Whoever can connect may do everything: the daemon listens on loopback only."""

    def check(self, action: Action, stream: str | None) -> None:
        pass
