from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from kimberlite import Busy, Dropped, Unavailable, sync
from kimberlite.cli import export, exports
from tests.cli.conftest import Call, command, environment
from tests.cli.exported import WHOLE, lengths, records
from tests.cli.test_serve import ANY, Daemon


def test_lines_are_what_read_prints_between_a_head_and_an_end(source: Path, call: Call, tmp_path: Path) -> None:
    outcome = call("export", source, tmp_path / "out", "--json")
    assert (outcome.status, outcome.json()) == (
        0,
        {"file": str(tmp_path / "out"), "records": 201, "uncovered": None} | WHOLE,
    )
    data = (tmp_path / "out").read_bytes()
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o600
    head, streams, *lines, end = data.splitlines(keepends=True)
    assert b"".join(lines) == call("read", source, "--json").out
    with sync.open(source, read_only=True) as db:
        info = db.info()
    said = json.loads(head)["export"]
    assert abs(said.pop("time") - time.time_ns()) < 600e9
    assert said == {
        "version": 1,
        "database": info["database_id"],
        "origin": info["origin"],
        "incarnation": 0,
        "asked": {"streams": None, "start": None, "until": None},
        "until": info["durable_position"],
    }
    assert json.loads(streams) == {"lengths": [["a", 101], ["b/ü", 65], ["c", 65], ["gone", 7]]}
    before = data[: -len(end)]
    assert json.loads(end) == {"end": {"records": 201, "sha256": hashlib.sha256(before).hexdigest()}}
    assert call("export", source, "-").out.splitlines(keepends=True)[1:-1] == [streams, *lines]


def test_an_export_goes_into_another_database_and_is_the_same(
    source: Path, form: list[str], call: Call, process: Call, key: Path, tmp_path: Path
) -> None:
    file, other, third = tmp_path / "out", tmp_path / "other", tmp_path / "third"
    assert call("export", source, file, *form).status == 0
    outcome = call("import", other, file, "--json")
    assert (outcome.status, outcome.json()) == (0, {"records": 201, "passed_over": 0, "gaps": 2} | WHOLE)
    assert records(other) == records(source)
    assert lengths(other) == lengths(source)
    assert call("verify", other).status == 0
    again = call("import", other, file, "--json").json()
    assert again == {"records": 0, "passed_over": 201, "gaps": 0} | WHOLE
    # Through pipes, into one that is encrypted.
    piped = process("import", third, "-", "--key-file", key, "--json", stdin=call("export", other, "-", *form).out)
    assert piped.json() == {"records": 201, "passed_over": 0, "gaps": 2} | WHOLE
    with sync.open(third, read_only=True, key_file=key) as db:
        assert [(*record[:6], record.timestamp) for record in db.read()] == records(source)
        assert all(info.encrypted for info in db.streams())


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--stream", "c"], lambda row: row[4] == "c"),
        (["--stream", "c", "--stream", "a", "--stream", "c"], lambda row: row[4] in "ac"),
        (["--stream", "c", "--start", 10, "--until", 60], lambda row: row[4] == "c" and 10 <= row[5] < 60),
        (["--stream", "nobody"], lambda row: False),
        (["--start", "2999-01-01T00:00:00Z"], lambda row: False),
        (["--until", "2999-01-01T00:00:00Z"], lambda row: True),
    ],
)
def test_some_of_the_records(
    source: Path, form: list[str], call: Call, tmp_path: Path, flags: list[Any], wanted: Any
) -> None:
    assert call("export", source, tmp_path / "out", *form, *flags).status == 0
    assert call("import", tmp_path / "other", tmp_path / "out").status == 0
    assert records(tmp_path / "other") == list(filter(wanted, records(source)))


def test_one_that_was_cut_off_anywhere_goes_on(source: Path, form: list[str], call: Call, tmp_path: Path) -> None:
    file, part = tmp_path / "out", tmp_path / "out.part"
    assert call("export", source, file, *form).status == 0
    whole = file.read_bytes()
    for cut in [*range(0, len(whole), len(whole) // 40), len(whole) - 1, len(whole)]:
        for junk in (b"", bytes(5000), b"junk\n" if cut else b""):
            file.unlink(missing_ok=True)
            part.write_bytes(whole[:cut] + (junk if cut < len(whole) else b""))
            with sync.open(source) as db:
                # What comes meanwhile is not of it.
                db.append("later", b"x")
            outcome = call("export", source, file, *form, "--json")
            assert (outcome.status, not part.exists()) == (0, True), outcome.err
            other = tmp_path / f"other {cut} {len(junk)}"
            assert call("import", other, file).status == 0
            found = [row for row in records(other) if row[4] != "later"]
            assert found == [row for row in records(source) if row[4] != "later"]


def test_a_part_of_something_else_is_left_alone(source: Path, call: Call, tmp_path: Path) -> None:
    file, part = tmp_path / "out", tmp_path / "out.part"
    call("export", source, file)
    whole = file.read_bytes()
    assert call("export", source, file).status == 64
    file.unlink()
    other = tmp_path / "db2"
    with sync.open(other) as db:
        db.append("a", b"x")
    part.write_bytes(whole[:-10])
    for target, *flags in [(other,), (source, "--stream", "a"), (source, "--binary"), (source, "--start", 1)]:
        outcome = call("export", target, file, *flags)
        assert outcome.status == 64, outcome
        assert b"take it away" in outcome.err
        assert part.read_bytes() == whole[:-10]
    assert call("export", tmp_path / "nowhere", tmp_path / "none").status == 64
    assert not (tmp_path / "none.part").exists()
    assert call("export", source, tmp_path / "no" / "where").status == 64


def cut_off(file: Path, call: Call, target: object, *flags: str) -> bytes:
    """An export without its end."""
    assert call("export", target, file, *flags).status == 0
    part = file.with_name(f"{file.name}.part")
    file.rename(part)
    end = len(part.read_bytes().splitlines(keepends=True)[-1]) if not flags else 40
    os.truncate(part, part.stat().st_size - end)
    return part.read_bytes()


def repaired(path: Path, call: Call, first: int) -> None:
    """Without the records from this position on."""
    lines = call("inspect", path, "--json").lines()
    file = ""
    for line in lines:
        file = line["file"] if line["kind"] == "segment" else file
        if line["kind"] == "run" and line["position"] == first:
            with open(path / file, "r+b") as segment:
                segment.seek(line["place"] + 60)
                byte = segment.read(1)
                segment.seek(-1, os.SEEK_CUR)
                segment.write(bytes([byte[0] ^ 1]))
    (path / "checkpoint").unlink(missing_ok=True)
    assert call("repair", path, "--accept-loss", "--yes").status == 0


@pytest.mark.parametrize("how", ["repair", "copy", "shorter"])
@pytest.mark.parametrize("served", [False, True])
def test_what_the_database_has_no_more_is_not_gone_on_with(
    path: Path, form: list[str], call: Call, tmp_path: Path, how: str, *, served: bool
) -> None:
    file, part, older = tmp_path / "out", tmp_path / "out.part", tmp_path / "older"
    with sync.open(path) as db:
        for i in range(10):
            db.append("ab"[i % 2], b"%d" % i)
    shutil.copytree(path, older)
    with sync.open(path) as db:
        for i in range(10):
            db.append("ab"[i % 2], b"%d" % i)
    before = cut_off(file, call, path, *form)
    if how == "repair":
        repaired(path, call, 15)
    else:
        shutil.rmtree(path)
        shutil.copytree(older, path)
    if how != "shorter":
        with sync.open(path) as db:
            for i in range(20):
                db.append("ab"[i % 2], b"%d" % i)
    daemon = Daemon(path, *ANY) if served else None
    target = path if daemon is None else f"kimberlite://{daemon.listening()}"
    outcome = call("export", target, file, *form)
    assert (outcome.status, part.read_bytes()) == (79, before)
    assert b"out.part has records that the database has no more" in outcome.err
    part.unlink()
    assert call("export", target, file, *form).status == 0
    if daemon is not None:
        assert daemon.end() == 0
    assert call("import", tmp_path / "other", file).status == 0
    assert records(tmp_path / "other") == records(path)


@pytest.mark.parametrize("days", [-10, 0, 10])
@pytest.mark.parametrize("when", [None, "before", "since"])
def test_what_was_dropped_since_is_gone_on_from_if_nothing_was_given_up(
    path: Path,
    form: list[str],
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: str | None,
    days: int,
) -> None:
    """Whatever the clock of the export has said."""
    file = tmp_path / "out"
    with sync.open(path, segment_bytes=1 << 16, pack=0) as db:
        receipts = [db.append("a", b"%d" % i * 500) for i in range(60)]
    if when == "before":
        repaired(path, call, receipts[40].first_position)
        with sync.open(path, segment_bytes=1 << 16, pack=0) as db:
            receipts = [db.append("a", b"%d" % i * 500) for i in range(20)]
    with monkeypatch.context() as clock:
        now = time.time_ns
        clock.setattr(time, "time_ns", lambda: now() + days * 86_400 * 10**9)
        cut_off(file, call, path, *form)
    if when == "since":
        repaired(path, call, receipts[40].first_position)
    with sync.open(path, segment_bytes=1 << 16, pack=0) as db:
        for i in range(60):
            db.append("a", b"%d" % i * 500)
        db.retain(before=receipts[-1].last_position + 10)
        assert db.info()["first_position"] > receipts[-1].last_position
    outcome = call("export", path, file, *form, "--json")
    assert outcome.status == (79 if when == "since" else 0)


@pytest.mark.parametrize("asked", [[], ["--stream", "a"], ["--stream", "b"], ["--until", "30"]])
def test_one_whose_end_a_repair_has_given_up_is_not_gone_on_with(
    path: Path, call: Call, tmp_path: Path, asked: list[str]
) -> None:
    file = tmp_path / "out"
    with sync.open(path, segment_bytes=1 << 16, pack=0) as db:
        receipts = [db.append("b" if i < 20 else "a", b"%d" % i * 500) for i in range(60)]
    assert call("export", path, file, *asked).status == 0
    part = file.rename(tmp_path / "out.part")
    # What is there of it is kept.
    before = b"".join(part.read_bytes().splitlines(keepends=True)[:12])
    part.write_bytes(before)
    repaired(path, call, receipts[40].first_position)
    outcome = call("export", path, file, *asked)
    if asked in ([], ["--stream", "a"]):
        assert (outcome.status, b"the export has records that the database has no more" in outcome.err) == (79, True)
        part.unlink()
        assert call("export", path, file, *asked).status == 0
    else:
        assert (outcome.status, file.read_bytes().startswith(before)) == (0, True)


def test_what_a_killed_writer_has_left_behind_the_watermark_is_named(
    path: Path, form: list[str], call: Call, tmp_path: Path
) -> None:
    code = """
import asyncio, os, sys, kimberlite

async def main():
    db = await kimberlite.open(sys.argv[1])
    for i in range(5):
        assert (await db.append("a", b"%d" % i)).durable
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-P", "-c", code, str(path)], env=environment(), check=False)
    assert done.returncode == -signal.SIGKILL
    outcome = call("export", path, tmp_path / "one", *form, "--json")
    assert (outcome.status, outcome.json()["records"], outcome.json()["uncovered"]) == (0, 4, [5, 5])
    outcome = call("export", path, tmp_path / "two", *form)
    assert outcome.status == 0
    assert b"groups 5 to 5 are sound, and no watermark covers them" in outcome.err
    with sync.open(path):
        # Beside a writer there is nothing to say.
        outcome = call("export", path, tmp_path / "three", *form, "--json")
    assert (outcome.status, outcome.json()["records"], outcome.json()["uncovered"]) == (0, 5, None)


def test_one_that_is_killed_goes_on(path: Path, form: list[str], call: Call, tmp_path: Path) -> None:
    with sync.open(path) as db:
        for i in range(40):
            db.append("ab"[i % 2], [os.urandom(100) for _ in range(5000)], sync="os")
    file, part = tmp_path / "out", tmp_path / "out.part"
    reached = 0
    for _ in range(3):
        running = subprocess.Popen(command("export", path, file, *form), env=environment(), stdout=subprocess.DEVNULL)
        while running.poll() is None and (not part.exists() or part.stat().st_size < reached + (4 << 20)):
            time.sleep(0.001)
        running.send_signal(signal.SIGKILL)
        running.wait()
        reached = part.stat().st_size if part.exists() else reached
    assert reached > 4 << 20
    assert call("export", path, file, *form).status == 0
    assert call("import", tmp_path / "other", file, "--json").json()["records"] == 200_000
    assert records(tmp_path / "other") == records(path)


def test_appends_go_on_beside_it_and_two_do_not_write_one_file(ledger: Path, call: Call, tmp_path: Path) -> None:
    with sync.open(ledger) as db:
        assert call("export", ledger, tmp_path / "out", "--json").json()["records"] == 5
        db.append("a", b"six")
        assert call("export", ledger, tmp_path / "again", "--json").json()["records"] == 6
    import fcntl

    with open(tmp_path / "third.part", "ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert call("export", ledger, tmp_path / "third").status == 75


def test_what_was_erased_or_dropped_is_left_out_and_its_offsets_stay_taken(
    path: Path, form: list[str], call: Call, key: Path, tmp_path: Path
) -> None:
    with sync.open(path, key_file=key, segment_bytes=1 << 16) as db:
        for i in range(60):
            db.append("ab"[i % 2], [b"%d" % i * 500])
        db.append("c", b"gone")
        db.retain(before=40)
        db.erase("c", reason="a ticket")
    file, other = tmp_path / "out", tmp_path / "other"
    assert call("export", path, file, "--key-file", key, *form).status == 0
    done = call("import", other, file, "--json").json()
    with sync.open(path, read_only=True, key_file=key) as db:
        wanted = [(*record[:6], record.timestamp) for record in db.read()]
        first = {stream: next(iter(db.read(stream))).offset for stream in "ab"}
    assert min(first.values()) > 0
    assert records(other) == wanted
    [erasure] = done.pop("erased")
    assert (erasure["stream"], erasure["reason"]) == ("c", "a ticket")
    assert done == {"records": len(wanted), "passed_over": 0, "gaps": 3, "missing": []}
    assert lengths(other) == {"a": 30, "b": 30, "c": 1}
    assert call("export", path, tmp_path / "c", "--key-file", key, "--stream", "c", *form).status != 0
    assert call("export", path, tmp_path / "sealed", *form).status == 77


def not_ours(part: Path, kind: str) -> None:
    """In the place of what an export would write to."""
    other = part.with_name("other")
    if kind == "dangling":
        part.symlink_to(other)
    elif kind == "fifo":
        os.mkfifo(part)
    elif kind == "directory":
        part.mkdir()
    elif kind == "owner":
        part.touch()
        os.chown(part, 12345, -1)
    else:
        other.touch(0o644)
        part.symlink_to(other) if kind == "link" else os.link(other, part)


@pytest.mark.parametrize("kind", ["link", "dangling", "second name", "fifo", "directory", "owner"])
def test_a_part_that_is_not_ours_alone_is_refused(source: Path, call: Call, tmp_path: Path, kind: str) -> None:
    if kind == "owner" and os.geteuid() != 0:
        pytest.skip("only root gives files away")
    part, other = tmp_path / "out.part", tmp_path / "other"
    not_ours(part, kind)
    outcome = call("export", source, tmp_path / "out")
    assert outcome.status == 64
    assert b"out.part" in outcome.err
    assert not other.exists() or (other.stat().st_size, other.stat().st_mode & 0o777) == (0, 0o644)
    assert os.path.lexists(part)
    assert not (tmp_path / "out").exists()


def test_nobody_else_reads_a_part_that_is_gone_on_with(source: Path, call: Call, tmp_path: Path) -> None:
    part = tmp_path / "out.part"
    part.touch()
    part.chmod(0o666)
    assert call("export", source, tmp_path / "out").status == 0
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_comes_meanwhile_is_not_overwritten(
    source: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    file, part = tmp_path / "out", tmp_path / "out.part"
    if not links:

        def refused(*_: object, **__: object) -> None:
            raise PermissionError(errno.EPERM, "no links here")

        monkeypatch.setattr(os, "link", refused)
    write_file = export.write_file

    async def slow(*arguments: Any) -> Any:
        form = await write_file(*arguments)
        file.write_bytes(b"somebody's")
        return form

    with monkeypatch.context() as patch:
        patch.setattr(export, "write_file", slow)
        outcome = call("export", source, file)
    assert outcome.status == 64
    assert b"out has come meanwhile" in outcome.err
    assert file.read_bytes() == b"somebody's"
    file.unlink()
    whole = part.read_bytes()
    assert call("export", source, file).status == 0
    assert (file.read_bytes(), file.stat().st_nlink, part.exists()) == (whole, 1, False)


def test_one_that_another_has_just_finished_is_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part, file = tmp_path / "out.part", tmp_path / "out"
    real = export.open_own

    def late(name: str, flags: int) -> int:
        fd = real(name, flags)
        part.rename(file)
        return fd

    monkeypatch.setattr(export, "open_own", late)
    with pytest.raises(Busy, match="call again"), export.open_part(str(part)):
        pass
    assert file.read_bytes() == b""


@pytest.mark.parametrize("where", ["inside", "segments/inside"])
def test_nothing_is_written_into_a_database(source: Path, call: Call, tmp_path: Path, where: str) -> None:
    with sync.open(tmp_path / "another") as db:
        db.append("a", b"x")
    for target in (source, tmp_path / "another"):
        outcome = call("export", target, source / where)
        assert (outcome.status, b"inside of the database" in outcome.err) == (64, True)
    assert call("verify", source).status == 0


LONG: Any = {"segment_bytes": 1 << 20, "pack": 0}


@pytest.fixture
def long(path: Path) -> Path:
    """More than is read at once."""
    with sync.open(path, **LONG) as db:
        for i in range(80):
            db.append("ab"[i % 2], os.urandom(50_000))
    return path


def drop(path: Path) -> int:
    """All but about the last quarter of it; what is left begins there."""
    with sync.open(path, **LONG) as db:
        return db.retain(before=62).first


def after_a_piece(call: Callable[[], object]) -> pytest.MonkeyPatch:
    """What happens once when some records were written."""
    patch, calls = pytest.MonkeyPatch(), [call]
    for kind in (exports.Lines, exports.Frames):

        async def exported(self: Any, *arguments: Any, real: Any = kind.exported) -> AsyncIterator[Any]:
            async for found in real(self, *arguments):
                yield found
                while calls:
                    calls.pop()()

        patch.setattr(kind, "exported", exported)
    return patch


def stop() -> None:
    raise Unavailable("cut off")


@pytest.mark.parametrize("stream", [None, "b"])
def test_one_that_was_cut_off_goes_on_behind_what_was_dropped_meanwhile(
    long: Path, form: list[str], call: Call, tmp_path: Path, stream: str | None
) -> None:
    file, part, other = tmp_path / "out", tmp_path / "out.part", tmp_path / "other"
    asked = [] if stream is None else ["--stream", stream]
    patch = after_a_piece(stop)
    assert call("export", long, file, *form, *asked).status == 74
    patch.undo()
    assert call("import", tmp_path / "few", part).status == 65
    few, total = records(tmp_path / "few", stream), len(records(long, stream))
    first = drop(long)
    left = records(long, stream)
    assert 0 < len(few) < len(few) + len(left) < total
    outcome = call("export", long, file, *form, *asked, "--json")
    assert outcome.status == 0, outcome.err
    [missing] = outcome.json()["missing"]
    assert missing[0] == (len(few) if stream else len(few) + 2)
    assert missing[1] == (left[0][5] if stream else first)
    assert call("import", other, file, "--json").json()["gaps"] == (1 if stream else 2)
    assert records(other, stream) == few + left
    assert lengths(other) == ({"b": 40} if stream else {"a": 40, "b": 40})


def test_one_goes_on_behind_what_is_dropped_beside_it(long: Path, form: list[str], call: Call, tmp_path: Path) -> None:
    before, copy = records(long), tmp_path / "copy"
    shutil.copytree(long, copy)
    patch = after_a_piece(lambda: drop(long))
    outcome = call("export", long, tmp_path / "out", *form)
    patch.undo()
    assert outcome.status == 0, outcome.err
    assert outcome.err.startswith(b"missing: positions")
    assert call("import", tmp_path / "other", tmp_path / "out").status == 0
    found, left = records(tmp_path / "other"), records(long)
    assert found[-len(left) :] == left
    assert found[: -len(left)] == before[: len(found) - len(left)] != []
    patch = after_a_piece(lambda: drop(copy))
    outcome = call("export", copy, "-", *form)
    patch.undo()
    assert outcome.status == 0
    assert outcome.err.startswith(b"missing: positions")
    (tmp_path / "piped").write_bytes(outcome.out)
    assert call("import", tmp_path / "third", tmp_path / "piped", "--json").json()["records"] == len(found)


def test_what_is_asked_for_and_was_dropped_is_said(long: Path, form: list[str], call: Call, tmp_path: Path) -> None:
    first = drop(long)
    outcome = call("export", long, tmp_path / "out", "--start", 5, *form)
    assert (outcome.status, f"before position {first} was dropped".encode() in outcome.err) == (1, True)


@pytest.mark.parametrize("stream", [None, "b"])
def test_one_that_is_cut_off_again_still_says_what_is_missing(
    long: Path, form: list[str], call: Call, tmp_path: Path, stream: str | None
) -> None:
    file, part = tmp_path / "out", tmp_path / "out.part"
    asked = [] if stream is None else ["--stream", stream]
    for drops in (True, False):
        patch = after_a_piece(stop)
        assert call("export", long, file, *form, *asked).status == 74
        patch.undo()
        if drops:
            drop(long)
    outcome = call("export", long, file, *form, *asked, "--json")
    assert outcome.status == 0, outcome.err
    [missing] = outcome.json()["missing"]
    left = records(long, stream)[0][5] if stream else drop(long)
    assert 0 < missing[0] < missing[1] == left
    # Whoever imports it learns it too.
    assert call("import", tmp_path / "other", file, "--json").json()["missing"] == [missing]
    told = call("import", tmp_path / "other", file)
    places = "positions" if stream is None else "b, offsets"
    assert told.err.decode() == f"missing: {places} {missing[0]} to {missing[1] - 1}: not there any more\n"
    assert not part.exists()
    if stream is None:
        return
    # Wherever it is cut off, also where it says so.
    whole = file.read_bytes()
    for cut in [*range(0, len(whole), len(whole) // 25), len(whole) - 150, len(whole) - 1, len(whole)]:
        file.unlink(missing_ok=True)
        part.write_bytes(whole[:cut])
        said = call("export", long, file, *form, *asked, "--json").json()["missing"]
        assert call("import", tmp_path / f"db {cut}", file, "--json").json()["missing"] == said
        there = {row[5] for row in records(tmp_path / f"db {cut}", stream)}
        lacking = {offset for start, end in said for offset in range(start, end)}
        # One that was begun anew has all that is left, as it was asked for no more.
        assert there | lacking | (set(range(missing[1])) if 0 not in there else set()) == set(range(40))
        assert not there & lacking


def test_streams_that_were_erased_are_named_and_stay_taken(
    path: Path, form: list[str], call: Call, key: Path, tmp_path: Path
) -> None:
    with sync.open(path, key_file=key) as db:
        for stream in ("a", "b", "c"):
            db.append(stream, [b"1", b"2", b"3"])
        erasure = db.erase("b", reason="ticket 12")
        db.erase("c", reason="\u00e4" * 512)
    said = {"stream": "b", "when": erasure.when, "reason": "ticket 12"}
    asked = ["--stream", "a", "--stream", "b", "--key-file", key, *form]
    outcome = call("export", path, tmp_path / "out", *asked, "--json")
    assert (outcome.status, outcome.json()["erased"], outcome.err) == (0, [said], b"")
    outcome = call("export", path, tmp_path / "two", *asked)
    assert (outcome.status, outcome.err.startswith(b"erased: b, erased at 20")) == (0, True)
    assert outcome.err.endswith(b": ticket 12\n")
    outcome = call("export", path, "-", *asked, "--json")
    assert json.loads(outcome.err) == {"missing": [], "erased": [said], "uncovered": None}
    everything = call("export", path, tmp_path / "all", "--key-file", key, *form, "--json")
    assert [each["stream"] for each in everything.json()["erased"]] == ["b", "c"]
    # Once from its beginning, and once behind what was there before it was erased.
    for i, there in enumerate((0, 2)):
        other = tmp_path / f"other {i}"
        with sync.open(other) as db:
            if there:
                db.append("b", [b"1", b"2"])
        done = call("import", other, tmp_path / "out", "--new-times")
        assert (done.status, done.err) == (0, call("export", path, tmp_path / f"again {i}", *asked).err)
        assert call("import", other, tmp_path / "all", "--new-times", "--json").json()["erased"] == [
            said,
            everything.json()["erased"][1],
        ]
        assert lengths(other) == {"a": 3, "b": 3, "c": 3}
        with sync.open(other) as db:
            assert [record.payload for record in db.read("b")] == [b"1", b"2"][:there]
            if not there:
                with pytest.raises(Dropped, match="has a gap there") as caught:
                    list(db.read("b", start=0))
                assert caught.value.first == 3
            gaps = [record.payload for record in db.read(system=True) if b"erased at" in record.payload]
            assert len(gaps) == 2
            assert gaps[0].endswith(b": ticket 12")
            assert db.append("b", b"anew").first_offset == 3


def test_one_that_was_erased_meanwhile_is_named(
    path: Path, form: list[str], call: Call, key: Path, tmp_path: Path
) -> None:
    """Its records that were read before stay."""
    with sync.open(path, key_file=key) as db:
        for i in range(80):
            db.append("ab"[i % 2], os.urandom(50_000))

    def erase() -> None:
        with sync.open(path, key_file=key) as db:
            db.erase("b", reason="r")

    patch = after_a_piece(erase)
    outcome = call("export", path, tmp_path / "out", "--key-file", key, *form, "--json")
    patch.undo()
    assert (outcome.status, outcome.json()["erased"][0]["stream"]) == (0, "b")
    done = call("import", tmp_path / "other", tmp_path / "out", "--json").json()
    assert done["erased"] == outcome.json()["erased"]
    assert lengths(tmp_path / "other") == {"a": 40, "b": 40}
    assert len(records(tmp_path / "other", "b")) > 0


@pytest.mark.parametrize("left", ["segments", "marks", "vault.0"])
def test_nothing_is_written_into_what_is_left_of_a_database(
    source: Path, call: Call, key: Path, tmp_path: Path, left: str
) -> None:
    remains = tmp_path / "remains"
    with sync.open(tmp_path / "another", key_file=key) as db:
        db.append("a", b"x")
    remains.mkdir()
    (tmp_path / "another" / left).rename(remains / left)
    outcome = call("export", source, remains / "inside")
    assert (outcome.status, b"inside of the database" in outcome.err) == (64, True)
    # What only is called so is none.
    other = tmp_path / "no database"
    (other / "segments").mkdir(parents=True)
    (other / "checkpoint").write_bytes(b"of something else")
    assert call("export", source, other / "out").status == 0
