"""A way to a server that can be cut at any byte."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Proxy:
    """Passes bytes on in both directions, and cuts connections."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.cuts = 0
        #: Bytes after which a connection is cut, taken anew for each.
        self.most: int | None = None
        #: Cleared, nothing is passed on, and nobody is told.
        self.passes = asyncio.Event()
        self.passes.set()
        #: What the server says is dropped.
        self.mute = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, to_writer}
        left = [random.randrange(self.most)] if self.most else None
        ways = [self.passing(reader, to_writer, left), self.passing(to_reader, writer, left, answers=True)]
        tasks = [asyncio.create_task(way) for way in ways]
        self._tasks.update(tasks)
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        for each in (writer, to_writer):
            each.transport.abort()
            self._writers.discard(each)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def passing(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        left: list[int] | None,
        *,
        answers: bool = False,
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if answers and self.mute:
                    continue
                if left is not None:
                    data = data[: left[0]]
                    left[0] -= len(data)
                await self.passes.wait()
                if writer.is_closing():
                    return
                writer.write(data)
                await writer.drain()
                if left is not None and left[0] == 0:
                    self.cuts += 1
                    return

    def cut(self) -> None:
        """All that are open, in the middle of whatever they are at."""
        self.cuts += bool(self._writers)
        for writer in self._writers:
            writer.transport.abort()


@asynccontextmanager
async def proxied(target: int) -> AsyncIterator[Proxy]:
    proxy = Proxy(target)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.cut()
        await asyncio.sleep(0.05)


@asynccontextmanager
async def cutting(proxy: Proxy) -> AsyncIterator[None]:
    """Cuts every now and then: between bytes as they come, and at times of its own."""

    async def cut() -> None:
        while True:
            await asyncio.sleep(random.uniform(0.001, 0.06))
            proxy.cut()

    task = asyncio.create_task(cut())
    try:
        yield
    finally:
        task.cancel()
        proxy.most = None
