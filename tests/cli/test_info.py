from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Call


def test_json_says_what_the_database_is(ledger: Path, call: Call) -> None:
    found = call("info", ledger, "--json").json()
    wanted = {"records", "streams", "tree_size", "root", "chain", "segments", "bytes", "backend", "durable_position"}
    assert wanted <= found.keys()
    assert (found["streams"], found["tree_size"], found["durable_position"]) == (2, 7, 7)
    verified = call("verify", ledger, "--json").json()
    assert (found["root"], found["chain"]) == (verified["root"], verified["chain"])


def test_text_has_the_same(ledger: Path, call: Call) -> None:
    found = call("info", ledger, "--json").json()
    rows = dict(line.split(None, 1) for line in call("info", ledger).out.decode().splitlines())
    assert rows == {
        name: str(value) for name, value in found.items() if name not in ("notes", "dropped", "erasures", "repairs")
    }


def test_the_key_is_taken_from_the_environment(path: Path, key: Path, process: Call, call: Call) -> None:
    assert process("append", path, "s", "--key-file", key, stdin=b"x\n").status == 0
    assert call("info", path, "--json").json()["encrypted"] is True
    other = path.with_name("other")
    assert call("keys", "init", other).status == 0
    assert call("info", path, "--key-file", other).status == 77


def test_what_is_no_database_is_invalid(tmp_path: Path, call: Call) -> None:
    assert call("info", tmp_path).status == 64
    assert call("info", tmp_path / "nowhere").status == 64
    assert call("info", "").status == 64
