"""The master key: where it is looked for, and how it is made."""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from pathlib import Path
from typing import Final

from kimberlite.errors import Invalid, KeyUnavailable, Misconfigured, Unavailable

PREFIX: Final = "kimberlite-master-1 "
CREDENTIAL: Final = "kimberlite.key"
#: What a key file may have at most, blanks and all.
LARGEST: Final = 4096
MISTAKEN: Final = "that is a key, not the file it is in"


def load_master(key_file: str | os.PathLike[str] | None) -> bytes | None:
    """The key from an explicit file, KIMBERLITE_KEY_FILE, KIMBERLITE_KEY or a systemd credential, in this order.

    An explicit file is alone what counts. Of the others, two that differ are refused.
    """
    if key_file is not None:
        return read_key_file(checked_file(key_file))
    found: dict[str, bytes] = {}
    for name in ("KIMBERLITE_KEY_FILE", "KIMBERLITE_KEY"):
        if os.environ.get(name) == "":
            # A variable that was to be filled: a database made without a key could never get one.
            raise KeyUnavailable(f"{name} is empty: unset it to do without a key")
    if path := os.environ.get("KIMBERLITE_KEY_FILE"):
        found["KIMBERLITE_KEY_FILE"] = read_key_file(path)
    if text := os.environ.get("KIMBERLITE_KEY"):
        found["KIMBERLITE_KEY"] = parse_key(text, "KIMBERLITE_KEY")
    if directory := os.environ.get("CREDENTIALS_DIRECTORY"):
        credential = Path(directory) / CREDENTIAL
        if is_there(credential):
            found["the systemd credential"] = parse_key(read_text(credential, private=False), str(credential))
    if len(set(found.values())) > 1:
        raise Misconfigured(f"different master keys in {' and '.join(found)}")
    return next(iter(found.values()), None)


def checked_file(key_file: object) -> str:
    name = os.fspath(key_file) if isinstance(key_file, (str, os.PathLike)) else None
    if not isinstance(name, str) or not name or "\0" in name or not is_encodable(name):
        raise Invalid("a key file is named by a str or a PathLike")
    return name


def is_encodable(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def read_key_file(path: str | os.PathLike[str]) -> bytes:
    """A key that only its owner can read. A symlink is followed: secrets are often mounted as one."""
    try:
        return parse_key(read_text(Path(path), private=True), str(path))
    except (KeyUnavailable, Misconfigured):
        # The message has the name in it.
        if looks_like_key(os.fspath(path)):
            raise KeyUnavailable(MISTAKEN) from None
        raise


def looks_like_key(name: str) -> bool:
    """Whether this is what is in a key file, or 32 bytes as text: it may not be shown."""
    text = name.strip()
    if text.startswith(PREFIX.strip()) or re.fullmatch("[0-9a-fA-F]{64}", text):
        return True
    # Without the `=` at its end a slash makes it a path.
    return re.fullmatch("[A-Za-z0-9+/_-]{43}=|[A-Za-z0-9+_-]{43}", text) is not None


def is_there(path: Path) -> bool:
    """Only a name that does not exist is not there: what cannot be looked at must not pass for no key."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def read_text(path: Path, *, private: bool) -> str:
    """A small regular file. A credential is not private: systemd guards its directory, and may let groups in."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise KeyUnavailable(f"key file {path}: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Misconfigured(f"key file {path} is not a regular file")
        if private:
            check_private(path, status)
        data = os.read(descriptor, LARGEST + 1)
    except OSError as error:
        raise KeyUnavailable(f"key file {path}: {error.strerror}") from None
    finally:
        os.close(descriptor)
    if len(data) > LARGEST:
        raise KeyUnavailable(f"key file {path} has more in it than a key")
    return data.decode("ascii", "replace")


def check_private(path: Path, status: os.stat_result) -> None:
    if status.st_mode & 0o077:
        raise Misconfigured(f"key file {path} can be read by others: chmod 0400 {path}")
    if status.st_uid not in (0, os.geteuid()):
        raise Misconfigured(f"key file {path} belongs to somebody else")


def parse_key(text: str, where: str) -> bytes:
    try:
        key = base64.b64decode(text.strip().removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != 32:
        raise KeyUnavailable(f"{where} does not hold a master key")
    return key


def create_master(path: str | os.PathLike[str]) -> None:
    """A new key in a new file, 0400: create, write, fsync, fsync directory. What is there is never overwritten."""
    if looks_like_key(os.fspath(path)):
        raise Invalid(MISTAKEN)
    path = Path(path)
    text = f"{PREFIX}{base64.b64encode(os.urandom(32)).decode()}\n"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
    except FileExistsError:
        raise Invalid(f"{path} exists already; a key is never overwritten") from None
    except OSError as error:
        raise Misconfigured(f"{path}: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        sync_directory(path.parent)
    except OSError as error:
        # Nobody has used this key yet, and half of one would stand in the way of the next.
        path.unlink(missing_ok=True)
        raise Unavailable(f"{path}: {error.strerror}") from None


def sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
