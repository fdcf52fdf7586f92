"""Words with whoever started the daemon: readiness, the watchdog, and sockets that are handed over."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from kimberlite.errors import Misconfigured
from kimberlite.server.listening import check_handed_over

#: The first descriptor that is handed over.
FIRST: Final = 3


class Notifier:
    """Says what `sd_notify` says, to the socket in NOTIFY_SOCKET; to nobody without one."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._socket: socket.socket | None = None
        if path := environment.get("NOTIFY_SOCKET"):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            try:
                self._socket.connect("\0" + path[1:] if path.startswith("@") else path)
            except OSError as error:
                raise Misconfigured(f"NOTIFY_SOCKET: {path}: {error.strerror or error}") from error
        #: Seconds within which the watchdog wants to hear; None if nobody watches.
        self.watchdog: float | None = None
        if environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            with suppress(ValueError, OverflowError):
                self.watchdog = int(environment.get("WATCHDOG_USEC", "")) / 1e6

    def say(self, *words: str) -> None:
        if self._socket is not None:
            # Whoever listens may be gone; that is its own affair.
            with suppress(OSError):
                self._socket.send("\n".join(words).encode())


def handed_over(environment: Mapping[str, str]) -> list[socket.socket]:
    """The sockets that were opened for this process, listening."""
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return []
    try:
        count = int(environment.get("LISTEN_FDS", "0"))
    except ValueError:
        raise Misconfigured("LISTEN_FDS is no number") from None
    sockets = []
    for fd in range(FIRST, FIRST + count):
        try:
            os.set_inheritable(fd, False)
            sockets.append(socket.socket(fileno=fd))
        except OSError as error:
            raise Misconfigured(f"descriptor {fd} was handed over, and is no socket: {error.strerror}") from error
        check_handed_over(sockets[-1])
    return sockets
