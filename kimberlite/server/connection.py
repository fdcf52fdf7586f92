"""One client's socket: bytes to requests, and replies to bytes."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from kimberlite.errors import FrameTooLarge, KimberliteError, LimitExceeded, ProtocolError, SlowConsumer
from kimberlite.server.dispatch import Dispatch
from kimberlite.wire.messages import NOBODY

if TYPE_CHECKING:
    from kimberlite.server.server import Server

LOG = logging.getLogger(__name__)

BROKEN: dict[str, type[KimberliteError]] = {each.code: each for each in (ProtocolError, FrameTooLarge)}


class Connection(asyncio.BufferedProtocol):
    """Owns the transport; the session, in Rust, owns what has arrived and what is open.

    * Nothing is read while it is held for any reason, so that a client that goes too fast fills its own buffers.
    * Requests are taken in the order in which they came.
    * When it is lost, its reads and tails end; appends that were accepted are finished without it.
    """

    def __init__(self, server: Server) -> None:
        self._server, self.access = server, server.access
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self.session = server.serving.session(self)
        self.dispatch = Dispatch(self, server)
        # Reads go from the loop to the session without a step of Python.
        self.get_buffer = self.session.get_buffer  # type: ignore[method-assign]
        self.buffer_updated = self.session.buffer_updated  # type: ignore[method-assign]
        #: Why nothing is read: "full", "crowded", "memory", "unread", "hello", "enough", "ended", "closing".
        self._held: set[str] = set()
        self._writable = asyncio.Event()
        self._writable.set()
        self.opened = self._loop.time()
        self.greeted = False
        #: Which client it said that it is.
        self.client: bytes | None = None
        self.closing = False
        #: Waits for a turn at the pool.
        self._waiting: asyncio.Task[None] | None = None
        #: Why it ended, for those who count: "left", or the code of the error that it ended with.
        self.why = "left"
        #: Since when the client has not read what it was sent.
        self._unread_since: float | None = None
        #: Messages and bytes that had arrived when it was last looked at, and when these were new.
        self._counted, self._counted_at = (0, 0), self.opened
        self._message_at = self.opened
        #: Since when nothing more is taken.
        self._ended_at: float | None = None

    # ---- what the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=self._server.limits.outbox_bytes)
        self.session.begin(self._transport.write)
        self._server.joined(self)

    def eof_received(self) -> bool:
        # What was asked for is still answered: the other half may be open. What would never end does.
        self._ended_at = self._loop.time()
        self.dispatch.end_readings(tails_only=True)
        self._loop.call_soon(self.finish_if_idle)
        return True

    def pause_writing(self) -> None:
        self._unread_since = self._loop.time()
        self._writable.clear()
        self._hold("unread")

    def resume_writing(self) -> None:
        self._unread_since = None
        self._writable.set()
        self._release("unread")

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and self.why == "left":
            self.why = "lost"
        self.closing = True
        self._held.add("closing")
        self._writable.set()
        if self._waiting is not None:
            self._waiting.cancel()
        self.dispatch.close()
        self.session.close()
        self._server.left(self)

    # ---- taking

    def took(self, frames: list[tuple[int, int, bytes]], stop: str | None, message: str) -> None:
        """The session has these requests for us, and took no more for this reason."""
        for kind, id, body in frames:
            self.dispatch.take(kind, id, body)
        if stop is None:
            return
        if stop == "crowded":
            self._wait_for_room()
        elif stop in BROKEN:
            self.fail(BROKEN[stop](message))
        else:
            # "full": the session says when there is room. "memory": the server looks again. "hello": see `greet`.
            self._hold(stop)
            if stop == "enough":
                self._loop.call_soon(self._release, stop)

    def _wait_for_room(self) -> None:
        self._hold("crowded")
        self._waiting = self.dispatch.start(self._room())

    async def _room(self) -> None:
        # Of a log that has failed everybody is told elsewhere.
        with suppress(KimberliteError):
            await self._server.serving.committer.turn()
        self._release("crowded")

    def go_on(self) -> None:
        """The session has room for requests again."""
        self._loop.call_soon(self._release, "full")

    def greet(self) -> None:
        """It has said hello, and been welcomed."""
        self.greeted = True
        self.session.greet()
        self._loop.call_soon(self._release, "hello")

    def _hold(self, why: str) -> None:
        if not self._held:
            self._transport.pause_reading()
            self.session.hold(True)
        self._held.add(why)

    def _release(self, why: str) -> None:
        if why not in self._held:
            return
        self._held.discard(why)
        if self._held or self.closing:
            return
        self.session.hold(False)
        # Who has waited for its turn at the pool passes those who still do.
        self.session.take(why == "crowded")
        if not self._held and not self.closing:
            self._transport.resume_reading()

    # ---- replies

    async def writable(self) -> None:
        """Returns when the client has read enough of what it was sent."""
        await self._writable.wait()

    def fail(self, error: KimberliteError) -> None:
        """The connection ends with this."""
        if self.closing:
            return
        self.why = error.code
        LOG.info("closing a connection: %s: %s", error.code, error, extra={"peer": self.peer})
        self.session.fail(NOBODY, error)
        self.close()

    def close(self) -> None:
        """What is written already still leaves, if the client reads it."""
        self.closing = True
        self._hold("closing")
        self._transport.close()

    def replace(self) -> None:
        """Its client is here again: nothing more of this is taken, not even what has arrived."""
        self.why = "replaced"
        self._hold("closing")
        self.dispatch.replace()
        self.abort()

    def abort(self) -> None:
        """What is written and has not left is dropped."""
        self.closing = True
        self._transport.abort()

    def finish(self) -> None:
        """Takes nothing more; closes when all that was accepted is answered."""
        self._ended_at = self._loop.time()
        self._hold("ended")
        self.dispatch.stop_readings()
        self.finish_if_idle()

    def finish_if_idle(self) -> None:
        if self._ended_at is not None and not self.closing and self.session.open[0] == 0:
            self.close()

    @property
    def peer(self) -> str:
        name = self._transport.get_extra_info("peername")
        return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "unix"

    # ---- deadlines

    def look(self, now: float) -> None:
        """Called every now and then: closes it if it is late with something."""
        limits, session = self._server.limits, self.session
        if "memory" in self._held:
            self._release("memory")
        if self.closing:
            # A peer that reads nothing would keep it for ever.
            if self._unread_since is not None and now - self._unread_since > limits.unread:
                self._transport.abort()
            return
        if self._ended_at is not None:
            self.finish_if_idle()
            if now - self._ended_at > limits.idle:
                # It waits for credit that cannot come.
                self.close()
            return
        if self._unread_since is not None and now - self._unread_since > limits.unread:
            # It finds this behind what it has not read, if it comes to read that yet.
            self.fail(SlowConsumer(f"replies were not read for {limits.unread:g} s"))
            self._unread_since = now
            return
        if not self.greeted and now - self.opened > limits.handshake:
            self.fail(ProtocolError(f"no hello within {limits.handshake:g} s"))
            return
        counted = session.counted
        # Those who wait for memory that others have would wait for each other.
        if counted[0] != self._counted[0] or self._held - {"memory"} or not session.partial:
            self._message_at = now
        elif now - self._message_at > limits.frame:
            self.fail(ProtocolError(f"a message did not arrive within {limits.frame:g} s"))
            return
        if counted[1] != self._counted[1] or session.open[0]:
            self._counted_at = now
        elif now - self._counted_at > limits.idle:
            self.fail(LimitExceeded(f"nothing was asked for {limits.idle:g} s"))
            return
        self._counted = counted
