"""A server that does nothing but answer: what clients reach with it is what sockets allow on these cores."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from benches import instructions
from kimberlite import _native


@contextmanager
def answering() -> Iterator[str]:
    """The address of `native/core/examples/answers.rs`, which ends with its input."""
    # The least that clients want to hear.
    welcome = {"database": "", "position": 0, "group": 0, "sync": "group"}
    program = [str(instructions.built(program="answers")), _native.pack(welcome).hex()]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"127.0.0.1:{int(process.stdout.readline())}"
