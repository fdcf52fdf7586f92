"""New streams: a number, a declaration and, if it is encrypted, a key that is durable first."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from kimberlite import _native
from kimberlite.errors import UnknownOutcome
from kimberlite.log.keyring import Keyring
from kimberlite.log.refusals import refusal
from kimberlite.log.tasks import begin


class Streams:
    """Creates streams one batch of them at a time, in the order in which they were asked for.

    One change of the vault for all that wait. Only then is a stream there to be appended
    to; appends to other streams wait for none of it. Whoever comes while others are still `entering` a stream that they
    waited for goes through `create` too, and so behind them.
    """

    def __init__(self, native: _native.Log, keyring: Keyring | None) -> None:
        self._native, self._keyring = native, keyring
        #: Streams, and how many calls to `create` wait for each.
        self.entering: Counter[str] = Counter()
        self._wanted: list[tuple[list[str], asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None
        #: Who waits for a key, whoever is at it.
        self._waiting: set[asyncio.Future[None]] = set()
        self._interrupted = False
        #: Called when nobody knows what is in the vault any more.
        self.on_death: Callable[[BaseException], None] = lambda _error: None

    def number(self, name: str) -> int:
        """The number of a stream that is there."""
        number = self._native.stream(name)
        assert number is not None
        return number

    async def create(self, names: list[str]) -> None:
        """Returns when all of them are there, in the order of the calls."""
        if self._keyring is None:
            for name in names:
                self._add(name, None)
            return
        if self._interrupted:
            raise UnknownOutcome("no key is written any more")
        self.entering.update(names)
        try:
            if self._task is None and all(self._native.stream(name) is not None for name in names):
                # Those who waited have been woken, and are one turn ahead.
                await asyncio.sleep(0)
                return
            done = asyncio.get_running_loop().create_future()
            self._wanted.append((names, done))
            self._waiting.add(done)
            done.add_done_callback(self._waiting.discard)
            if self._task is None:
                self._task = begin(self._create(), "kimberlite-streams", self.end)
            await done
        finally:
            for name in names:
                self._entered(name)

    def end(self, error: BaseException) -> None:
        """Nothing is made any more, and whoever waits is told: the handle is dying of this."""
        # A thread may still be writing to the vault, over whatever was written next.
        self._interrupted, self._task, self._wanted = True, None, []
        self.on_death(error)
        for future in list(self._waiting):
            if not future.done():
                why = str(error) or type(error).__name__
                future.set_exception(UnknownOutcome(f"no key was made for a new stream: {why}"))

    def _entered(self, name: str) -> None:
        self.entering[name] -= 1
        if not self.entering[name]:
            del self.entering[name]

    async def drain(self) -> None:
        """Returns when nobody waits for a stream: they are in line for the log, or have been told why not.

        The key of one for which nobody waits any more is written all the same.
        """
        while self.entering or self._task is not None:
            if self._task is not None:
                await asyncio.wait([self._task])
            await asyncio.sleep(0)

    def _add(self, name: str, key: bytes | None) -> None:
        if self._native.stream(name) is None:
            [(_, declaration, _)] = self._native.drafts([name], False)
            self._native.add_stream(declaration, key)

    async def _create(self) -> None:
        assert self._keyring is not None
        try:
            while self._wanted:
                async with self._keyring.lock:
                    await self._create_those(self._keyring, self._wanted)
        finally:
            self._task = None

    async def _create_those(self, keyring: Keyring, wanted: list[tuple[list[str], asyncio.Future[None]]]) -> None:
        self._wanted = []
        asked = dict.fromkeys(name for names, _ in wanted for name in names)
        names = [name for name in asked if self._native.stream(name) is None]
        drafts = self._native.drafts(names, True)
        keys = [keyring.vault.add(number, declared) for number, _, declared in drafts]
        try:
            await keyring.write()
        except OSError as error:
            for _, future in wanted:
                if not future.done():
                    future.set_exception(refusal("the vault did not take the key of a new stream", error))
            return
        for (_, declaration, _), key in zip(drafts, keys, strict=True):
            self._native.add_stream(declaration, key)
        for _, future in wanted:
            if not future.done():
                future.set_result(None)
