"""The names in a database directory. `docs/format.md` says what each is."""

from __future__ import annotations

import re
from typing import Final

IDENTITY: Final = "identity"
MARKS: Final = "marks"
VAULTS: Final = ("vault.0", "vault.1")
RECEIPT_KEY: Final = "receipt.key"
RESERVE: Final = "reserve"
HASHES: Final = "hashes"
CHECKPOINT: Final = "checkpoint"
PRODUCERS: Final = "producers"
CLOCK: Final = "clock"
PAST: Final = "past"
PAST_BLOCK: Final = "past.block"
SEGMENTS: Final = "segments"
INDEX: Final = "index"
PREPARE: Final = "prepare"
QUARANTINE: Final = "quarantine"
REPAIR: Final = "repair"

FILES: Final = frozenset(
    (IDENTITY, MARKS, *VAULTS, RECEIPT_KEY, RESERVE, HASHES, CHECKPOINT, PRODUCERS, CLOCK, PAST, PAST_BLOCK, REPAIR)
)
#: What the files in each directory are called.
DIRECTORIES: Final = {
    SEGMENTS: re.compile(r"[0-9]{20}\.seg"),
    INDEX: re.compile(r"[0-9]{20}\.idx"),
    PREPARE: re.compile(r"[^/]+"),
    QUARANTINE: re.compile(r"[0-9]{20}-[0-9]+-[0-9]+\.tail"),
}


def belongs(name: str) -> bool:
    """Whether a database directory may have something of this name in it."""
    directory, slash, leaf = name.rpartition("/")
    if slash:
        return directory in DIRECTORIES and DIRECTORIES[directory].fullmatch(leaf) is not None
    return name in FILES or name in DIRECTORIES


def segment_name(number: int) -> str:
    return f"{SEGMENTS}/{number:020}.seg"


def prepared_name(number: int) -> str:
    return f"{PREPARE}/{number:020}.seg"


def packed_name(number: int) -> str:
    """While it is being packed."""
    return f"{PREPARE}/{number:020}.pack"


def quarantine_name(number: int, place: int, when: int) -> str:
    """What was a segment from this byte on."""
    return f"{QUARANTINE}/{number:020}-{place}-{when}.tail"


def index_name(number: int) -> str:
    return f"{INDEX}/{number:020}.idx"


def segment_number(name: str) -> int | None:
    """The number of a file in `segments/`, of 64 bits; None if it is not named like one."""
    stem, dot, suffix = name.partition(".")
    named = len(stem) == 20 and stem.isascii() and stem.isdigit() and suffix == "seg" and dot
    return number if named and (number := int(stem)) < 1 << 64 else None
