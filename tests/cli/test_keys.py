from __future__ import annotations

import shutil
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


def test_check_says_which_streams_keys_open(path: Path, key: Path, tmp_path: Path, call: Call, process: Call) -> None:
    for stream in ("a", "b"):
        assert process("append", path, stream, "--key-file", key, stdin=b"x\n").status == 0
    sound = call("keys", "check", path, "--key-file", key, "--json")
    found = sound.json()
    assert (sound.status, found["streams"], found["missing"], found["orphans"]) == (0, 2, [], 0)
    assert found["master_key"] == found["wrapped_by"]
    other = tmp_path / "other"
    assert call("keys", "init", other).status == 0
    for given in (("--key-file", other), ()):
        lost = call("keys", "check", path, *given, "--json")
        assert (lost.status, [each["stream"] for each in lost.json()["missing"]]) == (77, ["a", "b"])
        assert "missing: b: " in call("keys", "check", path, *given).out.decode()
    with (path / "vault.0").open("r+b") as file:
        file.seek(4096 + 3 * 256)
        file.write(bytes(256))
    assert call("keys", "check", path, "--key-file", key).status == 0
    with (path / "vault.1").open("r+b") as file:
        # In what says which stream it is of.
        file.seek(4096 + 3 * 256 + 60)
        file.write(b"\1\1\1\1")
    lost = call("keys", "check", path, "--key-file", key, "--json")
    assert (lost.status, [each["stream"] for each in lost.json()["missing"]]) == (77, ["b"])
    assert (lost.json()["unopened"], lost.json()["orphans"]) == ([4096 + 3 * 256], 0)
    assert b"leaves them out" not in call("keys", "check", path, "--key-file", key).out
    refused = call("read", path, "--key-file", key)
    assert (refused.status, b"'b'" in refused.err) == (77, True)


def test_check_knows_of_erasures_and_of_databases_without_a_key(
    path: Path, key: Path, ledger: Path, tmp_path: Path, call: Call, process: Call
) -> None:
    assert call("keys", "check", ledger).status == 64
    assert call("keys", "check", tmp_path / "nowhere").status == 64
    assert call("keys", "check", "kimberlite://127.0.0.1:1").status == 64
    sealed = tmp_path / "sealed"
    for stream in ("a", "b"):
        assert process("append", sealed, stream, "--key-file", key, stdin=b"x\n").status == 0
    assert call("erase", sealed, "a", "--reason", "why", "--key-file", key).status == 0
    found = call("keys", "check", sealed, "--key-file", key, "--json").json()
    assert (found["streams"], found["missing"], found["erased"], found["pending"]) == (1, [], 1, 1)


def test_check_says_what_is_to_be_done_about_orphans(path: Path, key: Path, tmp_path: Path, process: Call) -> None:
    with_key, new = ("--key-file", key), tmp_path / "new"
    for stream in ("a", "b"):
        assert process("append", path, stream, *with_key, stdin=b"x\n").status == 0
        if stream == "a":
            shutil.copytree(path, tmp_path / "earlier")
    for name in ("vault.0", "vault.1"):
        shutil.copy(path / name, tmp_path / "earlier" / name)
    # Nothing of it is lost, so it ends with 0.
    found = process("keys", "check", tmp_path / "earlier", *with_key)
    assert (found.status, b"leaves them out" in found.out) == (0, True)
    assert process("keys", "init", new).status == 0
    assert process("keys", "rotate", tmp_path / "earlier", *with_key, "--new-key-file", new).status == 0
    found = process("keys", "check", tmp_path / "earlier", "--key-file", new)
    assert (found.status, b"leaves them out" in found.out) == (0, False)
    assert process("read", tmp_path / "earlier", "--key-file", new).out == b"x\n"


def test_rotate_finishes_what_was_begun(path: Path, key: Path, tmp_path: Path, call: Call, process: Call) -> None:
    assert process("append", path, "a", "--key-file", key, stdin=b"x\n").status == 0
    old = (path / "vault.0").read_bytes()
    new = tmp_path / "new"
    made = call("keys", "init", new, "--json").json()["key_id"]
    assert call("keys", "rotate", path, "--key-file", key).status == 64
    assert call("keys", "init", tmp_path / "third", "--new-key-file", new).status == 64
    assert call("keys", "rotate", path, "--key-file", key, "--new-key-file", new, "--json").json() == {"key_id": made}
    (path / "vault.0").write_bytes(old)
    refused = call("read", path, "--key-file", key)
    assert (refused.status, b"finishes it" in refused.err) == (77, True)
    assert call("keys", "rotate", path, "--key-file", key, "--new-key-file", new).status == 0
    assert (path / "vault.0").read_bytes() == (path / "vault.1").read_bytes()
    assert call("read", path, "--key-file", new).out == b"x\n"
    assert call("keys", "check", path, "--key-file", new, "--json").json()["generation"] == 2


def test_check_says_whom_a_writer_would_be_refused_by(path: Path, key: Path, call: Call, process: Call) -> None:
    assert process("append", path, "a", "--key-file", key, stdin=b"x\n").status == 0
    assert call("keys", "check", path, "--key-file", key, "--json").json()["refused"] is None
    # The group key, the receipt key, and the first block, of which little is used.
    for place, what in (
        (4096, b"slot at byte 4096"),
        (4352, b"slot at byte 4352"),
        (2000, b"first block of the vault"),
    ):
        for name in ("vault.0", "vault.1"):
            flip(path / name, place)
        check = call("keys", "check", path, "--key-file", key)
        assert (check.status, b"refused: " in check.out, what in check.out) == (77, True, True)
        refused = process("append", path, "a", "--key-file", key, stdin=b"x\n")
        assert (refused.status, what in refused.err, b"damaged" in refused.err) == (77, True, True)
        flip(path / "vault.1", place)
        assert call("keys", "check", path, "--key-file", key).status == 0
        flip(path / "vault.0", place)


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def test_rotate_to_the_same_key_says_that_it_is_that_already(path: Path, key: Path, call: Call, process: Call) -> None:
    assert process("append", path, "a", "--key-file", key, stdin=b"x\n").status == 0
    said = call("keys", "rotate", path, "--key-file", key, "--new-key-file", key)
    assert (said.status, b"is already wrapped" in said.out) == (0, True)
    assert call("read", path, "a", "--key-file", key).out == b"x\n"
