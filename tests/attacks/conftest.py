"""The databases that are attacked: plain and encrypted, as they were written and packed."""

from __future__ import annotations

import pytest

from .databases import Database, built, packed

STATES = {"written": built, "packed": packed}


@pytest.fixture(params=STATES)
def state(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["plain", "encrypted"])
def database(request: pytest.FixtureRequest, state: str) -> Database:
    return STATES[state](request.param)


@pytest.fixture
def plain(state: str) -> Database:
    return STATES[state]("plain")


@pytest.fixture
def encrypted(state: str) -> Database:
    return STATES[state]("encrypted")
