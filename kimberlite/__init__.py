"""Kimberlite: an append-only log database that can prove that nothing was changed, lost or reordered."""

from kimberlite.api import connect, open
from kimberlite.client.client import Client
from kimberlite.errors import (
    Busy,
    Closed,
    Conflict,
    Corrupt,
    Dropped,
    Duplicate,
    Erased,
    FrameTooLarge,
    Invalid,
    KeyUnavailable,
    KimberliteError,
    LimitExceeded,
    Misconfigured,
    NoSpace,
    ProtocolError,
    RolledBack,
    SlowConsumer,
    Unavailable,
    UnknownOutcome,
)
from kimberlite.log.log import Log
from kimberlite.producer import Producer
from kimberlite.records import NEW, Dropping, Erasure, Receipt, Record, StreamInfo

__all__ = [
    "NEW",
    "Busy",
    "Client",
    "Closed",
    "Conflict",
    "Corrupt",
    "Dropped",
    "Dropping",
    "Duplicate",
    "Erased",
    "Erasure",
    "FrameTooLarge",
    "Invalid",
    "KeyUnavailable",
    "KimberliteError",
    "LimitExceeded",
    "Log",
    "Misconfigured",
    "NoSpace",
    "Producer",
    "ProtocolError",
    "Receipt",
    "Record",
    "RolledBack",
    "SlowConsumer",
    "StreamInfo",
    "Unavailable",
    "UnknownOutcome",
    "connect",
    "open",
]
