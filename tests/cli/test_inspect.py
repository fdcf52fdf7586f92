from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Call

SEGMENT = "segments/00000000000000000000.seg"


def kinds(lines: list[dict[str, object]]) -> list[object]:
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
