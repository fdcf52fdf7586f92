"""What whoever holds the disk can do by the format alone: take segments apart and put them together again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from tests.model import Identity, Mark
from tests.model.cursor import up_to
from tests.model.files import decode_identity, decode_marks, decode_vault, encode_marks, segment_name, unwrap_slot
from tests.model.groups import (
    BLOCK,
    PACKED_BLOCK,
    Group,
    Packed,
    SegmentHeader,
    decode_group,
    decode_run,
    decode_segment_header,
    encode_group,
    encode_run,
    encode_segment_header,
)
from tests.model.hashes import group_tag

from .databases import DERIVED, Database, Files

Change = Callable[[Group], Group]


@dataclass(frozen=True)
class Placed:
    """A group, and where it is."""

    segment: int
    place: int
    #: Of its bytes with the zeros up to the next block.
    size: int
    group: Group
    tag: bytes | None

    @property
    def name(self) -> str:
        return segment_name(self.segment)

    @property
    def end(self) -> int:
        return self.place + self.size

    @property
    def length(self) -> int:
        """Without the zeros behind it."""
        return len(encode_group(self.group, self.place, bytes(32), self.tag))


def identity_of(database: Database) -> Identity:
    return decode_identity(database.files["identity"])


def header_of(database: Database, segment: int) -> SegmentHeader:
    name = segment_name(segment)
    return decode_segment_header(database.files[name][:BLOCK], name)


def step_of(header: SegmentHeader) -> int:
    return BLOCK if header.packed is None else PACKED_BLOCK


def groups_of(database: Database, segment: int) -> Iterator[Placed]:
    """Its groups, the closing one too."""
    name, salt = segment_name(segment), header_of(database, segment).salt
    data, place, step = database.files[name], BLOCK, step_of(header_of(database, segment))
    tagged = identity_of(database).tagged
    while any(data[place : place + 8]):
        group, tag = decode_group(data, place, salt, tagged=tagged, where=name)
        size = min(up_to(len(encode_group(group, place, salt, tag)), step), len(data) - place)
        yield Placed(segment, place, size, group, tag)
        place += size


def all_groups(database: Database) -> list[Placed]:
    return [placed for segment in range(len(database.segments)) for placed in groups_of(database, segment)]


def marked(database: Database, number: int, chain: bytes, *, clean: bool = True) -> bytes:
    """Two marks that say that this group is the last one. Their check is no secret."""
    identity = identity_of(database)
    marks, _ = decode_marks(database.files["marks"], identity)
    counter = marks[-1].counter + 1
    return encode_marks(Mark(counter, 0, number, chain, clean), Mark(counter + 1, 0, number, chain, clean), identity)


def rewritten(database: Database, change: Callable[[list[Group]], list[Group]], group_key: bytes | None) -> Files:
    """Segments and marks with changed groups, every check and the whole chain made to fit. A tag fits only with
    the group key: without one it is what stood there, or zeros behind the old end."""
    old = all_groups(database)
    groups = change([placed.group for placed in old])
    tags = [placed.tag for placed in old] + [bytes(16)] * len(groups)
    tagged, files = identity_of(database).tagged, dict(database.files)
    headers = [header_of(database, segment) for segment in range(len(database.segments))]
    number, position, chain = 0, 0, identity_of(database).hash()
    for header in headers:
        header = replace(header, first_group=number + 1, first_position=position, chain_before=chain)
        data, chain = encode_segment_header(header), header.chain()
        ends = sum(later.first_group > header.first_group for later in headers)
        while number < len(groups):
            group = replace(groups[number], previous=chain)
            chain, tag = group.chain(tagged), tags[number] if tagged else None
            if tagged and group_key is not None:
                tag = group_tag(group_key, chain)
            data = data.ljust(up_to(len(data), step_of(header)), b"\0")
            data += encode_group(group, len(data), header.salt, tag)
            number, position = number + 1, group.position + group.records
            if group.closing and ends:
                break
        if header.packed is None:
            data = data.ljust(up_to(len(data), BLOCK), b"\0")
        else:
            header = replace(header, packed=Packed(len(data), number, chain))
            data = encode_segment_header(header) + data[BLOCK:]
        files[segment_name(header.number)] = data
    files["marks"] = marked(database, number, chain)
    return files


def forge(database: Database, number: int, change: Change, *, group_key: bytes | None = None) -> Database:
    """One group says something else, and everything after it agrees. What is derived is deleted."""

    def change_one(groups: list[Group]) -> list[Group]:
        return [change(group) if group.number == number else group for group in groups]

    return database.having(rewritten(database, change_one, group_key)).without(*DERIVED)


def forge_behind(database: Database, change: Change, *, group_key: bytes | None = None) -> Database:
    """A changed copy of the last group stands behind it, as the next one."""

    def add(groups: list[Group]) -> list[Group]:
        last = groups[-1]
        moved = replace(last, number=last.number + 1, position=last.position + last.records, durable_upto=last.number)
        runs, position = [], moved.position
        for data in last.runs:
            run = decode_run(data, "run")
            runs.append(encode_run(replace(run, offset=run.offset + run.records, position=position)))
            position += run.records
        return [*groups, change(replace(moved, runs=tuple(runs)))]

    return database.having(rewritten(database, add, group_key)).without(*DERIVED)


def with_run(index: int, **fields: Any) -> Change:
    """A group whose run of this index has these fields."""

    def change(group: Group) -> Group:
        runs = list(group.runs)
        runs[index] = encode_run(replace(decode_run(runs[index], "run"), **fields))
        return replace(group, runs=tuple(runs))

    return change


def in_text(index: int, old: bytes, new: bytes) -> Change:
    """A group in whose run these bytes of the text are others."""

    def change(group: Group) -> Group:
        text = decode_run(group.runs[index], "run").text
        assert old in text
        return with_run(index, text=text.replace(old, new, 1))(group)

    return change


def keys_of(database: Database) -> tuple[bytes, dict[bytes, bytes]]:
    """The group key, and the data keys by the hash of the declaration they are bound to: for the master key's owner."""
    assert database.master is not None
    identity = identity_of(database)
    _, slots, _ = decode_vault([("vault.0", database.files["vault.0"])], identity)
    opened = [unwrap_slot(slot, database.master, identity, "vault") for slot in slots]
    return opened[0], {slot.declared: key for slot, key in zip(slots[2:], opened[2:], strict=True)}
