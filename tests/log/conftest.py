"""Databases on simulated disks."""

from __future__ import annotations

from pathlib import Path

import pytest

from kimberlite.crypto.master import create_master
from tests.log.erasing import create
from tests.log.simulated import Machine


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture(params=["plain", "encrypted"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    """One without a master key, and one with."""
    if request.param == "plain":
        return Machine()
    return sealed_machine(tmp_path)


@pytest.fixture
def encrypted(tmp_path: Path) -> Machine:
    return sealed_machine(tmp_path)


def sealed_machine(tmp_path: Path) -> Machine:
    create_master(tmp_path / "key")
    return Machine(tmp_path / "key")


@pytest.fixture
def other(encrypted: Machine) -> Machine:
    """The same disk, with another master key at hand."""
    assert encrypted.key is not None
    machine = Machine(create(encrypted, "other"))
    machine.disk = encrypted.disk
    return machine
