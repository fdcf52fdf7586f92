from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kimberlite import Invalid, _native, sync
from kimberlite.cli import exports
from tests.cli.conftest import Call, command, environment
from tests.cli.exported import WHOLE, lengths, records

THEN = 1_700_000_000_000_000_000


@pytest.fixture
def daemon(tmp_path: Path, process: Call) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    running = subprocess.Popen(
        command("serve", tmp_path / "served", "--listen", f"127.0.0.1:{port}", "--http", ""), env=environment()
    )
    yield f"kimberlite://127.0.0.1:{port}"
    running.terminate()
    running.wait(20)


HEAD = {
    "export": {
        "version": 1,
        "database": "00" * 16,
        "origin": "o",
        "time": THEN,
        "incarnation": 0,
        "asked": {"streams": None, "start": None, "until": None},
        "until": 9,
    }
}


def record(offset: int, **changes: Any) -> dict[str, Any]:
    return {"stream": "s", "offset": offset, "position": offset, "timestamp": THEN, "payload": f"{offset}"} | changes


def asked(streams: Any) -> dict[str, Any]:
    return {"export": HEAD["export"] | {"asked": {"streams": streams, "start": None, "until": None}}}


def erased(**changes: Any) -> dict[str, Any]:
    return {"erased": [{"stream": "gone", "when": THEN, "reason": "a ticket"} | changes]}


def lines(*values: Any, end: bool = True) -> bytes:
    """A file of lines; what is bytes is taken as it is."""
    data = b"".join(v if isinstance(v, bytes) else json.dumps(v).encode() + b"\n" for v in values)
    if end:
        count = sum(isinstance(v, dict) and "payload" in v for v in values)
        digest = hashlib.sha256(data).hexdigest()
        data += json.dumps({"end": {"records": count, "sha256": digest}}).encode() + b"\n"
    return data


def frames(*values: tuple[int, bytes]) -> bytes:
    data, previous = b"KIMBEXP1", bytes(32)
    for kind, body in values:
        frame = _native.seal_frame(kind, body, previous)
        data, previous = data + frame, frame[12:44]
    return data


def test_it_works_through_the_daemon_as_in_a_directory(
    source: Path, form: list[str], call: Call, process: Call, daemon: str, tmp_path: Path
) -> None:
    first, second, third = tmp_path / "first", tmp_path / "second", tmp_path / "third"
    assert call("export", source, first, *form).status == 0
    done = process("import", daemon, first, "--json")
    assert done.json() == {"records": 201, "passed_over": 0, "gaps": 2} | WHOLE, done.err
    assert process("export", daemon, second, *form).status == 0
    done = process("import", third, second, "--json")
    assert done.json() == {"records": 201, "passed_over": 0, "gaps": 2} | WHOLE, done.err
    assert records(third) == records(source)
    assert lengths(third) == lengths(source)
    again = process("import", daemon, first, "--json")
    assert again.json() == {"records": 0, "passed_over": 201, "gaps": 0} | WHOLE


def test_a_file_that_is_cut_off_anywhere_is_known_to_be_and_its_rest_follows(
    source: Path,
    form: list[str],
    call: Call,
    tmp_path: Path,
) -> None:
    call("export", source, tmp_path / "whole", *form)
    whole = (tmp_path / "whole").read_bytes()
    wanted = records(source)
    for cut in [*range(0, len(whole), len(whole) // 30), len(whole) - 1]:
        target, file = tmp_path / f"db {cut}", tmp_path / "cut"
        file.write_bytes(whole[:cut])
        outcome = call("import", target, file)
        assert outcome.status in (64, 65), (cut, outcome)
        assert b"cut off" in outcome.err or b"no export" in outcome.err, (cut, outcome)
        before = records(target) if target.exists() else []
        assert before == wanted[: len(before)]
        file.write_bytes(whole)
        done = call("import", target, file, "--json")
        assert done.json()["records"] == 201 - len(before)
        assert (records(target), lengths(target)) == (wanted, lengths(source))


def test_a_file_that_was_changed_anywhere_is_not_taken_for_whole(
    source: Path,
    form: list[str],
    call: Call,
    tmp_path: Path,
) -> None:
    call("export", source, tmp_path / "out", *form)
    whole = (tmp_path / "out").read_bytes()
    rng = random.Random(3)
    for i in range(60):
        changed = bytearray(whole)
        changed[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        (tmp_path / "out").write_bytes(changed)
        outcome = call("import", tmp_path / f"db {i}", tmp_path / "out")
        assert outcome.status in (1, 64, 65), outcome
        assert outcome.err.startswith(b"kimberlite: ")
        assert b"out" in outcome.err


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "this is no export"),
        (b"\n", "line 1: this is not JSON"),
        (b"[]\n", "line 1: this is not an object"),
        (lines(record(0)), "line 1: an export begins with its head"),
        (lines(HEAD, HEAD), "line 2: an export begins with its head"),
        (lines({"export": HEAD["export"] | {"version": 2}}), "line 1: this is no export of version 1"),
        (lines({"export": HEAD["export"] | {"more": 2}}), "line 1: the head of an export is malformed"),
        (lines({"export": 1}), "line 1: this is no export of version 1"),
        (lines(HEAD, b'{"a": 1}\n'), "line 2: this is neither a record"),
        (lines(HEAD, b"{}\n"), "line 2: this is neither a record"),
        (lines(HEAD, b'{"payload": "\xff"}\n'), "line 2: this is not UTF-8"),
        (lines(HEAD, b'\xef\xbb\xbf{"payload": ""}\n'), "line 2: this is not JSON"),
        (lines(HEAD, b"[" * 100_000 + b"\n"), "line 2: this is not JSON"),
        (lines(HEAD, b'{"payload": "", "payload": ""}\n'), "line 2: an object has a key twice"),
        (lines(HEAD, b'{"payload": "", "offset": NaN}\n'), "line 2: NaN is no number"),
        (lines(HEAD, b'{"payload": "", "offset": -Infinity}\n'), "line 2: -Infinity is no number"),
        (lines(HEAD, b'{"offset": ' + b"9" * 5000 + b"}\n"), "line 2: this is not JSON"),
        (lines(HEAD, record(1 << 63)), "line 2: offset is a number from 0 to 2^63 - 1"),
        (lines(HEAD, record((1 << 63) - 1)), "line 2: stream 's' would be longer than 2^63 - 1"),
        (lines(HEAD, record((1 << 63) - 2), record((1 << 63) - 1)), "line 2: stream 's' would be longer than"),
        (
            frames((0, _native.pack(HEAD["export"])), (2, _native.pack([["s", (1 << 63) - 1, 0, 9, [b"x"]]]))),
            "be longer",
        ),
        (
            frames((0, _native.pack(HEAD["export"])), (2, _native.pack([["s", (1 << 64) - 1, 0, 9, [b"x"]]]))),
            "be longer",
        ),
        (lines(HEAD, record(-1)), "line 2: offset is a number"),
        (lines(HEAD, record(0) | {"offset": 0.0}), "line 2: offset is a number"),
        (lines(HEAD, record(0) | {"offset": True}), "line 2: offset is a number"),
        (lines(HEAD, record(0, timestamp="x")), "line 2: timestamp is a number"),
        (lines(HEAD, record(0, timestamp=None)), "line 2: timestamp is a number"),
        (lines(HEAD, record(0, stream=5)), "line 2: stream is a string"),
        (lines(HEAD, record(0, stream="")), "line 2: a stream's name has 1 to 255 bytes"),
        (lines(HEAD, record(0, stream="\ud800")), "line 2: a stream's name has no lone surrogates"),
        (lines(HEAD, record(0, stream="a\nb")), "line 2: a stream's name has no control characters"),
        (lines(HEAD, record(0, payload=5)), "line 2: payload is a string or"),
        (lines(HEAD, record(0, payload="\ud800")), "line 2: payload has a lone surrogate"),
        (lines(HEAD, record(0, payload={"base64": "?"})), "line 2: payload is not base64"),
        (lines(HEAD, record(0, headers=[["", "x"]])), "line 2: a header's name has 1 to"),
        (lines(HEAD, record(0, event_time=1 << 63)), "line 2: event_time does not fit"),
        (lines(HEAD, record(0, more=1)), "line 2: a record has no field 'more'"),
        (lines(HEAD, record(0), record(0)), "line 3: stream 's' goes back from offset 1 to 0"),
        (lines(HEAD, record(0), record(5), record(3)), "line 4: stream 's' goes back from offset 6 to 3"),
        (lines(HEAD, record(0), record(1, timestamp=THEN - 1)), "line 3: its time is before"),
        (lines(HEAD, record(0, timestamp=(1 << 63) - 1)), "line 2: it is not that late yet"),
        (lines(HEAD, {"lengths": [["s", -1]]}), "line 2: lengths are pairs"),
        (lines(HEAD, {"lengths": {"s": 1}}), "line 2: lengths are pairs"),
        (lines(HEAD, record(0), {"lengths": []}), "line 3: how long streams are"),
        (lines(HEAD, {"lengths": [["a\nb", 5]]}), "line 2: a stream's name has no control characters"),
        (lines(HEAD, record(0)) + b"\n", "line 4: this is not JSON"),
        (lines(HEAD, record(0)) + lines(HEAD), "line 4: "),
        (lines(HEAD, record(0), end=False), "it is cut off"),
        (lines(HEAD, {"end": {"records": 0, "sha256": "00" * 32}}, end=False), "what is before its end is not"),
        (lines(HEAD, {"end": 1}, end=False), "line 2: the end says"),
        (frames((1, b"\x90")), "an export begins with its head"),
        (frames((0, b"\x90")), "this is no export of version 1"),
        (frames((0, _native.pack(HEAD["export"])), (6, b"\x90")), "there is no frame of kind 6"),
        (frames((0, _native.pack(HEAD["export"])), (4, b"\x90")), "what is missing is from a number"),
        (lines(asked(5)), "line 1: the head of an export is malformed"),
        (lines(asked([5])), "line 1: the head of an export is malformed"),
        (lines({"missing": [0, 1]}), "line 1: an export begins with its head"),
        (lines(HEAD, {"missing": 5}), "line 2: what is missing is from a number"),
        (lines(HEAD, {"missing": [3, 3]}), "line 2: what is missing is from a number"),
        (lines(HEAD, {"missing": [-1, 3]}), "line 2: what is missing is from a number"),
        (lines(HEAD, {"missing": [3, 1 << 63]}), "line 2: what is missing is from a number"),
        (lines(HEAD, {"missing": [0, 1]}, {"lengths": []}), "line 3: how long streams are"),
        (lines(HEAD, {"erased": 5}), "line 2: of what was erased it is said which"),
        (lines(HEAD, {"erased": [{"stream": "s", "when": 1}]}), "line 2: of what was erased it is said which"),
        (lines(HEAD, erased(when="x")), "line 2: of what was erased it is said which"),
        (lines(HEAD, erased(when=-1)), "line 2: of what was erased it is said which"),
        (lines(HEAD, erased(stream="a\nb")), "line 2: a stream's name has no control characters"),
        (lines(HEAD, erased(reason="x" * 1025)), "line 2: a reason has 1 to"),
        (frames((0, _native.pack(HEAD["export"])), (2, b"\xdd\xff\xff\xff\xff")), "the message is cut short"),
        (frames((0, _native.pack(HEAD["export"])), (2, b"\x91\x90")), "an array has another length"),
        (frames((0, _native.pack(HEAD["export"])), (3, b"\x81\xa7records\x05")), "the end does not say"),
        (frames((0, _native.pack(HEAD["export"])), (1, b"\xc1")), "a type that no message has"),
        (frames((0, _native.pack(HEAD["export"]))), "it is cut off"),
        (b"KIMBEXP1" + b"\xff" * 100, "a frame of 4294967295 bytes is none"),
        (b"KIMBEXP1" + b"\0" * 100, "the frame is not what was exported"),
        (b"KIMBEXP1", "this is no export"),
        (b"KIMBEX", "cut off"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(call: Call, path: Path, tmp_path: Path, data: bytes, what: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(data)
    outcome = call("import", path, file)
    assert outcome.status in (64, 65), outcome
    assert what in outcome.err.decode(), outcome.err
    assert str(file) in outcome.err.decode()
    if path.exists():
        assert call("verify", path).status == 0
        assert [row[0] for row in records(path)] in ([], [b"0"], [b"0", b"5"])
        assert all(length < 10 for length in lengths(path).values())


def test_what_is_there_is_passed_over_if_it_is_the_same(call: Call, path: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(lines(HEAD, record(0), record(1)))
    assert call("import", path, file, "--json").json() == {"records": 2, "passed_over": 0, "gaps": 0} | WHOLE
    file.write_bytes(lines(HEAD, record(0), record(1), record(2), record(9)))
    assert call("import", path, file, "--json").json() == {"records": 2, "passed_over": 2, "gaps": 1} | WHOLE
    for other in [
        lines(HEAD, record(0), record(1, payload="x")),
        lines(HEAD, record(0), record(1, key="x"), record(10)),
        lines(HEAD, record(0), record(1, timestamp=THEN + 1), record(10, timestamp=THEN + 1)),
        lines(HEAD, record(8)),
    ]:
        file.write_bytes(other)
        outcome = call("import", path, file)
        assert (outcome.status, b"CONFLICT" in outcome.err, b"'s'" in outcome.err) == (1, True, True), outcome
    file.write_bytes(lines(HEAD, record(11)))
    outcome = call("import", path, file)
    assert outcome.status == 1
    assert b"stream 's' ends at offset 10, and the export begins at 11" in outcome.err
    file.write_bytes(lines(HEAD, {"lengths": [["s", 12]]}))
    assert call("import", path, file).status == 1
    file.write_bytes(lines(HEAD, record(10), {"other": 1}))
    assert call("import", path, file).status == 64
    file.write_bytes(lines(HEAD, {"lengths": [["s", 20], ["t", 5]]}, record(9), record(10)))
    assert call("import", path, file, "--json").json() == {"records": 0, "passed_over": 2, "gaps": 2} | WHOLE
    assert lengths(path) == {"s": 20, "t": 5}


@pytest.mark.parametrize("piped", [False, True])
@pytest.mark.parametrize("change", [lambda line: line.replace(b'"payload":"', b'"payload":"9'), lambda _line: b""])
@pytest.mark.parametrize("behind", [b"", b"\n", b'{"end":{}}\n', b'{"end'])
def test_of_lines_that_are_not_those_that_were_exported_nothing_is_imported(
    call: Call,
    process: Call,
    ledger: Path,
    tmp_path: Path,
    change: Callable[[bytes], bytes],
    behind: bytes,
    piped: bool,
) -> None:
    sound, spoiled = tmp_path / "sound", tmp_path / "spoiled"
    call("export", ledger, sound)
    written = sound.read_bytes().splitlines(keepends=True)
    at = next(i for i, line in enumerate(written) if b'"payload"' in line)
    spoiled.write_bytes(b"".join([*written[:at], change(written[at]), *written[at + 1 :], behind]))
    if piped:
        outcome = process("import", tmp_path / "new", "-", stdin=spoiled.read_bytes())
    else:
        outcome = call("import", tmp_path / "new", spoiled)
    assert outcome.status == 65
    assert b"what is before its end is not what was exported" in outcome.err
    if not piped:
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("end", [{"records": 1}, {"sha256": "00" * 32}, 5, {"records": 2, "sha256": 5}, {"other": 1}])
def test_of_lines_whose_end_says_something_else_nothing_is_imported(
    call: Call, ledger: Path, tmp_path: Path, end: Any
) -> None:
    spoiled = tmp_path / "spoiled"
    call("export", ledger, spoiled)
    *written, last = spoiled.read_bytes().splitlines(keepends=True)
    said = json.loads(last)["end"]
    changed = said | end if isinstance(end, dict) else end
    spoiled.write_bytes(b"".join([*written, json.dumps({"end": changed}).encode(), b"\n"]))
    assert call("import", tmp_path / "new", spoiled).status in (64, 65)
    assert not (tmp_path / "new").exists()


def test_lines_may_be_written_in_other_ways(call: Call, ledger: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    call("export", ledger, file)
    written = [json.loads(line) for line in file.read_bytes().splitlines()[:-1]]
    data = b"".join(json.dumps(line).replace('"payload"', '"p\\u0061yload"').encode() + b"\n" for line in written)
    end = {"records": sum("payload" in line for line in written), "sha256": hashlib.sha256(data).hexdigest()}
    file.write_bytes(data + json.dumps({"end": end}).encode() + b"\n")
    assert call("import", tmp_path / "new", file).status == 0
    assert records(tmp_path / "new") == records(ledger)


def test_old_times_are_kept_or_new_ones_are_taken(call: Call, ledger: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(lines(HEAD, record(0), record(1, timestamp=THEN + 1)))
    outcome = call("import", ledger, file)
    assert outcome.status == 64
    assert b"line 2: the log's time is" in outcome.err
    assert call("import", ledger, file, "--new-times", "--json").json()["records"] == 2
    assert call("import", ledger, file, "--new-times", "--json").json()["passed_over"] == 2
    assert [row[6] > THEN + 10**15 for row in records(ledger, "s")] == [True, True]


def test_one_that_is_killed_goes_on(path: Path, form: list[str], call: Call, tmp_path: Path) -> None:
    with sync.open(path) as db:
        for i in range(400):
            db.append("ab"[i % 2], [os.urandom(100) for _ in range(500)], sync="os")
    file, other = tmp_path / "out", tmp_path / "other"
    call("export", path, file, *form)
    seen = set()
    for delay in (0.5, 0.7, 0.9):
        running = subprocess.Popen(command("import", other, file), env=environment(), stdout=subprocess.DEVNULL)
        time.sleep(delay)
        running.send_signal(signal.SIGKILL)
        running.wait()
        try:
            seen.add(len(records(other)))
        except Invalid:
            seen.add(-1)
    done = call("import", other, file, "--json")
    assert done.status == 0, done.err
    assert records(other) == records(path)
    assert call("verify", other).status == 0


def test_a_record_of_the_largest_size_passes(path: Path, form: list[str], call: Call, tmp_path: Path) -> None:
    with sync.open(path) as db:
        db.append("s", bytes((16 << 20) - 21))
        db.append("s", os.urandom((16 << 20) - 21))
    call("export", path, tmp_path / "out", *form)
    done = call("import", tmp_path / "other", tmp_path / "out", "--json")
    assert done.json()["records"] == 2
    assert records(tmp_path / "other") == records(path)


@pytest.mark.parametrize("erase", [False, True])
def test_what_was_there_and_is_dropped_or_erased_since_is_passed_over(
    path: Path, form: list[str], call: Call, key: Path, tmp_path: Path, erase: bool
) -> None:
    options: dict[str, Any] = {"segment_bytes": 1 << 16, "pack": 0, "key_file": key}
    with sync.open(path, **options) as db:
        db.append("quiet", [b"0", b"1", b"2"])
        for _ in range(80):
            db.append("busy", os.urandom(3000))
    file = tmp_path / "out"
    assert call("export", path, file, "--key-file", key, *form).status == 0
    with sync.open(path, **options) as db:
        db.erase("quiet", reason="r") if erase else db.retain(before=70)
        left = len(list(db.read()))
        assert erase or list(db.read("quiet", until=3)) == []
    outcome = call("import", path, file, "--key-file", key, "--json")
    assert outcome.json() == {"records": 0, "passed_over": 83, "gaps": 0} | WHOLE, outcome.err
    assert 0 < left == len(list(records_of(path, key)))


def test_a_file_that_lacks_very_much_fills_no_screen(call: Call, path: Path, tmp_path: Path) -> None:
    file = tmp_path / "out"
    together, apart = ([{"missing": [i, i + 1]} for i in range(0, 3_000, step)] for step in (1, 2))
    for lacking, told in ((together, 1), (apart, 9)):
        file.write_bytes(lines(HEAD, *lacking, record(0)))
        outcome = call("import", path, file)
        assert (outcome.status, len(outcome.err.splitlines())) == (0, told), outcome.err
    assert outcome.err.endswith(b"missing: 1,492 more ranges\n")


def records_of(path: Path, key: Path) -> list[Any]:
    with sync.open(path, read_only=True, key_file=key) as db:
        return list(db.read())


def test_a_line_that_is_longer_than_any_record_is_refused_unread(call: Call, path: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(lines(HEAD, end=False))
    with file.open("r+b") as grown:
        grown.truncate(exports.LONGEST_LINE + (2 << 20))
    outcome = call("import", path, file)
    assert (outcome.status, b"a line has at most" in outcome.err) == (64, True), outcome
