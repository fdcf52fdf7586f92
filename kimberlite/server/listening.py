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
    check_where(where)
    if where.startswith("unix:"):
        return bind_unix(where.removeprefix("unix:"))
    host, _, port = where.rpartition(":")
    try:
        family, _, _, _, address = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise Misconfigured(f"{where}: {getattr(error, 'strerror', None) or error}") from error
    check_loopback(where, str(address[0]))
    try:
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise refusal(where, error) from error


def check_where(where: str) -> None:
    """HOST:PORT or unix:PATH, as far as can be said without asking for the host."""
    if where.startswith("unix:"):
        # Without a path it would be an address of the kernel's choice, which is nobody's alone.
        if where in ("unix:", "unix://") or "\0" in where:
            raise Misconfigured(f"{where!r} is neither HOST:PORT nor unix:PATH")
        return
    host, colon, port = where.rpartition(":")
    host = host.strip("[]")
    if not colon or not host or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise Misconfigured(f"{where!r} is neither HOST:PORT nor unix:PATH")
    with suppress(ValueError):
        check_loopback(where, str(ipaddress.ip_address(host)))


def check_loopback(where: str, address: str) -> None:
    if not ipaddress.ip_address(address).is_loopback:
        raise Misconfigured(f"{where} is not on loopback: without accounts and TLS nobody else may connect")


def check_handed_over(given: socket.socket) -> None:
    """A stream that listens, on loopback or on a path."""
    name = f"descriptor {given.fileno()}"
    try:
        listens = given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise Misconfigured(f"{name} was handed over, and is no socket: {error.strerror}") from error
    if not listens or given.type != socket.SOCK_STREAM:
        raise Misconfigured(f"{name} was handed over, and does not listen for streams")
    if given.family in (socket.AF_INET, socket.AF_INET6):
        check_loopback(f"{name}, {given.getsockname()[0]},", given.getsockname()[0])
    elif given.family != socket.AF_UNIX:
        raise Misconfigured(f"{name} was handed over, and is neither of TCP nor of a path")


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
