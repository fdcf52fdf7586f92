"""Which peers there are to compare with, by the names that `--peers` takes, and which of them can run here."""

from __future__ import annotations

import os
import sys
import tempfile
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benches import builds, driven, peers, rivals, servers
from benches.clients import Load
from benches.embedded import Embedded
from benches.packages import Installed, Missing, Program, had, installed, run
from benches.rivals import Rival

#: What everybody does once before the figures, so that it is known to work. Seconds, at the end.
TRIAL = Load(1, 1, 1, 256, 1.0)
#: The module that has it, in a version that its list had when it could last be read.
IMMUDB = "github.com/codenotary/immudb/cmd/immudb@v1.9.7"


@dataclass(frozen=True, slots=True)
class Offer:
    title: str
    #: With the directory where its runs make theirs; None if it would have to be downloaded.
    there: Callable[[Path], Rival | None]
    #: The same, but downloads it, or raises Missing.
    had: Callable[[Path], Rival]


def _package(title: str, program: Program, make: Callable[[Installed, Path], Rival]) -> Offer:
    def there(parent: Path) -> Rival | None:
        return None if (found := installed(program)) is None else make(found, parent)

    return Offer(title, there, lambda parent: make(had(program), parent))


def _source(title: str, source: builds.Source, make: Callable[[Path, Path], Rival]) -> Offer:
    def there(parent: Path) -> Rival | None:
        return None if (parts := builds.found(source)) is None else make(parts, parent)

    return Offer(title, there, lambda parent: make(builds.built(source), parent))


def _store(title: str) -> Offer:
    package = peers.PACKAGES.get(title)

    def there(parent: Path) -> Rival | None:
        lacks = package is not None and find_spec(package) is None
        return None if lacks else Embedded(peers.PEERS[title], parent)

    def had(parent: Path) -> Rival:
        if (found := there(parent)) is None:
            raise Missing(f"pip install {package}")
        return found

    return Offer(title, there, had)


def _immudb(_parent: Path) -> Rival:
    with tempfile.TemporaryDirectory() as name:
        run(["go", "install", IMMUDB], os.environ | {"GOBIN": name})
    raise Missing("its module can be fetched now, and there is no driver for it yet")


OFFERS = {
    "redis": _package("Redis Streams", servers.REDIS, rivals.Redis),
    "postgres": _package("PostgreSQL", servers.POSTGRES, rivals.PostgreSQL),
    "nats": _source("NATS JetStream", driven.NATS, driven.nats),
    "kafka": _source("Kafka", driven.KAFKA, driven.kafka),
    "etcd": _source("etcd", driven.ETCD, driven.etcd),
    "umadb": _source("UmaDB", driven.UMADB, driven.umadb),
    "tessera": _source("Tessera POSIX", driven.TESSERA, driven.tessera),
    "sqlite": _store("SQLite"),
    "rocksdb": _store("RocksDB"),
    "lmdb": _store("LMDB"),
    "immudb": Offer("immudb", lambda _parent: None, _immudb),
}


def chosen(words: str) -> Sequence[str]:
    """Names, from those between commas."""
    names = words.split(",")
    if unknown := [name for name in names if name not in OFFERS]:
        raise ArgumentTypeError(f"no {' or '.join(unknown)} among {', '.join(OFFERS)}")
    return names


def rivals_here(names: Sequence[str], parent: Path) -> tuple[list[Rival], list[str]]:
    """Those that run here, and a line for each that does not; downloads what is neither installed nor in the cache."""
    found: list[Rival] = []
    missing: list[str] = []
    for name in names:
        offer = OFFERS[name]
        print(f"looking for {offer.title}", file=sys.stderr, flush=True)
        try:
            rival = offer.had(parent)
            rival.run(TRIAL)
        except (Missing, RuntimeError, OSError) as problem:
            missing.append(f"{offer.title} is left out: {problem}")
        else:
            found.append(rival)
    return found, missing
