"""What only a real directory can show: planted files, locks between processes, short writes, what is tried first."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import gc
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from kimberlite import _native
from kimberlite.storage import Backend, Choice, Mode, files, open_backend, probe

from .conftest import ON_DISK, file_size_limit, open_or_skip, pattern


def own_threads() -> list[str]:
    """Without those of the kernel's that work for a ring: they end when they like."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if not name.startswith("iou-")]


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def plant_symlink(place: Path) -> None:
    (place.parent / "real").write_bytes(b"x")
    place.symlink_to("real")


@pytest.mark.parametrize("mode", ["r", "s", "w"])
@pytest.mark.parametrize(
    ("plant", "number"),
    [(plant_symlink, errno.ELOOP), (Path.mkdir, errno.EISDIR), (os.mkfifo, errno.ENXIO)],
    ids=["symlink", "directory", "fifo"],
)
def test_only_regular_files_are_opened(
    disk: Backend, tmp_path: Path, mode: Mode, plant: Callable[[Path], None], number: int
) -> None:
    plant(tmp_path / "planted")
    before = descriptors()
    with pytest.raises(OSError, match=re.escape(f"[Errno {number}]")):
        disk.open("planted", mode)
    assert descriptors() == before


@pytest.mark.parametrize(
    ("plant", "as_file", "as_directory"),
    [
        (plant_symlink, errno.ELOOP, errno.ELOOP),
        (os.mkfifo, errno.ENXIO, errno.ENOTDIR),
        (partial(os.mkdir, mode=0o700), errno.EISDIR, None),
        (partial(Path.touch, mode=0o600), None, errno.ENOTDIR),
        (lambda place: place.touch(0o600) or place.chmod(0o620), errno.EPERM, errno.ENOTDIR),
        (lambda place: place.mkdir(0o700) or place.chmod(0o702), errno.EISDIR, errno.EPERM),
    ],
    ids=["symlink", "fifo", "directory", "file", "shared file", "shared directory"],
)
def test_a_check_says_what_opening_would_say(
    disk: Backend, tmp_path: Path, plant: Callable[[Path], None], as_file: int | None, as_directory: int | None
) -> None:
    plant(tmp_path / "planted")
    for directory, number in ((False, as_file), (True, as_directory)):
        if number is None:
            disk.check("planted", directory=directory)
            continue
        with pytest.raises(OSError, match=re.escape(f"[Errno {number}]")):
            disk.check("planted", directory=directory)


def test_a_directory_that_is_a_symlink_is_not_entered(disk: Backend, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "planted").symlink_to("real")
    for entered in (lambda: disk.open("planted/x", "x"), lambda: disk.list("planted"), lambda: disk.mkdir("planted")):
        with pytest.raises(OSError, match=rf"\[Errno ({errno.ELOOP}|{errno.ENOTDIR})\]"):
            entered()


def test_new_files_are_private(disk: Backend, tmp_path: Path) -> None:
    disk.open("x", "x").close()
    disk.mkdir("d")
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700


def test_no_descriptor_survives_an_exec(disk: Backend, tmp_path: Path) -> None:
    file = disk.open("segment", "x")
    below = {}
    for name in os.listdir("/proc/self/fd"):
        link = f"/proc/self/fd/{name}"
        if os.path.lexists(link) and os.readlink(link).startswith(str(tmp_path)):
            below[int(name)] = os.get_inheritable(int(name))
    assert len(below) >= 2
    assert not any(below.values())
    file.close()


def test_one_writer_holds_the_directory(disk: Backend, tmp_path: Path) -> None:
    disk.lock_directory()
    other = open_backend(tmp_path, "threads")
    with pytest.raises(BlockingIOError):
        other.lock_directory()
    disk.close()
    other.lock_directory()
    other.close()


def test_another_process_finds_the_lock_taken(disk: Backend, tmp_path: Path) -> None:
    file = disk.open("segment", "x")
    file.lock()
    attempt = (
        "import fcntl, sys\n"
        "try: fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except BlockingIOError: sys.exit(7)\n"
    )
    command = [sys.executable, "-c", attempt, str(tmp_path / "segment")]
    assert subprocess.run(command, check=False).returncode == 7
    file.close()
    assert subprocess.run(command, check=False).returncode == 0


def test_the_lock_is_on_what_the_commit_path_writes_through(disk: Backend, tmp_path: Path) -> None:
    file = disk.open("segment", "x")
    file.lock()
    locked = {}
    for path in Path("/proc/self/fdinfo").iterdir():
        target = path.parent.with_name("fd") / path.name
        if os.path.lexists(target) and os.readlink(target) == str(tmp_path / "segment"):
            fields = dict(line.split(":", 1) for line in path.read_text().splitlines())
            locked[bool(int(fields["flags"], 8) & os.O_DIRECT)] = "FLOCK" in fields.get("lock", "")
    if True not in locked:
        pytest.skip("this file system does not take O_DIRECT")
    assert locked == {True: True, False: False}
    file.close()


def test_a_rename_does_not_move_the_commit_path_to_another_file(disk: Backend, tmp_path: Path) -> None:
    file = disk.open("prepared", "x")
    disk.rename("prepared", "segment")
    disk.open("prepared", "x").close()
    told: list[OSError | None] = []

    async def write() -> None:
        disk.submit(file, 0, pattern(2), True, told.append)
        disk.close()

    asyncio.run(write())
    file.close()
    assert told == [None]
    assert (tmp_path / "prepared").stat().st_size == 0
    assert (tmp_path / "segment").read_bytes() == bytes(pattern(2))


def test_reading_only_touches_nothing_and_starts_no_thread(tmp_path: Path) -> None:
    (tmp_path / "segment").write_bytes(b"there")
    tmp_path.chmod(0o500)
    threads = own_threads()
    before = tmp_path.stat()
    backend = open_backend(tmp_path, read_only=True)
    assert backend.name == "threads"
    assert "reading only" in backend.reason
    file = backend.open("segment", "s")
    assert file.read(0, 9) == b"there"
    file.close()
    for refused in (
        lambda: backend.open("new", "x"),
        lambda: backend.open("segment", "w"),
        lambda: backend.mkdir("new"),
        lambda: backend.rename("segment", "new"),
        lambda: backend.unlink("segment"),
        lambda: backend.submit(file, 0, pattern(1), True, print),
        lambda: backend.submit_sync(file, print),
    ):
        with pytest.raises(OSError, match="Read-only"):
            refused()
    backend.close()
    assert tmp_path.stat().st_mtime_ns == before.st_mtime_ns
    assert own_threads() == threads


def test_create_makes_the_directory_and_opening_does_not(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_backend(tmp_path / "new")
    open_backend(tmp_path / "new", create=True).close()
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    open_backend(tmp_path / "new", create=True).close()


def test_the_trial_never_has_a_name_in_the_directory(uring: Backend, tmp_path: Path) -> None:
    os.utime(tmp_path, (0, 0))
    backend = open_backend(tmp_path)
    # Any name that comes or goes would have moved it.
    assert tmp_path.stat().st_mtime_ns == 0
    assert (backend.list(), backend.name) == ([], "uring")
    assert backend.reason.endswith(".")
    backend.close()


FORBIDDEN = """
import ctypes, struct, sys
from kimberlite.storage import open_backend
number, refusal = int(sys.argv[2]), 0x00050000 | int(sys.argv[3])
# Load the call's number; return `refusal` if it is this one, and else allow it.
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, refusal), (0x06, 0, 0, 0x7FFF0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
filter = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(program)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0, "PR_SET_NO_NEW_PRIVS"
assert libc.prctl(22, 2, filter, 0, 0) == 0, "PR_SET_SECCOMP"
backend = open_backend(sys.argv[1])
print(backend.name, backend.reason)
backend.close()
try:
    open_backend(sys.argv[1], "uring")
except OSError as problem:
    print(problem.errno)
"""


@pytest.mark.parametrize("refusal", [errno.EPERM, errno.ENOSYS, errno.EACCES])
def test_auto_takes_threads_where_io_uring_is_forbidden_and_says_why(tmp_path: Path, refusal: int) -> None:
    setup = 425
    command = [sys.executable, "-c", FORBIDDEN, str(tmp_path), str(setup), str(refusal)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "PR_SET" in ended.stderr:
        pytest.skip("system calls cannot be filtered here")
    chosen, refused = ended.stdout.splitlines()
    assert chosen.startswith("threads There is no io_uring here")
    assert errno.errorcode[refusal] in chosen
    assert int(refused) == refusal


def test_auto_takes_io_uring_where_it_works(uring: Backend, tmp_path: Path) -> None:
    backend = open_backend(tmp_path)
    assert (backend.name, uring.name) == ("uring", "uring"), backend.reason
    backend.close()


def test_auto_takes_threads_where_a_trial_write_fails(
    uring: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = descriptors()
    with file_size_limit(0):
        backend = open_backend(tmp_path)
    assert backend.name == "threads"
    assert "EFBIG" in backend.reason
    assert backend.list() == []
    backend.close()
    assert descriptors() == before


def test_auto_takes_threads_where_a_trial_write_never_ends(
    uring: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = descriptors()
    reader, writer = os.pipe()
    os.write(writer, bytes(fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)))
    nameless = files.Directory.open_nameless

    def full(directory: files.Directory) -> files.DiskFile:
        file = nameless(directory)
        os.dup2(writer, file.direct_fd)
        return file

    monkeypatch.setattr(files.Directory, "open_nameless", full)
    monkeypatch.setattr(probe, "_PATIENCE", 0.2)
    backend = open_backend(tmp_path)
    assert (backend.name, "ETIMEDOUT" in backend.reason) == ("threads", True)
    backend.close()
    os.close(writer)
    os.close(reader)
    assert descriptors() == before + 1, "the ring, which the kernel still writes for"


def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    monkeypatch.setitem(files.NETWORK, _native.file_system(descriptor) & 0xFFFFFFFF, "NFS")
    os.close(descriptor)
    before = descriptors()
    with pytest.raises(OSError, match="NFS") as refused:
        open_backend(tmp_path)
    assert refused.value.errno == errno.EREMOTE
    assert descriptors() == before


@pytest.mark.parametrize("name", ON_DISK)
def test_closing_leaves_no_descriptor_and_no_thread(tmp_path: Path, name: Choice) -> None:
    open_or_skip(name, tmp_path).close()
    before = descriptors(), own_threads()
    for _ in range(5):
        backend = open_backend(tmp_path, name)
        file = backend.open("segment", "w" if backend.exists("segment") else "x")

        async def write(backend: Backend = backend, file: files.DiskFile = file) -> None:
            backend.submit(file, 0, pattern(1), True, lambda problem: None)

        asyncio.run(write())
        file.close()
        backend.close()
        backend.close()
    assert (descriptors(), own_threads()) == before


@pytest.mark.parametrize(("name", "mode"), [("", 0o707), ("", 0o770), ("segments", 0o770), ("segments", 0o707)])
def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path, name: str, mode: int) -> None:
    backend = open_backend(tmp_path, "threads")
    backend.mkdir("segments")
    backend.open("segments/a", "x").close()
    backend.close()
    (tmp_path / name).chmod(mode)
    with pytest.raises(PermissionError) as refused:
        open_backend(tmp_path, "threads").open("segments/a", "r")
    assert refused.value.errno == errno.EPERM
