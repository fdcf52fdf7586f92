"""Rules of the order of disk calls, for what a crash need not show: held against the trace of a simulated disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

#: As `Disk.trace` has it: verb, name, place, length.
Call = tuple[str, str, int, int]
VERBS: Final = frozenset(("write", "sync", "sync_directory", "truncate", "rename", "submit", "durable"))


def violations(trace: list[Call] | None, flying: Iterable[str] = ()) -> Iterator[str]:
    """`flying`: the segments that a write of a process before was on its way to when it ended."""
    calls = [call for call in trace or [] if call[0] in VERBS]
    yield from _vault(calls)
    yield from _quarantine(calls)
    yield from _headers(calls)
    yield from _rewritten(calls)
    yield from _landing(calls, flying)


def _vault(calls: list[Call]) -> Iterator[str]:
    """Copy 0 of the vault is synced before copy 1 is touched: one of them is sound at any moment."""
    dirty = False
    for verb, name, _, _ in calls:
        if name == "vault.0" and verb in ("write", "sync"):
            dirty = verb == "write"
        elif name == "vault.1" and verb == "write" and dirty:
            yield "vault.1 is written while vault.0 is not synced"


def _quarantine(calls: list[Call]) -> Iterator[str]:
    """A torn tail is on the disk elsewhere, with its name, before it is cut off."""
    unsynced: set[str] = set()
    for verb, name, _, _ in calls:
        if name.startswith("quarantine/"):
            if verb == "write":
                unsynced |= {name, "quarantine"}
            elif verb == "sync":
                unsynced.discard(name)
        elif name == "quarantine" and verb == "sync_directory":
            unsynced.discard(name)
        elif verb == "truncate" and name.startswith("segments/") and unsynced:
            yield f"{name} is cut while its tail in quarantine is not synced"


def _headers(calls: list[Call]) -> Iterator[str]:
    """A segment that comes to be has its name and its header on the disk before a group goes to it."""
    named: set[str] = set()
    pending: dict[str, set[str]] = {}
    for verb, name, place, _ in calls:
        if verb == "rename" and " -> segments/" in name:
            named.add(name.rpartition(" -> ")[2])
        elif verb == "sync_directory" and name == "segments":
            named.clear()
        elif verb == "write" and name.endswith(".seg") and place == 0:
            pending.setdefault(name, set()).add("header")
        elif verb == "sync":
            pending.pop(name, None)
        elif verb == "submit" and (name in named or name in pending):
            yield f"{name} gets a group, and its name or its header is not synced"


def _rewritten(calls: list[Call]) -> Iterator[str]:
    """No block of a segment that a write has made durable is written again."""
    durable: dict[str, int] = {}
    for verb, name, place, length in calls:
        if not name.startswith("segments/"):
            continue
        if verb == "durable":
            durable[name] = max(durable.get(name, 0), place + length)
        elif verb == "submit" and place < durable.get(name, 0):
            yield f"{name} is written at {place}, and up to {durable[name]} it is durable"
        elif verb == "truncate":
            durable.pop(name, None)


def _landing(calls: list[Call], flying: Iterable[str]) -> Iterator[str]:
    """Where a write of a process that was killed may land later still, no group is appended. The lock on the segment
    makes the next start wait for it, so no crash shows this; without the lock, it would hit the closing group at most,
    and nothing that was acknowledged since."""
    named = set(flying)
    for verb, name, _, _ in calls:
        if verb == "rename":
            # Another file.
            named.discard(name.rpartition(" -> ")[2])
        elif verb == "submit" and name in named:
            yield f"{name} gets a group, and a write of a process before may still land there"
