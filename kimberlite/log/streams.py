"""New streams: a number, a declaration and, if it is encrypted, a key that is durable first."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from kimberlite import _native
from kimberlite.crypto.vault import Vault
from kimberlite.errors import NoSpace, Unavailable
from kimberlite.log.tail import FULL
from kimberlite.storage.backend import Backend, File


class StreamInfo(NamedTuple):
    """A stream that has records."""

    name: str
    #: The offset that its next record gets.
    length: int
    encrypted: bool


class Streams:
    """Creates streams one batch of them at a time, in the order in which they were asked for.

    Two writes for all that wait: copy 0 of the vault synced, then copy 1. Only then is a stream there to be appended
    to; appends to other streams wait for none of it.
    """

    def __init__(self, native: _native.Log, backend: Backend, vault: Vault | None, copies: list[File]) -> None:
        self._native, self._backend, self._vault, self._copies = native, backend, vault, copies
        self._wanted: dict[str, asyncio.Future[None]] = {}
        self._task: asyncio.Task[None] | None = None

    def number(self, name: str) -> int:
        """The number of a stream that is there."""
        number = self._native.stream(name)
        assert number is not None
        return number

    async def create(self, names: list[str]) -> None:
        """Returns when all of them are there."""
        if self._vault is None:
            for name in names:
                self._add(name, None)
            return
        waiting = []
        for name in names:
            if name not in self._wanted:
                self._wanted[name] = asyncio.get_running_loop().create_future()
            waiting.append(self._wanted[name])
        if self._task is None:
            self._task = asyncio.create_task(self._create(), name="kimberlite-streams")
        await asyncio.shield(asyncio.gather(*waiting))

    def _add(self, name: str, key: bytes | None) -> None:
        if self._native.stream(name) is None:
            [(_, declaration, _)] = self._native.drafts([name], False)
            self._native.add_stream(declaration, key)

    async def _create(self) -> None:
        assert self._vault is not None
        try:
            while self._wanted:
                await self._create_those(self._vault, self._wanted)
        finally:
            self._task = None

    async def _create_those(self, vault: Vault, wanted: dict[str, asyncio.Future[None]]) -> None:
        self._wanted = {}
        names = [name for name in wanted if self._native.stream(name) is None]
        drafts = self._native.drafts(names, True)
        keys = [vault.add(number, declared) for number, _, declared in drafts]
        blocks = vault.dirty()
        try:
            await self._backend.run(lambda: self._write(blocks))
        except OSError as error:
            vault.unwritten(place for place, _ in blocks)
            kind = NoSpace if error.errno in FULL else Unavailable
            for future in wanted.values():
                if not future.done():
                    future.set_exception(kind(f"the vault did not take the key of a new stream: {error.strerror}"))
            return
        for (_, declaration, _), key in zip(drafts, keys, strict=True):
            self._native.add_stream(declaration, key)
        for future in wanted.values():
            if not future.done():
                future.set_result(None)

    def _write(self, blocks: list[tuple[int, bytes]]) -> None:
        for copy in self._copies:
            for place, block in blocks:
                copy.write(place, block)
            copy.sync()
