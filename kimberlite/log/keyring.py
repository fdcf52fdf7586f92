"""The vault on the disk, while a writer has it."""

from __future__ import annotations

import asyncio
from collections.abc import Set

from kimberlite import _native
from kimberlite.crypto.vault import LAST_GENERATION, Vault
from kimberlite.errors import Corrupt, Unavailable, UnknownOutcome
from kimberlite.log.creation import prepare, put_in_place, write_small
from kimberlite.log.names import QUARANTINE, VAULTS
from kimberlite.log.refusals import refusal
from kimberlite.storage.backend import Backend, File


class Keyring:
    """Changes the vault, one change at a time.

    * A slot is written to copy 0 and synced, and then to copy 1: one of them is always whole.
    * Under another master key copy 1 is replaced first. From then on it is what counts, and copy 0 is `_behind` until
      it is replaced too.
    * Then only keys of streams that the log has, declared or about to be, are carried over: nothing else lets go of
      those that a repair or a crash made orphans.
    """

    def __init__(self, backend: Backend, vault: Vault, log: _native.Log) -> None:
        self._backend, self.vault, self._log = backend, vault, log
        #: What is to be said of orphans that were there when it was opened.
        self.notes = orphan_notes(backend, vault, log)
        self._copies: list[File] = [backend.open(name, "w") for name in VAULTS]
        self._behind: set[int] = set()
        #: Held by whoever changes the vault.
        self.lock = asyncio.Lock()

    async def write(self) -> None:
        """Writes what neither copy has yet. After an error the next write takes it along."""
        blocks = self.vault.dirty()
        try:
            await self._backend.run(lambda: self._write(blocks))
        except OSError:
            self.vault.unwritten(place for place, _ in blocks)
            raise

    async def erase(self, gone: Set[tuple[int, bytes]]) -> None:
        """Empties the slots of streams, by their numbers and their declarations' hashes."""
        await self._backend.run(lambda: self.vault.erase(gone))
        await self.write()

    def _write(self, blocks: list[tuple[int, bytes]]) -> None:
        for copy, name in enumerate(VAULTS):
            if copy in self._behind:
                write_small(self._backend, name, self.vault.image())
                self._replaced(copy)
                self._behind.discard(copy)
                continue
            for place, block in blocks:
                self._copies[copy].write(place, block)
            self._copies[copy].sync()

    def _replaced(self, copy: int) -> None:
        self._copies[copy].close()
        self._copies[copy] = self._backend.open(VAULTS[copy], "w")

    async def rotate(self, master: bytes) -> None:
        """Wraps every key but orphans under this master key; with the one before nothing opens from then on. While the
        lock is held no key waits for its stream to be added to the log.

        UnknownOutcome if nobody knows which of the two counts on the disk: then nothing may be written any more.
        """
        if self.vault.generation == LAST_GENERATION:
            raise Corrupt(
                f"no generation is above {LAST_GENERATION}, which only a forged header has: salvage what is left",
                file=VAULTS[0],
            )
        try:
            vault = await self._backend.run(lambda: self.vault.rewrapped(master, bound(self._log)))
            temporary = await self._backend.run(
                lambda: prepare(self._backend, VAULTS[1], lambda file: file.write(0, vault.image()))
            )
        except OSError as error:
            raise refusal("the vault was not wrapped anew", error) from error
        try:
            await self._backend.run(lambda: self._put(temporary))
        except OSError as error:
            raise UnknownOutcome(f"it is not known under which master key the vault is: {error}") from error
        self.vault, self._behind, self.notes = vault, {0}, []
        try:
            await self.write()
        except OSError as error:
            what = "the vault is under the new master key, but its first copy is not yet: do it again"
            raise Unavailable(f"{what}: {error.strerror}") from error

    def _put(self, temporary: str) -> None:
        put_in_place(self._backend, temporary, VAULTS[1])
        self._replaced(1)


def bound(log: _native.Log) -> set[tuple[int, bytes]]:
    """What slots of a log's streams are bound to. Those of others are orphans: a crash or a repair took back what
    declared them."""
    return {(number, log.declaration_hash(number)) for number in range(1, len(log.declarations) + 1)}


def orphan_notes(backend: Backend, vault: Vault | None, log: _native.Log) -> list[str]:
    """What is to be done about orphans that a repair has left, where something is left that they may open."""
    if vault is None or not log.repairs() or not backend.list(QUARANTINE) or not (count := vault.orphans(bound(log))):
        return []
    what = f"{count} of its keys are of streams that the log does not know, and may open what is in {QUARANTINE}/"
    return [f"vault: {what}: `kimberlite keys rotate` leaves them out"]
