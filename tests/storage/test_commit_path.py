"""Short writes, errors and interruptions on their way through each engine, made by a real kernel."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kimberlite.storage import BLOCK, Backend

from .conftest import file_size_limit, pattern

#: Bytes; a place to be reached by no other file of a test run.
LIMIT = 64 << 20


@pytest.mark.asyncio
async def test_an_error_from_the_kernel_reaches_done(disk: Backend) -> None:
    file = disk.open("segment", "x")
    finished: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
    with file_size_limit(LIMIT):
        disk.submit(file, LIMIT, pattern(1), True, finished.set_result)
        problem = await asyncio.wait_for(finished, 10)
    assert problem is not None
    assert problem.errno == errno.EFBIG
    file.close()


@pytest.mark.asyncio
async def test_a_short_write_that_cannot_be_completed_is_an_error(disk: Backend) -> None:
    file = disk.open("segment", "x")
    finished: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
    with file_size_limit(LIMIT + 3 * BLOCK):
        disk.submit(file, LIMIT, pattern(8), True, finished.set_result)
        problem = await asyncio.wait_for(finished, 10)
    assert problem is not None
    assert problem.errno == errno.EFBIG
    file.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("wrote", [3 * BLOCK, 3 * BLOCK + 512, 512])
async def test_io_uring_completes_a_short_write_with_the_identical_bytes(uring: Backend, wrote: int) -> None:
    file = uring.open("segment", "x")
    finished: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
    with file_size_limit(LIMIT + wrote) as lift:
        uring.submit(file, LIMIT, pattern(8), True, finished.set_result)
        # The loop stands still, so the short write has ended but has not been seen.
        time.sleep(0.2)  # noqa: ASYNC251
        assert file.size() == LIMIT + wrote
        lift()
        assert await asyncio.wait_for(finished, 10) is None
    assert file.read(LIMIT, 9 * BLOCK) == bytes(pattern(8))
    file.close()


@pytest.mark.asyncio
async def test_io_uring_gives_up_a_write_that_gets_nowhere(uring: Backend) -> None:
    file = uring.open("segment", "x")
    finished: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
    with file_size_limit(LIMIT + 512):
        uring.submit(file, LIMIT, pattern(8), True, finished.set_result)
        problem = await asyncio.wait_for(finished, 10)
    assert problem is not None
    assert problem.errno == errno.EIO
    file.close()


@pytest.mark.asyncio
async def test_a_ring_that_the_kernel_refuses_fails_every_write_and_still_closes(
    uring: Backend, tmp_path: Path
) -> None:
    file = uring.open("segment", "x")
    break_rings()
    told: list[OSError | None] = []
    for number in range(100):
        uring.submit(file, number * BLOCK, pattern(1), True, told.append)
    assert told == []
    await asyncio.sleep(0.1)
    uring.submit_sync(file, told.append)
    file.close()
    uring.close()
    assert [problem.errno if problem else 0 for problem in told] == [errno.EOPNOTSUPP] * 101
    assert (tmp_path / "segment").stat().st_size == 0


def break_rings() -> None:
    """Put what is no ring behind the descriptor of each."""
    links = {int(name): f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")}
    rings = [fd for fd, link in links.items() if os.path.lexists(link) and "io_uring" in os.readlink(link)]
    assert rings
    null = os.open(os.devnull, os.O_RDWR)
    for ring in rings:
        os.dup2(null, ring, inheritable=False)
    os.close(null)


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


@pytest.mark.parametrize(("claimed", "resumed"), [(3 * BLOCK, 3), (3 * BLOCK + 512, 3), (512, 0), (0, 0)])
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
