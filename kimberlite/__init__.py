"""Kimberlite: an append-only log database that can prove that nothing was changed, lost or reordered."""

from kimberlite.api import open
from kimberlite.errors import (
    Busy,
    Closed,
    Conflict,
    Corrupt,
    Duplicate,
    Invalid,
    KeyUnavailable,
    KimberliteError,
    LimitExceeded,
    Misconfigured,
    NoSpace,
    RolledBack,
    Unavailable,
    UnknownOutcome,
)
from kimberlite.log.log import Log
from kimberlite.records import NEW, Receipt, Record, StreamInfo

__all__ = [
    "NEW",
    "Busy",
    "Closed",
    "Conflict",
    "Corrupt",
    "Duplicate",
    "Invalid",
    "KeyUnavailable",
    "KimberliteError",
    "LimitExceeded",
    "Log",
    "Misconfigured",
    "NoSpace",
    "Receipt",
    "Record",
    "RolledBack",
    "StreamInfo",
    "Unavailable",
    "UnknownOutcome",
    "open",
]
