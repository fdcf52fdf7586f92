"""The backends, each on an empty directory. A new one joins by a line in `OPEN`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from kimberlite.storage import Backend, open_backend

OPEN: dict[str, Callable[[Path], Backend]] = {
    "threads": partial(open_backend, name="threads"),
    "uring": partial(open_backend, name="uring"),
}
ON_DISK = ("threads", "uring")


def opened(name: str, path: Path) -> Backend:
    try:
        return OPEN[name](path)
    except OSError as problem:
        if name != "uring":
            raise
        pytest.skip(f"no io_uring here: {problem}")


@pytest.fixture(params=list(OPEN))
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    backend = opened(request.param, tmp_path)
    yield backend
    backend.close()


@pytest.fixture(params=ON_DISK)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    """One whose directory, `tmp_path`, others can see."""
    backend = opened(request.param, tmp_path)
    yield backend
    backend.close()
