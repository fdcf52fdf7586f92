"""What is asked for, done: the only place where the wire meets the log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from kimberlite import _native
from kimberlite.errors import (
    Closed,
    Invalid,
    KimberliteError,
    LimitExceeded,
    NoSpace,
    ProtocolError,
    RolledBack,
    Unavailable,
)
from kimberlite.log.reading import Came
from kimberlite.log.serving import Frames
from kimberlite.wire.messages import (
    NONE,
    VERSION,
    Hello,
    Kind,
    Reading,
    Retaining,
    count,
    fields,
    in_parts,
    is_a,
    receipt,
)

if TYPE_CHECKING:
    from kimberlite.server.connection import Connection
    from kimberlite.server.server import Server

LOG = logging.getLogger(__name__)

NIL: Final = _native.pack(None)
#: Threads that one client has at work at a time, at most: all there are, if nobody else wants one.
READING: Final = 2
#: Streams named in one message.
STREAMS: Final = 1_000


class Credit:
    """Bytes that a client is ready to take. What is one message is sent whole."""

    def __init__(self, given: int) -> None:
        #: Whether its read or tail has begun; and whether it was told to end before.
        self.begun = self.stopped = False
        self._left = given
        self._some = asyncio.Event()
        self.give(0)

    def give(self, more: int) -> None:
        self._left += more
        if self._left > 0:
            self._some.set()

    def spend(self, length: int) -> None:
        self._left -= length
        if self._left <= 0:
            self._some.clear()

    async def some(self) -> None:
        await self._some.wait()


def came_of(asked: Reading) -> Came | None:
    """Who does not say begins here."""
    return None if asked.incarnation is None else Came(asked.incarnation, asked.reached)


class Dispatch:
    """The requests of one connection that Python has to do with.

    * Every request passes `access` first, and is answered once, by its id.
    * What a client got wrong is its own; what we got wrong is logged, and the client is told that it failed.
    """

    def __init__(self, connection: Connection, server: Server) -> None:
        self._connection, self._server = connection, server
        self._session, self._serving = connection.session, server.serving
        self._tasks: set[asyncio.Task[None]] = set()
        #: Reads and tails that are open, by their ids.
        self._readings: dict[int, tuple[int, asyncio.Task[None], Credit]] = {}
        #: Appends that are not in line yet.
        self._entering: set[asyncio.Task[None]] = set()
        #: Whether the client is here again, on another connection.
        self._replaced = False
        #: What takes long, and is of no use to anybody else.
        self._verifying: set[asyncio.Task[None]] = set()
        #: Whether the server is stopping: what is cut off then is no end.
        self._stopping = False
        #: Done when the last append that Python took is in line, in the order in which they came.
        self._in_line: asyncio.Future[None] | None = None
        #: Held by requests that cost the loop something: one of them at a time.
        self._turn = asyncio.Lock()
        #: Held by what is imported until it is in line; and why nothing more is until the end, if so.
        self._importing = asyncio.Lock()
        self._not_imported: KimberliteError | None = None
        #: Held by what reads off the loop, so many at a time: of others each has its turn in between.
        self._reading = asyncio.Semaphore(READING)
        self._does: Final[dict[int, Callable[[int, bytes], Awaitable[None]]]] = {
            Kind.GET: self._get,
            Kind.STREAMS: self._streams,
            Kind.INFO: self._info,
            Kind.VERIFY: self._verify,
            Kind.METRICS: self._metrics,
            Kind.RETAIN: self._retain,
            Kind.ERASE: self._erase,
            Kind.ROTATE: self._rotate,
            Kind.IMPORT: self._import,
        }

    def take(self, kind: int, id: int, body: bytes) -> None:
        """Begins what is asked for. A message that cannot be is the end of the connection."""
        try:
            if kind in (Kind.APPEND, Kind.APPEND_MANY):
                before, self._in_line = self._in_line, asyncio.get_running_loop().create_future()
                self.start(self._answered(id, self._append(kind, id, body, before, self._in_line)))
            elif kind in (Kind.READ, Kind.TAIL):
                self._begin_reading(kind, id, Reading.unpack(body))
            elif kind == Kind.CREDIT:
                self._credit(id, count(_native.unpack(body)))
            elif kind == Kind.STOP:
                self._stop(id, body)
            elif kind == Kind.HELLO:
                self.start(self._hello(Hello.unpack(body)))
            elif (does := self._does.get(kind)) is not None:
                task = self.start(self._answered(id, does(id, body)))
                if kind == Kind.VERIFY:
                    self._verifying.add(task)
                    task.add_done_callback(self._verifying.discard)
            else:
                raise ProtocolError(f"there is no request {kind}")
        except ProtocolError as error:
            self._connection.fail(error)

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def end_readings(self, *, tails_only: bool = False) -> None:
        for id, (kind, _, _) in list(self._readings.items()):
            if kind == Kind.TAIL or not tails_only:
                self._end_reading(id)

    def stop_readings(self) -> None:
        """The server is stopping: they are told so, and may ask the next one."""
        self._stopping = True
        self.end_readings()

    def _end_reading(self, id: int) -> None:
        _, task, credit = self._readings[id]
        credit.stopped = True
        # A task that is cancelled before its first step answers nobody.
        if credit.begun:
            task.cancel()

    def replace(self) -> None:
        """What is not in line yet is sent again on another connection, and would come behind that."""
        self._replaced = True
        for task in list(self._entering):
            task.cancel()

    def close(self) -> None:
        """Nobody is there to be told. Appends go on: they were accepted."""
        self.end_readings()
        for task in self._verifying:
            task.cancel()

    # ---- one request each

    async def _answered(self, id: int, work: Awaitable[None]) -> None:
        try:
            await work
        except ProtocolError as error:
            self._connection.fail(error)
        except KimberliteError as error:
            self._refuse(id, error)
        except Exception:
            LOG.exception("a request failed")
            self._refuse(id, Unavailable("the server failed; its log says why"))

    def _refuse(self, id: int, error: KimberliteError) -> None:
        if not self._connection.closing:
            self._session.fail(id, error)
            self._connection.finish_if_idle()

    def _reply(self, kind: Kind, id: int, body: bytes) -> None:
        if not self._connection.closing:
            self._session.send(kind, id, body, True)
            self._connection.finish_if_idle()

    async def _reply_in_parts(self, id: int, said: dict[str, Any]) -> None:
        for kind, body in in_parts(said):
            await self._connection.writable()
            if self._connection.closing:
                return
            if kind == Kind.PART:
                self._session.send(kind, id, body, False)
            else:
                self._reply(kind, id, body)
            await asyncio.sleep(0)

    async def _hello(self, said: Hello) -> None:
        try:
            if said.version != VERSION:
                raise Invalid(f"version {said.version} of the protocol is not spoken here, but {VERSION}")
            if said.database is not None and said.database != self._server.database:
                raise Invalid(f"this is database {self._server.database}, not {said.database}")
            if said.anchor is not None:
                self._server.anchored(said.anchor)
            if said.client is not None:
                self._server.recognized(*said.client, self._connection)
        except KimberliteError as error:
            self._connection.fail(error)
            return
        self._session.send(Kind.WELCOME, 0, _native.pack(self._server.welcome()), False)
        self._connection.greet()

    async def _append(
        self, kind: int, id: int, body: bytes, before: asyncio.Future[None] | None, entered: asyncio.Future[None]
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            if self._replaced:
                return
            self._entering.add(task)
            parts, producer, sync = _native.decode_append(kind, body)
            several = kind == Kind.APPEND_MANY
            for stream, _, _ in parts:
                self._connection.access.check("append", stream)
            try:
                self._server.check_writable()
                await self._serving.prepare(parts)
                if before is not None:
                    await asyncio.shield(before)
                future = await self._serving.enter(parts, producer, sync, several=several)
            except (RolledBack, NoSpace, Unavailable, LimitExceeded) as error:
                # What was sent before may have been appended then.
                if producer is None:
                    raise
                future = self._serving.repeated(parts, producer, sync, error, several=several)
            if self._server.refusing is None:
                for stream, _, _ in parts:
                    self._session.permit(stream)
        finally:
            self._entering.discard(task)
            if before is not None and not before.done():
                # It was refused; those behind it still wait for those before it.
                before.add_done_callback(lambda _: self._entered(entered))
            else:
                self._entered(entered)
        receipts = await future
        if not self._connection.closing:
            self._session.acknowledge(id, receipts)
            self._connection.finish_if_idle()

    def _entered(self, future: asyncio.Future[None]) -> None:
        future.set_result(None)
        self._session.entered()

    def _begin_reading(self, kind: int, id: int, asked: Reading) -> None:
        most = self._server.limits.readings
        if len(self._readings) >= most:
            self._refuse(id, LimitExceeded(f"{most} reads and tails are open already"))
            return
        credit = Credit(asked.credit)
        now = time.perf_counter()
        work = self._read(id, asked, credit, now) if kind == Kind.READ else self._tail(id, asked, credit)
        task = self.start(self._answered(id, work))
        self._readings[id] = kind, task, credit
        task.add_done_callback(partial(self._ended, id))

    def _ended(self, id: int, task: asyncio.Task[None]) -> None:
        # Its id may be another's by now.
        if id in self._readings and self._readings[id][1] is task:
            del self._readings[id]

    async def _read(self, id: int, asked: Reading, credit: Credit, since: float) -> None:
        self._connection.access.check("read", asked.stream)
        source = self._serving.reading(
            id,
            asked.stream,
            asked.start,
            asked.until,
            asked.limit,
            reverse=asked.reverse,
            system=asked.system,
            run=self._run,
            came=came_of(asked),
        )
        # Without credit it is the client that is waited for.
        await self._send_all(id, source, credit, since if asked.credit else None)

    async def _tail(self, id: int, asked: Reading, credit: Credit) -> None:
        self._connection.access.check("read", asked.stream)
        if asked.until is not None or asked.limit is not None or asked.reverse:
            raise Invalid("a tail has a start only")
        source = self._serving.following(
            id, asked.stream, asked.start, system=asked.system, run=self._run, came=came_of(asked)
        )
        self._session.send(Kind.RESULT, id, _native.pack(source.at), False)
        await self._send_all(id, source, credit)

    async def _run(self, call: Callable[[], Any]) -> Any:
        async with self._reading:
            return await self._serving.run(call)

    async def _send_all(self, id: int, source: Frames, credit: Credit, since: float | None = None) -> None:
        credit.begun = True
        try:
            while not credit.stopped:
                await credit.some()
                await self._connection.writable()
                frame = await source.more()
                if since is not None:
                    self._serving.meters.began(time.perf_counter() - since)
                    since = None
                if frame is None:
                    break
                credit.spend(len(frame.data))
                self._send_frame(frame)
        except asyncio.CancelledError:
            # It was stopped, or nobody is there any more.
            pass
        if self._stopping:
            raise Closed("the server is stopping")
        self._reply(Kind.END, id, NIL)

    def _send_frame(self, frame: _native.Frame) -> None:
        metrics = self._server.metrics
        metrics.reads += 1
        metrics.read_records += len(frame)
        metrics.read_bytes += len(frame.data)
        self._session.send_bytes(frame.data)

    def _credit(self, id: int, more: int) -> None:
        # To what has just ended it comes too late.
        if id in self._readings:
            self._readings[id][2].give(more)

    def _stop(self, id: int, body: bytes) -> None:
        if _native.unpack(body) is not None:
            raise ProtocolError("a stop says nothing")
        if id in self._readings:
            self._end_reading(id)

    async def _get(self, id: int, body: bytes) -> None:
        since: float | None = time.perf_counter()
        self._connection.access.check("read", None)
        async with self._turn:
            positions = fields(body, positions=list)["positions"]
            if not all(is_a(position, int) and position >= 0 for position in positions):
                raise ProtocolError("positions are numbers from 0")
            async for frame in self._serving.get(id, positions):
                if since is not None:
                    self._serving.meters.began(time.perf_counter() - since)
                    since = None
                await self._connection.writable()
                self._send_frame(frame)
            self._reply(Kind.END, id, NIL)
            await asyncio.sleep(0)

    async def _streams(self, id: int, body: bytes) -> None:
        said = fields(body, start=int)
        self._connection.access.check("inspect", None)
        start = count(said["start"])
        async with self._turn:
            await self._connection.writable()
            self._reply(Kind.RESULT, id, _native.pack(self._serving.streams(start, STREAMS)))
            await asyncio.sleep(0)

    async def _info(self, id: int, body: bytes) -> None:
        if _native.unpack(body) is not None:
            raise ProtocolError("this request says nothing")
        self._connection.access.check("inspect", None)
        async with self._turn:
            await self._reply_in_parts(id, await self._serving.info())

    async def _metrics(self, id: int, body: bytes) -> None:
        if _native.unpack(body) is not None:
            raise ProtocolError("this request says nothing")
        self._connection.access.check("inspect", None)
        async with self._turn:
            await self._connection.writable()
            said = {family.name: family.plain() for family in self._server.metrics.families(self._server)}
            self._reply(Kind.RESULT, id, _native.pack(said))
            await asyncio.sleep(0)

    async def _retain(self, id: int, body: bytes) -> None:
        asked = Retaining.unpack(body)
        self._connection.access.check("maintain", None)
        self._server.check_writable()
        dropped = await self._serving.retain(asked.rule, dry_run=asked.dry_run, confirm_clock=asked.confirm_clock)
        self._reply(Kind.RESULT, id, _native.pack(dropped._asdict()))

    async def _erase(self, id: int, body: bytes) -> None:
        said = fields(body, stream=str, reason=(str, NONE))
        stream, reason = said["stream"], said["reason"]
        self._connection.access.check("maintain", stream)
        self._server.check_writable()
        serving = self._serving
        erasure = await (serving.confirm_erasure(stream) if reason is None else serving.erase(stream, reason))
        LOG.warning("stream %r: its erasure is %s", stream, "pending" if erasure.pending else "confirmed")
        self._reply(Kind.RESULT, id, _native.pack(list(erasure)))

    async def _rotate(self, id: int, body: bytes) -> None:
        if _native.unpack(body) is not None:
            raise ProtocolError("this request says nothing")
        self._connection.access.check("maintain", None)
        key_id = await self._server.rotate()
        LOG.warning("the vault is under master key %s from here on", key_id)
        self._reply(Kind.RESULT, id, _native.pack(key_id))

    async def _import(self, id: int, body: bytes) -> None:
        try:
            async with self._importing:
                said = _native.decode_import(body)
                if said is None:
                    self._not_imported = None
                    await self._serving.settle()
                else:
                    self._connection.access.check("maintain", said[0])
                    self._server.check_writable()
                    if self._not_imported is not None:
                        raise Invalid(f"what came before it was refused: {self._not_imported}")
                    future = await self._serving.enter_import(*said)
            if said is not None:
                await future
        except KimberliteError as error:
            # Nothing may come behind what was refused.
            self._not_imported = self._not_imported or error
            raise
        self._reply(Kind.RESULT, id, NIL)

    async def _verify(self, id: int, body: bytes) -> None:
        anchor = fields(body, anchor=(list, NONE))["anchor"]
        self._connection.access.check("inspect", None)
        async with self._turn:
            report = await self._server.verify(None if anchor is None else receipt(anchor))
            await self._reply_in_parts(id, report)
