"""The model's hashes and seals against what others published, and its codecs against literal bytes."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC
from hypothesis import given
from hypothesis import strategies as st

from .cursor import ModelError
from .files import Identity, Mark, decode_identity, decode_mark, encode_identity, encode_mark, leaf_index
from .groups import RUN_HEADER, Run, decode_inner, decode_run, encode_inner, encode_run
from .hashes import (
    Tree,
    commitment,
    domain,
    encode_entry,
    inclusion_path,
    leaf_hash,
    receipt_mac,
    root_from_path,
    salts,
    sha256,
    tree_root,
    xaes_open,
    xaes_seal,
)
from .records import (
    Declaration,
    Entry,
    Many,
    Mode,
    Part,
    Producer,
    Record,
    Repaired,
    decode_plaintext,
    decode_record,
    decode_system,
    encode_plaintext,
    encode_record,
    encode_system,
)

NONCE = b"ABCDEFGHIJKLMNOPQRSTUVWX"
CT_LEAVES = [
    bytes.fromhex(leaf)
    for leaf in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
CT_ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


@pytest.mark.parametrize(
    ("key", "associated", "sealed"),
    [
        (1, b"", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
        (3, b"c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"),
    ],
)
def test_xaes_seals_as_its_specification_shows(key: int, associated: bytes, sealed: str) -> None:
    made = xaes_seal(bytes([key]) * 32, NONCE, b"XAES-256-GCM", associated)
    assert made.hex() == sealed
    assert xaes_open(bytes([key]) * 32, NONCE, made, associated, "vector") == b"XAES-256-GCM"


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=24, max_size=24), st.binary(), st.binary())
def test_xaes_is_gcm_under_a_subkey_made_by_cmac(key: bytes, nonce: bytes, data: bytes, aad: bytes) -> None:
    subkey = b""
    for counter in (1, 2):
        # SP 800-108: counter, label "X", a zero, the context
        mac = CMAC(AES(key))
        mac.update(counter.to_bytes(2, "big") + b"X\0" + nonce[:12])
        subkey += mac.finalize()
    assert xaes_seal(key, nonce, data, aad) == AESGCM(subkey).encrypt(nonce[12:], data, aad)


@pytest.mark.parametrize("size", range(9))
def test_roots_are_those_of_certificate_transparency(size: int) -> None:
    leaves = [leaf_hash(leaf) for leaf in CT_LEAVES[:size]]
    tree = Tree()
    for leaf in leaves:
        tree.grow(leaf)
    assert tree_root(leaves).hex() == tree.root().hex() == CT_ROOTS[size]


def test_root_of_three_leaves_is_that_of_a_signed_note_elsewhere() -> None:
    root = tree_root([leaf_hash(leaf) for leaf in (b"a", b"b", b"c")])
    assert base64.b64encode(root) == b"NmQuc8JUCrEh46a/lUWwokmCzYMOsT080Z3jzmwCHsE="


@pytest.mark.parametrize("size", range(1, 34))
def test_every_leaf_has_a_path_to_the_root_and_no_other_leaf_has_it(size: int) -> None:
    leaves = [leaf_hash(bytes([i])) for i in range(size)]
    root = tree_root(leaves)
    for i, leaf in enumerate(leaves):
        path = inclusion_path(leaves, i)
        assert root_from_path(leaf, i, size, path) == root
        assert root_from_path(leaf_hash(b"other"), i, size, path) != root
        with pytest.raises(ModelError):
            root_from_path(leaf, i, size, [*path, leaf])


@pytest.mark.parametrize("size", range(70))
def test_hashes_stand_where_the_document_says(size: int) -> None:
    leaves = [leaf_hash(bytes([i])) for i in range(size)]
    tree = Tree()
    made = [one for leaf in leaves for one in tree.grow(leaf)]
    assert len(made) == leaf_index(size)
    for n in range(size):
        level = 0
        while (n + 1) % (1 << level) == 0:
            below = leaves[n + 1 - (1 << level) : n + 1]
            assert made[leaf_index(n) + level] == tree_root(below)
            level += 1


def test_record_in_literal_bytes() -> None:
    record = Record(b"pay", b"k", (("né", b"\1\2"),), -2)
    literal = bytes.fromhex("03 01000000 0b000000 03000000 feffffffffffffff 6b 0300 02000000 6ec3a9 0102 706179")
    assert encode_record(record) == literal
    assert decode_record(literal, "literal") == record


def test_declaration_in_literal_bytes() -> None:
    said = Declaration(7, Mode.ENCRYPTED, bytes(range(16)), 9, "a/b")
    literal = bytes.fromhex("0100 07000000 01 000102030405060708090a0b0c0d0e0f 09000000 0300 612f62")
    assert encode_system(said) == literal
    assert decode_system(Record(literal), "literal") == said


def test_append_to_several_in_literal_bytes() -> None:
    said = Many(bytes(16), 1, bytes([255]) * 16, (Part(2, 3, 4),))
    literal = bytes.fromhex(
        "0200" + "00" * 16 + "0100000000000000" + "ff" * 16 + "01000000 02000000 0300000000000000 04000000"
    )
    assert encode_system(said) == literal
    assert decode_system(Record(literal), "literal") == said


def test_what_was_given_up_in_literal_bytes() -> None:
    said = Repaired(True, bytes(16), 1, 2, 3, 4, ((5, 6), (7, 7)), coarse=True)
    literal = bytes.fromhex(
        "0700 03" + "00" * 16 + "0100000000000000 02000000 03000000 0400000000000000 02000000"
        "0500000000000000 0600000000000000 0700000000000000 0700000000000000"
    )
    assert encode_system(said) == literal
    assert decode_system(Record(literal), "literal") == said


def test_plaintext_in_literal_bytes() -> None:
    entries = [Entry(1, True, Producer(b"p", 2, bytes(16))), Entry(1, False)]
    canonicals = [encode_record(Record(b"x")), encode_record(Record(b"y"))]
    literal = bytes.fromhex("02000000 01000000 03 01 70 0200000000000000" + "00" * 16 + "01000000 00")
    assert encode_plaintext(entries, canonicals) == literal + b"".join(canonicals)
    opened = decode_plaintext(literal + b"".join(canonicals), 2, "literal")
    assert opened == (entries, [Record(b"x"), Record(b"y")], canonicals)


def test_entry_and_first_leaf_in_literal_bytes() -> None:
    declared, committed = bytes([1]) * 32, bytes([2]) * 32

    def entry(offset: int) -> bytes:
        said = {"offset": offset, "timestamp": 4}
        return encode_entry(encrypted=True, last=True, stream=3, committed=committed, declared=declared, **said)

    later = entry(5)
    assert later.hex() == "0105" + "03000000" + "0500000000000000" + "0400000000000000" + "02" * 32
    first = entry(0)
    assert len(first) == 54
    assert first[22:] == sha256(domain("kimberlite/first/1"), committed, declared)


def test_salts_of_fewer_records_are_the_first_of_more() -> None:
    assert salts(bytes(32), 3) == salts(bytes(32), 9)[:3]
    assert len(set(salts(bytes(32), 9))) == 9


def test_a_commitment_hangs_on_declaration_salt_and_record() -> None:
    told = (bytes(32), bytes([1]) * 32, b"record")
    others = {commitment(told[1], told[1], told[2]), commitment(told[0], told[0], told[2])}
    assert commitment(*told) not in others | {commitment(told[0], told[1], b"recorD")}


def test_a_receipt_hangs_on_every_field() -> None:
    fields = {
        "database": bytes(16),
        "group": 1,
        "tree_size": 2,
        "root": bytes(32),
        "chain": bytes(32),
        "incarnation": 3,
        "durable": True,
        "stream": 4,
        "offsets": (5, 6),
        "positions": (7, 8),
        "timestamp": 9,
    }
    other = {
        "database": b"\1" * 16,
        "root": b"\1" * 32,
        "chain": b"\1" * 32,
        "durable": False,
        "offsets": (5, 7),
        "positions": (6, 8),
    }
    changed = [{**fields, name: other.get(name, 99)} for name in fields]
    macs = {receipt_mac(bytes(32), **one) for one in [fields, *changed]}  # type: ignore[arg-type]
    assert len(macs) == 1 + len(fields)
    assert {len(mac) for mac in macs} == {16}


ids = st.binary(min_size=16, max_size=16)


@given(ids, st.integers(0, (1 << 64) - 1), st.from_regex(r"[a-z./é]{1,80}", fullmatch=True), st.booleans())
def test_identity_and_marks_come_back(database: bytes, made: int, origin: str, flag: bool) -> None:
    identity = Identity(database, made, origin, flag, 256)
    assert decode_identity(encode_identity(identity)) == identity
    mark = Mark(made % (1 << 63), 7, 3, bytes(32), flag)
    assert decode_mark(encode_mark(mark, identity), identity, "mark") == mark


@pytest.mark.parametrize("origin", ["", "a b", "a+b", "a\tb", "a\x7fb", "a\u00a0b", "x" * 256])
def test_origins_that_no_checkpoint_could_name_are_refused(origin: str) -> None:
    with pytest.raises(ModelError):
        encode_identity(Identity(bytes(16), 0, origin))


@given(st.binary(max_size=2000), st.sampled_from([1, 2, 64, 128, 4096]), st.booleans())
def test_what_is_sealed_is_padded_and_comes_back(plaintext: bytes, quantum: int, compress: bool) -> None:
    inner = encode_inner(plaintext, quantum, compress)
    assert len(inner) % quantum == 0
    assert len(inner) < 8 + len(plaintext) + quantum
    assert decode_inner(inner, quantum, "inner") == plaintext
    with pytest.raises(ModelError):
        decode_inner(inner + bytes(quantum), quantum, "inner")


PLAIN = Run(1, 1, 2, 3, b"text", plain_length=4, seed=bytes(32))
SEALED = Run(1, 1, 2, 3, b"t", encrypted=True, ends=True, nonce=b"n" * 24, commitments=(bytes(32),))


@pytest.mark.parametrize("run", [PLAIN, SEALED], ids=["plain", "encrypted"])
def test_a_run_comes_back(run: Run) -> None:
    assert len(encode_run(run)) == RUN_HEADER + 32 * len(run.commitments) + len(run.text)
    assert decode_run(encode_run(run), "run") == run


@pytest.mark.parametrize(
    ("run", "place", "value"),
    [
        (PLAIN, 0, 91),
        (PLAIN, 8, 4),
        (PLAIN, 8, 8),
        (PLAIN, 9, 1),
        (PLAIN, 11, 1),
        (PLAIN, 12, 0),
        (PLAIN, 36, 1),
        (PLAIN, 40, 1),
        (SEALED, 8, 3),
        (SEALED, 32, 1),
        (SEALED, 87, 1),
        (SEALED, 13, 1),
    ],
)
def test_a_run_with_a_byte_that_means_nothing_is_refused(run: Run, place: int, value: int) -> None:
    data = bytearray(encode_run(run))
    data[place] = value
    with pytest.raises(ModelError):
        decode_run(bytes(data), "run")


@pytest.mark.parametrize(
    "literal",
    [
        "04 00000000 00000000 00000000 0000000000000000",
        "00 01000000 00000000 00000000 0000000000000000 6b",
        "00 00000000 00000000 00000000 0100000000000000",
        "00 00000000 01000000 00000000 0000000000000000 00",
        "00 00000000 07000000 00000000 0000000000000000 0100 00000000 ff",
        "00 00000000 00000000 02000000 0000000000000000 00",
        "00 00000000 00000000 00000000 0000000000000000 00",
    ],
    ids=["flag", "key", "time", "header", "name", "short", "long"],
)
def test_a_record_that_could_be_written_otherwise_is_refused(literal: str) -> None:
    with pytest.raises(ModelError):
        decode_record(bytes.fromhex(literal), "record")


@pytest.mark.parametrize(
    "literal",
    ["00000000", "01000000 02000000 01", "01000000 00000000 01", "02000000 01000000 00 00000000 01"],
    ids=["no entry", "too many", "empty entry", "open entry"],
)
def test_batch_entries_that_do_not_fit_their_records_are_refused(literal: str) -> None:
    with pytest.raises(ModelError):
        decode_plaintext(bytes.fromhex(literal) + encode_record(Record()), 1, "plaintext")
