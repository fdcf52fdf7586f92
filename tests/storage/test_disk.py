"""What only a real directory can show: planted files, locks between processes, short writes, what is tried first."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kimberlite import _native
from kimberlite.storage import BLOCK, Backend, Mode, files, open_backend, uring

LIMIT = 64 << 20


def pattern(blocks: int) -> _native.Buffer:
    buffer = _native.Buffer(blocks * BLOCK)
    with memoryview(buffer) as view:
        for number in range(blocks):
            view[number * BLOCK : (number + 1) * BLOCK] = bytes([number + 1]) * BLOCK
    return buffer


@contextmanager
def file_size_limit(limit: int) -> Iterator[Callable[[], None]]:
    """Writes end there: short where they cross it, EFBIG beyond. Calling what it gives lifts it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


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
    "plant, number",
    [(plant_symlink, errno.ELOOP), (Path.mkdir, errno.EISDIR), (os.mkfifo, errno.ENXIO)],
    ids=["symlink", "directory", "fifo"],
)
def test_only_regular_files_are_opened(
    disk: Backend, tmp_path: Path, mode: Mode, plant: Callable[[Path], None], number: int
) -> None:
    plant(tmp_path / "planted")
    before = descriptors()
    with pytest.raises(OSError) as refused:
        disk.open("planted", mode)
    assert refused.value.errno == number
    assert descriptors() == before


def test_a_directory_that_is_a_symlink_is_not_entered(disk: Backend, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "planted").symlink_to("real")
    for entered in (lambda: disk.open("planted/x", "x"), lambda: disk.list("planted"), lambda: disk.mkdir("planted")):
        with pytest.raises(OSError) as refused:
            entered()
        assert refused.value.errno in (errno.ELOOP, errno.ENOTDIR)


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


@pytest.mark.asyncio
async def test_an_error_from_the_kernel_reaches_done(disk: Backend) -> None:
    file = disk.open("segment", "x")
    finished: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
    with file_size_limit(LIMIT):
        disk.submit(file, LIMIT, pattern(1), True, finished.set_result)
        problem = await asyncio.wait_for(finished, 10)
    assert problem is not None and problem.errno == errno.EFBIG
    file.close()


@pytest.mark.asyncio
async def test_a_short_write_that_cannot_be_completed_is_an_error(disk: Backend) -> None:
    file = disk.open("segment", "x")
    finished: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
    with file_size_limit(LIMIT + 3 * BLOCK):
        disk.submit(file, LIMIT, pattern(8), True, finished.set_result)
        problem = await asyncio.wait_for(finished, 10)
    assert problem is not None and problem.errno == errno.EFBIG
    file.close()


@pytest.mark.asyncio
async def test_io_uring_completes_a_short_write_with_the_identical_bytes(tmp_path: Path) -> None:
    try:
        backend = open_backend(tmp_path, "uring")
    except OSError as problem:
        pytest.skip(f"no io_uring here: {problem}")
    file = backend.open("segment", "x")
    finished: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
    with file_size_limit(LIMIT + 3 * BLOCK) as lift:
        backend.submit(file, LIMIT, pattern(8), True, finished.set_result)
        # The loop stands still, so the short write has ended but has not been seen.
        time.sleep(0.2)
        assert file.size() == LIMIT + 3 * BLOCK
        lift()
        assert await asyncio.wait_for(finished, 10) is None
    assert file.read(LIMIT, 9 * BLOCK) == bytes(pattern(8))
    file.close()
    backend.close()


@pytest.mark.asyncio
async def test_a_ring_that_the_kernel_refuses_fails_every_write_and_still_closes(tmp_path: Path) -> None:
    try:
        backend = open_backend(tmp_path, "uring")
    except OSError as problem:
        pytest.skip(f"no io_uring here: {problem}")
    file = backend.open("segment", "x")
    links = {int(name): f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")}
    rings = [fd for fd, link in links.items() if os.path.lexists(link) and "io_uring" in os.readlink(link)]
    null = os.open(os.devnull, os.O_RDWR)
    for ring in rings:
        os.dup2(null, ring, inheritable=False)
    os.close(null)
    told: list[OSError | None] = []
    for number in range(100):
        backend.submit(file, number * BLOCK, pattern(1), True, told.append)
    assert told == []
    await asyncio.sleep(0.1)
    backend.submit_sync(file, told.append)
    file.close()
    backend.close()
    assert [problem.errno if problem else 0 for problem in told] == [errno.EOPNOTSUPP] * 101
    assert (tmp_path / "segment").stat().st_size == 0


WRITE = """
import asyncio, sys
from kimberlite import _native
from kimberlite.storage import BLOCK, open_backend
backend = open_backend(sys.argv[1], "threads")
file = backend.open("segment", "x")
buffer = _native.Buffer(8 * BLOCK)
view = memoryview(buffer)
for number in range(8):
    view[number * BLOCK : (number + 1) * BLOCK] = bytes([number + 1]) * BLOCK
async def write():
    finished = asyncio.get_running_loop().create_future()
    backend.submit(file, 0, buffer, True, finished.set_result)
    problem = await finished
    sys.exit(problem.errno if problem else 0)
asyncio.run(write())
"""


def traced(directory: Path, *options: str) -> tuple[int, str]:
    """The exit code of WRITE under strace, and the calls it made."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    log = directory.parent / f"{directory.name}.strace"
    command = ["strace", "-f", "-qq", "-o", str(log), "-e", "trace=pwritev2,pwrite64,fdatasync", *options]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [*command, sys.executable, "-c", WRITE, str(directory)], env=environment, capture_output=True, check=False
    )
    if b"ptrace" in ended.stderr:
        pytest.skip("strace may not trace here")
    return ended.returncode, log.read_text()


@pytest.mark.parametrize("claimed, resumed", [(3 * BLOCK, 3), (3 * BLOCK + 512, 3), (512, 0), (0, 0)])
def test_a_thread_takes_a_short_write_up_again_at_a_whole_block(tmp_path: Path, claimed: int, resumed: int) -> None:
    code, calls = traced(tmp_path, "-e", f"inject=pwritev2:retval={claimed}:when=1")
    assert code == 0, calls
    # The injected call wrote nothing, so what it claimed is a hole.
    expected = bytes(resumed * BLOCK) + bytes(pattern(8))[resumed * BLOCK :]
    assert (tmp_path / "segment").read_bytes() == expected
    assert calls.count("RWF_DSYNC") == 2


def test_a_thread_gives_up_a_write_that_gets_nowhere(tmp_path: Path) -> None:
    code, _ = traced(tmp_path, "-e", "inject=pwritev2:retval=512")
    assert code == errno.EIO


def test_an_interrupted_write_is_tried_again(tmp_path: Path) -> None:
    code, _ = traced(tmp_path, "-e", "inject=pwritev2:error=EINTR:when=1..3")
    assert code == 0
    assert (tmp_path / "segment").read_bytes() == bytes(pattern(8))


@pytest.mark.parametrize("refusal", ["EOPNOTSUPP", "ENOSYS"])
def test_without_dsync_writes_a_thread_syncs(tmp_path: Path, refusal: str) -> None:
    code, calls = traced(tmp_path, "-e", f"inject=pwritev2:error={refusal}")
    assert code == 0, calls
    assert (tmp_path / "segment").read_bytes() == bytes(pattern(8))
    assert calls.index("pwrite64(") < calls.index("fdatasync(")


def test_an_error_of_the_sync_is_an_error_of_the_write(tmp_path: Path) -> None:
    code, _ = traced(tmp_path, "-e", "inject=pwritev2:error=EOPNOTSUPP", "-e", "inject=fdatasync:error=EIO:when=1")
    assert code == errno.EIO


def test_reading_only_touches_nothing_and_starts_no_thread(tmp_path: Path) -> None:
    (tmp_path / "segment").write_bytes(b"there")
    tmp_path.chmod(0o500)
    threads = own_threads()
    before = tmp_path.stat()
    backend = open_backend(tmp_path, read_only=True)
    assert backend.name == "threads" and "reading only" in backend.reason
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
        with pytest.raises(OSError) as error:
            refused()
        assert error.value.errno == errno.EROFS
    backend.close()
    assert tmp_path.stat().st_mtime_ns == before.st_mtime_ns
    assert own_threads() == threads


def test_create_makes_the_directory_and_opening_does_not(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_backend(tmp_path / "new")
    open_backend(tmp_path / "new", create=True).close()
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    open_backend(tmp_path / "new", create=True).close()


def test_the_trial_leaves_nothing_behind(tmp_path: Path) -> None:
    backend = open_backend(tmp_path)
    assert backend.list() == []
    assert backend.reason.endswith(".")
    backend.close()


def test_auto_says_why_it_took_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uring, "processor", lambda: {"sse2"})
    backend = open_backend(tmp_path)
    assert backend.name == "threads"
    assert "ENOEXEC" in backend.reason
    backend.close()
    with pytest.raises(OSError) as refused:
        open_backend(tmp_path, "uring")
    assert refused.value.errno == errno.ENOEXEC


def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    monkeypatch.setitem(files.NETWORK, _native.file_system(descriptor) & 0xFFFFFFFF, "NFS")
    os.close(descriptor)
    before = descriptors()
    with pytest.raises(OSError, match="NFS") as refused:
        open_backend(tmp_path)
    assert refused.value.errno == errno.EREMOTE
    assert descriptors() == before


def test_closing_leaves_no_descriptor_and_no_thread(tmp_path: Path) -> None:
    open_backend(tmp_path).close()
    before = descriptors(), own_threads()
    for _ in range(5):
        backend = open_backend(tmp_path, "threads")
        file = backend.open("segment", "w" if backend.exists("segment") else "x")

        async def write(backend: Backend = backend, file: files.DiskFile = file) -> None:
            backend.submit(file, 0, pattern(1), True, lambda problem: None)

        asyncio.run(write())
        file.close()
        backend.close()
        backend.close()
    assert (descriptors(), own_threads()) == before
