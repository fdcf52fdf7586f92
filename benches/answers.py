"""Servers that do nothing but answer, or send: what clients reach with them is what sockets allow on these cores."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from benches import instructions
from kimberlite import _native

#: Bytes that are sent, or taken, with one call.
CHUNK: Final = 1 << 18


@contextmanager
def answering() -> Iterator[str]:
    """The address of `native/core/examples/answers.rs`, which ends with its input."""
    # The least that clients want to hear.
    welcome = {"database": "", "position": 0, "group": 0, "incarnation": 0, "sync": "group"}
    program = [str(instructions.built(program="answers")), _native.pack(welcome).hex()]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"127.0.0.1:{int(process.stdout.readline())}"


def carried(seconds: float) -> float:
    """Bytes a second from one thread to another over loopback, which neither looks at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = threading.Thread(target=_send, args=(listener.getsockname(),))
        sender.start()
        with listener.accept()[0] as receiver:
            buffer, count = bytearray(CHUNK), 0
            begun = time.perf_counter()
            while (elapsed := time.perf_counter() - begun) < seconds:
                count += receiver.recv_into(buffer)
        sender.join()
    return count / elapsed


def _send(address: tuple[str, int]) -> None:
    """Until the other side has had enough."""
    with socket.create_connection(address) as sender, suppress(ConnectionError):
        chunk = bytes(CHUNK)
        while True:
            sender.sendall(chunk)
