"""The names in a directory."""

from __future__ import annotations

import pytest

from kimberlite.log import names
from kimberlite.log.names import belongs, index_name, prepared_name, segment_name, segment_number


def test_names_of_numbered_files_sort_as_their_numbers_do() -> None:
    numbers = [0, 1, 9, 10, 99, 100, 2**63]
    for name in (segment_name, prepared_name, index_name):
        assert [name(n) for n in numbers] == sorted(name(n) for n in numbers)
        assert len({len(name(n)) for n in numbers}) == 1
    assert segment_name(7) == "segments/00000000000000000007.seg"
    assert prepared_name(7) == "prepare/00000000000000000007.seg"
    assert index_name(7) == "index/00000000000000000007.idx"


@pytest.mark.parametrize("number", [0, 1, 12_345, 2**64 - 1])
def test_a_segments_number_is_read_from_its_name(number: int) -> None:
    assert segment_number(segment_name(number).removeprefix("segments/")) == number


@pytest.mark.parametrize(
    "name",
    [
        "",
        "7.seg",
        "0000000000000000007.seg",
        "18446744073709551616.seg",
        "99999999999999999999.seg",
        "000000000000000000007.seg",
        "00000000000000000007",
        "00000000000000000007.",
        "00000000000000000007.idx",
        "00000000000000000007.seg.tmp",
        "-0000000000000000007.seg",
        "+0000000000000000007.seg",
        "0000000000000000_007.seg",
        "0000000000000000000a.seg",
        "٠٠٠٠٠٠٠٠٠٠٠٠٠٠٠٠٠٠٠٧.seg",
        "segments/00000000000000000007.seg",
    ],
)
def test_what_is_not_named_like_a_segment_has_no_number(name: str) -> None:
    assert segment_number(name) is None


def test_no_two_files_share_a_name() -> None:
    singles = [names.IDENTITY, names.MARKS, *names.VAULTS, names.RECEIPT_KEY, names.RESERVE, names.HASHES]
    singles += [names.CHECKPOINT, names.PRODUCERS, names.SEGMENTS, names.INDEX, names.PREPARE, names.QUARANTINE]
    assert len(singles) == len(set(singles))


def test_what_the_package_names_belongs_in_a_directory() -> None:
    assert all(belongs(name) for name in (*names.FILES, *names.DIRECTORIES))
    assert all(belongs(name(7)) for name in (segment_name, prepared_name, index_name))
    assert belongs("prepare/index-00000000000000000007.idx")
    assert belongs(f"quarantine/{7:020}-4096-1700000000000000000.tail")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "identity.old",
        "segment",
        "segments/",
        "segments/7.seg",
        "index/00000000000000000007.seg",
        "index/٠٠٠٠٠٠٠٠٠٠٠٠٠٠٠٠٠٠٠٧.idx",
        "index/00000000000000000007.idx\n",
        "quarantine/00000000000000000007.tail",
        "prepare/a/b",
        "elsewhere/identity",
    ],
)
def test_what_the_package_does_not_name_does_not(name: str) -> None:
    assert not belongs(name)
