"""Whole files taken, cut, exchanged or put back: segments, vault, what is derived, and the directory itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kimberlite import Corrupt, KeyUnavailable, KimberliteError, Misconfigured, RolledBack
from kimberlite.log.repair import is_packed
from tests.model.files import segment_name
from tests.model.groups import BLOCK

from .databases import DERIVED, DIRECTORIES, Database, Doors, built, grown, packed
from .forging import all_groups, groups_of, marked
from .test_damage import twin_of

DELETED, EMPTIED, ZEROED = "deleted", "emptied", "zeroed at its end"
CUTS = [
    DELETED,
    EMPTIED,
    "cut after its header",
    "cut before its closing group",
    "cut inside a block",
    ZEROED,
]


def cut(database: Database, number: int, how: str) -> Database:
    name = segment_name(number)
    data, closing = database.files[name], list(groups_of(database, number))[-1]
    if how == DELETED:
        return database.without(name)
    left = {
        EMPTIED: b"",
        "cut after its header": data[:BLOCK],
        "cut before its closing group": data[: closing.place],
        "cut inside a block": data[: closing.place - 2_000],
        ZEROED: data[: closing.place].ljust(len(data), b"\0"),
    }[how]
    return database.having({name: left})


async def is_refused(doors: Doors, *names: str) -> None:
    with pytest.raises(Corrupt) as refused:
        doors.verify()
    assert refused.value.file in names
    for read_only in (False, True):
        with pytest.raises(Corrupt) as refused:
            await doors.open(read_only=read_only)
        assert refused.value.file in names


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("how", CUTS)
async def test_a_closed_segment_that_was_cut_or_taken_is_missing_or_short(
    database: Database, how: str, number: int, tmp_path: Path
) -> None:
    harmed = cut(database, number, how)
    whats = {DELETED: f"segment {number} is missing", ZEROED: "no group starts here"}
    if how == ZEROED and is_packed(database.files[segment_name(number)]):
        # Its header says where it ends: a start that has a checkpoint reads no more of it.
        doors = harmed.simulate(tmp_path)
        with pytest.raises(Corrupt) as refused:
            doors.verify()
        assert refused.value.file == segment_name(number)
        assert await doors.answers(database.records) == []
        harmed = harmed.without(*DERIVED)
    for derived in (harmed, harmed.without(*DERIVED)):
        doors = derived.simulate(tmp_path)
        before = doors.files()
        await is_refused(doors, segment_name(number))
        assert doors.files() == before
    with pytest.raises(Corrupt, match=whats.get(how, "short")):
        await harmed.put(tmp_path / "db").open()


@pytest.mark.parametrize("how", CUTS)
async def test_the_active_segment_that_was_cut_below_the_mark_is_refused(
    database: Database, how: str, tmp_path: Path
) -> None:
    harmed = cut(database, 2, how).without(*DERIVED)
    for doors in (harmed.simulate(tmp_path), harmed.put(tmp_path / "db")):
        await is_refused(doors, segment_name(2))


@pytest.mark.parametrize(("one", "other"), [(0, 1), (1, 2), (0, 2)])
async def test_segments_that_were_renamed_are_refused(database: Database, one: int, other: int, tmp_path: Path) -> None:
    names = segment_name(one), segment_name(other)
    exchanged = database.having({names[0]: database.files[names[1]], names[1]: database.files[names[0]]})
    await is_refused(exchanged.put(tmp_path / "db"), *names)
    await is_refused(exchanged.without(*DERIVED).simulate(tmp_path), names[0])


@pytest.mark.parametrize("number", [0, 1, 2])
async def test_a_segment_of_another_database_is_refused(database: Database, number: int, tmp_path: Path) -> None:
    name = segment_name(number)
    foreign = database.having({name: twin_of(database).files[name]})
    await is_refused(foreign.put(tmp_path / "db"), name)
    await is_refused(foreign.without(*DERIVED).simulate(tmp_path), name)
    if number < 2:
        kind = "plain" if database.master is None else "encrypted"
        for make in (built, packed):
            foreign = database.having({name: make(kind, 1).files[name]})
            await is_refused(foreign.simulate(tmp_path), name)


async def test_segments_without_their_identity_or_marks_are_refused(database: Database, tmp_path: Path) -> None:
    for name in ("identity", "marks"):
        await is_refused(database.without(name).simulate(tmp_path), name)
    foreign = twin_of(database).files
    await is_refused(database.having({"marks": foreign["marks"]}).simulate(tmp_path), "marks")
    doors = database.having({"identity": foreign["identity"]}).simulate(tmp_path)
    with pytest.raises((Corrupt, KeyUnavailable)):
        doors.verify()
    with pytest.raises((Corrupt, KeyUnavailable)):
        await doors.open()


def shorter(database: Database, groups: int) -> Database:
    """Without its last groups, and with marks that know nothing of them."""
    kept = all_groups(database)[:-groups]
    name, last = segment_name(2), kept[-1]
    marks = marked(database, last.group.number, last.group.chain(tagged=database.master is not None))
    return database.having({name: database.files[name][: last.end], "marks": marks})


@pytest.mark.parametrize("groups", [1, 2, 4])
async def test_a_tail_dropped_below_the_checkpoint_is_a_rollback(
    database: Database, groups: int, tmp_path: Path
) -> None:
    dropped = shorter(database, groups)
    for doors in (dropped.put(tmp_path / "db"), dropped.simulate(tmp_path)):
        before = doors.files()
        for _ in range(2):
            with pytest.raises(RolledBack, match="checkpoint of group 19"):
                doors.verify()
            with pytest.raises(RolledBack, match="checkpoint of group 19"):
                await doors.open()
        assert doors.files() == before


TAILS = ["cut", "zeroed", "flipped"]


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("how", TAILS)
async def test_a_tail_taken_with_its_marks_and_checkpoint_is_missed_only_by_a_receipt(
    database: Database, how: str, groups: int, tmp_path: Path
) -> None:
    harmed, name = shorter(database, groups).without(*DERIVED), segment_name(2)
    end, old = len(harmed.files[name]), database.files[name]
    if how == "zeroed":
        harmed = harmed.having({name: harmed.files[name] + bytes(len(old) - end)})
    elif how == "flipped":
        flipped = bytearray(old)
        for placed in all_groups(database)[-groups:]:
            flipped[placed.place + 20] ^= 4
        harmed = harmed.having({name: bytes(flipped)})
    left = database.records[: -3 * groups]
    for doors in (harmed.put(tmp_path / "db"), harmed.simulate(tmp_path)):
        for read_only in (True, False):
            with pytest.raises(RolledBack):
                await doors.open(database.receipts[-1], read_only=read_only)
        assert await doors.answers(left, read_only=True) == []
        assert await doors.answers(left) == []
        with pytest.raises(RolledBack):
            doors.verify(database.receipts[-1])
        assert doors.verify(database.receipts[-1 - groups]).records == len(left)


async def test_a_directory_put_back_or_forked_is_missed_only_by_a_receipt(database: Database, tmp_path: Path) -> None:
    old = built("plain" if database.master is None else "encrypted")
    true, fork = grown(old, range(17, 21)), grown(old, range(17, 21), b"another")
    assert true.files["identity"] == fork.files["identity"]
    for rolled in (old, fork):
        for doors in (rolled.put(tmp_path / f"db{len(rolled.records)}"), rolled.simulate(tmp_path)):
            doors.verify(old.receipts[-1])
            for anchor in true.receipts[len(old.receipts) :]:
                with pytest.raises(RolledBack):
                    doors.verify(anchor)
                with pytest.raises(RolledBack):
                    await doors.open(anchor)
            assert await doors.answers(rolled.records) == []


VAULT = ("vault.0", "vault.1")


@pytest.mark.parametrize("old", ["older", "foreign", "deleted", "zeroed"])
async def test_another_vault_is_a_missing_key(old: str, tmp_path: Path) -> None:
    encrypted = built("encrypted")
    # Before the second stream there was no key of it.
    vault = {
        "older": built("encrypted", 0, 1).files["vault.0"],
        "foreign": built("encrypted", 1).files["vault.0"],
        "zeroed": bytes(8_192),
    }
    harmed = encrypted.without(*VAULT)
    if old == "older":
        before = built("encrypted", 2, 1)
        encrypted = grown(before, range(1, 3))
        harmed = encrypted.having(dict.fromkeys(VAULT, before.files["vault.0"]))
    elif old in vault:
        harmed = harmed.having(dict.fromkeys(VAULT, vault[old]))
    for derived in (harmed, harmed.without(*DERIVED)):
        doors = derived.simulate(tmp_path)
        with pytest.raises(KeyUnavailable):
            doors.verify()
        for read_only in (False, True):
            with pytest.raises(KeyUnavailable):
                await doors.open(read_only=read_only)
    with pytest.raises(KeyUnavailable) as refused:
        await harmed.put(tmp_path / "db").open()
    assert refused.value.exit_code == 77


async def test_a_master_key_or_a_vault_does_not_go_with_an_identity_that_says_no_tag(tmp_path: Path) -> None:
    plain, encrypted = built("plain"), built("encrypted")
    untagged = encrypted.having({"identity": plain.files["identity"]})
    keyed = Database(plain.files, plain.records, plain.receipts, encrypted.master)
    planted = plain.having({"vault.1": encrypted.files["vault.1"]})
    for confused in (untagged, keyed, planted, untagged.without(*VAULT)):
        doors = confused.simulate(tmp_path)
        with pytest.raises(KeyUnavailable):
            doors.verify()
        with pytest.raises(KeyUnavailable):
            await doors.open()
    with pytest.raises((KeyUnavailable, Corrupt)):
        untagged.without(*VAULT).simulate(tmp_path).audit()


def poisoned(database: Database, name: str, how: str) -> Database:
    data, twin = database.files[name], twin_of(database)
    changed = {
        "cut to half": data[: len(data) // 2],
        "cut by a byte": data[:-1],
        "emptied": b"",
        "longer": data + data[-4_096:],
        "zeroed": bytes(len(data)),
        "ones": b"\xff" * len(data),
        "of another database": twin.files[name],
        "backwards": data[::-1],
        "flipped at its start": bytes([data[0] ^ 1]) + data[1:],
        "flipped at its end": data[:-1] + bytes([data[-1] ^ 1]),
    }
    for i in (1, 2, 3, 5, 7):
        at = len(data) * i // 8
        changed[f"flipped at {i}/8"] = data[:at] + bytes([data[at] ^ 64]) + data[at + 1 :]
    return database.without(name) if how == DELETED else database.having({name: changed[how]})


POISONS = [
    *(
        DELETED,
        "cut to half",
        "cut by a byte",
        "emptied",
        "longer",
        "zeroed",
        "ones",
        "of another database",
        "backwards",
    ),
    *("flipped at its start", "flipped at its end", *(f"flipped at {i}/8" for i in (1, 2, 3, 5, 7))),
]


@pytest.mark.parametrize("how", POISONS)
async def test_what_is_derived_is_made_again_or_an_error_and_never_believed(
    database: Database, how: str, tmp_path: Path
) -> None:
    names = [name for name in database.files if name.startswith(DERIVED)]
    assert len(names) == 5
    for name in names:
        harmed = poisoned(database, name, how)
        for read_only in (True, False):
            doors = harmed.simulate(tmp_path)
            errors = await doors.answers(database.records, read_only=read_only)
            assert not any(isinstance(error, Misconfigured | RolledBack) for error in errors), name
        # Nothing else was spoiled by it.
        if doors.disk.tree.pop(name, None) is not None:
            assert await doors.answers(database.records) == []


PLANTS = ["link", "link to nothing", "FIFO", "directory", "group may write", "others may write"]


def plant(path: Path, how: str, aside: Path) -> None:
    if "may write" in how:
        path.chmod(0o620 if how == "group may write" else 0o602)
        return
    path.rename(aside)
    if how == "FIFO":
        os.mkfifo(path, 0o600)
    elif how == "directory":
        path.mkdir(0o700)
    else:
        path.symlink_to(aside)
        if how == "link to nothing":
            aside.unlink()


#: What a clean close leaves out, or what is not always there.
ASIDE = {
    "reserve": bytes(4_096),
    f"prepare/{3:020}.seg": b"not ready",
    f"quarantine/{1:020}-4096-1700000000000000000.tail": b"torn",
}


def refuses(doors: Doors, name: str) -> None:
    with pytest.raises(KimberliteError) as refused:
        doors.verify()
    assert refused.value.exit_code == 78, name


async def will_not_open(doors: Doors, name: str) -> None:
    for read_only in (True, False):
        with pytest.raises(KimberliteError) as refused:
            await doors.open(read_only=read_only)
        assert refused.value.exit_code == 78, name


def test_whatever_a_directory_may_hold_is_no_complaint(database: Database, tmp_path: Path) -> None:
    doors = database.having(ASIDE).put(tmp_path / "db")
    assert doors.verify().notes == []


@pytest.mark.parametrize("how", PLANTS)
async def test_what_is_no_file_of_its_owner_alone_is_refused(database: Database, how: str, tmp_path: Path) -> None:
    whole = database.having(ASIDE)
    for i, name in enumerate(sorted(whole.files)):
        (tmp_path / str(i)).mkdir()
        doors = whole.put(tmp_path / str(i) / "db")
        plant(doors.path / name, how, tmp_path / str(i) / "aside")
        refuses(doors, name)
        if not name.startswith(("prepare/", "quarantine/")):
            await will_not_open(doors, name)


@pytest.mark.parametrize("how", ["link", "link to nothing", "FIFO", "file", "group may write", "others may write"])
@pytest.mark.parametrize("name", DIRECTORIES)
async def test_what_is_no_directory_of_its_owner_alone_is_refused(
    database: Database, name: str, how: str, tmp_path: Path
) -> None:
    # With a torn tail, which would go to a quarantine.
    active = segment_name(2)
    doors = database.having({active: database.files[active] + b"torn"}).put(tmp_path / "db")
    held, aside = os.listdir(doors.path / name), tmp_path / "aside"
    if "may write" in how:
        (doors.path / name).chmod(0o720 if how == "group may write" else 0o702)
    else:
        (doors.path / name).rename(aside)
        if how == "FIFO":
            os.mkfifo(doors.path / name, 0o600)
        elif how == "file":
            (doors.path / name).touch(0o600)
        else:
            (doors.path / name).symlink_to(aside if how == "link" else tmp_path / "nothing")
    refuses(doors, name)
    await will_not_open(doors, name)
    assert "may write" in how or sorted(os.listdir(aside)) == sorted(held)


@pytest.mark.parametrize(
    "name",
    ["stranger", "identity.old", "index/0.idx", "quarantine/1.tail", f"index/{0:020}.seg", f"segments/{0:020}.seg~"],
)
def test_a_name_that_is_none_of_a_database_is_refused(database: Database, name: str, tmp_path: Path) -> None:
    for doors in (database.having({name: b""}).put(tmp_path / "db"), database.having({name: b""}).simulate(tmp_path)):
        with pytest.raises(Misconfigured, match=name):
            doors.verify()


@pytest.mark.parametrize("how", ["link", "FIFO", "directory"])
async def test_what_is_planted_where_files_are_prepared_is_not_followed(
    database: Database, how: str, tmp_path: Path
) -> None:
    doors, names = database.put(tmp_path / "db"), ("checkpoint", f"{3:020}.seg", "hashes")
    for name in names:
        doors.write({f"prepare/{name}": b"kept"})
        plant(doors.path / "prepare" / name, how, tmp_path / name)
    errors = await doors.answers(database.records)
    assert [error.exit_code for error in errors] == ([78] if how == "directory" else [])
    assert [(tmp_path / name).read_bytes() for name in names] == [b"kept"] * 3
