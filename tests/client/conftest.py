"""Everything here runs on the plain loop and on uvloop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import uvloop


def pytest_asyncio_loop_factories(config: object, item: object) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"plain": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
