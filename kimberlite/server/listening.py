"""Where the daemon listens."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
from contextlib import suppress

from kimberlite.errors import Busy, Misconfigured


def bind(where: str) -> socket.socket:
    """A socket for `HOST:PORT` or `unix:PATH`. Beyond loopback nobody is listened to: there are no accounts."""
    if where.startswith("unix:"):
        return bind_unix(where.removeprefix("unix:"))
    host, colon, port = where.rpartition(":")
    host = host.strip("[]")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise Misconfigured(f"{where!r} is neither HOST:PORT nor unix:PATH")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise Misconfigured(f"{where}: {error.strerror or error}") from error
    if not ipaddress.ip_address(address[0]).is_loopback:
        raise Misconfigured(f"{where} is not on loopback: without accounts and TLS nobody else may connect")
    try:
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise refusal(where, error) from error


def bind_unix(path: str) -> socket.socket:
    """Only for the owner. A socket that nobody listens to any more is replaced."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if is_stale(path):
            os.unlink(path)
        before = os.umask(0o177)
        try:
            listening.bind(path)
        finally:
            os.umask(before)
    except OSError as error:
        listening.close()
        raise refusal(f"unix:{path}", error) from error
    return listening


def is_stale(path: str) -> bool:
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise Misconfigured(f"unix:{path}: there is something else, and it is not a socket")
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                return True
    return False


def refusal(where: str, error: OSError) -> Busy | Misconfigured:
    if error.errno == errno.EADDRINUSE:
        return Busy(f"{where}: somebody listens there already")
    return Misconfigured(f"{where}: {error.strerror or error}")
