"""demo: append, kill the writer, recover, verify, flip a bit: a tour that fails if anything shown does not hold."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from kimberlite import sync
from kimberlite.cli import demo_writer, forms
from kimberlite.cli.terminal import say
from kimberlite.crypto.master import create_master
from kimberlite.errors import Corrupt, Invalid, KimberliteError
from kimberlite.log.names import segment_name
from kimberlite.log.verify import verify_directory

#: Seconds of load before the kill, and until the first acknowledgement at most.
SECONDS: Final = 1.5
PATIENCE: Final = 30.0


class Broken(Exception):
    """Something that was shown does not hold."""


class Tour:
    """Prints what happens, a line a step; the steps share a directory and what was acknowledged in it."""

    def __init__(self, home: Path, *, as_json: bool) -> None:
        self.path, self.key, self.copy = home / "database", home / "master.key", home / "copy"
        self.as_json = as_json
        #: For each stream, the records that were acknowledged.
        self.lengths: dict[str, int] = {}

    def show(self, step: str, text: str, **found: Any) -> None:
        say(forms.line({"step": step, "text": text} | found) if self.as_json else f"{step:8}{text}")

    def take(self) -> None:
        create_master(self.key)
        self.show("keys", f"a master key in {self.key}; payloads, keys and headers are encrypted from here on")
        self.append_and_kill()
        self.recover()
        self.verify()
        self.tamper()

    def append_and_kill(self) -> None:
        # The package that this is a part of, and not one of the same name where it happens to be run.
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-P", "-m", "kimberlite.cli.demo_writer", str(self.path), str(self.key)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
            silent = threading.Timer(PATIENCE, child.kill)
            silent.start()
            receipts, killed = self.collect(child)
            silent.cancel()
        if not killed:
            raise Broken(f"the writer ended by itself, with status {child.returncode}")
        records = sum(self.lengths.values())
        self.show(
            "kill",
            f"SIGKILL in the middle of its appends, after {receipts} receipts for {records} records",
            receipts=receipts,
            records=records,
        )

    def collect(self, child: subprocess.Popen[bytes]) -> tuple[int, bool]:
        """Reads receipts, kills, and reads those that were on their way; how many, and whether it came to the kill."""
        assert child.stdout is not None
        receipts, killed, deadline = 0, False, 0.0
        for line in child.stdout:
            receipt = json.loads(line)
            self.lengths[receipt["stream"]] = receipt["last_offset"] + 1
            receipts += 1
            if not deadline:
                deadline = time.monotonic() + SECONDS
                self.show("append", f"process {child.pid} appends; its first receipt:", receipt=receipt)
                if not self.as_json:
                    say(f"        {line.decode().rstrip()}")
            elif time.monotonic() > deadline and not killed:
                killed = child.poll() is None
                child.kill()
        return receipts, killed

    def recover(self) -> None:
        started = time.monotonic()
        with sync.open(self.path, create=False, key_file=self.key) as database:
            took = time.monotonic() - started
            found = database.info()
            for note in found["notes"]:
                self.show("recover", note)
            self.show("recover", f"open again after {1000 * took:.0f} ms, {found['segments']} segments", seconds=took)
            extra = sum(compare(database, name, length) for name, length in self.lengths.items())
            self.show(
                "read",
                f"all {sum(self.lengths.values())} acknowledged records are there and as they were; "
                f"{extra} more were on their way and made it",
                unacknowledged=extra,
            )
            receipt = database.append("demo/after", b"the log goes on", expect=0)
            self.show("append", f"the log goes on at position {receipt.first_position}")

    def verify(self) -> None:
        report = verify_directory(self.path, key_file=self.key)
        if not report.keys_checked or report.records < sum(self.lengths.values()):
            raise Broken("verify did not see everything")
        self.show(
            "verify",
            f"{report.records} records in {report.groups} groups, {report.read} bytes: sound, "
            f"tree root {report.root.hex()}",
            root=report.root.hex(),
            records=report.records,
        )

    def tamper(self) -> None:
        shutil.copytree(self.path, self.copy)
        target = self.copy / segment_name(0)
        with target.open("r+b") as file:
            place = target.stat().st_size // 2
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 1]))
        self.show("tamper", f"one bit of a copy flipped: {segment_name(0)}, byte {place}", place=place)
        try:
            verify_directory(self.copy, key_file=self.key)
        except Corrupt as error:
            self.show("verify", f"refused, exit code {error.exit_code}: {error}", exit_code=error.exit_code)
            if error.exit_code == 65 and error.file == segment_name(0):
                return
        raise Broken("verify did not refuse a log with a flipped bit")


def compare(database: sync.Database, name: str, acknowledged: int) -> int:
    """How many more there are than were acknowledged."""
    offset = 0
    for batch in database.read(name).batches():
        for record in batch:
            if record.offset != offset or record.payload != demo_writer.payload(name, offset):
                raise Broken(f"{name}: not the record of offset {offset}")
            offset += 1
    if offset < acknowledged:
        raise Broken(f"{name}: {acknowledged} records were acknowledged and {offset} are there")
    return offset - acknowledged


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", nargs="?", help="where to leave it all; else it is removed again")


@contextmanager
def home(directory: str | None) -> Iterator[Path]:
    if directory is None:
        with tempfile.TemporaryDirectory(prefix="kimberlite-demo-") as temporary:
            yield Path(temporary)
        return
    path = Path(directory)
    try:
        path.mkdir(exist_ok=True)
        empty = not any(path.iterdir())
    except OSError as error:
        raise Invalid(f"{path}: {error.strerror}") from None
    if not empty:
        raise Invalid(f"{path} is not empty")
    yield path


def run(arguments: argparse.Namespace) -> int:
    with home(arguments.directory) as path:
        tour = Tour(path, as_json=arguments.json)
        try:
            tour.take()
        except Broken as problem:
            tour.show("failed", str(problem))
            return 1
        except KimberliteError as error:
            tour.show("failed", f"{error.code}: {error}")
            return 1
        tour.show("done", "nothing that was acknowledged was lost, and what was altered was noticed")
    return 0
