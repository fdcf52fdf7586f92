"""Where the benches are run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory where O_DIRECT works, as the raw disk needs it."""
    probe = tmp_path / "probe"
    try:
        os.close(os.open(probe, os.O_RDWR | os.O_CREAT | os.O_DIRECT))
    except OSError as problem:
        pytest.skip(f"no O_DIRECT in {tmp_path}: {problem}")
    probe.unlink()
    return tmp_path
