"""Hashes, keys and seals."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from functools import cache

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from .cursor import ModelError, u8, u32, u64


def domain(word: str) -> bytes:
    return word.encode("ascii").ljust(32, b"\0")


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def blake(*parts: bytes, key: bytes | None = None, size: int = 32) -> bytes:
    data = b"".join(parts)
    return (blake3(data) if key is None else blake3(data, key=key)).digest(size)


@cache
def hkdf(key: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(key)


def key_id(key: bytes) -> bytes:
    return hkdf(key, b"kimberlite/key id/1")[:16]


def seal_key(data_key: bytes) -> bytes:
    return hkdf(data_key, b"kimberlite/seal key/1")


def salt_key(data_key: bytes) -> bytes:
    return hkdf(data_key, b"kimberlite/salt key/1")


def index_key(data_key: bytes) -> bytes:
    return hkdf(data_key, b"kimberlite/index key/1")


def wrapping_key(master: bytes, database: bytes) -> bytes:
    return hkdf(master, domain("kimberlite/wrap/1") + database)


def many_key(receipt_key: bytes) -> bytes:
    """The key of producers and digests of appends to several streams."""
    return hkdf(receipt_key, domain("kimberlite/producer/1"))


def _subkey(key: bytes, nonce: bytes) -> bytes:
    # AES of single blocks: ECB of one block is the bare permutation that CMAC is made of.
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    doubled = int.from_bytes(block.update(bytes(16)), "big") << 1
    if doubled >> 128:
        doubled = (doubled & (1 << 128) - 1) ^ 0x87
    mask = doubled.to_bytes(16, "big")
    halves = (bytes([0, half]) + b"X\0" + nonce[:12] for half in (1, 2))
    return b"".join(block.update(bytes(a ^ b for a, b in zip(half, mask, strict=True))) for half in halves)


def xaes_seal(key: bytes, nonce: bytes, data: bytes, associated: bytes) -> bytes:
    return AESGCM(_subkey(key, nonce)).encrypt(nonce[12:], data, associated)


def xaes_open(key: bytes, nonce: bytes, sealed: bytes, associated: bytes, where: str) -> bytes:
    try:
        return AESGCM(_subkey(key, nonce)).decrypt(nonce[12:], sealed, associated)
    except InvalidTag:
        raise ModelError(where, "does not open under its key") from None


def declaration_hash(declaration: bytes) -> bytes:
    return sha256(domain("kimberlite/declaration/1"), declaration)


def run_seed(data_key: bytes, nonce: bytes) -> bytes:
    return blake(domain("kimberlite/seed/1"), nonce, key=salt_key(data_key))


def salts(seed: bytes, count: int) -> list[bytes]:
    stream = blake(domain("kimberlite/salts/1"), key=seed, size=32 * count)
    return [stream[32 * i : 32 * i + 32] for i in range(count)]


def commitment(declared: bytes, salt: bytes, canonical: bytes) -> bytes:
    return sha256(domain("kimberlite/record/1"), declared, salt, canonical)


def encode_entry(
    *,
    encrypted: bool,
    last: bool,
    stream: int,
    offset: int,
    timestamp: int,
    committed: bytes,
    declared: bytes,
) -> bytes:
    if offset == 0:
        committed = sha256(domain("kimberlite/first/1"), committed, declared)
    flags = encrypted | (stream == 0) << 1 | last << 2
    return u8(1) + u8(flags) + u32(stream) + u64(offset) + u64(timestamp) + committed


def leaf_hash(entry: bytes) -> bytes:
    return sha256(b"\0", entry)


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\1", left, right)


def tree_root(leaves: Sequence[bytes]) -> bytes:
    if not leaves:
        return sha256()
    if len(leaves) == 1:
        return leaves[0]
    split = _split(len(leaves))
    return node_hash(tree_root(leaves[:split]), tree_root(leaves[split:]))


def inclusion_path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    if len(leaves) == 1:
        return []
    split = _split(len(leaves))
    if index < split:
        return [*inclusion_path(leaves[:split], index), tree_root(leaves[split:])]
    return [*inclusion_path(leaves[split:], index - split), tree_root(leaves[:split])]


def root_from_path(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    if not 0 <= index < size:
        raise ModelError("inclusion path", f"leaf {index} of a tree of {size}")
    if size == 1:
        if path:
            raise ModelError("inclusion path", "is too long")
        return leaf
    if not path:
        raise ModelError("inclusion path", "is too short")
    split = _split(size)
    if index < split:
        return node_hash(root_from_path(leaf, index, split, path[:-1]), path[-1])
    return node_hash(path[-1], root_from_path(leaf, index - split, size - split, path[:-1]))


def _split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << (size - 1).bit_length() - 1


def root_of(peaks: Sequence[bytes]) -> bytes:
    """`peaks` are the roots of a tree's perfect subtrees, largest first."""
    if not peaks:
        return sha256()
    root = peaks[-1]
    for peak in reversed(peaks[:-1]):
        root = node_hash(peak, root)
    return root


class Tree:
    """The roots of its perfect subtrees, largest first: one for each bit of the size."""

    def __init__(self, size: int = 0, peaks: Iterable[bytes] = ()) -> None:
        self.size = size
        self.peaks = list(peaks)

    def grow(self, leaf: bytes) -> list[bytes]:
        """Adds a leaf and returns it with every node it completes."""
        made = [leaf]
        # as many ones as the size ends with, so many perfect subtrees are completed
        for _ in range((self.size ^ (self.size + 1)).bit_length() - 1):
            made.append(node_hash(self.peaks.pop(), made[-1]))
        self.peaks.append(made[-1])
        self.size += 1
        return made

    def root(self) -> bytes:
        return root_of(self.peaks)


def segment_chain(number: int, first_group: int, first_position: int, before: bytes) -> bytes:
    return sha256(domain("kimberlite/segment/1"), u64(number), u64(first_group), u64(first_position), before)


def body_hash(runs: Iterable[bytes]) -> bytes:
    return blake(*(blake(run) for run in runs))


def group_chain(previous: bytes, header: bytes, body: bytes) -> bytes:
    return sha256(domain("kimberlite/chain/1"), previous, header[:96], body)


def group_tag(group_key: bytes, chain: bytes) -> bytes:
    return hmac.new(group_key, domain("kimberlite/tag/1") + chain, hashlib.sha256).digest()[:16]


def batch_digest(key: bytes, canonicals: Iterable[bytes]) -> bytes:
    return blake(domain("kimberlite/digest/1"), *canonicals, key=key, size=16)


def many_digest(key: bytes, parts: Iterable[tuple[int, bytes, Sequence[bytes]]]) -> bytes:
    """Of an append to several streams: (stream number, its key, canonical records) in the order given."""
    joined = (u32(stream) + u32(len(records)) + batch_digest(own, records) for stream, own, records in parts)
    return blake(domain("kimberlite/digest/1"), *joined, key=key, size=16)


def kept_producer(key: bytes, identifier: bytes) -> bytes:
    return blake(domain("kimberlite/producer/1"), identifier, key=key, size=16)


def receipt_mac(
    receipt_key: bytes,
    *,
    database: bytes,
    group: int,
    tree_size: int,
    root: bytes,
    chain: bytes,
    incarnation: int,
    durable: bool,
    stream: int,
    offsets: tuple[int, int],
    positions: tuple[int, int],
    timestamp: int,
) -> bytes:
    """`offsets` and `positions` are (first, last), the last one included."""
    ending = u64(group) + u64(tree_size) + root + chain + u32(incarnation) + u8(durable) + u64(timestamp)
    shared = blake(domain("kimberlite/receipt/1"), database, ending, key=receipt_key, size=32)
    return blake(u32(stream) + b"".join(map(u64, (*offsets, *positions))), key=shared, size=16)
