from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Call

SEGMENT = "segments/00000000000000000000.seg"


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def test_a_sound_log_is_told_in_numbers(ledger: Path, call: Call) -> None:
    found = call("verify", ledger, "--json").json()
    assert (found["records"], found["streams"], found["tree_size"], found["segments"]) == (7, 2, 7, 1)
    assert (found["anchored"], found["keys_checked"], found["notes"]) == (False, False, [])
    text = call("verify", ledger)
    assert (text.status, f"root            {found['root']}".encode() in text.out) == (0, True)


def test_a_flipped_bit_is_refused_with_its_place(ledger: Path, call: Call) -> None:
    flip(ledger / SEGMENT, 4096 + 200)
    outcome = call("verify", ledger, "--json")
    assert (outcome.status, outcome.out) == (65, b"")
    error = json.loads(outcome.err)
    assert (error["code"], error["exit_code"], error["file"], error["place"]) == ("CORRUPT", 65, SEGMENT, 4096)
    assert call("verify", ledger).err.startswith(b"kimberlite: CORRUPT: segments/")


def test_a_damaged_mark_with_a_sound_twin_is_a_note(ledger: Path, call: Call) -> None:
    flip(ledger / "marks", 10)
    outcome = call("verify", ledger)
    assert outcome.status == 0
    assert b"note: marks: block 0 is damaged" in outcome.out


def test_a_receipt_is_an_anchor(ledger: Path, tmp_path: Path, process: Call, call: Call) -> None:
    old = tmp_path / "old"
    shutil.copytree(ledger, old)
    receipt = tmp_path / "receipt"
    receipt.write_bytes(process("append", ledger, "a", stdin=b"x\n").out)
    assert call("verify", ledger, "--anchor", receipt, "--json").json()["anchored"] is True
    assert process("append", ledger, "a", stdin=b"y\n").status == 0
    assert call("verify", ledger, "--anchor", receipt).status == 0
    assert call("verify", old, "--anchor", receipt).status == 79
    assert process("append", old, "a", stdin=b"other\n").status == 0
    outcome = call("verify", old, "--anchor", receipt)
    assert outcome.status == 79
    assert outcome.err.startswith(b"kimberlite: ROLLED_BACK: ")


@pytest.mark.parametrize("change", [{}, {"durable": False}, {"root": "zz"}, {"tree_size": "7"}, {"more": 1}])
def test_what_is_no_durable_receipt_is_no_anchor(
    ledger: Path, tmp_path: Path, process: Call, call: Call, change: dict[str, object]
) -> None:
    receipt = process("append", ledger, "a", stdin=b"x\n").json()
    file = tmp_path / "receipt"
    file.write_text(json.dumps(receipt | change if change else list(receipt)))
    assert call("verify", ledger, "--anchor", file).status == 64
    file.write_text("")
    assert call("verify", ledger, "--anchor", file).status == 64
    assert call("verify", ledger, "--anchor", tmp_path / "nowhere").status == 64


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"durable": 1}, "durable is true or false"),
        ({"durable": None}, "durable is true or false"),
        ({"group": True}, "group is an integer"),
        ({"tree_size": 7.0}, "tree_size is an integer"),
        ({"stream": 1}, "stream is a string"),
    ],
)
def test_a_field_of_an_anchor_that_is_of_another_kind_is_named_with_what_it_is(
    ledger: Path, tmp_path: Path, process: Call, call: Call, change: dict[str, object], what: str
) -> None:
    receipt = process("append", ledger, "a", stdin=b"x\n").json()
    file = tmp_path / "receipt"
    file.write_text(json.dumps(receipt | change))
    refused = call("verify", ledger, "--anchor", file)
    assert (refused.status, refused.err.decode()) == (64, f"kimberlite: INVALID: anchor {file}: {what}\n")


def test_with_the_key_ciphertext_is_opened(path: Path, key: Path, process: Call, call: Call) -> None:
    assert process("append", path, "s", "--key-file", key, stdin=b"secret\n").status == 0
    assert call("verify", path, "--key-file", key, "--json").json()["keys_checked"] is True
    assert call("verify", path, "--json").json()["keys_checked"] is False


def test_verify_changes_nothing(ledger: Path, call: Call) -> None:
    def state() -> dict[Path, tuple[bytes, int]]:
        return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in ledger.rglob("*") if p.is_file()}

    before = state()
    assert call("verify", ledger).status == 0
    assert state() == before
