from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Call


def test_init_makes_a_key_that_only_its_owner_reads(tmp_path: Path, call: Call) -> None:
    file = tmp_path / "key"
    found = call("keys", "init", file, "--json").json()
    assert file.stat().st_mode & 0o777 == 0o400
    assert found["file"] == str(file)
    assert len(bytes.fromhex(found["key_id"])) == 16


def test_two_keys_differ(tmp_path: Path, call: Call) -> None:
    ids = {call("keys", "init", tmp_path / name, "--json").json()["key_id"] for name in "ab"}
    assert len(ids) == 2


def test_a_key_is_never_overwritten(key: Path, call: Call) -> None:
    before = key.read_bytes()
    assert call("keys", "init", key).status == 64
    assert key.read_bytes() == before


def test_the_key_is_not_printed(tmp_path: Path, call: Call) -> None:
    outcome = call("keys", "init", tmp_path / "key")
    text = (tmp_path / "key").read_text().split()[-1]
    assert text.encode() not in outcome.out


def test_a_directory_that_is_not_there_is_a_configuration_error(tmp_path: Path, call: Call) -> None:
    assert call("keys", "init", tmp_path / "no" / "key").status == 78
