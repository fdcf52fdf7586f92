"""A daemon of its own for a bench."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from kimberlite.crypto.master import create_master

#: How a database keeps records.
Mode = Literal["plain", "encrypted", "json+zstd"]
LISTENS = re.compile(r"listening on (127\.0\.0\.1:\d+)")


def settings(mode: Mode, path: Path) -> list[str]:
    """What the daemon is told; a key is made in that directory."""
    if mode == "json+zstd":
        return ["log.compression=1"]
    if mode == "plain":
        return []
    create_master(path / "key")
    return [f"key_file={path / 'key'}"]


class Daemon:
    """`kimberlite serve` on a free port, from its first word to its exit."""

    def __init__(
        self,
        path: Path,
        *settings: str,
        environment: Mapping[str, str] = os.environ,
        module: str = "kimberlite.cli.main",
    ) -> None:
        flags = [flag for setting in settings for flag in ("--set", setting)]
        serve = ["serve", str(path), "--listen", "127.0.0.1:0", "--http", "", *flags]
        clean = {name: value for name, value in environment.items() if not name.startswith("KIMBERLITE_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *serve], stderr=subprocess.PIPE, env=clean, text=True
        )
        self.address = ""
        #: What it has said lately; it never waits for somebody to read it.
        self._said: deque[str] = deque(maxlen=100)
        self._reader = threading.Thread(target=self._listen, daemon=True)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def cpu(self) -> float:
        """Seconds of processor that it has spent."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        # From the third on: utime and stime are the fourteenth and the fifteenth.
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def peak(self) -> int:
        """Bytes of memory that it had at most since `forget_peak`."""
        return self._status("VmHWM")

    def forget_peak(self) -> int:
        """Bytes of memory that it has now."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        return self._status("VmRSS")

    def _status(self, name: str) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))

    def __enter__(self) -> Self:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._said.append(line)
            if found := LISTENS.search(line):
                self.address = found[1]
                self._reader.start()
                return self
        # Closes what it said it in, too.
        self._process.communicate()
        raise RuntimeError(f"the daemon did not start: {''.join(self._said)}")

    def _listen(self) -> None:
        assert self._process.stderr is not None
        self._said.extend(self._process.stderr)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(timeout=30)
        self._reader.join()
        assert self._process.stderr is not None
        self._process.stderr.close()
        if self._process.returncode and error is None:
            raise RuntimeError(f"the daemon ended with {self._process.returncode}: {''.join(self._said)}")
