"""append: append records to a stream, and print the receipt of each batch.

Every line of the input is a record. Without `--expect` and `--producer` lines are appended as they come, so a
long input is several batches; with one of them the whole input is one batch.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

from kimberlite import _native
from kimberlite.arguments import POLICIES
from kimberlite.cli import forms
from kimberlite.cli.target import add_key_file, add_target, open_writer
from kimberlite.cli.terminal import Progress, say
from kimberlite.errors import Invalid, LimitExceeded
from kimberlite.log.options import LARGEST_BATCH, LARGEST_BATCH_BYTES
from kimberlite.records import Record

#: Read at a time, and records in a batch that comes of it.
PIECE: Final = 1 << 20
BATCH_RECORDS: Final = 10_000
#: Bytes of several records in one batch, so that with what a daemon is told besides they are one message.
MOST_TOGETHER: Final = LARGEST_BATCH_BYTES - 4096
#: Of a line: JSON takes up to six bytes for one.
LONGEST_LINE: Final = 8 * LARGEST_BATCH_BYTES

Batch = list[bytes | Record]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument("stream", metavar="STREAM")
    parser.add_argument("--file", metavar="FILE", help="read FILE and not stdin")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--jsonl", action="store_true", help="every line is a JSON object with a payload")
    form.add_argument("--whole", action="store_true", help="the whole input is one record")
    parser.add_argument("--sync", choices=POLICIES, help="who waits for which sync; group by default")
    parser.add_argument(
        "--expect", metavar="N", type=forms.parse_number, help="the offset that the first record must get"
    )
    parser.add_argument(
        "--producer", metavar="ID:SEQ", type=parse_producer, help="make a repeated call return the first one's receipt"
    )
    add_key_file(parser)


def run(arguments: argparse.Namespace) -> int:
    expect, producer = arguments.expect, arguments.producer
    together = expect is not None or producer is not None
    appended = False
    with open_input(arguments.file) as source, Progress("append") as progress:
        total = os.fstat(source.fileno()).st_size if arguments.file is not None else 0
        batches = read_batches(source, arguments, together=together)
        with open_writer(arguments) as database:
            for batch in batches:
                receipt = database.append(
                    arguments.stream, batch, expect=expect, producer=producer, sync=arguments.sync
                )
                say(forms.line(forms.receipt_form(receipt)))
                appended = True
                if total:
                    progress(source.tell(), total)
    if not appended:
        raise Invalid("there are no records to append")
    return 0


def open_input(file: str | None) -> Any:
    """Unbuffered, so that a read returns what is there and does not wait for more."""
    if file is None and sys.stdin is None:
        raise Invalid("stdin is closed, and there is no --file")
    try:
        return open(sys.stdin.fileno() if file is None else file, "rb", buffering=0, closefd=file is not None)
    except OSError as error:
        raise Invalid(f"{file}: {error.strerror}") from None


def parse_producer(text: str) -> tuple[str, int]:
    name, colon, sequence = text.rpartition(":")
    if not colon or not name:
        raise argparse.ArgumentTypeError("this is not ID:SEQ, an id and a sequence that counts from 0")
    return name, forms.parse_number(sequence)


def read_batches(source: BinaryIO, arguments: argparse.Namespace, *, together: bool) -> Iterator[Batch]:
    if arguments.whole:
        yield [b"".join(read_all(source))]
        return
    gathered: Batch = []
    number = 0
    for lines in read_lines(source):
        records: Batch = list(lines)
        if arguments.jsonl:
            records = [forms.parse_record(line, i) for i, line in enumerate(lines, number + 1) if line.strip()]
            number += len(lines)
        if together:
            gathered += records
            if len(gathered) > LARGEST_BATCH:
                raise LimitExceeded(f"a batch has at most {LARGEST_BATCH} records")
            continue
        yield from split(records)
    if gathered:
        yield gathered


def split(records: Batch) -> Iterator[Batch]:
    """Batches that are within the limits, in order. A record that is beyond them by itself is a batch of its own."""
    start = size = 0
    for number, record in enumerate(records):
        length = stored_bytes(record)
        if number - start == BATCH_RECORDS or (number > start and size + length > MOST_TOGETHER):
            yield records[start:number]
            start, size = number, 0
        size += length
    if records:
        yield records[start:]


def stored_bytes(record: bytes | Record) -> int:
    if isinstance(record, bytes):
        return _native.RECORD_HEADER + len(record)
    headers = record.headers
    assert isinstance(headers, tuple)
    named = sum(_native.HEADER_HEAD + len(name.encode()) + len(value) for name, value in headers)
    return _native.RECORD_HEADER + len(record.key or b"") + named + len(record.payload)


def pieces(source: BinaryIO) -> Iterator[bytes]:
    """What is there, as it comes. An interrupt just before a read would be heard of only after it: so the wait is for
    both."""
    wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    both = select.poll()
    both.register(source.fileno(), select.POLLIN)
    both.register(wake, select.POLLIN)
    before = signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    try:
        while True:
            while wake in (fd for fd, _ in both.poll()):
                os.read(wake, PIECE)
            piece = source.read(PIECE)
            if not piece:
                return
            yield piece
    finally:
        signal.set_wakeup_fd(before)
        os.close(wake)
        os.close(woken)


def read_all(source: BinaryIO) -> Iterator[bytes]:
    length = 0
    for piece in pieces(source):
        length += len(piece)
        if length > LARGEST_BATCH_BYTES:
            raise LimitExceeded(f"a record has at most {LARGEST_BATCH_BYTES} bytes")
        yield piece


def read_lines(source: BinaryIO) -> Iterator[list[bytes]]:
    """Lines as they come, without their ends; the last one needs none."""
    begun: list[bytes] = []
    length = 0
    for piece in pieces(source):
        *lines, rest = piece.split(b"\n")
        if lines:
            lines[0] = b"".join([*begun, lines[0]])
            begun, length = [], 0
            yield lines
        if rest:
            begun.append(rest)
            length += len(rest)
        if length > LONGEST_LINE:
            raise LimitExceeded(f"a line has at most {LONGEST_LINE} bytes")
    if begun:
        yield [b"".join(begun)]
