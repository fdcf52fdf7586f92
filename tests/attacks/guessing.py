"""Somebody who knows the format and wants to know which of few possible payloads a record has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tests.model.hashes import blake, commitment, domain, encode_entry, leaf_hash, run_seed, salts
from tests.model.records import Record, encode_record

#: Records of a run: a seed gives so many salts.
RUN = 5


@dataclass(frozen=True)
class Target:
    """What is public of a record: all of its entry but the commitment, and the hash of its stream's declaration."""

    encrypted: bool
    last: bool
    stream: int
    offset: int
    timestamp: int
    declared: bytes

    def traces(self, salt: bytes, payload: bytes) -> tuple[bytes, bytes]:
        """The commitment and the leaf it would have."""
        committed = commitment(self.declared, salt, encode_record(Record(payload)))
        entry = encode_entry(
            encrypted=self.encrypted,
            last=self.last,
            stream=self.stream,
            offset=self.offset,
            timestamp=self.timestamp,
            committed=committed,
            declared=self.declared,
        )
        return committed, leaf_hash(entry)


def strings(*places: bytes) -> set[bytes]:
    """Every 32 bytes that follow each other somewhere, whether they are aligned or not."""
    found = {data[i : i + 32] for data in places for i in range(len(data) - 31)}
    return {string for string in found if string.count(0) < 16}


def beside(salt: bytes) -> Iterator[bytes]:
    """What a weak generator would have given before and after it."""
    number = int.from_bytes(salt, "little")
    for step in (-1, 1):
        yield ((number + step) % (1 << 256)).to_bytes(32, "little")
    yield blake(salt)
    yield blake(domain("kimberlite/salts/1"), salt)


def possible_salts(string: bytes, nonces: Iterable[bytes]) -> Iterator[bytes]:
    """What follows from 32 bytes that are a salt, the seed of a run, a salt key or a data key."""
    yield string
    yield from salts(string, RUN)
    for nonce in nonces:
        yield from salts(blake(domain("kimberlite/seed/1"), nonce, key=string), RUN)
        yield from salts(run_seed(string, nonce), RUN)


def guess(target: Target, seen: set[bytes], candidates: Iterable[bytes], payloads: Iterable[bytes]) -> set[bytes]:
    """The payloads that leave a trace which is among what he has seen, under any of the candidates as its salt."""
    payloads = list(payloads)
    return {payload for salt in candidates for payload in payloads if not seen.isdisjoint(target.traces(salt, payload))}
