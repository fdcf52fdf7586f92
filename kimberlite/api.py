"""`kimberlite.open` and `kimberlite.connect`."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Literal

from kimberlite.arguments import Sync, checked_rule
from kimberlite.client.client import Connecting
from kimberlite.log.opening import Injected, Opening, open_log
from kimberlite.log.options import MIB, Options
from kimberlite.records import Receipt
from kimberlite.storage import Backend


def open(
    path: str | os.PathLike[str],
    *,
    create: bool = True,
    read_only: bool = False,
    key_file: str | os.PathLike[str] | None = None,
    sync: Sync = "group",
    backend: Literal["auto", "threads", "uring"] | Backend = "auto",
    segment_bytes: int = 256 * MIB,
    compression: int | None = None,
    depth: int = 4,
    max_delay: float = 0.0,
    pack: float = 0.5,
    retain_age: timedelta | float = 0.0,
    retain_size: int = 0,
    scrub: int = 4 * MIB,
    origin: str | None = None,
    anchor: Receipt | None = None,
) -> Opening:
    """Opens a database directory: `async with open(path) as db`, or `db = await open(path)`.

    One writer at a time; `read_only` opens beside it, without a lock and without writing anything.
    `compression` is a zstd level. `anchor` is a receipt kept elsewhere: a log that does not reach it is
    ROLLED_BACK. With a master key new streams are encrypted. A closed segment is packed in the background when that
    leaves at most the share `pack` of it. What is older than `retain_age`, and the oldest of more than `retain_size`
    bytes, is dropped by whole closed segments. `scrub` bytes a second of the others are read in the background, to find
    what was damaged on the disk.
    """
    rule = checked_rule(None, retain_age, retain_size)
    options = Options(
        sync=sync,
        segment_bytes=segment_bytes,
        compression=compression,
        depth=depth,
        max_delay=max_delay,
        pack=pack,
        retain_age=(rule.age or 0) / 10**9,
        retain_size=rule.size or 0,
        scrub=scrub,
    )
    return open_log(
        path,
        create=create,
        read_only=read_only,
        key_file=key_file,
        backend=backend,
        origin=origin,
        anchor=anchor,
        options=options,
    )


def open_with(
    path: str | os.PathLike[str],
    options: Options,
    *,
    key_file: str | os.PathLike[str] | None,
    backend: Literal["auto", "threads", "uring"],
    on_replay: Callable[[], None],
) -> Opening:
    """For writing or not at all, with every option there is; what `on_replay` raises ends a long start."""
    return open_log(
        path,
        create=True,
        read_only=False,
        key_file=key_file,
        backend=backend,
        origin=None,
        anchor=None,
        options=options,
        or_read=False,
        injected=Injected(on_replay=on_replay),
    )


def open_to_retain(path: str | os.PathLike[str], *, key_file: str | os.PathLike[str] | None) -> Opening:
    """For writing, on a full disk with the room that is kept for retention."""
    return open_log(
        path,
        create=False,
        read_only=False,
        key_file=key_file,
        backend="auto",
        origin=None,
        anchor=None,
        options=Options(),
        retaining=True,
    )


def connect(url: str, *, retry: float = 60.0, anchor: Receipt | None = None) -> Connecting:
    """A database behind a daemon: `async with connect("kimberlite://host:port") as db`, or `db = await connect(url)`.

    What comes of it does what `open` gives does. `retry` is how many seconds a lost connection is tried again before
    whoever waits is told. `anchor` is a durable receipt kept from before: a log that does not reach it is ROLLED_BACK.
    """
    return Connecting(url, retry=retry, anchor=anchor)
