"""Peers and the programs that drive them, built from what registries have: Go modules, jars and crates, in the cache.

Each is a directory of benches/drivers that pins what it needs; it is built again when something in there changes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benches.packages import Program, cache, had, run

SOURCES = Path(__file__).parent / "drivers"
#: What all drivers in Go are made of besides their own.
SHARED = "load"
PROTOC = Program("protoc", "protobuf-compiler", "protobuf-compiler", "usr/bin")
#: Seconds for one call of a compiler, which may first download hundreds of modules.
PATIENCE = 1800.0


@dataclass(frozen=True, slots=True)
class Source:
    """A directory of drivers, and how a built one comes from it."""

    name: str
    #: From a directory into another.
    steps: tuple[Callable[[Path, Path], object], ...]

    @property
    def directory(self) -> Path:
        return SOURCES / self.name

    def place(self) -> Path:
        """Where in the cache it is, or would be."""
        said = hashlib.sha256()
        for file in sorted(path for name in (self.name, SHARED) for path in (SOURCES / name).rglob("*")):
            if file.is_file():
                said.update(b"%b\0%b\0" % (bytes(file.relative_to(SOURCES)), file.read_bytes()))
        return cache() / "drivers" / f"{self.name}-{said.hexdigest()[:16]}"


def found(source: Source) -> Path | None:
    """Where it is, if it was built by an earlier run."""
    return place if (place := source.place()).is_dir() else None


def built(source: Source) -> Path:
    """Downloads what it needs and builds it, if it is not there yet."""
    place = source.place()
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as name:
        new = Path(name, "new")
        new.mkdir()
        for step in source.steps:
            step(source.directory, new)
        for old in place.parent.glob(f"{source.name}-*"):
            shutil.rmtree(old)
        new.rename(place)
    return place


def go(programs: Mapping[str, str]) -> Callable[[Path, Path], None]:
    """Packages of a Go module or of what it requires, by the names that the programs get."""

    def step(source: Path, target: Path) -> None:
        settings = {"GOFLAGS": "-mod=readonly -trimpath -buildvcs=false", "GOWORK": "off"}
        for name, package in programs.items():
            run(["go", "build", "-o", str(target / name), package], os.environ | settings, source, PATIENCE)

    return step


def maven(jars: str) -> Callable[[Path, Path], None]:
    """What a pom.xml depends on, in a directory of that name."""

    def step(source: Path, target: Path) -> None:
        copy = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={target / jars}"]
        run(["mvn", "--quiet", "--batch-mode", "--strict-checksums", *copy], None, source, PATIENCE)

    return step


def cargo(*programs: str) -> Callable[[Path, Path], None]:
    """The binaries of a crate, some of whose dependencies are made by protoc."""

    def step(source: Path, target: Path) -> None:
        protoc = had(PROTOC)
        with tempfile.TemporaryDirectory(dir=target.parent) as name:
            settings = {"PROTOC": str(protoc.path), "CARGO_TARGET_DIR": name}
            command = ["cargo", "build", "--release", "--locked", "--quiet"]
            run(command, {**protoc.environment(), **settings}, source, PATIENCE)
            for program in programs:
                shutil.copy(Path(name, "release", program), target / program)

    return step
