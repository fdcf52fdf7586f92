"""The vault while streams are erased and added, and the master key is another."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import pytest

from kimberlite import Corrupt, _native
from kimberlite.crypto.master import create_master, load_master
from kimberlite.crypto.vault import BLOCK, CHECK, LAST_GENERATION, Vault
from kimberlite.log.keycheck import check
from kimberlite.log.loading import load_identity
from kimberlite.log.names import CHECKPOINT, VAULTS
from tests.log.simulated import Machine, payloads, until

COUNT = 30


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How often the whole vault was gone through."""
    made: list[str] = []

    def counted(name: str) -> None:
        call = getattr(Vault, name)

        def counting(*given: Any) -> Any:
            made.append(name)
            return call(*given)

        monkeypatch.setattr(Vault, name, counting)

    counted("load")
    counted("erase")
    return made


async def erased(machine: Machine) -> None:
    """Most of many streams."""
    async with machine.open() as db:
        for i in range(COUNT):
            await db.append(f"s{i}", b"%d" % i)
        for i in range(COUNT - 5):
            await db.erase(f"s{i}", reason="on request")


@pytest.mark.parametrize("gone", [[], [CHECKPOINT]], ids=["resumed", "replayed"])
async def test_the_vault_is_gone_through_once_however_many_streams_are_erased(
    encrypted: Machine, calls: list[str], gone: list[str]
) -> None:
    await erased(encrypted)
    for name in gone:
        encrypted.backend().unlink(name)
    calls.clear()
    async with encrypted.open(read_only=True) as reader:
        assert calls == ["load"]
        assert await payloads(reader.read()) == [b"%d" % i for i in range(COUNT - 5, COUNT)]
    calls.clear()
    assert encrypted.verify().notes == []
    assert calls == ["load"]
    calls.clear()
    found = check(encrypted.backend(), load_master(encrypted.key))
    # Of the streams, and of what a writer would need.
    assert (found["missing"], calls) == ([], ["load", "load"])
    calls.clear()
    async with encrypted.open():
        assert calls == ["load", "erase"]


async def test_a_reader_has_the_keys_that_are_added_later(encrypted: Machine, calls: list[str]) -> None:
    await erased(encrypted)
    async with encrypted.open(read_only=True) as reader, encrypted.open() as db:
        for i in range(40):
            calls.clear()
            await db.append(f"later {i}", b"x")

            async def shown(stream: str = f"later {i}") -> bool:
                return await payloads(reader.read(stream)) == [b"x"]

            await until(shown)
            assert calls == ["load"]
            await db.erase(f"s{COUNT - 5 + i % 5}", reason="on request")


async def test_a_vault_that_was_made_anew_is_read_again(encrypted: Machine) -> None:
    await erased(encrypted)
    image = encrypted.disk.files()[VAULTS[0]]
    async with encrypted.open(read_only=True) as reader:
        # A start takes what is whole from the other copy.
        encrypted.write(VAULTS[1], 0, bytes(len(image)))
        async with encrypted.open() as db:
            await db.append("later", b"x")

            async def shown() -> bool:
                return await payloads(reader.read("later")) == [b"x"]

            await until(shown)


async def test_where_no_generation_is_left_there_is_no_rotation(encrypted: Machine, tmp_path: Path) -> None:
    async with encrypted.open() as db:
        await db.append("s", b"x")
    identity = load_identity(encrypted.backend())
    assert identity is not None
    for name in VAULTS:
        head = bytearray(encrypted.disk.files()[name][: BLOCK - CHECK])
        struct.pack_into("<Q", head, 24, LAST_GENERATION)
        encrypted.write(name, 0, bytes(head) + _native.blake3(bytes(head), identity.hash)[:CHECK])
    create_master(tmp_path / "next")
    async with encrypted.open() as db:
        before = encrypted.disk.files()[VAULTS[0]]
        with pytest.raises(Corrupt, match="no generation is above 18446744073709551615") as caught:
            await db.rotate(tmp_path / "next")
        assert caught.value.file == VAULTS[0]
        assert encrypted.disk.files()[VAULTS[0]] == before
        await db.append("t", os.urandom(9))
        assert await payloads(db.read("s")) == [b"x"]
    assert encrypted.verify().notes == []
