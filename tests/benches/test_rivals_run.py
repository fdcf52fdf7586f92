"""The benches of other servers, very small: nothing is downloaded, the figures make sense, no server outlives us."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, suppress
from pathlib import Path

import pytest

from benches import packages, rivals, servers
from benches.clients import Answers, Lane, Refused, drive
from benches.dialects import Lines, Messages, Resp, command, message, split, words
from benches.packages import Installed, Missing, Program

Server = Callable[[Installed, Path], AbstractContextManager[int]]
SERVERS = [(servers.REDIS, servers.redis, rivals.Redis), (servers.POSTGRES, servers.postgres, rivals.PostgreSQL)]
NAMES = [program.name for program, _, _ in SERVERS]
LOAD = rivals.Load(clients=3, depth=2, batch=1, size=100, seconds=0.3)


def there(program: Program) -> Installed:
    """Without a download."""
    found = packages.installed(program)
    if found is None:
        pytest.skip(f"no {program.name} on PATH or in {packages.cache()}, where just bench-peers puts it")
    return found


def refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def inside(directory: Path) -> list[str]:
    """Processes that are in it, which the servers' are."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink().is_relative_to(directory):
                found.append((process / "comm").read_text())
    return found


@pytest.mark.parametrize("batch", [1, 10])
@pytest.mark.parametrize(("program", "make"), [(program, make) for program, _, make in SERVERS], ids=NAMES)
def test_a_rival_is_measured(
    tmp_path: Path, program: Program, make: Callable[[Installed, Path], rivals.Rival], batch: int
) -> None:
    rival = make(there(program), tmp_path)
    found = rival.run(rivals.Load(LOAD.clients, LOAD.depth, batch, LOAD.size, LOAD.seconds))
    assert 10 < found.records_per_s < 1e7
    assert 0 < found.p50_ms <= found.p99_ms <= found.p999_ms
    assert rival.settings[0].isdigit()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("program", "server"), [(program, server) for program, server, _ in SERVERS], ids=NAMES)
def test_a_server_ends_with_its_context_even_when_that_fails(tmp_path: Path, program: Program, server: Server) -> None:
    port = 0

    def fail() -> None:
        nonlocal port
        with server(there(program), tmp_path) as port:
            assert not refuses(port)
            assert inside(tmp_path)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert refuses(port)
    assert not inside(tmp_path)


def test_what_a_server_said_tells_why_it_does_not_start(tmp_path: Path) -> None:
    program = there(servers.REDIS)
    line = [str(program.path), "--no-such-setting", "1"]
    with (
        pytest.raises(Missing, match=r"does not start: .*Bad directive"),
        servers.running(program, line, tmp_path, signal.SIGTERM, lambda: command(1, "PING")),
    ):
        pass


def test_a_server_that_cannot_be_had_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def had(program: Program) -> Installed:
        raise Missing(f"apt-get: Unable to locate package {program.package}")

    monkeypatch.setattr(rivals, "had", had)
    with rivals.rivals(tmp_path) as (found, missing):
        assert not found
        assert missing == [
            "Redis Streams is left out: missing: apt-get: Unable to locate package redis-server",
            "PostgreSQL is left out: missing: apt-get: Unable to locate package postgresql",
        ]


@pytest.fixture
def answering() -> Iterator[Callable[[bytes], int]]:
    """A server that says the same to everything: its port."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:

        def serve(answer: bytes) -> None:
            connection, _ = listening.accept()
            with connection:
                while connection.recv(1 << 16):
                    connection.sendall(answer)

        def start(answer: bytes) -> int:
            threading.Thread(target=serve, args=(answer,), daemon=True).start()
            return int(listening.getsockname()[1])

        yield start


def test_an_error_in_an_answer_fails_the_run(answering: Callable[[bytes], int]) -> None:
    with pytest.raises(Refused, match="ERR the disk is full"):
        drive(answering(b"-ERR the disk is full\r\n"), Resp(), [Lane(0, 1)], LOAD, 0)


def test_a_server_with_fewer_records_than_it_acknowledged_fails_the_run(answering: Callable[[bytes], int]) -> None:
    tally = drive(answering(b"$3\r\n0-1\r\n"), Resp(), [Lane(0, 1)], LOAD, 0.1)
    assert tally.acknowledged > len(tally.took) > 10
    with pytest.raises(RuntimeError, match=f"acknowledged {tally.acknowledged} records and has 7"):
        rivals.figures("Liar", LOAD, tally, 7)


def in_parts(answers: Answers, data: bytes, size: int) -> int:
    return sum(answers.finished(data[place : place + size]) for place in range(0, len(data), size))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_answers_are_counted_however_they_are_cut(size: int) -> None:
    one = b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n$15\r\n1526919030474-0\r\n$15\r\n1526919030474-1\r\n"
    assert in_parts(Resp().answers(2), one * 5, size) == 5
    assert in_parts(Resp().answers(1), b"$3\r\n1-0\r\n" * 5, size) == 5
    assert in_parts(Messages(), (message(b"C", b"COPY 5\0") + message(b"Z", b"I")) * 5, size) == 5
    with pytest.raises(Refused, match="OOM"):
        in_parts(Lines(1), b"$3\r\n1-0\r\n-OOM\r\n", size)
    with pytest.raises(Refused, match="disk full"):
        in_parts(Messages(), message(b"E", b"SERROR\0Mdisk full\0\0"), size)


def test_requests_are_what_the_protocols_say() -> None:
    assert words(b"XADD", b"s") == b"*2\r\n$4\r\nXADD\r\n$1\r\ns\r\n"
    assert split(b"Z\0\0\0\5ID\0\0") == ([(b"Z", b"I")], b"D\0\0")


def test_batches_in_flight_share_a_bounded_number_of_connections() -> None:
    assert [lane.in_flight for lane in rivals.spread(3)] == [1, 1, 1]
    many = rivals.spread(1024)
    assert (len(many), sum(lane.in_flight for lane in many)) == (rivals.CONNECTIONS, 1024)
