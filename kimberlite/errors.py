"""What can go wrong, named by what the caller should do.

KimberliteError
├── Conflict         CONFLICT          re-read and decide again: `expect` or a producer's sequence did not hold
├── Duplicate        DUPLICATE         stop: it was appended before, too long ago to return its receipt
├── Dropped          DROPPED           go on with `first`: what was there before is not kept any more
├── Erased           ERASED            give up: its key was destroyed, and nobody can read it any more
├── Busy             BUSY              retry later: another writer holds the database
├── Corrupt          CORRUPT           stop and look: acknowledged data is damaged; the place is named
├── NoSpace          NO_SPACE          make room, then retry: nothing was appended
├── UnknownOutcome   UNKNOWN_OUTCOME   reopen and look: it may be appended or not
├── KeyUnavailable   KEY_UNAVAILABLE   supply the right key
├── RolledBack       ROLLED_BACK       stop and look: the log is behind what was acknowledged
├── LimitExceeded    LIMIT_EXCEEDED    send less at a time
├── Invalid          INVALID           fix the call
│   └── Misconfigured  INVALID         fix the directory, the file system or the setting
├── Closed           CLOSED            open again
├── Unavailable      UNAVAILABLE       the disk refused, or nobody answers; nothing was appended
├── ProtocolError    PROTOCOL_ERROR    fix the client: what it sent is no message
├── FrameTooLarge    FRAME_TOO_LARGE   fix the client: no message is so large
└── SlowConsumer     SLOW_CONSUMER     read what was asked for, then connect again
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Any, ClassVar


class KimberliteError(Exception):
    """Every error of this package. `code` is stable and the same over every interface."""

    code: ClassVar[str]
    #: What a command that ends with this error exits with.
    exit_code: ClassVar[int] = 1


class Conflict(KimberliteError):
    """`expect` or a producer's sequence did not hold; what it cites is durable."""

    code = "CONFLICT"

    def __init__(self, message: str, expected: int | None = None, about: str = "stream") -> None:
        super().__init__(message)
        #: The offset or sequence that would have been right.
        self.expected = expected
        #: Whose: that of the "stream", or of the "producer".
        self.about = about


class Duplicate(KimberliteError):
    """Appended before, and its receipt is no longer remembered."""

    code = "DUPLICATE"


class Dropped(KimberliteError):
    """It was there, and was dropped by a rule of retention. What is left begins with `first`."""

    code = "DROPPED"

    def __init__(self, message: str, first: int | None = None) -> None:
        super().__init__(message)
        #: An offset if a stream was read, else a position.
        self.first = first


class Erased(KimberliteError):
    """A stream was erased: its records can be proved to have been there, and be read by nobody."""

    code = "ERASED"

    def __init__(self, message: str, when: int | None = None, reason: str | None = None) -> None:
        super().__init__(message)
        #: ns since 1970, UTC.
        self.when = when
        self.reason = reason

    @classmethod
    def of(cls, stream: str, when: int, reason: str) -> Erased:
        shown = datetime.fromtimestamp(when // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return cls(f"stream {stream!r} was erased at {shown}: {reason}", when, reason)


class Busy(KimberliteError):
    """Another writer, in this process or elsewhere, has the database open."""

    code = "BUSY"
    exit_code = 75


class Corrupt(KimberliteError):
    """Data that was acknowledged is damaged. Nothing was changed."""

    code = "CORRUPT"
    exit_code = 65

    def __init__(
        self,
        message: str,
        *,
        file: str,
        place: int | None = None,
        group: int | None = None,
        position: int | None = None,
    ) -> None:
        where = [file]
        if place is not None:
            where.append(f"byte {place}")
        if group is not None:
            where.append(f"group {group}")
        if position is not None:
            where.append(f"position {position}")
        super().__init__(f"{', '.join(where)}: {message}")
        self.message = message
        self.file, self.place, self.group, self.position = file, place, group, position

    def __reduce__(self) -> tuple[Any, ...]:
        # One process raises it to another by pickling it.
        place, group, position = self.place, self.group, self.position
        return partial(type(self), file=self.file, place=place, group=group, position=position), (self.message,)


class NoSpace(KimberliteError):
    """The disk is full. Nothing was appended; appends resume when there is room."""

    code = "NO_SPACE"
    exit_code = 74


class UnknownOutcome(KimberliteError):
    """A write or a sync failed: what was waiting may be on disk or not, and this handle is dead."""

    code = "UNKNOWN_OUTCOME"
    exit_code = 74


class KeyUnavailable(KimberliteError):
    """A key is missing, or is not the one this was sealed with."""

    code = "KEY_UNAVAILABLE"
    exit_code = 77


class RolledBack(KimberliteError):
    """The log ends before something it has acknowledged: nothing is appended, and what was on its way may be lost."""

    code = "ROLLED_BACK"
    exit_code = 79


class LimitExceeded(KimberliteError):
    """Larger than a documented limit."""

    code = "LIMIT_EXCEEDED"
    exit_code = 64


class Invalid(KimberliteError):
    """The call can never succeed as it is."""

    code = "INVALID"
    exit_code = 64


class Misconfigured(Invalid):
    """The directory, the file system or a setting cannot be used."""

    exit_code = 78


class Closed(KimberliteError):
    """The handle was closed, or belongs to the process this one was forked from."""

    code = "CLOSED"


class Unavailable(KimberliteError):
    """The disk or a file refused, or nobody answers; nothing was appended."""

    code = "UNAVAILABLE"
    exit_code = 74


class ProtocolError(KimberliteError):
    """What arrived is no message of the protocol. The connection is closed."""

    code = "PROTOCOL_ERROR"


class FrameTooLarge(KimberliteError):
    """A message is announced that is larger than any may be. The connection is closed."""

    code = "FRAME_TOO_LARGE"


class SlowConsumer(KimberliteError):
    """What was asked for was not read in time. The connection is closed."""

    code = "SLOW_CONSUMER"
