"""Programs that a bench wants: installed, or else from Debian's packages, unpacked in a cache and not installed.

Debian's rather than wheels that carry a server: those are older or somebody's build, these are what a user runs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Seconds for one call of apt-get.
PATIENCE = 300.0
#: 100 MB for compiling queries, which is off.
UNWANTED = "libllvm"


class Missing(Exception):
    """What cannot be had here, and why."""


@dataclass(frozen=True, slots=True)
class Program:
    name: str
    #: Which brings it and what it needs.
    package: str
    #: Of its packages, those to unpack besides the libraries.
    packages: str
    #: Where it is under a root, besides PATH.
    place: str


@dataclass(frozen=True, slots=True)
class Installed:
    path: Path
    #: Where libraries are that the system does not have.
    libraries: tuple[Path, ...] = ()

    def environment(self) -> Mapping[str, str]:
        paths = [*map(str, self.libraries), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        return os.environ | ({"LD_LIBRARY_PATH": ":".join(paths)} if paths else {})

    def version(self) -> str:
        shown = run([str(self.path), "--version"], self.environment())
        found = re.search(r"\d+\.[\d.]+", shown)
        if found is None:
            raise Missing(f"{self.path} says no version: {shown.strip()}")
        return found[0]


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kimberlite-bench"


def installed(program: Program) -> Installed | None:
    """On PATH, where Debian puts it, or in the cache from an earlier run."""
    if path := shutil.which(program.name):
        return Installed(Path(path))
    root = cache() / program.package
    for base, libraries in ((Path("/"), ()), (root, tuple(_libraries(root)))):
        if paths := sorted(base.glob(f"{program.place}/{program.name}")):
            return Installed(paths[-1], libraries)
    return None


def had(program: Program) -> Installed:
    """Downloads it if it is not there yet."""
    if found := installed(program):
        return found
    root = cache() / program.package
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent) as name:
        for deb in _download(program, Path(name)):
            run(["dpkg", "-x", str(deb), f"{name}/root"])
        shutil.rmtree(root, ignore_errors=True)
        Path(name, "root").rename(root)
    if found := installed(program):
        return found
    raise Missing(f"no {program.place}/{program.name} in the packages of {program.package}")


def run(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    patience: float = PATIENCE,
) -> str:
    """What it printed; Missing if it cannot be run or fails."""
    try:
        done = subprocess.run(
            command, env=environment, cwd=directory, capture_output=True, text=True, timeout=patience, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise Missing(str(problem)) from problem
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines() or [f"exit status {done.returncode}"]
        raise Missing(f"{Path(command[0]).name}: {_reason(lines)}")
    return done.stdout


def _reason(lines: Sequence[str]) -> str:
    """Compilers and Maven say it first and explain it afterwards; others end with it."""
    first = (line for line in lines if line.lower().lstrip("[").startswith("error"))
    return next(first, lines[-1]).strip()


def _download(program: Program, directory: Path) -> list[Path]:
    """By the system's package lists, or by new ones of our own if it has none or they are too old."""
    try:
        return _download_by(program, directory, ["-o", "APT::Sandbox::User=root"])
    except Missing:
        options = ["-o", "APT::Sandbox::User=root", "-o", f"Dir::State::Lists={directory}/lists"]
        options += ["-o", f"Dir::Cache={directory}/cache", "-o", "Debug::NoLocking=1"]
        (directory / "lists/partial").mkdir(parents=True)
        (directory / "cache/archives/partial").mkdir(parents=True)
        run(["apt-get", "-q", *options, "update"])
        return _download_by(program, directory, options)


def _download_by(program: Program, directory: Path, options: Sequence[str]) -> list[Path]:
    simulated = run(["apt-get", *options, "-s", "--no-install-recommends", "install", program.package])
    names = [line.split()[1] for line in simulated.splitlines() if line.startswith("Inst ")]
    wanted = [name for name in names if re.fullmatch(program.packages, name) or _is_library(name)]
    if not wanted:
        raise Missing(f"apt-get would install nothing for {program.package}")
    run(["apt-get", "-q", *options, "download", *wanted], directory=directory)
    return sorted(directory.glob("*.deb"))


def _is_library(name: str) -> bool:
    return name.startswith("lib") and not name.startswith(UNWANTED)


def _libraries(root: Path) -> Iterator[Path]:
    for place in ("usr/lib/*-linux-gnu*", "lib/*-linux-gnu*"):
        yield from root.glob(place)
