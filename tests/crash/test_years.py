"""Some weeks of what `just years` does for two of them."""

from __future__ import annotations

from pathlib import Path

from tests.crash.years import BEGAN, DAY, Course, picture, run


def test_a_log_lives_through_weeks_of_kills_erasures_and_rotations(tmp_path: Path) -> None:
    course = run(45, tmp_path, seed=3)
    # So soon nothing is flat yet.
    assert [wrong for wrong in course.wrong if " grew " not in wrong] == []
    assert course.counts["appends"] > 4000
    assert course.counts["killed"] > 0
    assert course.counts["dropped"] > 0
    assert picture(course).count("<polyline") == 5


def test_what_is_lost_or_back_is_seen() -> None:
    course = Course()
    course.take({"appended": ["0/1", 0, 3, BEGAN]})
    course.look("0/1", 0, 2, 0, 2)
    course.take({"erasing": "0/1"})
    course.take({"erased": "0/1"})
    course.look("0/1", 0, 3, 0, 3)
    course.look("0/2", None, 0, 0, 0)
    course.look("0/3", 1, 1, 0, 0)
    course.take({"shown": 7})
    course.take({"shown": 6})
    assert [wrong.partition(": ")[2] for wrong in course.wrong] == [
        "0/1: 2 records, and 3 were acknowledged",
        "0/1 was erased and is back",
        "0/2 is erased, and nobody asked for it",
        "0/3: 1 records went too early",
        "what was dropped is back: 6 after 7",
    ]


def test_what_grows_is_seen() -> None:
    course = Course()
    for day in range(100):
        sample = {"disk": float(day << 20), "memory": 1.0, "descriptors": 20.0, "start": 0.1}
        course.samples.append((BEGAN + day * DAY, sample))
    course.judge()
    assert [wrong.partition(" grew")[0] for wrong in course.wrong] == ["disk"]
