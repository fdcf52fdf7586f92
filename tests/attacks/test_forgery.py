"""Whoever knows the format and makes every check, chain and mark fit: what a master key notices, what only a receipt
does, and what nothing does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kimberlite import Corrupt, RolledBack
from tests.model.groups import (
    Group,
    decode_run,
    encode_group,
    encode_inner,
    encode_run,
    seal_text,
)
from tests.model.hashes import batch_digest, key_id, seal_key
from tests.model.records import Entry, Record, decode_plaintext, encode_plaintext, encode_record

from .databases import DERIVED, Database, Doors
from .forging import (
    Change,
    Placed,
    all_groups,
    forge,
    forge_behind,
    groups_of,
    header_of,
    identity_of,
    in_text,
    keys_of,
    with_run,
)
from .test_damage import is_at, site

SITES = [(segment, which) for segment in ("closed", "active") for which in ("first", "middle", "last")]


def later(group: Group) -> Group:
    return replace(group, timestamp=group.timestamp + 1)


def early(group: Group) -> Group:
    return replace(group, durable_upto=max(0, group.durable_upto - 1))


def other_ciphertext(group: Group) -> Group:
    """Its commitments are kept."""
    text = decode_run(group.runs[-1], "run").text
    return with_run(len(group.runs) - 1, text=text[:-40] + bytes(8) + text[-32:])(group)


def other_commitments(group: Group) -> Group:
    told = decode_run(group.runs[-1], "run").commitments
    return with_run(len(group.runs) - 1, commitments=told[::-1])(group)


def other_payload(group: Group) -> Group:
    return in_text(len(group.runs) - 1, b"payload", b"PAYLOAD")(group)


def with_digests(identity: bytes, change: Change) -> Change:
    """Whoever forges a plain run makes the digests of its producers anew: their key is no secret."""

    def made(group: Group) -> Group:
        changed = change(group)
        run = decode_run(changed.runs[-1], "run")
        entries, _, canonicals = decode_plaintext(run.text, run.records, "run")
        text, at = [], 0
        for entry in entries:
            sender, own = entry.producer, canonicals[at : at + entry.records]
            sender = sender and replace(sender, digest=batch_digest(identity, own))
            text.append(replace(entry, producer=sender))
            at += entry.records
        return with_run(len(changed.runs) - 1, text=encode_plaintext(text, canonicals))(changed)

    return made


def plain_run(group: Group) -> Group:
    """In the place of an encrypted one."""
    run = decode_run(group.runs[-1], "run")
    text = encode_plaintext([Entry(run.records, True)], [encode_record(Record(b"forged"))] * run.records)
    plain = {"encrypted": False, "ends": False, "key_id": bytes(16), "nonce": b"", "commitments": (), "seed": bytes(32)}
    return with_run(len(group.runs) - 1, **plain, text=text, plain_length=len(text))(group)


#: Whether somebody without the key sees them by a receipt is whether they are in the tree.
TAGGED: dict[str, tuple[Change, bool]] = {
    "timestamp": (later, True),
    "watermark": (early, False),
    "ciphertext": (other_ciphertext, False),
    "commitments": (other_commitments, True),
}


async def is_refused_at(doors: Doors, placed: Placed, match: str | None = None) -> None:
    with pytest.raises(Corrupt, match=match) as damaged:
        doors.verify()
    assert is_at(damaged.value, placed), damaged.value
    for read_only in (False, True):
        with pytest.raises(Corrupt, match=match) as damaged:
            await doors.open(read_only=read_only)
        assert is_at(damaged.value, placed), damaged.value


@pytest.mark.parametrize(("segment", "which"), SITES)
@pytest.mark.parametrize("lie", TAGGED)
async def test_a_forged_history_does_not_have_the_tags_of_the_group_key(
    encrypted: Database, lie: str, segment: str, which: str, tmp_path: Path
) -> None:
    change, in_tree = TAGGED[lie]
    target, _ = site(encrypted, segment, which)
    forged = forge(encrypted, target.group.number, change)
    if which == "middle":
        await is_refused_at(forged.put(tmp_path / "db"), target, "tag")
    doors = forged.simulate(tmp_path)
    await is_refused_at(doors, target, "tag")
    assert doors.audit().records == len(encrypted.records)
    if in_tree:
        with pytest.raises(RolledBack, match="root"):
            doors.audit(encrypted.receipts[-1])


@pytest.mark.parametrize(("segment", "which"), SITES)
async def test_a_forged_plain_history_is_noticed_by_a_newer_receipt_and_by_nothing_else(
    plain: Database, segment: str, which: str, tmp_path: Path
) -> None:
    target, _ = site(plain, segment, which)
    forged = forge(plain, target.group.number, with_digests(identity_of(plain).hash(), other_payload))
    before = [receipt for receipt in plain.receipts if receipt.group < target.group.number]
    after = [receipt for receipt in plain.receipts if receipt.group >= target.group.number]
    for doors in (forged.put(tmp_path / "db"), forged.simulate(tmp_path)):
        assert doors.verify().records == len(plain.records)
        for receipt in after:
            with pytest.raises(RolledBack, match="root"):
                doors.verify(receipt)
        for receipt in before[-1:]:
            doors.verify(receipt)
        for read_only in (True, False):
            with pytest.raises(RolledBack, match="root"):
                await doors.open(after[-1], read_only=read_only)
        async with await doors.open() as db:
            assert (await db.get(target.group.position + target.group.records - 3)).payload.startswith(b"PAYLOAD")


async def test_a_plain_batch_that_is_not_what_its_producer_said_is_refused(plain: Database, tmp_path: Path) -> None:
    target, _ = site(plain, "closed", "middle")
    forged = forge(plain, target.group.number, other_payload)
    await is_refused_at(forged.put(tmp_path / "db"), target, "digest")


async def test_groups_forged_behind_the_tail_do_not_have_a_tag(encrypted: Database, tmp_path: Path) -> None:
    forged = forge_behind(encrypted, other_ciphertext)
    placed = list(groups_of(forged, 2))[-1]
    assert placed.group.number == 20
    for doors in (forged.put(tmp_path / "db"), forged.simulate(tmp_path)):
        await is_refused_at(doors, placed, "tag")


async def test_plain_groups_forged_behind_the_tail_are_noticed_by_nothing(plain: Database, tmp_path: Path) -> None:
    doors = forge_behind(plain, with_digests(identity_of(plain).hash(), other_payload)).put(tmp_path / "db")
    assert doors.verify(plain.receipts[-1]).records == len(plain.records) + 3
    async with await doors.open(plain.receipts[-1]) as db:
        assert (await db.get(len(plain.records))).payload.startswith(b"PAYLOAD")


async def test_what_is_forged_behind_the_tail_without_a_mark_is_put_aside(encrypted: Database, tmp_path: Path) -> None:
    doors = forge_behind(encrypted, other_ciphertext).having({"marks": encrypted.files["marks"]}).put(tmp_path / "db")
    with pytest.raises(Corrupt, match="closed cleanly"):
        doors.verify()
    for read_only in (True, False):
        assert await doors.answers(encrypted.records, read_only=read_only) == []
    assert any(name.startswith("quarantine/") for name in doors.files())
    assert doors.verify(encrypted.receipts[-1]).records == len(encrypted.records)


@pytest.mark.parametrize(("segment", "which"), SITES)
async def test_a_plain_run_in_an_encrypted_stream_is_refused_whoever_has_made_it(
    encrypted: Database, segment: str, which: str, tmp_path: Path
) -> None:
    target, _ = site(encrypted, segment, which)
    for group_key in (None, keys_of(encrypted)[0]):
        doors = forge(encrypted, target.group.number, plain_run, group_key=group_key).simulate(tmp_path)
        if group_key is None:
            await is_refused_at(doors, target, "tag")
        for check in (doors.verify, doors.audit):
            with pytest.raises(Corrupt) as refused:
                check()
            assert refused.value.file == target.name


def resealed(database: Database, target: Placed) -> Change:
    """Another payload under the real data key, with the commitments of the old one."""
    _, data_keys = keys_of(database)
    run = decode_run(target.group.runs[-1], "run")
    [key] = [key for key in data_keys.values() if key_id(key) == run.key_id]
    text = encode_plaintext([Entry(run.records, True)], [encode_record(Record(b"forged" * 230))] * run.records)
    inner = encode_inner(text, 128, compress=False)
    return lambda group: replace(
        group,
        runs=(
            *group.runs[:-1],
            encode_run(replace(run, text=seal_text(run, inner, seal_key(key), header_of(database, 0).database))),
        ),
    )


@pytest.mark.parametrize(("segment", "which"), SITES)
async def test_verify_with_keys_holds_ciphertext_against_its_commitments(
    encrypted: Database, segment: str, which: str, tmp_path: Path
) -> None:
    """Even against somebody who has the group key, or all keys."""
    target, _ = site(encrypted, segment, which)
    group_key, _ = keys_of(encrypted)
    for change, match in ((other_ciphertext, "open"), (resealed(encrypted, target), "commitment")):
        doors = forge(encrypted, target.group.number, change, group_key=group_key).simulate(tmp_path)
        with pytest.raises(Corrupt, match=match) as refused:
            doors.verify()
        assert refused.value.file == target.name
        assert doors.audit().records == len(encrypted.records)


@pytest.mark.parametrize(("number", "old"), [(1, b"orders"), (2, b"events")])
async def test_a_renamed_stream_is_another_stream(database: Database, number: int, old: bytes, tmp_path: Path) -> None:
    target = all_groups(database)[number - 1]
    forged = forge(database, number, in_text(0, old, old.upper()))
    doors = forged.put(tmp_path / "db")
    if database.master is not None:
        await is_refused_at(doors, target, "tag")
    assert doors.audit().records == len(database.records)
    with pytest.raises(RolledBack, match="root"):
        doors.audit(database.receipts[-1])
    data = database.files[target.name]
    assert data.count(old) == 1
    renamed = database.having({target.name: data.replace(old, old.upper())}).without(*DERIVED)
    await is_refused_at(renamed.simulate(tmp_path), target)


@pytest.mark.parametrize(("segment", "which"), SITES)
async def test_a_renumbered_stream_is_refused(database: Database, segment: str, which: str, tmp_path: Path) -> None:
    """The records of one stream are said to be another's, who has other offsets or, by chance, the same one."""
    target, _ = site(database, segment, which)
    number = decode_run(target.group.runs[-1], "run").stream
    doors = forge(database, target.group.number, with_run(len(target.group.runs) - 1, stream=3 - number)).simulate(
        tmp_path
    )
    if database.master is not None:
        await is_refused_at(doors, target, "tag")
    with pytest.raises((Corrupt, RolledBack), match=r"offset|root"):
        doors.audit(database.receipts[-1])


def rechecked(database: Database, target: Placed, change: Change) -> Database:
    """Only the checks of this group are made to fit; its chain, tag and what is derived stay as they were."""
    data, salt = database.files[target.name], header_of(database, target.segment).salt
    group = change(target.group)
    kept = len(target.group.chain(tagged=False)) + len(target.tag or b"")
    chain = data[target.place + target.length - kept : target.place + target.length]
    forged = encode_group(group, target.place, salt, target.tag)[:-kept] + chain
    padded = forged.ljust(target.size, b"\0")
    return database.having({target.name: data[: target.place] + padded + data[target.end :]})


@pytest.mark.parametrize("which", ["first", "middle", "last"])
@pytest.mark.parametrize("read_only", [False, True])
async def test_a_change_before_the_checkpoint_with_every_check_made_anew_is_refused_by_get_and_verify(
    database: Database, which: str, read_only: bool, tmp_path: Path
) -> None:
    """A read in order trusts the checks: docs/security.md says so."""
    target, _ = site(database, "closed", which)
    changes = [later] if database.master is not None else [later, other_payload]
    for change in changes:
        doors = rechecked(database, target, change).simulate(tmp_path)
        with pytest.raises(Corrupt) as damaged:
            doors.verify()
        assert is_at(damaged.value, target)
        errors = await doors.answers(database.records, read_only=read_only, in_order=False)
        changed = 1 if change is other_payload else target.group.records
        assert [type(error) for error in errors] == [Corrupt] * changed


def test_the_documentation_says_what_a_read_in_order_does_not_notice() -> None:
    text = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    assert "by `verify`, but not by a read in order" in " ".join(text.split())


async def test_one_forged_group_in_a_true_chain_is_refused_at_the_next_link(database: Database, tmp_path: Path) -> None:
    """Behind the last one that is the mark."""
    for segment, which in SITES:
        target, _ = site(database, segment, which)
        forged, ours = forge(database, target.group.number, later).files[target.name], database.files[target.name]
        one = ours[: target.place] + forged[target.place : target.end] + ours[target.end :]
        doors = database.having({target.name: one}).without("checkpoint").simulate(tmp_path)
        after = next((p for p in all_groups(database) if p.group.number == target.group.number + 1), None)
        with pytest.raises(Corrupt) as damaged:
            doors.audit()
        where = (damaged.value.file, damaged.value.place, damaged.value.group)
        assert where == (("marks", None, 19) if after is None else (after.name, after.place, after.group.number))
        for read_only in (True, False):
            with pytest.raises(Corrupt):
                await doors.open(read_only=read_only)


@pytest.mark.parametrize(("segment", "which"), SITES)
async def test_a_contradiction_under_sound_checks_is_refused_at_its_group(
    encrypted: Database, segment: str, which: str, tmp_path: Path
) -> None:
    """Made by somebody with the group key; of the others a plain one can be made by anybody."""
    target, _ = site(encrypted, segment, which)
    group_key, _ = keys_of(encrypted)
    for change in (plain_run, resealed(encrypted, target), with_run(len(target.group.runs) - 1, stream=9)):
        doors = forge(encrypted, target.group.number, change, group_key=group_key).simulate(tmp_path)
        await is_refused_at(doors, target)
