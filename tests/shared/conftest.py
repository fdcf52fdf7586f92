"""The same database, in a directory and behind a daemon."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

import kimberlite
from kimberlite.crypto.master import create_master
from kimberlite.server.limits import Limits
from kimberlite.server.server import Server

Database = kimberlite.Log | kimberlite.Client


def pytest_asyncio_loop_factories(config: object, item: object) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"plain": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=["plain", "encrypted"])
def options(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    if request.param == "plain":
        return {}
    create_master(tmp_path / "key")
    return {"key_file": tmp_path / "key"}


@asynccontextmanager
async def database(how: str, path: Path, **options: Any) -> AsyncIterator[Database]:
    """One that is open, `embedded` or behind a daemon on `tcp` or `unix`."""
    async with AsyncExitStack() as stack:
        log = await stack.enter_async_context(kimberlite.open(path, **options))
        if how == "embedded":
            yield log
            return
        info = await log.info()
        server = Server(log, Limits(), about={"database": info["database_id"], "origin": info["origin"]})
        if how == "tcp":
            listening = socket.create_server(("127.0.0.1", 0))
            url = f"kimberlite://127.0.0.1:{listening.getsockname()[1]}"
        else:
            listening = socket.socket(socket.AF_UNIX)
            listening.bind(str(path.parent / "socket"))
            url = f"kimberlite+unix:{path.parent / 'socket'}"
        await server.listen(listening)
        stack.push_async_callback(server.drain, 5)
        yield await stack.enter_async_context(kimberlite.connect(url))


@pytest.fixture(params=["embedded", "tcp", "unix"])
async def db(request: pytest.FixtureRequest, tmp_path: Path, options: dict[str, Any]) -> AsyncIterator[Database]:
    async with database(request.param, tmp_path / "db", **options) as opened:
        yield opened
