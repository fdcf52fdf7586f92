"""Servers whose best client is a library in another language, driven by small programs of our own around it.

A driver does the work of benches.clients: the same clients with as many batches in flight, of random bytes made
before the clock runs, for as long after the same warm-up. It prints what it found in one line of JSON.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benches import servers
from benches.builds import Source, cargo, go, maven
from benches.clients import PATIENCE, Load
from benches.packages import Installed, Missing
from benches.rivals import WARM, Figures, check, fresh, listed

NATS = Source("nats", (go({"driver": ".", "nats-server": "github.com/nats-io/nats-server/v2"}),))
KAFKA = Source("kafka", (go({"driver": "."}), maven("jars")))
ETCD = Source("etcd", (go({"driver": ".", "etcd": "go.etcd.io/etcd/server/v3"}),))
TESSERA = Source("tessera", (go({"driver": "."}),))
UMADB = Source("umadb", (cargo("umadb-driver", "umadb-server"),))

#: Seconds before those that count, for Java's compiler: Kafka is half as fast in its first ones.
WARM_JAVA = 10.0


@dataclass(frozen=True, slots=True)
class Driven:
    name: str
    settings: str
    driver: Path
    #: What the driver is told of the server that runs in this directory, for as long as the context.
    start: Callable[[Path], AbstractContextManager[tuple[str, str]]]
    #: Under which directories are made.
    parent: Path
    warm: float = WARM
    alone: bool = False

    def run(self, load: Load) -> Figures:
        warm = min(self.warm, 5 * load.seconds)
        with fresh(self.parent) as place, self.start(place) as where:
            words = [*where, "-clients", str(load.clients), "-depth", str(load.depth), "-batch", str(load.batch)]
            words += ["-size", str(load.size), "-seconds", str(load.seconds), "-warm", str(warm)]
            said = json.loads(self._drive(words, load.seconds + warm + 3 * PATIENCE))
        check(self.name, said["acknowledged"] * load.batch, said["stored"])
        p50, p99, p999 = (said[name] / 1e6 for name in ("p50", "p99", "p999"))
        return Figures(said["counted"] * load.batch / load.seconds, p50, p99, p999)

    def _drive(self, words: list[str], patience: float) -> str:
        line = ["setpriv", "--pdeathsig", "KILL", str(self.driver), *words]
        try:
            done = subprocess.run(line, capture_output=True, text=True, timeout=patience, check=False)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{self.name}: its driver is silent") from None
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise RuntimeError(f"{self.name}: {lines[-1]}")
        return done.stdout


def nats(parts: Path, parent: Path) -> Driven:
    server, driver = Installed(parts / "nats-server"), Installed(parts / "driver")
    settings = (
        f"{server.version()}: {listed(servers.NATS_SETTINGS)}, replicas=1; a stream of files for each client, atomic "
        f"batches or a publish of one, by nats.go {driver.version()}"
    )
    return Driven("NATS JetStream", settings, driver.path, _at(partial(servers.nats, server)), parent)


def etcd(parts: Path, parent: Path) -> Driven:
    server, driver = Installed(parts / "etcd"), Installed(parts / "driver")
    settings = (
        f"{server.version()}: fsync, {listed(servers.ETCD_SETTINGS)}; a new key for each record, a transaction of puts "
        f"or a put of one, by its Go client {driver.version()}"
    )
    return Driven("etcd", settings, driver.path, _at(partial(servers.etcd, server)), parent)


def kafka(parts: Path, parent: Path) -> Driven:
    java, driver, jars = shutil.which("java"), Installed(parts / "driver"), parts / "jars"
    if java is None:
        raise Missing("no java on PATH")
    [version] = [found[1] for jar in jars.iterdir() if (found := re.fullmatch(r"kafka_2\.13-(.+)\.jar", jar.name))]
    settings = (
        f"{version}: {listed(servers.KAFKA_SETTINGS)}; acks=all, a partition and a producer for each client, a batch "
        f"in one request, by franz-go {driver.version()}; {WARM_JAVA:g} s of warm-up"
    )
    start = _at(partial(servers.kafka, Installed(Path(java)), jars))
    return Driven("Kafka", settings, driver.path, start, parent, WARM_JAVA)


def tessera(parts: Path, parent: Path) -> Driven:
    driver = Installed(parts / "driver")
    settings = (
        f"{driver.version()}: POSIX, no antispam, in a process with its clients and no network; batches of as many "
        "entries as can wait, after 20 ms of fewer; an entry is answered when it is integrated"
    )
    return Driven("Tessera POSIX (embedded)", settings, driver.path, _in_directory, parent)


def umadb(parts: Path, parent: Path) -> Driven:
    server, driver = Installed(parts / "umadb-server"), parts / "umadb-driver"
    settings = (
        f"{server.version()}: as it comes, with syncs; an append without a condition for each batch, a "
        "connection for each client, by its Rust client"
    )
    return Driven("UmaDB", settings, driver, _at(partial(servers.umadb, server)), parent)


def _at(
    server: Callable[[Path], AbstractContextManager[int]],
) -> Callable[[Path], AbstractContextManager[tuple[str, str]]]:
    @contextmanager
    def start(place: Path) -> Iterator[tuple[str, str]]:
        with server(place) as port:
            yield "-address", f"127.0.0.1:{port}"

    return start


@contextmanager
def _in_directory(place: Path) -> Iterator[tuple[str, str]]:
    yield "-directory", str(place / "data")
