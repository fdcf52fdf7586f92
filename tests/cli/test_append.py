from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from kimberlite._native import HEADER_HEAD, RECORD_HEADER
from kimberlite.cli.append import BATCH_RECORDS
from kimberlite.log.options import LARGEST_BATCH_BYTES
from tests.cli.conftest import Call, command, environment


def test_every_line_of_stdin_is_a_record(path: Path, process: Call, call: Call) -> None:
    receipt = process("append", path, "s", stdin=b"one\n\ntwo\r\n").json()
    assert (receipt["first_offset"], receipt["last_offset"], receipt["durable"]) == (0, 2, True)
    assert [r["payload"] for r in call("read", path, "--json").lines()] == ["one", "", "two\r"]


def test_a_receipt_comes_before_the_input_ends(path: Path) -> None:
    with subprocess.Popen(
        command("append", path, "s"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for number in range(3):
            child.stdin.write(b"line\n")
            child.stdin.flush()
            assert b'"last_offset":%d,' % number in child.stdout.readline()
        child.stdin.close()
        assert child.wait(30) == 0


def test_a_long_input_is_several_batches(path: Path, tmp_path: Path, call: Call) -> None:
    file = tmp_path / "lines"
    file.write_bytes(b"x\n" * (BATCH_RECORDS + 1))
    first, second = call("append", path, "s", "--file", file).lines()
    assert (first["last_offset"], second["first_offset"]) == (BATCH_RECORDS - 1, BATCH_RECORDS)
    assert second["group"] > first["group"]


def test_lines_that_are_too_many_bytes_for_a_batch_are_several(path: Path, tmp_path: Path, call: Call) -> None:
    longest = LARGEST_BATCH_BYTES - RECORD_HEADER
    file = tmp_path / "lines"
    file.write_bytes(b"x" * longest + b"\n" + (b"y" * 100 + b"\n") * 100 + b"z" * longest + b"\n")
    receipts = call("append", path, "s", "--file", file).lines()
    assert [receipt["first_offset"] for receipt in receipts][1:-1] == [1]
    assert receipts[-1]["last_offset"] == 101
    assert call("read", path, "s").out == file.read_bytes()


def test_json_lines_are_split_by_what_is_stored_of_them(path: Path, tmp_path: Path, call: Call) -> None:
    headers = [["n\u00e9" * 10, "v"], ["m", "w"]]
    beside = RECORD_HEADER + HEADER_HEAD + 30 + 1 + HEADER_HEAD + 1 + 1 + 3
    longest = {"payload": "x" * (LARGEST_BATCH_BYTES - beside), "key": "key", "headers": headers}
    lines = [longest, {"payload": "y"}, {"payload": "z"}]
    file = tmp_path / "records"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    receipts = call("append", path, "s", "--jsonl", "--file", file).lines()
    assert [(r["first_offset"], r["last_offset"]) for r in receipts] == [(0, 0), (1, 2)]
    assert [r["headers"] for r in call("read", path, "s", "--json").lines()] == [headers, [], []]


def test_a_record_that_is_too_large_by_itself_is_refused(path: Path, tmp_path: Path, call: Call) -> None:
    file = tmp_path / "lines"
    file.write_bytes(b"x" * (LARGEST_BATCH_BYTES - RECORD_HEADER + 1) + b"\ny\n")
    for more in ([], ["--whole"], ["--producer", "p:0"]):
        outcome = call("append", path, "s", *more, "--file", file)
        assert (outcome.status, outcome.out) == (64, b"")
        assert outcome.err.startswith(b"kimberlite: LIMIT_EXCEEDED: ")


def test_what_read_prints_as_json_can_be_appended_however_long_the_text(path: Path, tmp_path: Path, call: Call) -> None:
    file = tmp_path / "payload"
    file.write_bytes(b"\xff" * (13 << 20))
    call("append", path, "s", "--whole", "--file", file)
    file.write_bytes(b"\x01" * (3 << 20))
    call("append", path, "s", "--whole", "--file", file)
    lines = tmp_path / "lines"
    lines.write_bytes(call("read", path, "s", "--json").out)
    call("append", path, "t", "--jsonl", "--file", lines)
    assert [len(each["payload"]) for each in call("read", path, "t", "--json").lines()] == [
        len(each["payload"]) for each in call("read", path, "s", "--json").lines()
    ]


def test_with_a_producer_the_input_is_one_batch_however_large(path: Path, tmp_path: Path, call: Call) -> None:
    file = tmp_path / "lines"
    line = b"x" * (1 << 20) + b"\n"
    file.write_bytes(line * 15)
    assert call("append", path, "s", "--producer", "p:0", "--file", file).json()["last_offset"] == 14
    file.write_bytes(line * 16)
    refused = call("append", path, "s", "--producer", "p:1", "--file", file)
    assert (refused.status, refused.out) == (64, b"")
    assert refused.err.startswith(b"kimberlite: LIMIT_EXCEEDED: ")


def test_a_line_longer_than_what_is_read_at_a_time_is_one_record(path: Path, tmp_path: Path, call: Call) -> None:
    file = tmp_path / "lines"
    file.write_bytes(b"x" * 3_000_000 + b"\ny")
    assert [r["last_offset"] for r in call("append", path, "s", "--file", file).lines()][-1] == 1
    assert call("read", path, "s").out == b"x" * 3_000_000 + b"\ny\n"


def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(path: Path, tmp_path: Path, call: Call) -> None:
    file = tmp_path / "endless"
    file.write_bytes(b"x" * (17 << 20))
    outcome = call("append", path, "s", "--file", file)
    assert (outcome.status, outcome.out) == (64, b"")
    assert outcome.err.startswith(b"kimberlite: LIMIT_EXCEEDED: ")


def test_whole_makes_one_record_of_the_input(path: Path, tmp_path: Path, call: Call) -> None:
    file = tmp_path / "document"
    file.write_bytes(b"one\ntwo\n")
    assert call("append", path, "s", "--whole", "--file", file).json()["last_offset"] == 0
    assert call("read", path, "s").out == b"one\ntwo\n\n"


def test_what_read_prints_can_be_appended_elsewhere(path: Path, tmp_path: Path, call: Call) -> None:
    file = tmp_path / "records"
    file.write_bytes(
        b'{"payload":{"base64":"//8="},"key":"k","headers":[["h","1"],["h",{"base64":"/w=="}]],"event_time":-5}\n'
        b'{"payload":"text","headers":{"a":"b"}}\n'
    )
    assert call("append", path, "s", "--jsonl", "--file", file).status == 0
    first = call("read", path, "s", "--json")
    file.write_bytes(first.out)
    assert call("append", tmp_path / "other", "s", "--jsonl", "--file", file).status == 0
    given = ("payload", "key", "headers", "event_time")
    again = call("read", tmp_path / "other", "s", "--json")
    assert [[r[n] for n in given] for r in again.lines()] == [
        [{"base64": "//8="}, "k", [["h", "1"], ["h", {"base64": "/w=="}]], -5],
        ["text", None, [["a", "b"]], None],
    ]
    assert [[r[n] for n in given] for r in first.lines()] == [[r[n] for n in given] for r in again.lines()]


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b"1",
        b'{"key":"k"}',
        b'{"payload":1}',
        b'{"payload":{"base64":"?"}}',
        b'{"payload":"\\ud800"}',
        b'{"payload":"x","keys":"k"}',
        b'{"payload":"x","event_time":"now"}',
        b'{"payload":"x","event_time":true}',
        b'{"payload":"x","headers":[["a"]]}',
        b'{"payload":"x","headers":[[1,"b"]]}',
        b'{"payload":"x","headers":"ab"}',
        b'{"payload":' + b"[" * 100_000,
    ],
)
def test_a_line_that_is_no_record_is_invalid(path: Path, tmp_path: Path, call: Call, line: bytes) -> None:
    file = tmp_path / "records"
    file.write_bytes(line + b"\n")
    outcome = call("append", path, "s", "--jsonl", "--file", file)
    assert (outcome.status, outcome.out) == (64, b"")
    assert outcome.err.startswith(b"kimberlite: INVALID: ")


def test_expect_must_be_the_length_of_the_stream(ledger: Path, tmp_path: Path, call: Call) -> None:
    file = tmp_path / "lines"
    wrong = call("append", ledger, "a", "--expect", 2, "--file", file, "--json")
    assert wrong.status == 1
    assert call("append", ledger, "a", "--expect", 3, "--file", file).json()["first_offset"] == 3
    assert b'"code":"CONFLICT"' in wrong.err
    assert b'"expected":3' in wrong.err


def test_with_expect_the_input_is_one_batch(path: Path, tmp_path: Path, call: Call) -> None:
    file = tmp_path / "lines"
    file.write_bytes(b"x\n" * 20_000)
    assert call("append", path, "s", "--expect", 0, "--file", file).json()["last_offset"] == 19_999
    file.write_bytes(b"x\n" * 65_537)
    assert call("append", path, "s", "--expect", 20_000, "--file", file).status == 64
    assert call("info", path, "--json").json()["records"] == 20_001


def test_a_producer_that_repeats_itself_gets_its_receipt_again(path: Path, tmp_path: Path, process: Call) -> None:
    first = process("append", path, "s", "--producer", "p:0", stdin=b"x\n")
    again = process("append", path, "s", "--producer", "p:0", stdin=b"x\n")
    assert (first.status, again.status) == (0, 0)
    assert first.json()["first_position"] == again.json()["first_position"]
    assert process("append", path, "s", "--producer", "p:5", stdin=b"x\n").status == 1


@pytest.mark.parametrize("producer", ["p", ":0", "p:", "p:-1", "p:x"])
def test_a_producer_is_an_id_and_a_sequence(path: Path, call: Call, producer: str) -> None:
    assert call("append", path, "s", "--producer", producer).status == 64
    assert not path.exists()


def test_an_os_receipt_is_not_durable(path: Path, process: Call) -> None:
    assert process("append", path, "s", "--sync", "os", stdin=b"x\n").json()["durable"] is False


def test_no_input_and_no_file_are_invalid(path: Path, process: Call, call: Call) -> None:
    assert process("append", path, "s").status == 64
    assert call("append", path, "s", "--file", path / "nowhere").status == 64


def test_a_second_writer_is_busy(path: Path, process: Call) -> None:
    with subprocess.Popen(
        command("append", path, "s"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"line\n")
        child.stdin.flush()
        child.stdout.readline()
        outcome = process("append", path, "s", stdin=b"x\n")
        child.stdin.close()
    assert outcome.status == 75
    assert outcome.err.startswith(b"kimberlite: BUSY: ")


def test_the_line_that_is_no_record_is_named(path: Path, tmp_path: Path, call: Call) -> None:
    lines = tmp_path / "lines"
    lines.write_bytes(b'{"payload": "a"}\n\n{"payload": "b"}\nnothing\n')
    found = call("append", path, "s", "--jsonl", "--file", lines)
    assert found.status == 64
    assert b"line 4 is not JSON" in found.err


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ('"event_time":9223372036854775808', "event_time does not fit in 64 bits"),
        ('"event_time":-9223372036854775809', "event_time does not fit in 64 bits"),
        ('"headers":{"\\ud800":"v"}', "a header's name has a lone surrogate"),
        ('"headers":{"":"v"}', "a header's name has 1 to 65,535 bytes"),
        ('"headers":[["' + "\u00e9" * 32_768 + '","v"]]', "a header's name has 1 to 65,535 bytes"),
    ],
    ids=["late", "early", "surrogate", "empty", "long"],
)
def test_the_line_with_what_no_record_can_have_is_named(
    path: Path, tmp_path: Path, call: Call, fields: str, what: str
) -> None:
    lines = tmp_path / "lines"
    lines.write_text('{"payload":"a"}\n{"payload":"b",' + fields + "}\n")
    found = call("append", path, "s", "--jsonl", "--file", lines)
    assert (found.status, found.out) == (64, b"")
    assert found.err.decode().startswith(f"kimberlite: INVALID: line 2: {what}")


def test_the_largest_and_the_smallest_event_time_are_taken(path: Path, tmp_path: Path, call: Call) -> None:
    lines = tmp_path / "lines"
    times = [(1 << 63) - 1, -(1 << 63)]
    lines.write_text("".join(f'{{"payload":"","event_time":{time}}}\n' for time in times))
    assert call("append", path, "s", "--jsonl", "--file", lines).status == 0
    assert [record["event_time"] for record in call("read", path, "s", "--json").lines()] == times


def test_blank_lines_of_json_are_passed_over_and_counted(path: Path, tmp_path: Path, call: Call) -> None:
    lines = tmp_path / "lines"
    lines.write_bytes(b'\r\n \t\n{"payload":"a"}\r\n\n  \r\n{"payload":"b"}\n ')
    assert call("append", path, "s", "--jsonl", "--file", lines).json()["last_offset"] == 1
    lines.write_bytes(b" \n\r\nnothing\n")
    assert b"line 3 is not JSON" in call("append", path, "s", "--jsonl", "--file", lines).err
    lines.write_bytes(b" \n\r\n")
    assert b"there are no records to append" in call("append", path, "s", "--jsonl", "--file", lines).err
