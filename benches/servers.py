"""Servers as a careful user runs them for appends: the fastest settings that are durable at the answer.

Each runs on a free port of the loopback for as long as its context; what it wrote is thrown away with its directory.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benches.clients import Refused
from benches.dialects import command, query
from benches.packages import Installed, Missing, Program, run

REDIS = Program("redis-server", "redis-server", "redis-(server|tools)", "usr/bin")
POSTGRES = Program("postgres", "postgresql", r"postgresql-\d+", "usr/lib/postgresql/*/bin")

REDIS_SETTINGS = {
    "appendonly": "yes",
    "appendfsync": "always",
    "save": "",
    "auto-aof-rewrite-percentage": "0",
    "latency-tracking": "no",
}
#: O_DIRECT | O_DSYNC on recycled segments needs wal_level=minimal. No checkpoint falls into a run.
POSTGRES_SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "wal_sync_method": "open_datasync",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "wal_compression": "off",
    "wal_buffers": "64MB",
    "min_wal_size": "4GB",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
    "shared_buffers": "1GB",
    "max_connections": "210",
    "commit_delay": "0",
    "autovacuum": "off",
    "track_activities": "off",
    "track_counts": "off",
    "update_process_title": "off",
    "jit": "off",
}

#: With the address, the directory and the ports, which every run has of its own.
NATS_SETTINGS = {"sync_interval": "always", "max_file_store": "1TB"}
#: fsync is on unless one turns it off; 2 GiB, the quota by default, is full within a run.
ETCD_SETTINGS = {"quota-backend-bytes": str(16 << 30), "log-level": "error"}
KAFKA_SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "log.flush.interval.messages": "1",
    "auto.create.topics.enable": "false",
}
#: The name that a cluster of Kafka must have: 16 bytes in base 64.
CLUSTER = "a2ltYmVybGl0ZS1iZW5jaA"
#: As Kafka's own scripts run it; and nothing is left in the system's directory for temporary files.
JAVA = ("-server", "-Xms1G", "-Xmx1G", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:-UsePerfData")

#: Seconds to start, and to stop before it is killed.
PATIENCE = 30.0
USER = "postgres"
#: Who PostgreSQL runs as if we are root, whom it refuses.
NOBODY = "nobody"


@contextmanager
def redis(program: Installed, directory: Path) -> Iterator[int]:
    """Its port."""
    port = free_port()
    line = [str(program.path), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory)]
    for name, value in REDIS_SETTINGS.items():
        line += [f"--{name}", value]
    with running(program, line, directory, signal.SIGTERM, lambda: command(port, "PING")):
        yield port


@contextmanager
def postgres(program: Installed, directory: Path) -> Iterator[int]:
    """Its port."""
    data = directory / "data"
    data.mkdir()
    if os.geteuid() == 0:
        shutil.chown(data, NOBODY)
    create = [
        str(program.path.resolve().with_name("initdb")),
        "--pgdata",
        str(data),
        "--username",
        USER,
        "--auth",
        "trust",
    ]
    create += ["--encoding", "UTF8", "--locale", "C", "--no-sync"]
    run([*_as(NOBODY, signal.SIGTERM), *create], program.environment())
    port = free_port()
    line = [str(program.path), "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", ""]
    for name, value in POSTGRES_SETTINGS.items():
        line += ["-c", f"{name}={value}"]
    # SIGQUIT: without the checkpoint that nobody will start from.
    with running(program, line, directory, signal.SIGQUIT, lambda: query(port, USER, "SELECT 1"), NOBODY):
        yield port


@contextmanager
def nats(program: Installed, directory: Path) -> Iterator[int]:
    """Its port."""
    port = free_port()
    settings = {"host": "127.0.0.1", "port": str(port)}
    stored = NATS_SETTINGS | {"store_dir": f'"{directory / "data"}"'}
    lines = [f"{name}: {value}" for name, value in settings.items()]
    lines += ["jetstream {", *(f"  {name}: {value}" for name, value in stored.items()), "}"]
    (directory / "conf").write_text("\n".join(lines), encoding="utf-8")
    line = [str(program.path), "--config", str(directory / "conf")]
    with running(program, line, directory, signal.SIGKILL, lambda: reached(port)):
        yield port


@contextmanager
def etcd(program: Installed, directory: Path) -> Iterator[int]:
    """Its port for clients."""
    port, other = free_port(), free_port()
    clients, members = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{other}"
    line = [str(program.path), "--data-dir", str(directory / "data"), "--initial-cluster", f"default={members}"]
    line += ["--listen-client-urls", clients, "--advertise-client-urls", clients]
    line += ["--listen-peer-urls", members, "--initial-advertise-peer-urls", members]
    for name, value in ETCD_SETTINGS.items():
        line += [f"--{name}", value]
    with running(program, line, directory, signal.SIGKILL, lambda: reached(port)):
        yield port


@contextmanager
def kafka(java: Installed, jars: Path, directory: Path) -> Iterator[int]:
    """Its port for producers."""
    port, other = free_port(), free_port()
    addresses = f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{other}"
    settings = KAFKA_SETTINGS | {
        "listeners": addresses,
        "advertised.listeners": addresses,
        "controller.quorum.bootstrap.servers": f"127.0.0.1:{other}",
        "log.dirs": str(directory / "data"),
    }
    conf = directory / "conf"
    conf.write_text("".join(f"{name}={value}\n" for name, value in settings.items()), encoding="utf-8")
    line = [str(java.path), *JAVA, f"-Djava.io.tmpdir={directory}", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error"]
    line += ["-classpath", f"{jars}/*"]
    create = [*line, "kafka.tools.StorageTool", "format", "--standalone", "-c", str(conf), "-t", CLUSTER]
    run([*_as(None, signal.SIGKILL), *create], java.environment())
    with running(java, [*line, "kafka.Kafka", str(conf)], directory, signal.SIGKILL, lambda: reached(port)):
        yield port


@contextmanager
def umadb(program: Installed, directory: Path) -> Iterator[int]:
    """Its port."""
    port = free_port()
    line = [str(program.path), "--listen", f"127.0.0.1:{port}", "--db-path", str(directory / "data")]
    with running(program, line, directory, signal.SIGKILL, lambda: reached(port)):
        yield port


def reached(port: int) -> None:
    """An OSError as long as nobody listens."""
    socket.create_connection(("127.0.0.1", port), PATIENCE).close()


@contextmanager
def running(
    program: Installed,
    line: Sequence[str],
    directory: Path,
    stop: signal.Signals,
    probe: Callable[[], object],
    user: str | None = None,
) -> Iterator[None]:
    """From when the probe is answered; the process and its children are gone at the end."""
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*_as(user, stop), *line],
            env=program.environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=directory,
            start_new_session=True,
        )
    try:
        _wait(process, probe, log)
        yield
    finally:
        process.send_signal(stop)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _as(user: str | None, stop: signal.Signals) -> list[str]:
    """The words before a command, so that it ends with us and, if we are root, is that user.

    Other users' directories on the way to the data may be closed to it, as root's are: it keeps the way in.
    """
    words = ["setpriv", "--pdeathsig", stop.name.removeprefix("SIG")]
    if user is None or os.geteuid() != 0:
        return words
    found = pwd.getpwnam(user)
    words += ["--reuid", str(found.pw_uid), "--regid", str(found.pw_gid), "--clear-groups"]
    return words + [f"--{kind}=-all,+dac_override" for kind in ("inh-caps", "ambient-caps", "bounding-set")]


def _wait(process: subprocess.Popen[bytes], probe: Callable[[], object], log: Path) -> None:
    until = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < until:
        try:
            probe()
            return
        except (OSError, Refused):
            time.sleep(0.02)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it said nothing"]
    raise Missing(f"it does not start: {lines[-1]}")
