from __future__ import annotations

import json
import os
import pty
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

from tests.cli.conftest import Call, command, environment
from tests.cli.test_serve import ANY, Daemon

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
    error = json.loads(outcome.err)
    assert (error["code"], error["exit_code"], error["position"]) == ("CORRUPT", 65, 4)
    assert "--accept-loss" in error["message"]
    assert b"lost_positions          4 to 6\n" in call("repair", ledger).out
    for flags in ((), ("--json",)):
        refused = process("repair", ledger, "--accept-loss", *flags)
        assert (refused.status, b"--yes" in refused.err) == (64, True)
    assert before == {file: file.read_bytes() for file in ledger.rglob("*") if file.is_file()}


def test_with_no_stdin_nobody_can_be_asked(ledger: Path) -> None:
    break_it(ledger)
    asked = shlex.join(command("repair", ledger, "--accept-loss"))
    done = subprocess.run(f"{asked} <&-", shell=True, capture_output=True, timeout=60, check=False, env=environment())
    assert (done.returncode, b"--yes" in done.stderr, b"Traceback" in done.stderr) == (64, True, False)


def test_an_interruption_of_the_question_is_an_answer(ledger: Path) -> None:
    break_it(ledger)
    before = {file: file.read_bytes() for file in ledger.rglob("*") if file.is_file()}
    parent, child = pty.openpty()
    with subprocess.Popen(
        command("repair", ledger, "--accept-loss"),
        stdin=child,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stderr is not None
        shown = b""
        while not shown.endswith(b"does it: "):
            shown += os.read(process.stderr.fileno(), 4096)
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(30) == 130
        finally:
            process.kill()
    os.close(parent)
    os.close(child)
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
    for name in ("info", "verify"):
        [said] = call(name, ledger, "--json").json()["repairs"]
        assert (said["incarnation"], said["kept"], said["lost"], said["salvaged"]) == (1, 4, [[4, 7]], False)
        assert "incarnation 1, kept 4 records, lost: positions 4 to 6" in call(name, ledger).out.decode()


def test_directories_that_were_not_copied_are_made(ledger: Path, call: Call) -> None:
    break_it(ledger)
    for name in ("index", "prepare", "quarantine"):
        shutil.rmtree(ledger / name)
    assert call("repair", ledger, "--accept-loss", "--yes").status == 0
    assert call("verify", ledger).status == 0


def test_what_was_done_is_json_if_that_was_asked_for(ledger: Path, call: Call) -> None:
    break_it(ledger)
    outcome = call("repair", ledger, "--accept-loss", "--yes", "--json")
    assert (outcome.status, outcome.json()["damaged"]) == (0, True)
    assert json.loads(outcome.err) == {"repaired": True, "incarnation": 1, "quarantine": str(ledger / "quarantine")}


def test_what_is_no_file_in_its_place_is_refused(ledger: Path, call: Call) -> None:
    break_it(ledger)
    before = {file: file.read_bytes() for file in ledger.rglob("*") if file.is_file()}
    os.mkfifo(ledger / "repair", 0o600)
    outcome = call("repair", ledger, "--accept-loss", "--yes")
    assert (outcome.status, b"'repair'" in outcome.err, b"no regular file" in outcome.err) == (78, True, True)
    assert before == {file: file.read_bytes() for file in ledger.rglob("*") if file.is_file()}


def test_a_daemon_says_so_too(ledger: Path, call: Call) -> None:
    break_it(ledger)
    assert call("repair", ledger, "--accept-loss", "--yes").status == 0
    said = call("info", ledger, "--json").json()["repairs"]
    daemon = Daemon(ledger, *ANY)
    url = f"kimberlite://{daemon.listening()}"
    for name in ("info", "verify"):
        assert call(name, url, "--json").json()["repairs"] == said
        assert b"repaired: " in call(name, url).out
    assert daemon.end() == 0


def test_what_is_missing_at_the_end_is_shown(ledger: Path, call: Call) -> None:
    file = ledger / SEGMENT
    file.write_bytes(file.read_bytes()[:SECOND])
    shown = call("repair", ledger, "--json").json()
    assert (shown["lost_positions"], shown["unknown_groups"]) == ([4, 7], None)
    (ledger / "checkpoint").unlink()
    (ledger / "hashes").unlink()
    shown = call("repair", ledger, "--json").json()
    assert (shown["lost_positions"], shown["unknown_groups"]) == ([4, 4], [2, 2])
    assert b"groups 2 to 2, positions unknown" in call("repair", ledger).out


def test_where_there_is_no_database(tmp_path: Path, call: Call) -> None:
    assert call("repair", tmp_path / "nowhere").status == 64
    assert call("repair", tmp_path).status == 64
