"""Real system calls fail, on both engines: nothing acknowledged is lost, and only our own errors come out."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from random import Random

import pytest

from tests.crash import fulldisk, mounts, realfaults
from tests.crash.children import Engine, usable
from tests.crash.faults import make_keys

NO_FUSE = realfaults.lacking()
NO_MOUNT = mounts.lacking()
NO_HOLES = NO_MOUNT or next((f"no {tool}" for tool in ("filefrag", "fallocate") if shutil.which(tool) is None), None)

each_engine = pytest.mark.parametrize("engine", usable())


@pytest.mark.skipif(NO_FUSE is not None, reason=f"no file system that fails: {NO_FUSE}")
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_system_calls_that_fail_lose_nothing_that_was_acknowledged(tmp_path: Path, encrypted: bool) -> None:
    key = tmp_path / "key" if encrypted else None
    if key is not None:
        make_keys(key)
    with realfaults.tally(key) as counted:
        counted.sample(16, Random(int(encrypted)))
    assert counted.wrong == []
    assert counted.counts["hit"] >= 12
    assert counted.counts["refused"] > 20
    assert counted.counts["acknowledged"] > 300


@pytest.mark.skipif(NO_MOUNT is not None, reason=f"no small disk: {NO_MOUNT}")
@each_engine
async def test_a_full_disk_refuses_appends_and_takes_them_again(tmp_path: Path, engine: Engine) -> None:
    with fulldisk.small_disk(tmp_path / "disk") as place:
        await fulldisk.appends_stop_and_resume(place, engine, seed=1)


@pytest.mark.skipif(NO_MOUNT is not None, reason=f"no small disk: {NO_MOUNT}")
async def test_a_full_ext4_refuses_appends_and_takes_them_again(tmp_path: Path) -> None:
    disk = mounts.Shut("ext4", tmp_path)
    try:
        await fulldisk.appends_stop_and_resume(disk.path, usable()[-1], seed=2)
    finally:
        gc.collect()
        disk.close()


@pytest.mark.skipif(NO_MOUNT is not None, reason=f"no small disk: {NO_MOUNT}")
@each_engine
async def test_a_full_disk_opens_and_what_is_torn_waits_for_room(tmp_path: Path, engine: Engine) -> None:
    with fulldisk.small_disk(tmp_path / "disk") as place:
        await fulldisk.a_full_disk_opens(place, engine, seed=3)


@pytest.mark.skipif(NO_MOUNT is not None, reason=f"no small disk: {NO_MOUNT}")
@each_engine
async def test_a_full_disk_erases_and_drops(tmp_path: Path, engine: Engine) -> None:
    with fulldisk.small_disk(tmp_path / "disk") as place:
        await fulldisk.a_full_disk_forgets(place, engine, seed=7)


@each_engine
async def test_a_log_survives_running_out_of_descriptors(tmp_path: Path, engine: Engine) -> None:
    await fulldisk.descriptors_run_out(tmp_path, engine, seed=4)


@each_engine
async def test_a_limit_on_the_size_of_files_is_a_full_disk(tmp_path: Path, engine: Engine) -> None:
    await fulldisk.files_must_not_grow(tmp_path, engine, seed=5)


@pytest.mark.skipif(NO_HOLES is not None, reason=f"no disk whose sync fails: {NO_HOLES}")
@each_engine
@pytest.mark.parametrize("buffered", [False, True], ids=["direct", "buffered"])
async def test_what_a_failed_sync_left_in_the_page_cache_is_not_taken_for_data(
    tmp_path: Path, engine: Engine, buffered: bool
) -> None:
    await fulldisk.a_failed_sync_leaves_no_ghost(tmp_path, engine, seed=6, buffered=buffered)
