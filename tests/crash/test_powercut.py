"""What was acknowledged as durable is there after the power went, and a torn disk is torn honestly."""

from __future__ import annotations

import mmap
from pathlib import Path
from random import Random

import pytest

from tests.crash import mounts, powercut
from tests.crash.device import Cache

WHY = mounts.lacking()
NO_DEVICE = mounts.lacking("/dev/fuse")


@pytest.mark.skipif(WHY is not None, reason=f"no power cuts: {WHY}")
def test_nothing_acknowledged_is_lost_in_a_power_cut() -> None:
    counts = powercut.run_all(30, seed=1)
    assert counts["cuts"] == 30
    assert counts["checked"] >= 10
    assert counts["acknowledged"] > 10
    assert sum(counts[f"{step} hit"] for step in powercut.YEARS) > 2
    assert {bad: counts[bad] for bad in powercut.BAD} == dict.fromkeys(powercut.BAD, 0)


@pytest.mark.skipif(NO_DEVICE is not None, reason=f"no disk with a cache: {NO_DEVICE}")
@pytest.mark.parametrize("kind", mounts.MAKE)
def test_a_disk_with_a_cache_keeps_what_was_synced_and_may_lose_what_was_not(kind: str, tmp_path: Path) -> None:
    mount = mounts.Volatile(kind, tmp_path)
    lost = 0
    try:
        for seed in range(4):
            synced, loose = mount.path / f"synced{seed}", mount.path / f"loose{seed}"
            mounts.write_through(synced, b"kept" * 4096, sync=True)
            mounts.write_through(loose, b"open" * 4096, sync=False)
            assert mount.cut(Random(seed)) > 0
            mount.again()
            assert synced.read_bytes() == b"kept" * 4096
            lost += not loose.exists() or loose.read_bytes() != b"open" * 4096
    finally:
        mount.close()
    assert lost > 0


def test_a_cache_that_is_cut_leaves_one_version_of_every_sector() -> None:
    seen = set()
    for seed in range(200):
        store = mmap.mmap(-1, 4096)
        cache = Cache(store, 512)
        cache.write(0, b"a" * 2048)
        cache.flush()
        cache.write(512, b"b" * 1024)
        cache.write(1024, b"c" * 1024)
        assert store[:2048] == b"a" * 512 + b"b" * 512 + b"c" * 1024
        assert cache.cut(Random(seed)) == 3
        sectors = [store[at : at + 512] for at in range(0, 2048, 512)]
        assert all(len(set(sector)) == 1 for sector in sectors)
        seen.add(bytes(sector[0] for sector in sectors))
    assert seen == {b"a" + bytes([one, two, three]) for one in b"ab" for two in b"abc" for three in b"ac"}
