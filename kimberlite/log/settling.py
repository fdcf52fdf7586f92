"""What a writer does to a directory, once it knows where the log ends, before it goes on behind that."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Set
from typing import Final

from kimberlite import _native
from kimberlite.crypto.vault import SLOT, Vault
from kimberlite.errors import Busy, Corrupt
from kimberlite.log import creation
from kimberlite.log.description import size_of
from kimberlite.log.identity import Identity
from kimberlite.log.loading import Keys, segment_numbers
from kimberlite.log.marks import MADE_UP, Mark, encode_mark
from kimberlite.log.names import (
    MARKS,
    QUARANTINE,
    RECEIPT_KEY,
    VAULTS,
    index_name,
    prepared_name,
    quarantine_name,
    segment_name,
)
from kimberlite.log.options import Options
from kimberlite.log.recovery import Ended
from kimberlite.log.refusals import FULL
from kimberlite.log.reserve import KEPT, allocated, anyhow, give_reserve
from kimberlite.log.tail import LEAST_AHEAD, Prepared, Tail, install
from kimberlite.storage.backend import BLOCK, Backend, File, read_around, written

#: Compared at a time.
PIECE: Final = 1 << 20


def set_aside_as(backend: Backend, file: File, number: int, place: int, upto: int) -> str | None:
    """What of `quarantine/` has these bytes of a segment already, synced; None if nothing."""
    prefix = f"{number:020}-{place}-"
    for leaf in backend.list(QUARANTINE):
        if not leaf.startswith(prefix):
            continue
        name = f"{QUARANTINE}/{leaf}"
        copy = backend.open(name, "w")
        try:
            if copy.size() == upto - place and all(
                read_around(copy, at - place, length) == read_around(file, at, length)
                for at, length in (
                    *((at + place, length) for at, length in written(copy, 0, upto - place, PIECE)),
                    *written(file, place, upto, PIECE),
                )
            ):
                copy.sync()
                backend.sync_directory(QUARANTINE)
                return name
        finally:
            copy.close()
    return None


class Settler:
    """What was found becomes what is so: marked, cut off, healed, and gone on with."""

    def __init__(
        self, backend: Backend, options: Options, clock: Callable[[], int], notes: list[str], *, kept: int
    ) -> None:
        self._backend, self._options, self._clock = backend, options, clock
        #: Of `reserve`, bytes that this start leaves to others.
        self._kept = kept
        #: What is to be said of it.
        self._notes = notes

    def lock_marks(self) -> File:
        """A mark that a killed writer had in flight lands before this one reads any, and not on top of its own."""
        if not self._backend.exists(MARKS):
            raise Corrupt("it is missing", file=MARKS)
        file = self._backend.open(MARKS, "w")
        try:
            file.lock()
        except BlockingIOError:
            raise Busy(f"{MARKS} is still being written") from None
        return file

    def settle(self, log: _native.Log, newest: Mark, end: Ended, identity: Identity, file: File) -> Mark:
        """What was found is what is durable from now on: a mark says so before anybody reads it."""
        group, chain = log.durable_group()
        log.raise_incarnation(newest.incarnation)
        mark = Mark(newest.counter + 1, log.incarnation, False, group, chain)
        # A killed writer's last one may be only with the kernel, also of a clean close: both could be lost together.
        file.sync()
        marks = [mark]
        if mark.counter >= MADE_UP:
            # Made up, and counted anew: the second takes the place of the one that is the newest until then.
            marks = [mark._replace(counter=mark.counter % 2 + i) for i in (0, 1)]
        for mark in marks:
            file.write(mark.counter % 2 * BLOCK, encode_mark(mark, identity.database_id, identity.hash))
            file.sync()
        return mark

    def quarantine(self, log: _native.Log, end: Ended) -> None:
        """A torn tail nobody was promised is kept elsewhere, synced, before it is cut off."""
        if end.torn_upto is not None and end.file is not None and end.segment is not None:
            torn, number = end.torn_upto + 1, end.segment.number
            self._anyhow(log, lambda: self._quarantine(end, torn, number))

    def _quarantine(self, end: Ended, upto: int, number: int) -> None:
        assert end.file is not None
        if (there := set_aside_as(self._backend, end.file, number, end.place, upto)) is not None:
            # An earlier start was cut off behind this.
            self._notes.append(f"{segment_name(number)}: a torn tail at byte {end.place} is in {there}")
            return
        when = self._clock()
        while self._backend.exists(name := quarantine_name(number, end.place, when)):
            # An earlier start was cut off here, and the clock has not moved since.
            when += 1
        copy = self._backend.open(name, "x")
        try:
            for place, length in written(end.file, end.place, upto, 1 << 20):
                copy.write(place - end.place, end.file.read(place, length))
            copy.truncate(upto - end.place)
            copy.sync()
        except OSError:
            # Every start on a full disk would leave another piece.
            with contextlib.suppress(OSError):
                self._backend.unlink(name)
            raise
        finally:
            copy.close()
        self._backend.sync_directory(QUARANTINE)
        self._notes.append(f"{segment_name(number)}: a torn tail at byte {end.place} is in {name}")

    def heal(self, log: _native.Log, keys: Keys, *, lost: bool) -> None:
        """Writes anew the copies of the vault that are not what both are together, less what the log says was erased,
        and a receipt key that was lost."""
        if keys.vault is not None:
            gone = {(number, declared) for number, declared, *_ in log.erasures}
            for number, _ in gone:
                log.forget(number)
            keys.vault.erase(gone)
            blocks, full = keys.vault.dirty(), None
            for copy in sorted(keys.vault.stale):
                try:
                    self._renew(log, keys.vault, copy)
                except OSError as error:
                    if error.errno not in FULL:
                        raise
                    full = error
                    self._empty(keys.vault, gone, VAULTS[copy])
            # A key that is to be gone needs no room for that.
            for copy in sorted({0, 1} - keys.vault.stale):
                self._write(VAULTS[copy], blocks)
            # A copy's name may be only with the kernel, too.
            self._backend.sync_directory()
            if full is not None:
                raise full
        if lost:
            self._anyhow(log, lambda: creation.write_small(self._backend, RECEIPT_KEY, keys.receipt))

    def _renew(self, log: _native.Log, vault: Vault, copy: int) -> None:
        """On a full disk in its place, if the other copy is whole."""
        name, image = VAULTS[copy], vault.image()
        whole = self._backend.exists(name) and (copy == 1 or 1 not in vault.stale)
        try:
            creation.write_small(self._backend, name, image)
        except OSError as error:
            if error.errno not in FULL:
                raise
            if not whole:
                self._anyhow(log, lambda: creation.write_small(self._backend, name, image))
                return
            # The header last: until then it says nothing, or that it is older. What needs no room waits for none.
            there = max(BLOCK, min(size_of(self._backend, name) // BLOCK * BLOCK, len(image)))
            self._anyhow(log, lambda: self._write(name, [(BLOCK, image[BLOCK:there])]))
            self._anyhow(log, lambda: self._write(name, [(there, image[there:])], length=len(image)))
            self._anyhow(log, lambda: self._write(name, [(0, image[:BLOCK])]))

    def _empty(self, vault: Vault, gone: Set[tuple[int, bytes]], name: str) -> None:
        """The slots of what was erased, in a copy that stays what it is."""
        copy = creation.read_small(self._backend, name)
        if copy is not None:
            self._write(name, [(place, bytes(SLOT)) for place in vault.slots_of(gone, copy)])

    def _write(self, name: str, blocks: list[tuple[int, bytes]], *, length: int | None = None) -> None:
        """Synced also if nothing is to be written: what a killed writer wrote may be only with the kernel, and a key
        that is gone could come back."""
        file = self._backend.open(name, "w")
        try:
            for place, block in blocks:
                if block:
                    file.write(place, block)
            if length is not None:
                file.truncate(length)
            file.sync()
        finally:
            file.close()

    def go_on(self, log: _native.Log, end: Ended, *, clean: bool) -> tuple[_native.Segment, Tail]:
        """In the same segment after a clean close; in a new one otherwise."""
        options = self._options
        if end.segment is not None and end.file is not None:
            if clean and not end.closed:
                tail = Tail(self._backend, end.segment.number, end.file, end.place, options.segment_bytes)
                if not tail.full(BLOCK):
                    return end.segment, tail
            self._finish_segment(log, end)
        number = 0 if end.segment is None else end.segment.number + 1
        if self._backend.exists(segment_name(number)):
            self._backend.unlink(segment_name(number))
            self._backend.sync_directory("segments")
        file = self._backend.open(prepared_name(number), "x")
        file.lock()
        ready = min(LEAST_AHEAD, options.segment_bytes)
        if not allocated(file, 0, ready):
            # Nothing for appends: what makes room has `reserve`.
            ready = 2 * BLOCK
            self._anyhow(log, lambda: file.allocate(0, ready))
        prepared = Prepared(file, ready)
        header = log.next_segment_header(number)
        install(self._backend, prepared, number, header)
        return log.attach(header, file), Tail(self._backend, number, file, BLOCK, options.segment_bytes)

    def _finish_segment(self, log: _native.Log, end: Ended) -> None:
        """Cuts off what was torn and ends the segment, so that all but the last end in a closing group."""
        assert end.segment is not None
        assert end.file is not None
        if end.closed and end.torn_upto is None:
            return
        end.file.truncate(end.place)
        end.file.sync()
        if end.closed:
            return
        buffer = _native.Buffer(2 * BLOCK)
        group = log.sealed()[0]
        # The log's time stays what it was: what was being imported may go on.
        sealed = log.seal(end.segment, end.place, group - 1, 0, True, buffer)
        file, place = end.file, end.place

        def write() -> None:
            file.write(place, memoryview(buffer)[: sealed.padded])
            file.sync()

        self._anyhow(log, write)
        log.finish(sealed)
        log.publish(sealed)

    def _anyhow(self, log: _native.Log, work: Callable[[], None]) -> None:
        """With the room that is kept, if the disk has no other, and that of indexes, which are made again."""
        ways = (
            lambda: give_reserve(self._backend, log, KEPT),
            lambda: self._give_indexes(log),
            lambda: give_reserve(self._backend, log, self._kept),
        )
        anyhow(work, *ways)

    def _give_indexes(self, log: _native.Log) -> None:
        numbers = segment_numbers(self._backend)
        # What is open still has its blocks.
        log.forget_indexes(numbers[-1] + 1 if numbers else 0)
        for number in numbers:
            creation.discard(self._backend, index_name(number))
