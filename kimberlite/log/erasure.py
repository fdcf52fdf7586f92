"""Streams that nobody is to read any more, and the master key.

    a record that says so → durable → a mark that covers it → the key gone from memory, and what was opened with it
    → its slot empty in both copies of the vault → a checkpoint, whose producers have the stream no more

A crash leaves the slot, and the next start, which finds the record, empties it. The stream's commitments and leaves
stay: what is erased can be proved to have been there. Copies of the vault that were made before open as long as their
master key is known: erasing is `pending` until somebody confirms that it is not, and the vault is under another one.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from kimberlite import _native
from kimberlite.errors import Invalid, KimberliteError, UnknownOutcome
from kimberlite.log.checkpoint import Checkpointer
from kimberlite.log.committer import Committer
from kimberlite.log.keyring import Keyring
from kimberlite.log.refusals import refusal
from kimberlite.log.tasks import Chores


class Eraser:
    """Erases streams and rotates the master key, one at a time: new streams, whose key is to be written, wait for it.

    Who is cancelled here abandons only the wait.
    """

    def __init__(
        self, native: _native.Log, committer: Committer, checkpointer: Checkpointer, keyring: Keyring | None
    ) -> None:
        self._native, self._committer, self._checkpointer, self._keyring = native, committer, checkpointer, keyring
        self._chores = Chores("kimberlite-erase", committer.poison)

    async def erase(self, stream: str, reason: str) -> None:
        """Returns when the key is gone. What was begun before is finished."""
        number, keyring = self._encrypted(stream)
        await self._chores.run(self._attempt(self._erase(keyring, number, reason)))

    async def confirm(self, stream: str) -> None:
        """Says in the log that the master key of the erasure is no more."""
        number, keyring = self._encrypted(stream)
        await self._chores.run(self._attempt(self._confirm(keyring, number, stream)))

    async def rotate(self, read: Callable[[], bytes]) -> str:
        """Returns when the vault is under the master key that is read, with its id."""
        if self._keyring is None:
            raise Invalid("this database was made without a master key, and has none that could be rotated")
        master = await self._committer.backend.run(read)
        await self._chores.run(self._attempt(self._rotate(self._keyring, master)))
        return self._keyring.vault.master_id.hex()

    async def settle(self) -> None:
        """Empties the slots of all streams that the log erases, also by records that came another way."""
        if self._keyring is None:
            return
        async with self._keyring.lock:
            gone = {(number, declared) for number, declared, *_ in self._native.erasures}
            for number, _ in gone:
                self._native.forget(number)
            await self._keyring.erase(gone)

    async def stop(self) -> None:
        """Returns when nothing is under way any more."""
        await self._chores.stop()

    def _encrypted(self, stream: str) -> tuple[int, Keyring]:
        number = self._native.stream(stream)
        if number is None or not self._native.length(number):
            raise Invalid(f"there is no stream {stream!r}")
        if self._keyring is None or not self._native.is_encrypted(number):
            raise Invalid(f"stream {stream!r} is plain and cannot be erased: its records are in the log as they are")
        return number, self._keyring

    async def _attempt(self, work: Coroutine[Any, Any, None]) -> KimberliteError | None:
        """Why it is not done, if so."""
        try:
            await work
        except UnknownOutcome as error:
            self._committer.poison(error)
            return error
        except KimberliteError as error:
            return error
        return None

    def _listed(self, number: int) -> tuple[bytes, bytes, int | None] | None:
        """The hash of the stream's declaration, the master key of its erasure, and when that was confirmed to be no
        more."""
        found = ((declared, m, c) for n, declared, _, _, _, m, c in self._native.erasures if n == number)
        return next(found, None)

    async def _erase(self, keyring: Keyring, number: int, reason: str) -> None:
        async with keyring.lock:
            if self._listed(number) is None:
                await self._say(self._native.erasure_record(number, keyring.vault.master_id, reason))
            self._native.forget(number)
            self._committer.on_publish()
            listed = self._listed(number)
            assert listed is not None, "its record is durable"
            try:
                await keyring.erase({(number, listed[0])})
            except OSError as error:
                raise refusal("it is erased, but its key is not out of the vault yet: do it again", error) from error
        await self._checkpointer.take()

    async def _confirm(self, keyring: Keyring, number: int, stream: str) -> None:
        async with keyring.lock:
            listed = self._listed(number)
            if listed is None:
                raise Invalid(f"stream {stream!r} is not erased")
            _, master, confirmed = listed
            if confirmed is not None:
                return
            if master == keyring.vault.master_id:
                what = "the vault is still under the master key of then"
                raise Invalid(f"{what}, {master.hex()}: rotate it, and destroy that key and its copies first")
            await self._say(self._native.confirmation_record(number, keyring.vault.master_id))

    async def _rotate(self, keyring: Keyring, master: bytes) -> None:
        async with keyring.lock:
            master_id = _native.key_id(master)
            if keyring.vault.master_id != master_id:
                self._check_unused(master_id)
                await keyring.rotate(master)
                return
            try:
                await keyring.write()
            except OSError as error:
                raise refusal("a copy of the vault is not under the new master key yet: do it again", error) from error

    def _check_unused(self, master_id: bytes) -> None:
        """A copy of the vault from before an erasure opens what was erased, under the master key of then."""
        for number, _, _, _, _, then, _ in self._native.erasures:
            if then == master_id:
                what = f"the keys were under {then.hex()} when stream {self._native.name_of(number)!r} was erased"
                raise Invalid(f"{what}: make a new one, and destroy that one")

    async def _say(self, payload: bytes) -> None:
        if not await self._committer.mark(await self._committer.say_anyhow([payload])):
            self._committer.check()
