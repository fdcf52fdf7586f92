"""How fast can this machine hash, encrypt and copy at all? One thread, through the Python packages.

A call from Python costs a fraction of a microsecond, which is part of the small sizes here.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from statistics import median

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from benches.table import Table, asked, byte_count, machine, publish, quantile

SIZES = (256, 1 << 10, 1 << 20)
#: Calls between two looks at the clock, in bytes: enough that the clock costs nothing.
STRETCH = 1 << 20
#: Blocks of SHA-256 for a record of 256 bytes: its commitment, its leaf and one node of the tree.
BLOCKS = 6 + 2 + 2


@dataclass(frozen=True, slots=True)
class Rate:
    work: str
    size: int
    gigabytes_per_second: float
    #: Of the rounds, which this is the median of.
    low: float
    high: float


def _sha256(data: bytes) -> Callable[[], object]:
    sha256 = hashlib.sha256
    return lambda: sha256(data).digest()


def _blake3(data: bytes) -> Callable[[], object]:
    return lambda: blake3(data).digest()


def _blake3_threads(data: bytes) -> Callable[[], object]:
    return lambda: blake3(data, max_threads=blake3.AUTO).digest()


def _aes_gcm(data: bytes) -> Callable[[], object]:
    """The same nonce each time, which only a bench may do: nothing of it is kept."""
    encrypt, nonce = AESGCM(os.urandom(32)).encrypt, os.urandom(12)
    return lambda: encrypt(nonce, data, None)


def _copy(data: bytes) -> Callable[[], object]:
    """Both ends stay in the cache where they fit."""
    source, target = memoryview(data), memoryview(bytearray(len(data)))

    def copy() -> None:
        target[:] = source

    return copy


WORK: dict[str, Callable[[bytes], Callable[[], object]]] = {
    "SHA-256 (OpenSSL)": _sha256,
    "BLAKE3": _blake3,
    "BLAKE3, all cores": _blake3_threads,
    "AES-256-GCM (OpenSSL)": _aes_gcm,
    "memory copy": _copy,
}


def bytes_per_second(call: Callable[[], object], size: int, seconds: float) -> float:
    calls = max(1, STRETCH // size)
    done = 0
    begin = time.perf_counter()
    while True:
        for _ in range(calls):
            call()
        done += calls * size
        if (spent := time.perf_counter() - begin) >= seconds:
            return done / spent


def slowest(name: str, size: int, seconds: float) -> float:
    """Nanoseconds that one call of a hundred takes longer than."""
    call, took = WORK[name](os.urandom(size)), list[int]()
    until = time.perf_counter_ns() + int(seconds * 1e9)
    while (begun := time.perf_counter_ns()) < until:
        call()
        took.append(time.perf_counter_ns() - begun)
    return quantile(took, 0.99)


def rates(seconds: float, rounds: int = 5) -> list[Rate]:
    """Every work at every size for `seconds`, in turns; medians over the rounds."""
    calls = {(name, size): WORK[name](os.urandom(size)) for name, size in product(WORK, SIZES)}
    found: dict[tuple[str, int], list[float]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            found[key].append(bytes_per_second(call, key[1], seconds / rounds))
    return [
        Rate(name, size, median(values) / 1e9, min(values) / 1e9, max(values) / 1e9)
        for (name, size), values in found.items()
    ]


def hashed_records(seconds: float) -> float:
    """Records a second whose leaves and nodes all cores together could hash if they did nothing else."""
    data = os.urandom(STRETCH)
    done = [0] * (os.cpu_count() or 1)

    def work(i: int) -> None:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            hashlib.sha256(data).digest()
            done[i] += 1

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(done))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) * STRETCH / (64 * BLOCKS) / seconds


def rate_table(found: list[Rate]) -> Table:
    cells = {(each.work, each.size): f"{each.gigabytes_per_second:.2f}" for each in found}
    rows = [(name, *(cells[name, size] for size in SIZES)) for name in WORK]
    return Table("GB/s", ("one call for", *map(byte_count, SIZES)), tuple(rows))


def arguments() -> argparse.ArgumentParser:
    parser = asked("limits", "Hashes, a cipher and a copy.", on_disk=False)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each cell of the table")
    return parser


def main() -> None:
    options = arguments().parse_args()
    where = machine()
    found = rates(options.seconds)
    publish(where, [rate_table(found)], {"limits": found}, options)


if __name__ == "__main__":
    main()
