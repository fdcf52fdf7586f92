"""The names in a database directory. `docs/format.md` says what each is."""

from __future__ import annotations

from typing import Final

IDENTITY: Final = "identity"
MARKS: Final = "marks"
VAULTS: Final = ("vault.0", "vault.1")
RECEIPT_KEY: Final = "receipt.key"
RESERVE: Final = "reserve"
HASHES: Final = "hashes"
CHECKPOINT: Final = "checkpoint"
PRODUCERS: Final = "producers"
SEGMENTS: Final = "segments"
INDEX: Final = "index"
PREPARE: Final = "prepare"
QUARANTINE: Final = "quarantine"


def segment_name(number: int) -> str:
    return f"{SEGMENTS}/{number:020}.seg"


def prepared_name(number: int) -> str:
    return f"{PREPARE}/{number:020}.seg"


def index_name(number: int) -> str:
    return f"{INDEX}/{number:020}.idx"


def segment_number(name: str) -> int | None:
    """The number of a file in `segments/`; None if it is not named like one."""
    stem, dot, suffix = name.partition(".")
    return int(stem) if len(stem) == 20 and stem.isascii() and stem.isdigit() and suffix == "seg" and dot else None
