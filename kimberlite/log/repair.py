"""`kimberlite repair`: a database that is refused as damaged can be written again, without what is behind the damage.

    repair: what is to be done → fsync
    → segments behind it to quarantine/ → the end of the damaged one, too → fsync
    → no checkpoint → marks with a raised incarnation → fsync
    → opened as ever → a record that says what was given up → durable → a mark that covers it → repair unlinked

What is to be done is durable before any of it is, and no start is permitted until all of it is: done again after a
crash, it comes to the same. Nothing is deleted.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from struct import Struct, error
from typing import Any, Final, NamedTuple, Self

from kimberlite import _native
from kimberlite.crypto.master import load_master
from kimberlite.errors import Busy, Corrupt, Invalid, KeyUnavailable
from kimberlite.log.creation import (
    check_kinds,
    discard,
    discard_prepared,
    prepare,
    put_in_place,
    read_small,
    replace,
    write_small,
)
from kimberlite.log.identity import Identity
from kimberlite.log.loading import Keys, load_identity, load_keys, load_marks, new_log
from kimberlite.log.log import Log
from kimberlite.log.marks import INCARNATIONS, Mark, Marks, encode_mark
from kimberlite.log.names import (
    CHECKPOINT,
    INDEX,
    MARKS,
    PREPARE,
    QUARANTINE,
    REPAIR,
    SEGMENTS,
    index_name,
    quarantine_name,
    segment_name,
    segment_number,
)
from kimberlite.log.opening import Injected, Opener, checked_path
from kimberlite.log.options import Options
from kimberlite.log.recovery import Loader
from kimberlite.log.refusals import UNFIT_TO_WRITE, translate
from kimberlite.log.reserve import all_room, anyhow, give_reserve
from kimberlite.log.salvage import Ended, Finder
from kimberlite.log.settling import set_aside_as
from kimberlite.storage import BLOCK, Backend, File, open_backend
from kimberlite.storage.backend import read_around, written

MAGIC: Final = b"KIMBRPR1"
#: Magic, database id, and a `Plan`.
LAYOUT: Final = Struct("<8s16sQQQ32sQ32sQIIQQ")
CHECK: Final = 8
#: In front of a list, and of each of its payloads.
COUNT: Final = Struct("<I")
#: Of a record that says what was given up: kind, whether a salvage says it, and how many ranges of 16 bytes follow.
SAID: Final = Struct("<HB40xI")
REPAIRED: Final = 7
#: Where a segment's header has it.
SALT: Final = slice(88, 120)
#: Copied at a time.
PIECE: Final = 1 << 20
BEGUN: Final = "a repair was begun, and is not over"


class Plan(NamedTuple):
    """What is kept: up to a group, which ends at `place` of `segment`; and what the log is to say of the rest."""

    segment: int
    place: int
    closed: int
    #: Of the segment's file: another one is what was made of it.
    salt: bytes
    group: int
    chain: bytes
    when: int
    before: int
    after: int
    #: Positions: records that are kept, and where those that are given up ended, as far as anybody knows.
    position: int
    end: int
    #: What records say that are given up of what was given up before.
    earlier: tuple[bytes, ...] = ()

    def encode(self, identity: Identity) -> bytes:
        *fields, earlier = self
        sized = (COUNT.pack(len(payload)) + payload for payload in earlier)
        data = LAYOUT.pack(MAGIC, identity.database_id, *fields) + COUNT.pack(len(earlier)) + b"".join(sized)
        return data + _native.blake3(data, identity.hash)[:CHECK]

    @classmethod
    def decode(cls, data: bytes, identity: Identity) -> Self:
        body, check = data[:-CHECK], data[-CHECK:]
        if _native.blake3(body, identity.hash)[:CHECK] != check or not body.startswith(MAGIC + identity.database_id):
            raise Corrupt("it is damaged: salvage what is left", file=REPAIR)
        try:
            _, _, *fields = LAYOUT.unpack_from(body)
            plan = cls._make([*fields, tuple(payloads_in(body[LAYOUT.size :]))])
        except error:
            raise unfit() from None
        if plan.after != plan.before + 1 or not plan.position <= plan.end <= _native.HIGHEST >= plan.when:
            raise unfit()
        return plan

    def payloads(self, database_id: bytes) -> list[bytes]:
        """Of the records that the log goes on with."""
        said = _native.encode_repair(
            database_id,
            salvaged=False,
            when=self.when,
            before=self.before,
            after=self.after,
            kept=self.position,
            lost=[(self.position, self.end)],
        )
        return [said, *self.earlier]


def payloads_in(data: bytes) -> Iterator[bytes]:
    """Of records of what was given up, and of no others."""
    (count,), place = COUNT.unpack_from(data), COUNT.size
    for _ in range(count):
        (length,) = COUNT.unpack_from(data, place)
        payload = data[place + COUNT.size : place + COUNT.size + length]
        kind, salvaged, ranges = SAID.unpack_from(payload)
        if (kind, length) != (REPAIRED, SAID.size + 16 * ranges) or salvaged > 1:
            raise unfit()
        yield payload
        place += COUNT.size + length
    if place != len(data):
        raise unfit()


class Loss(NamedTuple):
    """What a repair gives up, for whoever has to agree to it."""

    plan: Plan
    #: What is wrong.
    why: str
    #: Groups behind the last that is kept that are known to have been durable; records of streams among those behind it
    #: that a salvage would still save; and segments that go to quarantine.
    groups: int
    records: int
    files: list[str]
    #: Of these groups, the last included, nobody knows which positions they had.
    unknown: tuple[int, int] | None = None


def look(
    backend: Backend, identity: Identity, keys: Keys, master: bytes | None, clock: Callable[[], int]
) -> Loss | None:
    """What a repair would do, or goes on with; None if nothing is wrong. Nothing is changed."""
    notes: list[str] = []
    try:
        marks = load_marks(backend, identity, repairing=True)
    except Corrupt as lost:
        notes.append(str(lost))
        marks = no_marks(identity)
    begun = read_small(backend, REPAIR)
    if begun is not None:
        return resumed(backend, identity, keys, master, marks, Plan.decode(begun, identity))
    loader = Loader(backend, identity, keys, marks, fresh(identity, keys), write=True)
    damage = replay(loader)
    # Behind one that is missing, or in front of it what retention has left.
    for last in ends(backend)[-2::-1] if damage is not None else ():
        if loader.reached is None:
            loader.start_again()
            loader = Front(last, backend, identity, keys, marks, fresh(identity, keys), write=True)
            replay(loader)
    log = loader.log
    notes += [str(damage)] if damage is not None else ahead(backend, log)
    if not notes:
        # It is no damage of the log, and no repair brings it back.
        keys.check(log)
        return None
    if loader.reached is None or log.is_beginning:
        raise nothing(notes[0])
    segment, place, closed = loader.reached
    left = look_behind(backend, master, keys, log, segment, notes[0])
    before = max(marks.newest.incarnation, log.incarnation, left.incarnation)
    if before + 1 == INCARNATIONS:
        what = f"no incarnation is above {before}, by which a repair could be told; salvage what is left"
        raise Corrupt(f"{what}: {notes[0]}", file=MARKS)
    (group, chain), position = log.durable_group(), log.sealed()[1]
    salt, end = salt_of(backend, segment), max(position, left.ended.position)
    fixed = (segment, place, closed, salt, group, chain, clock(), before, before + 1, position, end)
    plan = Plan(*fixed, earlier=left.earlier)
    return loss(backend, plan, "; ".join(notes), left)


def resumed(backend: Backend, identity: Identity, keys: Keys, master: bytes | None, marks: Marks, plan: Plan) -> Loss:
    """What a repair that was begun goes on with; Corrupt if it is none of the log that is here."""
    loader = Kept(plan, backend, identity, keys, marks, fresh(identity, keys))
    replay(loader)
    if not fits(backend, plan, marks, loader):
        raise unfit()
    if marks.newest.incarnation < plan.after:
        left = look_behind(backend, master, keys, loader.log, plan.segment, BEGUN)
        return loss(backend, plan, BEGUN, left)
    # Nothing is left to be given up: behind what was kept there is only the record of that, if anything.
    whole = Loader(backend, identity, keys, marks, fresh(identity, keys), write=True)
    whole.run()
    lost = [(plan.position, plan.end)]
    said = (plan.position, False, identity.database_id, plan.when, plan.before, plan.after, plan.position, lost, False)
    if whole.log.durable > plan.position and said not in whole.log.repairs():
        raise unfit()
    return Loss(plan, BEGUN, 0, 0, [])


class Left(NamedTuple):
    """What is known of what is given up: records of streams that a salvage would save, how far the log had come."""

    records: int
    ended: Ended
    incarnation: int
    #: What its records say of what was given up before.
    earlier: tuple[bytes, ...]


def look_behind(backend: Backend, master: bytes | None, keys: Keys, log: _native.Log, segment: int, why: str) -> Left:
    """Refused if something is behind this log that must not be given up, or may be."""
    position = log.sealed()[1]
    finder = Finder(backend, master)
    try:
        records, ended = finder.behind(position), finder.ended()
        if finder.dropped > position:
            # It is what a rule of retention has dropped.
            raise nothing(why)
        if finder.dropped > log.first:
            what = "that segments were dropped is said behind the damage, and they must not come back"
            raise Corrupt(f"{what}; salvage what is left: {why}", file=segment_name(segment))
        if finder.erased - {number for number, *_ in log.erasures}:
            what = "an erasure is behind the damage, and must not be given up; salvage what is left"
            raise Corrupt(f"{what}: {why}", file=segment_name(segment))
        try:
            keys.check(log)
        except KeyUnavailable as error:
            what = "what was erased behind the damage must not be given up: put the vault back, or salvage what is left"
            raise KeyUnavailable(f"{error}; {what}: {why}") from None
    finally:
        finder.close()
    return Left(records, ended, finder.incarnation, tuple(finder.earlier(position)))


def loss(backend: Backend, plan: Plan, why: str, left: Left) -> Loss:
    ended, group = left.ended, plan.group
    known, last = max(group, ended.group), max(ended.group, ended.durable)
    unknown = (known + 1, last) if last > known else None
    return Loss(plan, why, max(0, last - group), left.records, behind(backend, plan), unknown)


def nothing(why: str) -> Corrupt:
    return Corrupt(f"nothing in front of the damage can be kept; salvage what is left: {why}", file=SEGMENTS)


def unfit() -> Corrupt:
    what = "it is not what a repair of the log that is here has to do"
    return Corrupt(f"{what}: if nobody has begun one, delete it; else salvage what is left", file=REPAIR)


def enter(backend: Backend, master: bytes | None, random: Callable[[int], bytes]) -> tuple[Identity, Keys]:
    try:
        backend.lock_directory()
    except BlockingIOError:
        raise Busy("a writer has the database open") from None
    check_kinds(backend)
    # A repair that was killed when it was over may have left it to the kernel that its file is gone.
    backend.sync_directory()
    identity = load_identity(backend)
    if identity is None:
        raise Invalid("there is no database here")
    return identity, load_keys(backend, identity, master, random, read_only=False)


def no_marks(identity: Identity) -> Marks:
    return Marks(Mark(1, 0, False, 0, identity.hash), (0, 1))


class Front(Loader):
    """Follows the segments up to this one, behind which one is missing."""

    def __init__(self, last: int, *arguments: Any, **flags: Any) -> None:
        super().__init__(*arguments, **flags)
        self._last = last

    def there(self) -> list[int]:
        numbers = [number for number in all_numbers(self.backend) if number <= self._last]
        return [number for i, number in enumerate(numbers) if number == self._last - (len(numbers) - 1 - i)]


class Kept(Front):
    """Follows the log to the last group that a repair keeps which was begun."""

    def __init__(
        self,
        plan: Plan,
        backend: Backend,
        identity: Identity,
        keys: Keys,
        marks: Marks,
        fresh: Callable[[], _native.Log],
    ) -> None:
        super().__init__(plan.segment, backend, identity, keys, marks, fresh, write=False)
        self._plan = plan

    def watermark_of(self, segment: _native.Segment, scan: File, place: int) -> int:
        return self._plan.group


def fresh(identity: Identity, keys: Keys) -> Callable[[], _native.Log]:
    return lambda: new_log(identity, keys, Options(), None)


def replay(loader: Loader) -> Corrupt | None:
    """What is wrong behind what was replayed."""
    try:
        loader.run()
    except Corrupt as damage:
        return damage
    return None


def fits(backend: Backend, plan: Plan, marks: Marks, loader: Loader) -> bool:
    """Whether what was to be kept is there, up to its last group."""
    log, incarnation = loader.log, marks.newest.incarnation
    if loader.reached is None or loader.reached[0] != plan.segment or log.is_beginning:
        return False
    there = loader.reached == (plan.segment, plan.place, plan.closed)
    if salt_of(backend, plan.segment) != plan.salt:
        # Of a packed one another file was made, with room behind its groups.
        there = not plan.closed and backend.exists(cut_off(plan))
    risen = log.incarnation <= plan.before and (incarnation <= plan.before or incarnation == plan.after)
    end = (*log.durable_group(), log.sealed()[1])
    return there and risen and end == (plan.group, plan.chain, plan.position)


def all_numbers(backend: Backend) -> list[int]:
    found = (segment_number(name) for name in backend.list(SEGMENTS))
    return sorted(number for number in found if number is not None)


def ends(backend: Backend) -> list[int]:
    """Segments behind which one is missing, and the last."""
    numbers = all_numbers(backend)
    there = set(numbers)
    return [number for number in numbers if number + 1 not in there]


def ahead(backend: Backend, log: _native.Log) -> list[str]:
    """What a checkpoint has seen of the log and is not there."""
    data = read_small(backend, CHECKPOINT)
    resume = None if data is None else log.resume(data)
    group = log.sealed()[0] - 1
    if resume is None or resume.group <= group:
        return []
    return [f"the log ends at group {group}, and there is a checkpoint of group {resume.group}"]


def behind(backend: Backend, plan: Plan) -> list[str]:
    return [segment_name(number) for number in all_numbers(backend) if number > plan.segment]


def begin(backend: Backend, identity: Identity, keys: Keys, plan: Plan, random: Callable[[int], bytes]) -> None:
    """From here on nobody opens it until the repair is over. If the disk has no room for that, all stays as it is."""
    # What is empty may not have been copied.
    for directory in (INDEX, PREPARE, QUARANTINE):
        backend.mkdir(directory)
    discard_prepared(backend)
    if backend.exists(REPAIR):
        return
    there = copied(backend, plan)
    try:
        if there is None:
            set_aside(backend, plan)
        if (fill := unpacking(backend, identity, keys, plan, random)) is not None:
            # Only to see that there is room.
            backend.unlink(prepare(backend, segment_name(plan.segment), fill))
        write_small(backend, REPAIR, plan.encode(identity))
    except OSError:
        if there is None:
            with suppress(OSError):
                discard(backend, cut_off(plan))
        raise


def cut_off(plan: Plan) -> str:
    """The file of what is behind the damage in its segment."""
    return quarantine_name(plan.segment, plan.place, plan.when)


def copied(backend: Backend, plan: Plan) -> str | None:
    """What of `quarantine/` it is in already: one that was killed before it had begun has left it."""
    file = backend.open(segment_name(plan.segment), "r")
    try:
        return set_aside_as(backend, file, plan.segment, plan.place, file.size())
    finally:
        file.close()


def set_aside(backend: Backend, plan: Plan) -> None:
    if (name := copied(backend, plan)) is not None:
        put_in_place(backend, name, cut_off(plan))
        return
    file = backend.open(segment_name(plan.segment), "r")
    try:
        replace(backend, cut_off(plan), lambda target: copy(file, target, plan.place))
    finally:
        file.close()


def cut(backend: Backend, identity: Identity, keys: Keys, plan: Plan, random: Callable[[int], bytes]) -> None:
    """Everything up to the marks, which say that it is done."""
    try:
        marks = load_marks(backend, identity, repairing=True)
    except Corrupt:
        marks = no_marks(identity)
    if marks.newest.incarnation >= plan.after:
        return
    for name in reversed(behind(backend, plan)):
        number = int(name[-24:-4])
        backend.rename(name, quarantine_name(number, 0, plan.when))
        discard(backend, index_name(number))
    backend.sync_directory(QUARANTINE)
    backend.sync_directory(SEGMENTS)
    cut_segment(backend, identity, keys, plan, random)
    discard(backend, index_name(plan.segment))
    backend.sync_directory(INDEX)
    discard(backend, CHECKPOINT)
    backend.sync_directory()
    # As of a new file: what the counters were before may be made up.
    blocks = [Mark(counter, plan.after, False, plan.group, plan.chain) for counter in (0, 1)]
    data = b"".join(encode_mark(mark, identity.database_id, identity.hash) for mark in blocks)
    anyhow(lambda: write_small(backend, MARKS, data), *all_room(backend))


def cut_segment(backend: Backend, identity: Identity, keys: Keys, plan: Plan, random: Callable[[int], bytes]) -> None:
    name = segment_name(plan.segment)
    file = backend.open(name, "w")
    try:
        header = read_around(file, 0, BLOCK)
        if header[SALT] != plan.salt:
            return
        if not backend.exists(cut_off(plan)):
            set_aside(backend, plan)
        if (fill := unpacking(backend, identity, keys, plan, random)) is not None:
            anyhow(lambda: replace(backend, name, fill), *all_room(backend))
            return
        if file.size() > plan.place:
            file.truncate(plan.place)
        file.sync()
    finally:
        file.close()


def unpacking(
    backend: Backend, identity: Identity, keys: Keys, plan: Plan, random: Callable[[int], bytes]
) -> Callable[[File], None] | None:
    """Fills a file with the groups of a packed segment that the log goes on in; None if it is none."""
    log = new_log(identity, keys, Options(), None)

    def fill(target: File) -> None:
        file = backend.open(segment_name(plan.segment), "r")
        try:
            unpack(log.unpacking(read_around(file, 0, BLOCK), random(32)), file, target, plan.place)
        finally:
            file.close()

    file = backend.open(segment_name(plan.segment), "r")
    try:
        return None if plan.closed or not is_packed(read_around(file, 0, BLOCK)) else fill
    finally:
        file.close()


def salt_of(backend: Backend, segment: int) -> bytes:
    file = backend.open(segment_name(segment), "r")
    try:
        return read_around(file, 0, BLOCK)[SALT]
    finally:
        file.close()


def is_packed(header: bytes) -> bool:
    return header[10:12] == b"\1\0"


def copy(source: File, target: File, start: int) -> None:
    size = source.size()
    for place, length in written(source, start, size, PIECE):
        target.write(place - start, read_around(source, place, length))
    target.truncate(max(0, size - start))


def unpack(packing: _native.Packing, source: File, target: File, upto: int) -> None:
    """The groups of a packed segment that are kept, with room for those that are to follow them."""
    place, end, data, stop = BLOCK, BLOCK, b"", "more"
    while stop == "more" and place + len(data) < upto:
        data += read_around(source, place + len(data), min(PIECE, upto - place - len(data)))
        out, (after, stop, _, what) = packing.take(place, data)
        if stop == "bad":
            raise Corrupt(what, file=source.name, place=after)
        target.write(end, out)
        end += len(out)
        place, data = after, data[after - place :]
    target.write(0, packing.header)
    target.truncate(-(-end // BLOCK) * BLOCK)


async def finish(backend: Backend, master: bytes | None, plan: Plan, options: Options, injected: Injected) -> None:
    """Opens it as ever, and lets the log say what was given up."""
    opener = Opener(backend, master, options, injected, read_only=False, anchor=None, repairing=True, last=True)
    async with await opener.open(create=False, origin=None, or_read=False) as log:
        payloads = plan.payloads(bytes.fromhex((await log.info())["database_id"]))
        committer, _ = log._writer()
        if left := payloads[await said(log, plan.position, payloads) :]:
            await committer.say_anyhow(left, lambda: give_reserve(backend, log._native, 0))
        # Without a mark of them whoever is killed from here on leaves a repair that readers do not know of.
        if not await committer.mark(committer.durable):
            committer.check()
        backend.unlink(REPAIR)
        backend.sync_directory()


async def said(log: Log, position: int, payloads: list[bytes]) -> int:
    """How many of them stand behind what was kept."""
    count = 0
    while count < min(len(payloads), log._native.durable - position):
        if (await log.get(position + count)).payload != payloads[count]:
            break
        count += 1
    return count


async def repair(
    backend_of: Callable[[], Backend],
    master: bytes | None,
    agree: Callable[[Loss], bool],
    options: Options,
    injected: Injected,
) -> Loss | None:
    """What was wrong; None if nothing is. It is repaired if whoever is asked agrees."""
    with closing(backend_of()) as backend:
        identity, keys = enter(backend, master, injected.random)
        loss = look(backend, identity, keys, master, injected.clock)
        # Who has interrupted it meanwhile agrees to nothing.
        await asyncio.sleep(0)
        # Locked while they are asked: what somebody appends meanwhile, to what was mended, nobody has agreed to lose.
        if loss is None or not agree(loss):
            return loss
        begin(backend, identity, keys, loss.plan, injected.random)
        cut(backend, identity, keys, loss.plan, injected.random)
    with closing(backend_of()) as backend:
        await finish(backend, master, loss.plan, options, injected)
    return loss


async def repair_directory(
    path: str | os.PathLike[str],
    agree: Callable[[Loss], bool],
    *,
    key_file: str | os.PathLike[str] | None = None,
) -> Loss | None:
    name, master = checked_path(path), load_master(key_file)
    try:
        return await repair(lambda: open_backend(name), master, agree, Options(), Injected())
    except OSError as error:
        raise translate(error, name, UNFIT_TO_WRITE) from error
