"""RESP and PostgreSQL's protocol, as far as appending needs them.

Made here rather than by a driver, so that a client sends bytes that it made beforehand and only counts the answers.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

from benches.clients import Answers, Refused

#: Seconds for one request outside the load, of which the longest reads a table.
PATIENCE = 60.0
#: Type of a column of bytes in PostgreSQL.
BYTEA = 17


class Resp:
    """A stream for each client, a record in each entry, a batch in MULTI and EXEC.

    Without them Redis syncs twice in a batch that is longer than what it reads at a time.
    """

    def opening(self) -> bytes:
        return b""

    def openings(self) -> int:
        return 0

    def request(self, stream: int, records: Sequence[bytes]) -> bytes:
        adds = [words(b"XADD", b"log-%d" % stream, b"*", b"r", record) for record in records]
        return adds[0] if len(adds) == 1 else b"".join([words(b"MULTI"), *adds, words(b"EXEC")])

    def answers(self, batch: int) -> Answers:
        # An id is two lines; each command in a transaction is first said to be queued.
        return Lines(2 if batch == 1 else 1 + batch + 1 + 2 * batch)


class Lines:
    """RESP, for requests that are answered by so many lines each; none of ours holds a line's end in a value."""

    def __init__(self, each: int) -> None:
        self._each = each
        self._lines = 0
        self._part = b""

    def finished(self, data: bytes) -> int:
        data = self._part + data
        after = data.rfind(b"\n") + 1
        whole, self._part = data[:after], data[after:]
        if whole.startswith(b"-") or b"\n-" in whole:
            raise Refused(next(line for line in whole.decode(errors="replace").splitlines() if line.startswith("-")))
        requests, self._lines = divmod(self._lines + whole.count(b"\n"), self._each)
        return requests


class Copy:
    """PostgreSQL: a binary COPY of the batch, which is a transaction."""

    def __init__(self, user: str, table: str) -> None:
        self._opening = startup(user)
        self._copy = f"COPY {table} (record) FROM STDIN (FORMAT binary)"

    def opening(self) -> bytes:
        return self._opening

    def openings(self) -> int:
        return 1

    def request(self, stream: int, records: Sequence[bytes]) -> bytes:
        rows = b"".join(struct.pack(">hi", 1, len(record)) + record for record in records)
        content = b"PGCOPY\n\xff\r\n\0" + bytes(8) + rows + struct.pack(">h", -1)
        return message(b"Q", self._copy.encode() + b"\0") + message(b"d", content) + message(b"c")

    def answers(self, batch: int) -> Answers:
        return Messages()


class Insert:
    """PostgreSQL: a prepared INSERT of one record, which is a transaction."""

    def __init__(self, user: str, table: str) -> None:
        text = f"INSERT INTO {table} (record) VALUES ($1)"
        prepare = message(b"P", b"add\0" + text.encode() + b"\0" + struct.pack(">hi", 1, BYTEA))
        self._opening = startup(user) + prepare + message(b"S")

    def opening(self) -> bytes:
        return self._opening

    def openings(self) -> int:
        return 2

    def request(self, stream: int, records: Sequence[bytes]) -> bytes:
        [record] = records
        bind = b"\0add\0" + struct.pack(">hhhi", 1, 1, 1, len(record)) + record + struct.pack(">h", 0)
        return message(b"B", bind) + message(b"E", b"\0" + bytes(4)) + message(b"S")

    def answers(self, batch: int) -> Answers:
        return Messages()


class Messages:
    """PostgreSQL's answers: a request ends when the server is ready for the next."""

    def __init__(self) -> None:
        self._part = b""

    def finished(self, data: bytes) -> int:
        found, self._part = split(self._part + data)
        requests = 0
        for kind, body in found:
            if kind == b"E":
                raise Refused(body.replace(b"\0", b" ").decode(errors="replace").strip())
            requests += kind == b"Z"
        return requests


def words(*parts: bytes) -> bytes:
    """A command in RESP."""
    return b"*%d\r\n%b" % (len(parts), b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts))


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack(">i", len(body) + 4) + body


def startup(user: str) -> bytes:
    return message(b"", struct.pack(">i", 3 << 16) + b"user\0%b\0database\0postgres\0\0" % user.encode())


def split(data: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """PostgreSQL's whole messages, by kind and body, and the part of one that comes after them."""
    found: list[tuple[bytes, bytes]] = []
    place = 0
    while len(data) >= place + 5:
        after = place + 1 + int.from_bytes(data[place + 1 : place + 5], "big")
        if len(data) < after:
            break
        found.append((data[place : place + 1], data[place + 5 : after]))
        place = after
    return found, data[place:]


def command(port: int, *parts: str) -> str:
    """What Redis says in one line."""
    return _exchange(port, words(*(part.encode() for part in parts)), Lines(1), 1)[1:].decode().strip()


def query(port: int, user: str, text: str) -> str:
    """The last row of PostgreSQL's answer, of one column; empty if there is none."""
    request = startup(user) + message(b"Q", text.encode() + b"\0")
    rows = [body for kind, body in split(_exchange(port, request, Messages(), 2))[0] if kind == b"D"]
    # Before the value are the number of columns and its length.
    return rows[-1][6:].decode() if rows else ""


def _exchange(port: int, request: bytes, answers: Answers, wanted: int) -> bytes:
    heard = b""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        connection.sendall(request)
        while wanted > 0:
            data = connection.recv(1 << 16)
            if not data:
                raise Refused("the server closed the connection")
            heard += data
            wanted -= answers.finished(data)
    return heard
