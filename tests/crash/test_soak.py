"""A few seconds of what `just soak` does for an hour."""

from __future__ import annotations

from pathlib import Path

from tests.crash.soak import SAMPLED, Course, run


def test_a_daemon_at_work_neither_grows_nor_ends(tmp_path: Path) -> None:
    course = run(8, tmp_path, every=0.2, producers=100)
    # Caches fill at first: what is judged here is that it works, and that no descriptor is left.
    assert [wrong for wrong in course.wrong if "resident" not in wrong] == []
    assert course.appends > 100
    assert len(course.samples) >= 10


def test_what_grows_is_seen() -> None:
    samples = [dict.fromkeys(SAMPLED, float(100 << 20)) | {"kimberlite_descriptors": 20.0} for _ in range(100)]
    flat = Course(samples=samples)
    flat.judge()
    assert flat.wrong == []
    leaking = Course(samples=[sample | {"kimberlite_descriptors": 20.0 + i} for i, sample in enumerate(samples)])
    leaking.judge()
    assert len(leaking.wrong) == 1
    growing = [sample | {"kimberlite_resident_bytes": (100 + i) * float(1 << 20)} for i, sample in enumerate(samples)]
    grown = Course(samples=growing)
    grown.judge()
    assert len(grown.wrong) == 1
