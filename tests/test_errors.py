"""Errors: one tree, drawn in its docstring, with codes and exit codes that do not change."""

from __future__ import annotations

import pickle
import re

import pytest

import kimberlite
from kimberlite import Conflict, Corrupt, Invalid, KimberliteError, Misconfigured, errors

EXITS = {
    "Conflict": ("CONFLICT", 1),
    "Duplicate": ("DUPLICATE", 1),
    "Dropped": ("DROPPED", 1),
    "Erased": ("ERASED", 1),
    "Busy": ("BUSY", 75),
    "Corrupt": ("CORRUPT", 65),
    "NoSpace": ("NO_SPACE", 74),
    "UnknownOutcome": ("UNKNOWN_OUTCOME", 74),
    "KeyUnavailable": ("KEY_UNAVAILABLE", 77),
    "RolledBack": ("ROLLED_BACK", 79),
    "LimitExceeded": ("LIMIT_EXCEEDED", 64),
    "Invalid": ("INVALID", 64),
    "Misconfigured": ("INVALID", 78),
    "Closed": ("CLOSED", 1),
    "Unavailable": ("UNAVAILABLE", 74),
    "ProtocolError": ("PROTOCOL_ERROR", 1),
    "FrameTooLarge": ("FRAME_TOO_LARGE", 1),
    "SlowConsumer": ("SLOW_CONSUMER", 1),
}


def tree() -> dict[str, type[KimberliteError]]:
    found, left = {}, [KimberliteError]
    while left:
        for kind in left.pop().__subclasses__():
            if kind.__module__ == errors.__name__:
                found[kind.__name__] = kind
                left.append(kind)
    return found


def test_every_error_has_the_code_and_the_exit_that_were_promised() -> None:
    assert {name: (kind.code, kind.exit_code) for name, kind in tree().items()} == EXITS


def test_every_error_is_exported() -> None:
    assert {name for name in tree() if getattr(kimberlite, name) is tree()[name]} == EXITS.keys()
    assert EXITS.keys() <= set(kimberlite.__all__)


def test_the_docstring_draws_the_tree_that_is_there() -> None:
    drawn = re.findall(r"[├└]── (\w+) +([A-Z_]+)", errors.__doc__ or "")
    assert dict(drawn) == {name: code for name, (code, _) in EXITS.items()}
    assert issubclass(Misconfigured, Invalid)


def test_a_corruption_names_as_much_of_its_place_as_is_known() -> None:
    error = Corrupt("it is bad", file="segments/1", place=4096, group=7, position=0)
    assert str(error) == "segments/1, byte 4096, group 7, position 0: it is bad"
    assert (error.file, error.place, error.group, error.position) == ("segments/1", 4096, 7, 0)
    assert str(Corrupt("it is missing", file="marks")) == "marks: it is missing"


def test_a_conflict_says_what_would_have_been_right() -> None:
    assert Conflict("no", 0).expected == 0
    assert Conflict("no").expected is None


@pytest.mark.parametrize("kind", tree().values(), ids=tree())
def test_an_error_survives_the_way_to_another_process(kind: type[KimberliteError]) -> None:
    error = kind("why", file="segments/1", place=4096, group=7) if kind is Corrupt else kind("why")
    if isinstance(error, Conflict):
        error = Conflict("why", 3)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert vars(again) == vars(error)
