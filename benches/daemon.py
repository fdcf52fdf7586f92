"""A daemon of its own for a bench."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

LISTENS = re.compile(r"listening on (127\.0\.0\.1:\d+)")


class Daemon:
    """`kimberlite serve` on a free port, from its first word to its exit."""

    def __init__(self, path: Path, *settings: str) -> None:
        flags = [flag for setting in settings for flag in ("--set", setting)]
        serve = ["serve", str(path), "--listen", "127.0.0.1:0", "--http", "", *flags]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KIMBERLITE_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kimberlite.cli.main", *serve], stderr=subprocess.PIPE, env=environment, text=True
        )
        self.address = ""

    @property
    def cpu(self) -> float:
        """Seconds of processor that it has spent."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        # From the third on: utime and stime are the fourteenth and the fifteenth.
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __enter__(self) -> Self:
        assert self._process.stderr is not None
        said = []
        for line in self._process.stderr:
            said.append(line)
            if found := LISTENS.search(line):
                self.address = found[1]
                return self
        self._process.communicate()
        raise RuntimeError(f"the daemon did not start: {''.join(said)}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        _, rest = self._process.communicate(timeout=30)
        if self._process.returncode and error is None:
            raise RuntimeError(f"the daemon ended with {self._process.returncode}: {rest}")
