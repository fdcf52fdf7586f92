from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Call

SEGMENT = "segments/00000000000000000000.seg"
#: Where the second of the groups is.
SECOND = 2 * 4096


def break_it(ledger: Path) -> None:
    file = ledger / SEGMENT
    data = bytearray(file.read_bytes())
    data[SECOND + 250] ^= 1
    file.write_bytes(data)


def test_nothing_is_changed_before_the_loss_is_accepted(ledger: Path, call: Call, process: Call) -> None:
    assert b"nothing is wrong" in call("repair", ledger).out
    break_it(ledger)
    before = {file: file.read_bytes() for file in ledger.rglob("*") if file.is_file()}
    outcome = call("repair", ledger, "--json")
    assert outcome.status == 65
    assert outcome.json()["kept_records"] == 4
    assert outcome.json()["lost_positions"] == [4, 7]
    refused = process("repair", ledger, "--accept-loss")
    assert (refused.status, b"--yes" in refused.err) == (64, True)
    assert before == {file: file.read_bytes() for file in ledger.rglob("*") if file.is_file()}


def test_it_is_written_again(ledger: Path, call: Call, process: Call) -> None:
    break_it(ledger)
    assert call("verify", ledger).status == 65
    outcome = call("repair", ledger, "--accept-loss", "--yes")
    assert outcome.status == 0
    assert b"incarnation 1" in outcome.err
    assert call("verify", ledger).status == 0
    assert call("read", ledger, "a").out == b"one\ntwo\nthree\n"
    receipt = json.loads(process("append", ledger, "b", stdin=b"again\n").out)
    assert (receipt["first_offset"], receipt["incarnation"]) == (0, 1)
    assert list((ledger / "quarantine").iterdir())
    assert call("repair", ledger, "--json").json() == {"damaged": False}


def test_where_there_is_no_database(tmp_path: Path, call: Call) -> None:
    assert call("repair", tmp_path / "nowhere").status == 64
    assert call("repair", tmp_path).status == 64
