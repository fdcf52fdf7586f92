"""Records and receipts as JSON, and back; numbers as arguments.

Bytes are a string if they are UTF-8, else `{"base64": "…"}`; hashes are hex; times are ns since 1970, UTC.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import json
import reprlib
import string
from pathlib import Path
from typing import Any, Final, get_type_hints

from kimberlite import _native
from kimberlite.arguments import UNITS
from kimberlite.errors import Invalid
from kimberlite.records import Receipt, Record

#: What the log fills in: `read --json` shows it, and `append --jsonl` passes over it.
GIVEN_BY_LOG: Final = frozenset({"stream", "offset", "position", "timestamp"})
TAKEN: Final = frozenset({"payload", "key", "headers", "event_time"})
#: What the fields of a receipt are in JSON, but for hashes.
KINDS: Final = {str: "a string", int: "an integer", bool: "true or false"}
HASHES: Final = ("root", "chain", "mac")
#: Digits of a number below 2^63. Python itself refuses to look at one of thousands.
DIGITS: Final = 19
#: Bytes in each.
SIZES: Final = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def line(value: object, *, escape: bool = False) -> bytes:
    """One JSON value as a line. A lone surrogate of a file's name becomes its JSON escape; and for a terminal, which
    might obey it, whatever is not ASCII."""
    return json.dumps(value, ensure_ascii=escape, separators=(",", ":")).encode("utf-8", "backslashreplace") + b"\n"


def parse_number(text: str) -> int:
    """An offset, a position, a sequence or a count."""
    digits = text.lstrip("0") or text[:1]
    if not (text.isascii() and text.isdigit()) or len(digits) > DIGITS or int(digits) >= 1 << 63:
        raise argparse.ArgumentTypeError(f"{reprlib.repr(text)} is not a number from 0 to 2^63 - 1")
    return int(digits)


def parse_age(text: str) -> float:
    """Seconds."""
    number, unit = parted(text)
    if unit not in UNITS:
        raise argparse.ArgumentTypeError(f"{reprlib.repr(text)} is not an age: a number and {', '.join(UNITS)}")
    return parse_number(number) * (UNITS[unit] // 10**9)


def parse_size(text: str) -> int:
    """Bytes."""
    number, unit = parted(text)
    if unit not in SIZES:
        raise argparse.ArgumentTypeError(f"{reprlib.repr(text)} is not a size: a number, and KiB, MiB, GiB or TiB")
    return parse_number(number) * SIZES[unit]


def parted(text: str) -> tuple[str, str]:
    """A number and its unit."""
    number = text.rstrip(string.ascii_letters)
    return number, text[len(number) :]


def bytes_form(data: bytes) -> str | dict[str, str]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def parse_bytes(value: object, what: str) -> bytes:
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError:
            raise Invalid(f"{what} has a lone surrogate") from None
    if isinstance(value, dict) and value.keys() == {"base64"} and isinstance(value["base64"], str):
        try:
            return base64.b64decode(value["base64"], validate=True)
        except (binascii.Error, ValueError):
            raise Invalid(f"{what} is not base64") from None
    raise Invalid(f'{what} is a string or {{"base64": "…"}}')


def record_form(record: Record) -> dict[str, Any]:
    headers = record.headers
    assert isinstance(headers, tuple)
    return {
        "stream": record.stream,
        "offset": record.offset,
        "position": record.position,
        "timestamp": record.timestamp,
        "event_time": record.event_time,
        "key": None if record.key is None else bytes_form(record.key),
        "headers": [[name, bytes_form(value)] for name, value in headers],
        "payload": bytes_form(record.payload),
    }


def parse_record(text: bytes, number: int) -> Record:
    """A line of `append --jsonl`, which counts from 1: an object with a payload and, if there are any, key, headers and
    event_time."""
    try:
        return record_of(json.loads(text))
    except (ValueError, RecursionError):
        raise Invalid(f"line {number} is not JSON") from None
    except Invalid as error:
        raise Invalid(f"line {number}: {error}") from None


def record_of(value: object) -> Record:
    if not isinstance(value, dict) or "payload" not in value:
        raise Invalid("this is not an object with a payload")
    if unknown := value.keys() - TAKEN - GIVEN_BY_LOG:
        raise Invalid(f"a record has no field {min(unknown)!r}")
    key, event_time = value.get("key"), value.get("event_time")
    if event_time is not None and (not isinstance(event_time, int) or isinstance(event_time, bool)):
        raise Invalid("event_time is an integer, ns since 1970")
    if event_time is not None and not -(1 << 63) <= event_time < 1 << 63:
        raise Invalid("event_time does not fit in 64 bits of ns")
    return Record(
        parse_bytes(value["payload"], "payload"),
        None if key is None else parse_bytes(key, "key"),
        parse_headers(value.get("headers")),
        event_time,
    )


def parse_headers(value: object) -> tuple[tuple[str, bytes], ...]:
    if value is None:
        return ()
    pairs = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, list):
        raise Invalid("headers are an object or a list of pairs")
    headers = []
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise Invalid("a header is a pair of a name and a value")
        if not 1 <= len(parse_bytes(pair[0], "a header's name")) <= _native.LONGEST_HEADER:
            raise Invalid(f"a header's name has 1 to {_native.LONGEST_HEADER:,} bytes")
        headers.append((pair[0], parse_bytes(pair[1], f"header {pair[0]!r}")))
    return tuple(headers)


def receipt_form(receipt: Receipt) -> dict[str, Any]:
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in receipt._asdict().items()}


def read_receipt(path: Path) -> Receipt:
    """The last line of what `append` printed."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise Invalid(f"anchor {path}: {error.strerror}") from None
    try:
        value = json.loads(lines[-1])
        fields: dict[str, Any] = {name: bytes.fromhex(v) if name in HASHES else v for name, v in value.items()}
        receipt = Receipt(**fields)
    except (ValueError, TypeError, AttributeError, IndexError, RecursionError):
        raise Invalid(f"anchor {path} does not end in a receipt") from None
    for name, kind in get_type_hints(Receipt).items():
        if type(getattr(receipt, name)) is not kind:
            raise Invalid(f"anchor {path}: {name} is {KINDS[kind]}")
    if not receipt.durable:
        raise Invalid(f"anchor {path} is a receipt of what was not durable")
    return receipt
