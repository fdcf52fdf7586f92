"""A server that does nothing but answer: what clients reach with it is what sockets allow on these cores."""

from __future__ import annotations

import subprocess
from types import TracebackType
from typing import Self

from benches import instructions
from kimberlite import _native


class Answers:
    """`native/core/examples/answers.rs`, until it is left."""

    def __init__(self) -> None:
        # The least that clients want to hear.
        welcome = {"database": "", "position": 0, "group": 0, "sync": "group"}
        program = [str(instructions.built(program="answers")), _native.pack(welcome).hex()]
        self._process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = f"127.0.0.1:{int(self._process.stdout.readline())}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # It ends with its input.
        self._process.__exit__(kind, error, trace)
