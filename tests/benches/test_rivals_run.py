"""The benches of peers, very small: nothing is downloaded, the figures make sense, no server outlives us."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import threading
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path

import pytest

from benches import builds, driven, offers, packages, rivals, servers
from benches.clients import Answers, Lane, Refused, drive
from benches.dialects import Lines, Messages, Resp, command, message, split, words
from benches.packages import Installed, Missing, Program

Server = Callable[[Installed, Path], AbstractContextManager[int]]
PACKAGED = [(servers.REDIS, servers.redis), (servers.POSTGRES, servers.postgres)]
BUILT = [
    (driven.NATS, "nats-server", servers.nats),
    (driven.ETCD, "etcd", servers.etcd),
    (driven.UMADB, "umadb-server", servers.umadb),
]
OPERATIONS = Path(__file__).parents[2] / "docs/operations.md"
LOAD = rivals.Load(clients=3, depth=2, batch=1, size=100, seconds=0.8)


def there(program: Program) -> Installed:
    """Without a download."""
    found = packages.installed(program)
    if found is None:
        pytest.skip(f"no {program.name} on PATH or in {packages.cache()}, where just bench-peers puts it")
    return found


def rival(name: str, parent: Path) -> rivals.Rival:
    found = offers.OFFERS[name].there(parent)
    if found is None:
        pytest.skip(f"no {name} on PATH or in {packages.cache()}, where just bench-peers puts it")
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
@pytest.mark.parametrize("name", [name for name in offers.OFFERS if name != "immudb"])
def test_a_peer_is_measured(tmp_path: Path, name: str, batch: int) -> None:
    peer = rival(name, tmp_path)
    clients, depth = (1, 1) if peer.alone else (LOAD.clients, LOAD.depth)
    found = peer.run(rivals.Load(clients, depth, batch, LOAD.size, LOAD.seconds))
    assert 10 < found.records_per_s < 1e7
    assert 0 < found.p50_ms <= found.p99_ms <= found.p999_ms
    assert any(letter.isdigit() for letter in peer.settings.partition(":")[0])
    assert not list(tmp_path.iterdir())


def test_a_store_is_not_asked_for_more_than_its_one_writer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one writer"):
        rival("sqlite", tmp_path).run(LOAD)


def test_a_peer_that_has_less_than_it_acknowledged_fails_the_run(tmp_path: Path) -> None:
    said = '{"acknowledged": 5, "counted": 4, "p50": 1, "p99": 2, "p999": 3, "stored": 49}'
    driver = tmp_path / "driver"
    driver.write_text(f"#!/bin/sh\necho '{said}'\n", encoding="utf-8")
    driver.chmod(0o700)
    peer = driven.Driven("Liar", "1.0", driver, nothing, tmp_path)
    with pytest.raises(RuntimeError, match="Liar acknowledged 50 records and has 49"):
        peer.run(rivals.Load(1, 1, 10, 100, 1))
    assert peer.run(rivals.Load(1, 1, 9, 100, 1)) == rivals.Figures(36, 1e-6, 2e-6, 3e-6)


def test_a_driver_says_why_it_gave_up(tmp_path: Path) -> None:
    driver = tmp_path / "driver"
    driver.write_text("#!/bin/sh\necho no such server >&2\nexit 1\n", encoding="utf-8")
    driver.chmod(0o700)
    with pytest.raises(RuntimeError, match="Far: no such server"):
        driven.Driven("Far", "1.0", driver, nothing, tmp_path).run(LOAD)


@contextmanager
def nothing(_place: Path) -> Iterator[tuple[str, str]]:
    yield "-address", "127.0.0.1:1"


@pytest.mark.parametrize(("program", "server"), PACKAGED, ids=["redis", "postgres"])
def test_a_packaged_server_ends_with_its_context(tmp_path: Path, program: Program, server: Server) -> None:
    ends_with_its_context(server, there(program), tmp_path)


@pytest.mark.parametrize(("source", "name", "server"), BUILT, ids=["nats", "etcd", "umadb"])
def test_a_built_server_ends_with_its_context(tmp_path: Path, source: builds.Source, name: str, server: Server) -> None:
    ends_with_its_context(server, Installed(in_cache(source) / name), tmp_path)


def test_kafka_ends_with_its_context(tmp_path: Path) -> None:
    jars, java = in_cache(driven.KAFKA) / "jars", shutil.which("java")
    if java is None:
        pytest.skip("no java on PATH")
    ends_with_its_context(lambda program, place: servers.kafka(program, jars, place), Installed(Path(java)), tmp_path)


def in_cache(source: builds.Source) -> Path:
    found = builds.found(source)
    if found is None:
        pytest.skip(f"no {source.name} in {packages.cache()}, where just bench-peers puts it")
    return found


def ends_with_its_context(server: Server, program: Installed, directory: Path) -> None:
    """Even when that fails."""
    port = 0

    def fail() -> None:
        nonlocal port
        with server(program, directory) as port:
            assert not refuses(port)
            assert inside(directory)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert refuses(port)
    assert not inside(directory)


def test_what_a_server_said_tells_why_it_does_not_start(tmp_path: Path) -> None:
    program = there(servers.REDIS)
    line = [str(program.path), "--no-such-setting", "1"]
    with (
        pytest.raises(Missing, match=r"does not start: .*Bad directive"),
        servers.running(program, line, tmp_path, signal.SIGTERM, lambda: command(1, "PING")),
    ):
        pass


def test_peers_that_cannot_be_had_or_do_not_work_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def had(_directory: Path) -> rivals.Rival:
        raise Missing("apt-get: Unable to locate package far-server")

    def broken(directory: Path) -> rivals.Rival:
        return driven.Driven("Broken", "1.0", tmp_path / "nothing", nothing, directory)

    offered = {"far": offers.Offer("Far", lambda _: None, had), "broken": offers.Offer("Broken", broken, broken)}
    monkeypatch.setattr(offers, "OFFERS", offered | {"sqlite": offers.OFFERS["sqlite"]})
    found, missing = offers.rivals_here(["far", "broken", "sqlite"], tmp_path)
    assert [peer.name for peer in found] == ["SQLite (embedded)"]
    assert missing[0] == "Far is left out: apt-get: Unable to locate package far-server"
    assert missing[1].startswith("Broken is left out: Broken: setpriv: failed to execute")


@pytest.mark.parametrize(
    ("words", "pattern"), [(["gofmt", "-l"], "*.go"), (["rustfmt", "--edition", "2024", "--check", "-l"], "*.rs")]
)
def test_drivers_are_formatted(words: list[str], pattern: str) -> None:
    if shutil.which(words[0]) is None:
        pytest.skip(f"no {words[0]} on PATH")
    files = sorted(map(str, builds.SOURCES.rglob(pattern)))
    assert files
    assert not packages.run([*words, *files])


def test_every_peer_is_in_the_document() -> None:
    rows = re.findall(r"^\| (`.+?`) \| .* \| .* \|$", OPERATIONS.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(offers.OFFERS) <= {name.strip("`") for row in rows for name in row.split(", ")}


def test_peers_are_chosen_by_name() -> None:
    assert offers.chosen("redis,lmdb") == ["redis", "lmdb"]
    with pytest.raises(ArgumentTypeError, match="no oracle among redis, postgres"):
        offers.chosen("redis,oracle")


def test_what_is_built_is_built_once_and_again_when_its_source_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(builds, "SOURCES", tmp_path)
    said = tmp_path / "far" / "said"
    said.parent.mkdir()
    said.write_text("1", encoding="utf-8")
    far = builds.Source(
        "far", (lambda source, target: (target / "program").write_bytes((source / "said").read_bytes()),)
    )
    assert builds.found(far) is None
    first = builds.built(far)
    assert (first / "program").read_text(encoding="utf-8") == "1"
    assert builds.built(far) == builds.found(far) == first
    said.write_text("2", encoding="utf-8")
    assert builds.found(far) is None
    assert (builds.built(far) / "program").read_text(encoding="utf-8") == "2"
    assert not first.exists()


def test_a_build_that_fails_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(builds, "SOURCES", tmp_path)
    (tmp_path / "far").mkdir()
    words = ["sh", "-c", "echo a warning; echo error: no such module; echo see the manual; exit 1"]
    far = builds.Source("far", (lambda source, target: print(packages.run(words, directory=source), target),))
    with pytest.raises(Missing, match="sh: error: no such module"):
        builds.built(far)
    assert not list((tmp_path / "cache/kimberlite-bench/drivers").iterdir())


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
