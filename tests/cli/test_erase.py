"""`kimberlite erase`, and what other commands say of it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Call
from tests.cli.test_serve import ANY, Daemon


def filled(path: Path, key: Path, process: Call) -> None:
    for stream in ("kept", "gone"):
        assert process("append", path, stream, "--key-file", key, stdin=b"one\ntwo\n").status == 0


def test_a_stream_is_erased_and_confirmed(path: Path, key: Path, tmp_path: Path, call: Call, process: Call) -> None:
    filled(path, key, process)
    with_key = ("--key-file", key)
    found = call("erase", path, "gone", "--reason", "a\u202eticket", *with_key, "--json").json()
    assert (found["stream"], found["reason"], found["pending"]) == ("gone", "a\u202eticket", True)
    told = call("erase", path, "gone", "--reason", "again", *with_key).out.decode()
    assert told.startswith("erased: gone, ")
    assert "a\\u202eticket (pending" in told
    read = call("read", path, "gone", *with_key)
    assert (read.status, b"ERASED" in read.err, b"ticket" in read.err) == (1, True, True)
    said = json.loads(call("read", path, "gone", *with_key, "--json").err)
    assert (said["code"], said["when"], said["reason"]) == ("ERASED", found["when"], found["reason"])
    assert call("read", path, *with_key).out == b"one\ntwo\n"
    assert call("streams", path, *with_key).out.decode().splitlines() == [
        "           2  encrypted  kept",
        "           2  erased     gone",
    ]
    for command in ("info", "verify"):
        assert call(command, path, *with_key, "--json").json()["erasures"] == [found]
        assert "erased: gone" in call(command, path, *with_key).out.decode()
    refused = call("erase", path, "gone", "--confirm", *with_key)
    assert (refused.status, b"rotate" in refused.err) == (64, True)
    new = tmp_path / "new"
    assert call("keys", "init", new).status == 0
    assert call("keys", "rotate", path, "--new-key-file", new, *with_key).status == 0
    assert call("erase", path, "gone", "--confirm", *with_key).status == 77
    assert call("erase", path, "gone", "--confirm", "--key-file", new, "--json").json() == found | {"pending": False}
    assert "(confirmed)" in call("info", path, "--key-file", new).out.decode()
    back = call("keys", "rotate", path, "--new-key-file", key, "--key-file", new)
    assert (back.status, b"when stream 'gone' was erased" in back.err) == (64, True)


def test_what_cannot_be_erased_is_refused(ledger: Path, tmp_path: Path, call: Call) -> None:
    assert call("erase", ledger, "a", "--reason", "x").status == 64
    assert call("erase", ledger, "nothing", "--reason", "x").status == 64
    assert call("erase", ledger, "a").status == 64
    assert call("erase", ledger, "a", "--confirm", "--reason", "x").status == 64
    assert call("erase", tmp_path / "nowhere", "a", "--reason", "x").status == 64
    assert not (tmp_path / "nowhere").exists()


def test_a_daemon_erases_and_takes_the_next_key(
    path: Path, key: Path, tmp_path: Path, call: Call, process: Call
) -> None:
    filled(path, key, process)
    new = tmp_path / "new"
    settings = (*ANY, "--key-file", str(key), "--set", f"next_key_file={new}")
    daemon = Daemon(path, *settings)
    url = f"kimberlite://{daemon.listening()}"
    found = call("erase", url, "gone", "--reason", "ticket", "--json").json()
    assert call("read", url, "gone").status == 1
    # There is none yet; where it would be is nobody's business here.
    none = call("keys", "rotate", url)
    assert (none.status, b"next_key_file" in none.err, str(new).encode() in none.err) == (77, True, False)
    key_id = call("keys", "init", new, "--json").json()["key_id"]
    # Whoever asks can mend nothing of how it stands there.
    new.chmod(0o444)
    none = call("keys", "rotate", url)
    assert (none.status, b"next_key_file" in none.err, str(new).encode() in none.err) == (77, True, False)
    new.chmod(0o400)
    assert call("keys", "rotate", url, "--new-key-file", new).status == 64
    assert call("keys", "rotate", url, "--json").json() == {"key_id": key_id}
    assert process("append", url, "new", stdin=b"three\n").status == 0
    assert call("verify", url, "--json").json()["erasures"] == [found]
    assert call("erase", url, "gone", "--confirm", "--json").json() == found | {"pending": False}
    assert daemon.end() == 0
    assert any(f"next_key_file: key file {new}" in line for line in daemon.said)
    # The key that fits is taken, until its file is where the other was.
    again = Daemon(path, *settings)
    url = f"kimberlite://{again.listening()}"
    assert call("read", url).out == b"one\ntwo\nthree\n"
    new.replace(key)
    assert call("verify", url).status == 0
    assert again.end() == 0
    last = Daemon(path, *settings)
    assert call("read", f"kimberlite://{last.listening()}").out == b"one\ntwo\nthree\n"
    assert last.end() == 0


def test_a_daemon_without_a_next_key_rotates_to_none(path: Path, key: Path, call: Call, process: Call) -> None:
    filled(path, key, process)
    daemon = Daemon(path, *ANY, "--key-file", str(key))
    refused = call("keys", "rotate", f"kimberlite://{daemon.listening()}")
    assert (refused.status, b"next_key_file" in refused.err) == (64, True)
    assert daemon.end() == 0
