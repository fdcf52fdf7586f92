"""What was erased cannot be read or guessed by somebody who has the directory and the master key of now."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path

import pytest

import kimberlite
from kimberlite import sync
from kimberlite.crypto.master import create_master, load_master
from kimberlite.log.opening import Injected
from kimberlite.log.options import Options
from kimberlite.log.repair import Loss, repair
from kimberlite.log.salvage import Finder
from kimberlite.storage.memory import Disk, MemoryBackend
from tests.model import read_log
from tests.model.cursor import u32
from tests.model.files import decode_vault, unwrap_slot
from tests.model.groups import Run, decode_group, decode_segment_header, runs_of
from tests.model.hashes import batch_digest, blake, domain, index_key, kept_producer, many_digest, many_key
from tests.model.log import Log
from tests.model.records import Record, encode_record

from .canaries import PAYLOAD, found, records
from .databases import SEGMENT
from .guessing import Target, guess, possible_salts, strings

PIN = b"4821"
#: All that is left to somebody who knows nearly everything.
FEW = [b"1821", b"4821", b"9376"]


def opened(disk: Disk, key: Path) -> sync.Database:
    return sync.open("simulated", key_file=key, backend=MemoryBackend(disk), segment_bytes=SEGMENT, pack=0)


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("old", "new"):
        create_master(tmp_path / name)
    return tmp_path / "old", tmp_path / "new"


def pins(disk: Disk, key: Path) -> None:
    """The PIN is in a batch of a producer, and in an append to several streams with one."""
    with opened(disk, key) as db:
        db.append("pins", PIN, producer=("till", 0))
        db.append("other", b"known", producer=("till", 0))
        db.append_many({"pins": [PIN], "other": [b"known"]}, producer=("till", 0))


def secrets(files: Mapping[str, bytes], key: Path) -> set[bytes]:
    """All that the vault gives, and the master key itself."""
    master = load_master(key)
    assert master is not None
    log = read_log(files)
    _, slots, _ = decode_vault([(name, files[name]) for name in ("vault.0", "vault.1")], log.identity)
    return {master, *(unwrap_slot(slot, master, log.identity, "vault") for slot in slots)}


def rows_of(log: Log, name: str) -> list[Target]:
    [declared] = [stream.declared for stream in log.streams if stream.name == name]
    rows = [row for row in log.rows if row.name == name]
    return [Target(row.encrypted, row.last, row.stream, row.offset, row.timestamp, declared) for row in rows]


def nonces(files: Mapping[str, bytes], log: Log) -> list[bytes]:
    found: list[bytes] = []
    for group in log.groups:
        name = f"segments/{group.segment:020}.seg"
        salt = decode_segment_header(files[name][:4096], name).salt
        raw, _ = decode_group(files[name], group.place, salt, tagged=True, where=name)
        runs: list[Run] = [run for run, _ in runs_of(raw, group.place, name)]
        found += [run.nonce for run in runs if run.encrypted]
    return found


def guessed(files: Mapping[str, bytes], keys: Iterable[bytes], payloads: list[bytes]) -> set[bytes]:
    """By commitments and leaves, and by every digest that a table or a record may have of a batch, under each of these
    keys and under what follows from it."""
    log, keys = read_log(files), list(keys)
    seen = strings(*files.values())
    salted = [salt for key in keys for salt in possible_salts(key, nonces(files, log))]
    out: set[bytes] = set()
    for target in rows_of(log, "pins"):
        out |= guess(target, seen, salted, payloads)
    every = b"".join(files.values())
    identity = log.identity.hash()
    derived = [identity, *keys, *(index_key(key) for key in keys), *(many_key(key) for key in keys)]
    beside = encode_record(Record(b"known"))
    for payload in payloads:
        one = encode_record(Record(payload))
        traces = {batch_digest(key, [one]) for key in derived}
        for key in derived:
            for own in derived:
                traces.add(many_digest(key, [(1, own, [one]), (2, own, [beside])]))
                traces |= {many_digest(key, [(1, own, [one]), (2, index_key(k), [beside])]) for k in keys}
            # The records themselves, under a key that outlives their stream.
            parts = u32(1) + u32(1) + one, u32(2) + u32(1) + beside
            traces.add(blake(domain("kimberlite/digest/1"), *parts, key=key, size=16))
        if any(trace in every for trace in traces):
            out.add(payload)
    return out


def test_a_pin_that_was_erased_is_guessed_from_nothing_that_stays(keys: tuple[Path, Path]) -> None:
    old, new = keys
    disk = Disk()
    pins(disk, old)
    before = secrets(disk.files(), old)
    # The attacker is one who finds it, as long as the keys are there.
    assert guessed(disk.files(), before, FEW) == {PIN}
    with opened(disk, old) as db:
        db.erase("pins", reason="on request")
    after = disk.files()
    remaining = secrets(after, old)
    [gone] = before - remaining
    assert guessed(after, {gone}, FEW) == {PIN}
    assert guessed(after, remaining, FEW) == set()
    with opened(disk, old) as db:
        db.rotate(new)
    files = disk.files()
    assert gone not in strings(*files.values())
    # With all that stays: the whole directory, and every key that opens.
    assert guessed(files, secrets(files, new), FEW) == set()
    assert secrets(files, new).isdisjoint({gone})


def test_a_producer_of_what_was_erased_is_guessed_from_nothing_that_stays(keys: tuple[Path, Path]) -> None:
    disk = Disk()
    pins(disk, keys[0])
    with opened(disk, keys[0]) as db:
        before = secrets(disk.files(), keys[0])
        db.erase("pins", reason="on request")
    files = disk.files()
    [gone] = before - secrets(files, keys[0])
    every = b"".join(files.values())
    assert kept_producer(index_key(gone), b"till") not in every


@pytest.mark.parametrize("compression", [None, 3])
def test_what_was_approved_and_what_was_rejected_leave_files_of_one_length(
    compression: int | None, keys: tuple[Path, Path]
) -> None:
    def sizes(payload: bytes) -> dict[str, int]:
        disk = Disk()
        backend = MemoryBackend(disk)
        with sync.open("simulated", key_file=keys[0], backend=backend, compression=compression) as db:
            db.append("verdicts", [payload] * 3, producer=("judge", 0))
            db.erase("verdicts", reason="on request")
        return {name: len(data) for name, data in disk.files().items()}

    assert sizes(b"approved") == sizes(b"rejected")


def test_no_canary_is_in_any_file_while_it_is_erased_and_after(keys: tuple[Path, Path]) -> None:
    disk = Disk()
    with opened(disk, keys[0]) as db:
        for number in range(20):
            db.append("gone", records(number, 2_000), producer=("p", number))
            db.append("kept", records(number, 500))
        list(db.read())
        disk.on_step = lambda: check(disk)
        db.erase("gone", reason="on request")
        db.rotate(keys[1])
        disk.on_step = None
        with pytest.raises(kimberlite.Erased):
            next(db.read("gone"))
        assert sum(PAYLOAD in record.payload for record in db.read()) == 40
    check(disk)


#: What a client has sent.
SECRET = [b"PIN %d of a client" % i + bytes(2_000) for i in range(20)]


def given_up(disk: Disk, key: Path) -> None:
    """A stream is declared behind damage, and a repair gives it up."""
    with opened(disk, key) as db:
        receipt = [db.append("other", [bytes(3_000)]) for _ in range(20)][10]
        for pin in SECRET:
            db.append("pins", pin)
    files = {name: data for name, data in disk.files().items() if not name.startswith(("prepare/", "reserve"))}
    [hit] = [group for group in read_log(files, load_master(key)).groups if group.number == receipt.group]
    MemoryBackend(disk).open(f"segments/{hit.segment:020}.seg", "w").write(hit.place + 8, b"damage")

    async def repaired() -> Loss | None:
        options = Options(segment_bytes=SEGMENT, pack=0)
        return await repair(lambda: MemoryBackend(disk), load_master(key), lambda _loss: True, options, Injected())

    assert asyncio.run(repaired()) is not None


def put_back(disk: Disk) -> Disk:
    """The directory as it was before the repair, out of what is in quarantine; nothing else says where the log ends."""
    files = disk.files()
    segments = {int(name[9:29]): data for name, data in files.items() if name.startswith("segments/")}
    tails = {}
    for name, data in files.items():
        if name.startswith("quarantine/"):
            number, place, _ = name[11:-5].split("-")
            tails[int(number)] = segments.get(int(number), b"")[: int(place)] + data
    segments = {number: data for number, data in segments.items() if number < min(tails)} | tails
    kept = {name: data for name, data in files.items() if name in ("identity", "vault.0", "vault.1")}
    return Disk.from_files(kept | {f"segments/{number:020}.seg": data for number, data in segments.items()})


def salvaged(disk: Disk, key: Path) -> list[bytes]:
    """The secrets in what is found of whatever is left."""
    with closing(Finder(MemoryBackend(disk), load_master(key))) as finder:
        found = b"".join(batch.stored for _, _, _, batch in finder.records())
    assert bytes(3_000) in found
    return [secret for secret in SECRET if secret in found]


def test_what_a_repair_gave_up_is_gone_with_the_erasure_of_its_stream_and_a_rotation(keys: tuple[Path, Path]) -> None:
    old, new = keys
    disk = Disk()
    given_up(disk, old)
    with opened(disk, old) as db:
        assert [stream.name for stream in db.streams()] == ["other"]
        with pytest.raises(kimberlite.Invalid):
            db.erase("pins", reason="on request")
        # Clients go on with it, and it is another stream.
        db.append("pins", b"another")
        db.erase("pins", reason="on request")
    # The attacker is one who finds it, as long as its key is there.
    assert salvaged(put_back(disk), old) == SECRET
    before = secrets(disk.files(), old)
    with opened(disk, old) as db:
        assert "keys rotate" in str(db.info()["notes"])
        db.rotate(new)
        assert not db.confirm_erasure("pins").pending
        assert "keys rotate" not in str(db.info()["notes"])
    assert salvaged(put_back(disk), new) == []
    # The key of the stream that was given up, and the master key.
    gone = before - secrets(disk.files(), new)
    assert len(gone) == 2
    assert not any(key in data for key in gone for data in disk.files().values())


def check(disk: Disk) -> None:
    assert found(disk.files()) == set()
