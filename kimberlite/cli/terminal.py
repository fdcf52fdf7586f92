"""What a command says: lines on stdout, errors and progress on stderr."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final, Self, TextIO

from kimberlite.cli import forms
from kimberlite.errors import Conflict, Corrupt, Dropped, Erased, KimberliteError
from kimberlite.log.description import ranged
from kimberlite.records import Erasure, Record

WIDTH: Final = 40
#: Of what a repair has given up.
MOST_RANGES: Final = 8
#: Seconds between two drawings.
INTERVAL: Final = 0.1
#: What errors say beside their message.
FIELDS: Final[dict[type[KimberliteError], tuple[str, ...]]] = {
    Conflict: ("expected",),
    Corrupt: ("file", "place", "group", "position"),
    Dropped: ("first",),
    Erased: ("when", "reason"),
}


class Ink(Enum):
    """What a word is written in for whoever looks at a terminal that has colours, and wants them (no-color.org)."""

    BOLD = 1
    DIM = 2
    RED = 31
    GREEN = 32

    def on(self, stream: TextIO, text: str) -> str:
        """The text must be harmless already."""
        colourless = os.environ.get("NO_COLOR") or os.environ.get("TERM", "") in ("", "dumb")
        return text if colourless or not stream.isatty() else f"\x1b[{self.value}m{text}\x1b[0m"


def say(data: bytes | str) -> None:
    """A line for whoever reads stdout, who sees it at once."""
    if isinstance(data, str):
        data = data.encode("utf-8", "backslashreplace") + b"\n"
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def note(data: bytes | str) -> None:
    """On stderr, where stdout has something else."""
    if isinstance(data, str):
        data = data.encode("utf-8", "backslashreplace") + b"\n"
    if sys.stderr is not None:
        clear()
        sys.stderr.buffer.write(data)
        sys.stderr.buffer.flush()


def table(rows: dict[str, Any]) -> str:
    """Names and values for stdout, one pair a line."""
    width = max(map(len, rows)) + 2
    return "\n".join(f"{Ink.BOLD.on(sys.stdout, f'{name:{width}}')}{value}" for name, value in rows.items())


def dropped(drop: dict[str, Any]) -> str:
    """One entry of `dropped` in what `info` and `verify` say."""
    first, last = (datetime.fromtimestamp(drop[name] // 10**9, UTC).isoformat() for name in ("first", "last"))
    when = last if first == last else f"{first} to {last}"
    return f"dropped: positions {drop['from']:,} to {drop['to'] - 1:,}, {when}, by the rule {escaped(drop['rule'])!r}"


def erased(each: Erasure) -> str:
    """A line for stdout."""
    when = datetime.fromtimestamp(each.when // 10**9, UTC).isoformat()
    state = "pending: copies of its key may open under a master key of before" if each.pending else "confirmed"
    return f"erased: {escaped(each.stream)}, {when}, {escaped(each.reason)} ({state})"


def repaired(each: dict[str, Any]) -> str:
    """One entry of `repairs` in what `info` and `verify` say."""
    if each["lost"] is None:
        return f"repaired or salvaged: what the record at position {each['position']:,} said is not known any more"
    when = datetime.fromtimestamp(each["when"] // 10**9, UTC).isoformat()
    lost = [ranged(*each) for each in each["lost"]]
    more = [f"{len(lost) - MOST_RANGES} more ranges"] if len(lost) > MOST_RANGES else []
    places = "positions" if each["exact"] else "some of positions"
    given = f"lost: {places} {', '.join(lost[:MOST_RANGES] + more)}" if lost else "nothing was lost by that"
    what = f"{'salvaged: from' if each['salvaged'] else 'repaired:'} database {each['database_id']}"
    return f"{what}, {when}, incarnation {each['incarnation']}, kept {each['kept']:,} records, {given}"


def harmless(data: bytes) -> bytes:
    """For a terminal: control characters of a payload are shown and not obeyed."""
    return escaped(data.decode("utf-8", "backslashreplace")).encode()


def escaped(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\t" else ascii(c)[1:-1] for c in text)


def located(record: Record) -> bytes:
    """A line for a terminal: where the record stands, and a payload that is only shown."""
    place = Ink.DIM.on(sys.stdout, escaped(f"{record.stream}:{record.offset}"))
    return place.encode() + b"  " + harmless(record.payload) + b"\n"


def plain(record: Record) -> bytes:
    return record.payload + b"\n"


def complain(error: KimberliteError, *, as_json: bool) -> None:
    if sys.stderr is None:
        return
    if as_json:
        text = forms.line(error_form(error), escape=sys.stderr.isatty())
    else:
        # It may cite a name that somebody else has put into the directory.
        message = escaped(" ".join(str(error).split()))
        text = f"kimberlite: {Ink.RED.on(sys.stderr, error.code)}: {message}\n".encode()
    # What it exits with says the most of it.
    with contextlib.suppress(OSError):
        clear()
        sys.stderr.buffer.write(text)
        sys.stderr.buffer.flush()


def error_form(error: KimberliteError) -> dict[str, Any]:
    form: dict[str, Any] = {"code": error.code, "message": str(error), "exit_code": error.exit_code}
    for kind, names in FIELDS.items():
        if isinstance(error, kind):
            form |= {name: getattr(error, name) for name in names}
    return form


def clear() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


class Status:
    """A line on stderr while it is a terminal; nothing anywhere else. `with` takes it away in the end."""

    def __init__(self) -> None:
        self._shown = sys.stderr is not None and sys.stderr.isatty()
        self._drawn = 0.0

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if self._shown and now - self._drawn >= INTERVAL:
            self._drawn = now
            sys.stderr.write(f"\r{text}\x1b[K")
            sys.stderr.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn:
            clear()


class Progress:
    """A bar as a status."""

    def __init__(self, what: str) -> None:
        self._what, self._status = what, Status()

    def __call__(self, done: int, total: int) -> None:
        share = min(1.0, done / total) if total else 1.0
        bar = ("#" * int(share * WIDTH)).ljust(WIDTH, ".")
        self._status(f"{self._what} [{bar}] {share:4.0%}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._status.__exit__()
