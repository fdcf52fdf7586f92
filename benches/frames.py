"""Python's functions as machine code of their own, so that perf sees them: `frames.c` built, installed, and read."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benches.packages import Missing, cache, run

SOURCE: Final = Path(__file__).with_suffix(".c")
#: Unwinders need its tables, and each function its own frame and name, whatever they have in common.
FLAGS: Final = ("-O1", "-fPIC", "-shared", "-fno-optimize-sibling-calls", "-fasynchronous-unwind-tables")
#: As `frames.c` has it: functions, and a counter of calls for each.
MANY: Final = 4096
#: Names the library and the directory to processes that are to be framed.
VARIABLE: Final = "BENCH_FRAMES"


@dataclass(frozen=True, slots=True)
class Function:
    file: str
    name: str
    line: int

    def label(self) -> str:
        """The file from its package on."""
        parts = Path(self.file).parts
        places = (parts.index(name) for name in ("kimberlite", "site-packages", "asyncio") if name in parts)
        place = next(places, len(parts) - 1)
        if len(parts) > place + 1 and parts[place] in ("kimberlite", "site-packages"):
            place += 1
        return f"{'/'.join(parts[place:])}:{self.name}"


#: Where a function has no machine code of its own, because there are more than that.
OTHERS: Final = Function("", "others", 0)


def built() -> Path:
    """The library, compiled once."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise Missing("there is no C compiler; install gcc, or name one with CC")
    whole = SOURCE.read_bytes() + "\0".join([compiler, *FLAGS]).encode()
    path = cache() / "frames" / hashlib.sha256(whole).hexdigest()[:20] / "frames.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as name:
            run([compiler, *FLAGS, "-o", f"{name}/frames.so", str(SOURCE)])
            Path(name, "frames.so").rename(path)
    return path


def environment(library: Path, directory: Path) -> dict[str, str]:
    """Of a process that calls `install` and writes into that directory."""
    return {VARIABLE: f"{library}{os.pathsep}{directory}"}


def install() -> None:
    """From now on, in this process, if its environment says so."""
    if VARIABLE not in os.environ:
        return
    library, directory = os.environ[VARIABLE].split(os.pathsep)
    path = Path(directory, str(os.getpid()))
    counters = os.open(path.with_suffix(".calls"), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.ftruncate(counters, MANY * 8)
        if ctypes.PyDLL(library).install(os.fsencode(path.with_suffix(".names")), counters):
            raise RuntimeError(f"no frames in {directory}")
    finally:
        os.close(counters)


def functions(directory: Path, pid: int) -> dict[int, Function]:
    """Those of a process that have been called."""
    found = {0: OTHERS}
    for line in (directory / f"{pid}.names").read_text(encoding="utf-8", errors="replace").splitlines():
        number, first, file, name = line.split("\t")
        found[int(number, 16)] = Function(file, name, int(first))
    return found


def calls(directory: Path, pid: int) -> tuple[int, ...]:
    """How often each has been called, by its number."""
    return struct.unpack(f"={MANY}Q", (directory / f"{pid}.calls").read_bytes())


def framed(directory: Path) -> Iterator[int]:
    """The processes that have written there."""
    return (int(path.stem) for path in directory.glob("*.names"))
