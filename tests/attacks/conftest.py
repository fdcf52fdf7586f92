"""The two databases that are attacked."""

from __future__ import annotations

import pytest

from .databases import Database, built


@pytest.fixture(params=["plain", "encrypted"])
def database(request: pytest.FixtureRequest) -> Database:
    return built(request.param)


@pytest.fixture
def plain() -> Database:
    return built("plain")


@pytest.fixture
def encrypted() -> Database:
    return built("encrypted")
