"""What clients may do, and what they are closed for."""

from __future__ import annotations

from dataclasses import dataclass, fields

from kimberlite.errors import Invalid

MIB = 1 << 20
#: What the largest message takes while it arrives.
LEAST_INBOX = 32 * MIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Those that are part of the protocol, and those that protect the others from one."""

    #: Clients at a time; more are told so and closed.
    connections: int = 1024
    #: Requests of one client that are not answered yet, and their bytes. Beyond that its socket is not read.
    requests: int = 1024
    request_bytes: int = 64 * MIB
    #: Of those, reads and tails, which end when the client wills it; more are refused. Less than half of `requests`, so
    #: that these can always go on.
    readings: int = 256
    #: Bytes of memory for messages that arrive, of all clients, beyond the 128 KiB that each has.
    inbox_bytes: int = 256 * MIB
    #: Bytes of replies that wait for a client that does not read. Beyond that its requests are not read.
    outbox_bytes: int = MIB
    #: Seconds to say hello.
    handshake: float = 5.0
    #: Seconds from the first byte of a message to its last.
    frame: float = 10.0
    #: Seconds without a byte from a client that waits for nothing.
    idle: float = 300.0
    #: Seconds for which a client may leave its replies unread.
    unread: float = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 < getattr(self, field.name) < 1 << 48:
                raise Invalid(f"{field.name} is a number above 0")
        if self.inbox_bytes < LEAST_INBOX:
            raise Invalid(f"inbox_bytes is {LEAST_INBOX // MIB} MiB at least: as much as one message needs")
        if self.readings * 2 >= self.requests:
            raise Invalid("readings are less than half of requests")
