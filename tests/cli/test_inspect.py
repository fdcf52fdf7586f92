from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kimberlite import _native
from tests.cli.conftest import Call

SEGMENT = "segments/00000000000000000000.seg"


def kinds(lines: list[dict[str, Any]]) -> list[object]:
    return [line["kind"] for line in lines]


def test_groups_and_runs_are_shown_as_they_lie(ledger: Path, call: Call) -> None:
    lines = call("inspect", ledger, "--json").lines()
    assert kinds(lines) == ["identity", "mark", "segment", "group", "run", "run", "group", "run", "run"]
    groups = [line for line in lines if line["kind"] == "group"]
    assert [(g["group"], g["position"], g["records"]) for g in groups] == [(1, 0, 4), (2, 4, 3)]
    runs = [line for line in lines if line["kind"] == "run"]
    assert [(r["stream"], r["offset"], r["position"], r["records"]) for r in runs] == [
        (0, 0, 0, 1),
        (1, 0, 1, 3),
        (0, 1, 4, 1),
        (2, 0, 5, 2),
    ]
    assert groups[-1]["chain"] == call("verify", ledger, "--json").json()["chain"]
    assert lines[1]["group"] == 2
    assert lines[1]["clean"] is True


def test_no_key_is_needed_and_no_plaintext_is_shown(path: Path, key: Path, process: Call, call: Call) -> None:
    assert process("append", path, "s", "--key-file", key, stdin=b"secret\n").status == 0
    outcome = call("inspect", path, "--json")
    run = outcome.lines()[-1]
    assert run["flags"] == ["encrypted", "ends its batch"]
    assert len(bytes.fromhex(run["key_id"])) == 16
    assert (run["text"] - 16) % 128 == 0
    assert b"secret" not in outcome.out
    identity = outcome.lines()[0]
    assert (identity["tagged"], identity["quantum"]) == (True, 128)


def test_text_has_a_line_for_each(ledger: Path, call: Call) -> None:
    lines = call("inspect", ledger).out.decode().splitlines()
    assert len(lines) == len(call("inspect", ledger, "--json").lines())
    assert lines[3].startswith("  group 1: place 4096, ")
    assert "stream 1, offset 0, position 1, records 3" in lines[5]


def test_a_damaged_header_ends_the_segment(ledger: Path, call: Call) -> None:
    file = ledger / SEGMENT
    data = bytearray(file.read_bytes())
    data[8192 + 17] ^= 1
    file.write_bytes(data)
    lines = call("inspect", ledger, "--json").lines()
    assert kinds(lines)[-2:] == ["run", "end"]
    assert (lines[-1]["place"], lines[-1]["what"]) == (8192, "no group starts here")
    data[100] ^= 1
    file.write_bytes(data)
    lines = call("inspect", ledger, "--json").lines()
    assert (lines[-1]["kind"], lines[-1]["sound"]) == ("segment", False)
    file.write_bytes(data[:100])
    assert call("inspect", ledger, "--json").lines()[-1]["what"] == "the header is cut short"


FIRST = 4096
RUN = FIRST + 104


def forged(segment: bytes, *changes: tuple[int, int, int]) -> bytes:
    """Other numbers (place, size, value) in the first group, under a right check: who holds the disk can compute it."""
    data = bytearray(segment)
    for place, size, value in changes:
        data[place : place + size] = value.to_bytes(size, "little")
    checked = bytes(data[FIRST : FIRST + 96]) + FIRST.to_bytes(8, "little")
    data[FIRST + 96 : RUN] = _native.blake3(checked, bytes(data[88:120]))[:8]
    return bytes(data)


def test_a_run_that_has_no_room_in_its_group_is_damage(ledger: Path, call: Call) -> None:
    file = ledger / SEGMENT
    end = FIRST + int(call("inspect", ledger, "--json").lines()[3]["bytes"])
    # The first of two runs takes the room of both.
    data = forged(file.read_bytes(), (RUN, 4, end - RUN - 2 * 8 - 32))
    for whole in (data, data[:end]):
        file.write_bytes(whole)
        outcome = call("inspect", ledger, "--json")
        assert (outcome.status, outcome.err) == (0, b"")
        lines = outcome.lines()
        assert kinds(lines)[2:6] == ["segment", "group", "run", "damage"]
        assert (lines[5]["place"], lines[5]["what"]) == (end - 48, "this run is cut short")
    assert call("inspect", ledger).out.endswith(b"what this run is cut short\n")


def test_commitments_that_have_no_room_in_their_run_are_damage(ledger: Path, call: Call) -> None:
    file = ledger / SEGMENT
    file.write_bytes(forged(file.read_bytes(), (RUN + 8, 1, 1), (RUN + 12, 4, 1_000)))
    lines = call("inspect", ledger, "--json").lines()
    assert kinds(lines)[2:5] == ["segment", "group", "damage"]
    assert lines[4]["what"] == "the commitments of this run do not fit in it"


GROUP_FIELDS = [(8, 4), (12, 4), (16, 8), (24, 8), (32, 4), (36, 4), (40, 8), (48, 8), (56, 4)]
RUN_FIELDS = [(0, 4), (4, 4), (8, 1), (12, 4), (16, 8), (24, 8), (32, 4)]


@pytest.mark.parametrize(
    ("place", "size"), [(FIRST + p, s) for p, s in GROUP_FIELDS] + [(RUN + p, s) for p, s in RUN_FIELDS]
)
def test_whatever_number_stands_in_a_header_is_shown_or_said_to_be_wrong(
    ledger: Path, call: Call, place: int, size: int
) -> None:
    file = ledger / SEGMENT
    sound = file.read_bytes()
    length = int.from_bytes(sound[FIRST + 8 : FIRST + 12], "little")
    for value in {0, 2, 88, length, length - 104 - 48, (1 << 8 * size) - 1, 1 << 8 * size - 1}:
        data = forged(sound, (place, size, value % (1 << 8 * size)))
        for whole in (data, data[: FIRST + length], data[: RUN + 88], data[: RUN + 40]):
            file.write_bytes(whole)
            for more in ([], ["--json"]):
                outcome = call("inspect", ledger, *more)
                assert (outcome.status, outcome.err) == (0, b""), (value, len(whole))


def test_damaged_marks_are_shown(ledger: Path, call: Call) -> None:
    (ledger / "marks").write_bytes(bytes(8192))
    outcome = call("inspect", ledger, "--json")
    assert (outcome.status, outcome.lines()[1]["kind"]) == (0, "damage")
    (ledger / "marks").unlink()
    assert call("inspect", ledger, "--json").lines()[1]["what"] == "it is missing"


def test_one_segment_can_be_asked_for(ledger: Path, call: Call) -> None:
    assert kinds(call("inspect", ledger, "--segment", 0, "--json").lines())[0] == "segment"
    assert call("inspect", ledger, "--segment", 1).status == 64


def test_what_is_no_database_is_invalid(tmp_path: Path, call: Call) -> None:
    assert call("inspect", tmp_path).status == 64
    assert call("inspect", tmp_path / "nowhere").status == 64
