"""The master key: where it may be, and what is refused."""

from __future__ import annotations

import base64
import os
import resource
from pathlib import Path

import pytest

from kimberlite.crypto.master import create_master, load_master
from kimberlite.errors import Invalid, KeyUnavailable, Misconfigured, Unavailable

TEXT = base64.b64encode(bytes(32)).decode()


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


@pytest.mark.parametrize(
    "text",
    ["", "short", "!" * 44, "kimberlite-master-1 AAAA", f"kimberlite-master-2 {TEXT}", f"{TEXT}\n{TEXT}", "\u00e9"],
)
def test_what_is_no_key_is_a_missing_key(tmp_path: Path, text: str) -> None:
    (tmp_path / "key").write_text(text)
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(KeyUnavailable):
        load_master(tmp_path / "key")
    with pytest.raises(KeyUnavailable):
        load_master(tmp_path / "nowhere")


NAMED = [
    "kimberlite-master-1 " + base64.b64encode(b"\xff" * 32).decode(),
    base64.b64encode(b"\xff" * 32).decode() + "\n",
    base64.urlsafe_b64encode(b"\xfb" * 32).decode(),
    base64.urlsafe_b64encode(b"\xfb" * 32).decode().rstrip("="),
    bytes(range(32)).hex(),
]


@pytest.mark.parametrize("text", NAMED)
def test_a_key_in_the_place_of_its_file_is_not_repeated(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("KIMBERLITE_KEY_FILE", text)
    for key_file in (None, text):
        with pytest.raises(KeyUnavailable) as refused:
            load_master(key_file)
        assert str(refused.value) == "that is a key, not the file it is in"


@pytest.mark.parametrize("text", NAMED[1:])
def test_a_file_that_is_named_like_a_key_can_be_used_and_is_never_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    name = text.replace("/", "_")
    create_master("key")
    os.rename("key", name)
    assert load_master(name) is not None
    os.chmod(name, 0o640)
    with pytest.raises(KeyUnavailable, match="that is a key"):
        load_master(name)
    with pytest.raises(Invalid, match="that is a key"):
        create_master(name)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    for name in ("key", "a" * 42, "a" * 63, "kimberlite/production/secrets/of/the/master"):
        with pytest.raises(KeyUnavailable, match=name):
            load_master(tmp_path / name)
        with pytest.raises(KeyUnavailable, match=name):
            load_master(name)


def test_a_key_file_has_nothing_behind_the_key(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(TEXT.ljust(4096))
    key.chmod(0o600)
    assert load_master(key) == bytes(32)
    for more in (" ", "x", " " * 4096 + "x"):
        key.write_text(TEXT.ljust(4096) + more)
        with pytest.raises(KeyUnavailable, match="more in it than a key"):
            load_master(key)


def test_the_text_of_a_key_is_one_line(tmp_path: Path) -> None:
    create_master(tmp_path / "key")
    text = (tmp_path / "key").read_text()
    assert text.startswith("kimberlite-master-1 ")
    assert text.endswith("\n")
    assert base64.b64decode(text.split()[1]) == load_master(tmp_path / "key")


def test_the_environment_takes_a_key_with_and_without_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in (TEXT, f"kimberlite-master-1 {TEXT}", f"{TEXT}\n"):
        monkeypatch.setenv("KIMBERLITE_KEY", text)
        assert load_master(None) == bytes(32)
    monkeypatch.setenv("KIMBERLITE_KEY", "not a key")
    with pytest.raises(KeyUnavailable, match="KIMBERLITE_KEY"):
        load_master(None)


def test_a_file_that_is_asked_for_is_alone_what_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_master(tmp_path / "key")
    monkeypatch.setenv("KIMBERLITE_KEY", TEXT)
    assert load_master(tmp_path / "key") not in (None, bytes(32))


def test_a_link_to_a_key_is_followed(tmp_path: Path) -> None:
    create_master(tmp_path / "key")
    (tmp_path / "link").symlink_to("key")
    assert load_master(tmp_path / "link") == load_master(tmp_path / "key")


def test_what_is_not_a_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o400)
    (tmp_path / "directory").mkdir(0o700)
    for name in ("pipe", "directory"):
        with pytest.raises(Misconfigured, match="regular file"):
            load_master(tmp_path / name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    create_master(tmp_path / "key")
    os.chown(tmp_path / "key", 12345, 12345)
    with pytest.raises(Misconfigured, match="somebody else"):
        load_master(tmp_path / "key")


def test_a_credential_that_cannot_be_used_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    credential = tmp_path / "kimberlite.key"
    assert load_master(None) is None
    credential.write_bytes(b"\xff\xfe")
    with pytest.raises(KeyUnavailable):
        load_master(None)
    credential.unlink()
    credential.symlink_to("nowhere")
    with pytest.raises(KeyUnavailable):
        load_master(None)
    credential.unlink()
    credential.mkdir()
    with pytest.raises(Misconfigured):
        load_master(None)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credential / "kimberlite.key" / "deeper"))
    assert load_master(None) is None
    (tmp_path / "file").touch()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "file"))
    with pytest.raises(KeyUnavailable):
        load_master(None)


def test_a_credential_may_be_readable_by_its_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_master(tmp_path / "kimberlite.key")
    key = load_master(tmp_path / "kimberlite.key")
    (tmp_path / "kimberlite.key").chmod(0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert load_master(None) == key


def test_a_key_that_could_not_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(Unavailable):
            create_master(tmp_path / "key")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
    create_master(tmp_path / "key")


@pytest.mark.parametrize("name", ["KIMBERLITE_KEY", "KIMBERLITE_KEY_FILE"])
def test_a_variable_that_is_empty_is_no_wish_for_no_key(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "")
    with pytest.raises(KeyUnavailable, match="is empty"):
        load_master(None)
