from __future__ import annotations

import asyncio
import json
from pathlib import Path

import kimberlite
from kimberlite import _native
from tests.cli.conftest import Call
from tests.cli.test_serve import ANY, Daemon


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


async def mended(path: Path, count: int) -> None:
    async with kimberlite.open(path) as log:
        database, committer = bytes.fromhex((await log.info())["database_id"]), log._writer()[0]
        for i in range(count):
            lost = [(2 * j, 2 * j + 1) for j in range(300)]
            said = _native.encode_repair(database, salvaged=True, when=i, before=0, after=1, kept=1, lost=lost)
            await committer.say([said])


def test_what_takes_more_than_one_message_is_the_same_from_a_daemon(ledger: Path, call: Call, tmp_path: Path) -> None:
    asyncio.run(mended(ledger, 100))
    commands = (("info", "--json"), ("verify", "--json"), ("verify",))
    expected = [call(command[0], ledger, *command[1:]).out for command in commands]
    said = json.loads(expected[0])
    assert [each["when"] for each in said["repairs"]] == list(range(100))
    assert all(len(each["lost"]) == 256 and not each["exact"] for each in said["repairs"])
    assert expected[2].count(b"lost: some of positions 0 to ") == 100
    daemon = Daemon(ledger, *ANY)
    url = f"kimberlite://{daemon.listening()}"
    for command, out in zip(commands[1:], expected[1:], strict=True):
        assert call(command[0], url, *command[1:]).out == out
    found = call("info", url, "--json").json()
    # How it is written, and how much room is allocated ahead, is another matter.
    own = dict.fromkeys(("backend", "backend_reason", "bytes", "segments"))
    assert found | own == said | own
    assert call("export", url, tmp_path / "out").status == 0
    assert daemon.end() == 0


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
