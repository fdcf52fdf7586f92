"""The master key: where it may be, and what is refused."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from kimberlite.crypto.master import create_master, load_master
from kimberlite.errors import Invalid, KeyUnavailable, Misconfigured


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KIMBERLITE_KEY", "KIMBERLITE_KEY_FILE", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


def test_a_new_key_is_its_owners_alone_and_never_overwritten(tmp_path: Path) -> None:
    create_master(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o400
    key = load_master(tmp_path / "key")
    assert key is not None
    assert len(key) == 32
    with pytest.raises(Invalid):
        create_master(tmp_path / "key")
    assert load_master(tmp_path / "key") == key


def test_every_place_gives_the_same_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_master(None) is None
    create_master(tmp_path / "kimberlite.key")
    key = load_master(tmp_path / "kimberlite.key")
    assert key is not None
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert load_master(None) == key
    monkeypatch.setenv("KIMBERLITE_KEY_FILE", str(tmp_path / "kimberlite.key"))
    monkeypatch.setenv("KIMBERLITE_KEY", base64.b64encode(key).decode())
    assert load_master(None) == key
    monkeypatch.setenv("KIMBERLITE_KEY", base64.b64encode(bytes(32)).decode())
    with pytest.raises(Misconfigured):
        load_master(None)


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    create_master(tmp_path / "key")
    (tmp_path / "key").chmod(0o440)
    with pytest.raises(Misconfigured, match="chmod 0400"):
        load_master(tmp_path / "key")


@pytest.mark.parametrize("text", ["", "short", "!" * 44, "kimberlite-master-1 AAAA"])
def test_what_is_no_key_is_a_missing_key(tmp_path: Path, text: str) -> None:
    (tmp_path / "key").write_text(text)
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(KeyUnavailable):
        load_master(tmp_path / "key")
    with pytest.raises(KeyUnavailable):
        load_master(tmp_path / "nowhere")
