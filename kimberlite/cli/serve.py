"""`kimberlite serve`: a database for many clients, over TCP or a Unix socket."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final, cast

import uvloop

from kimberlite import _native, config
from kimberlite.api import open_with
from kimberlite.cli.logs import start_logging
from kimberlite.cli.target import directory
from kimberlite.crypto.master import read_key_file
from kimberlite.errors import Closed, KimberliteError, Misconfigured, UnknownOutcome
from kimberlite.log.keycheck import wrapped_by
from kimberlite.log.verify import shown, verify_directory
from kimberlite.records import Receipt
from kimberlite.server.http import Probes
from kimberlite.server.listening import bind
from kimberlite.server.notify import Notifier, handed_over
from kimberlite.server.server import Server

LOG = logging.getLogger(__name__)

#: Seconds between two words to systemd while a long recovery goes on, and how much more time each asks for.
PATIENCE: Final = 5.0
EXTEND: Final = 30.0
#: Descriptors that clients do not get: of segments and their indexes, of whoever asks for metrics, of the process.
BESIDES: Final = 512
#: What may follow the drain: the log's own close.
STOPPING: Final = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="the database's directory; made if it is not there")
    add_settings(parser)


def add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--listen", metavar="WHERE", help="HOST:PORT on loopback, or unix:PATH")
    parser.add_argument("--http", metavar="HOST:PORT", help='metrics and health; "" for nowhere')
    parser.add_argument("--key-file", metavar="FILE", help="the master key")
    parser.add_argument("--config", metavar="FILE", help="settings, in TOML; else KIMBERLITE_CONFIG")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="any other setting")


def loaded(arguments: argparse.Namespace) -> config.Config:
    flags = {name: getattr(arguments, name) for name in ("listen", "http", "key_file")}
    given = {name: value for name, value in flags.items() if value is not None}
    return config.load(arguments.config, os.environ, given, arguments.set)


def run(arguments: argparse.Namespace) -> int:
    path, settings = directory(arguments.directory), loaded(arguments)
    start_logging(settings.serve.log_level, settings.serve.log_format)
    make_room_for(settings.limits.connections)
    # Before anything else is opened: these have numbers that others could get.
    notifier, handed = Notifier(os.environ), handed_over(os.environ)
    listening = handed or [bound(settings, "listen")]
    asking = [bound(settings, "http")] if settings.serve.http else []
    uvloop.run(serve(os.fspath(path), settings, notifier, listening, asking))
    return 0


def bound(settings: config.Config, name: str) -> socket.socket:
    [setting] = [setting for setting in settings.settings if setting.name == name]
    try:
        return bind(setting.value)
    except Misconfigured as error:
        raise Misconfigured(f"{setting.origin}: {error}") from error


async def serve(
    path: str,
    settings: config.Config,
    notifier: Notifier,
    listening: list[socket.socket],
    asking: list[socket.socket],
) -> None:
    loop, stop, stopping = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def told_to_stop() -> None:
        stop.set()
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told_to_stop)
    serving = settings.serve
    probes = Probes()
    for each in asking:
        await probes.listen(each)
        LOG.info("metrics and health on %s", name_of(each))
    async with recovering(notifier):
        opening = open_with(
            path,
            settings.log,
            key_file=current_key_file(path, serving),
            backend=cast(Any, serving.backend),
            on_replay=lambda: go_on_unless(stopping.is_set(), "it was told to stop while it recovered"),
        )
        try:
            log = await opening
        except Closed:
            # Nothing was accepted, and the next start recovers as this one did.
            LOG.info("stopped while it recovered")
            return
    failed: KimberliteError | None = None
    async with log:
        info = await log.info()
        for note in info["notes"]:
            LOG.warning("%s", note)
        LOG.info("backend %s: %s", info["backend"], info["backend_reason"])

        def verify(anchor: Receipt | None, wanted: threading.Event) -> dict[str, Any]:
            def go_on(_done: int, _total: int) -> None:
                go_on_unless(not wanted.is_set(), "nobody wants to know any more")

            report = verify_directory(
                path, key_file=lambda: current_key_file(path, serving), anchor=anchor, progress=go_on
            )
            return shown(report, anchored=anchor is not None)

        assert log.upkeep is not None, "it is open for writing"
        log.upkeep.findings.on_found = lambda error: LOG.error("damage: %s", error)
        log.upkeep.retention.on_waits = retention_waits
        about = {"database": info["database_id"], "origin": info["origin"]}
        server = Server(log, settings.limits, about=about, verify=verify, next_key_file=serving.next_key_file)
        for each in listening:
            await server.listen(each)
            LOG.info("listening on %s", name_of(each))
        probes.server = server
        notifier.say("READY=1", f"STATUS=serving {path}")
        async with watched(notifier, server):
            ended = [asyncio.create_task(stop.wait()), asyncio.create_task(server.failed.wait())]
            await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.cancel()
            notifier.say("STOPPING=1", f"EXTEND_TIMEOUT_USEC={round((serving.drain + STOPPING) * 1e6)}")
            LOG.info("stopping: %d clients", server.clients)
            await server.drain(serving.drain)
            probes.close()
            failed = server.failure
        if failed is not None:
            # The close would say the same, with less.
            with contextlib.suppress(KimberliteError):
                await log.close()
            raise UnknownOutcome(f"the log has failed: {failed}") from failed
    LOG.info("stopped")


def retention_waits(why: str | None) -> None:
    if why is None:
        LOG.info("retention goes on")
    else:
        LOG.warning("retention: %s", why)


def current_key_file(path: str, serving: config.Serve) -> str | None:
    """After a rotation the next one, as long as its file has not taken the place of the other."""
    if serving.next_key_file:
        with contextlib.suppress(KimberliteError, OSError):
            if _native.key_id(read_key_file(serving.next_key_file)) == wrapped_by(Path(path)):
                return serving.next_key_file
    return serving.key_file or None


def go_on_unless(wrong: bool, what: str) -> None:
    if wrong:
        raise Closed(what)


def make_room_for(connections: int) -> None:
    """Descriptors for so many clients, and as many as the log needs besides: without one it could not go on to its next
    segment."""
    wanted = connections + BESIDES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise Misconfigured(
            f"limits.connections: {connections} clients need {wanted} descriptors, and the process may have {hard}"
        )
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextlib.asynccontextmanager
async def recovering(notifier: Notifier) -> AsyncIterator[None]:
    """Asks for more time as long as it takes."""

    async def ask() -> None:
        while True:
            notifier.say(f"EXTEND_TIMEOUT_USEC={round(EXTEND * 1e6)}", "STATUS=recovering")
            await asyncio.sleep(PATIENCE)

    task = asyncio.create_task(ask())
    try:
        yield
    finally:
        task.cancel()


@contextlib.asynccontextmanager
async def watched(notifier: Notifier, server: Server) -> AsyncIterator[None]:
    """Feeds the watchdog as long as the loop turns and the committer gets on with what it has."""
    if notifier.watchdog is None:
        yield
        return
    every = notifier.watchdog / 4

    async def feed() -> None:
        before = server.serving.pulse
        while True:
            notifier.say("WATCHDOG=1")
            await asyncio.sleep(every)
            while (now := server.serving.pulse) is not None and now == before:
                LOG.warning("the committer does not get on")
                await asyncio.sleep(every)
            before = now

    task = asyncio.create_task(feed())
    try:
        yield
    finally:
        task.cancel()


def name_of(listening: socket.socket) -> str:
    name = listening.getsockname()
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else f"unix:{name}"
