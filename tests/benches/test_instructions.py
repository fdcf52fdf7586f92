"""What the core does takes as many instructions as is written down."""

from __future__ import annotations

import pytest

from benches import instructions
from benches.instructions import Counted, held_against
from benches.packages import Missing


def test_more_instructions_than_are_written_down_are_told_from_as_many_and_from_less() -> None:
    found = held_against({"a": 103.1, "b": 102.9, "c": 96.9, "d": 5.0}, {"a": 100, "b": 100, "c": 100})
    assert [each.verdict for each in found] == ["more", "same", "less", "new"]


def test_the_core_needs_no_more_instructions_than_are_written_down() -> None:
    known = instructions.kept().get(instructions.compiler())
    if known is None:
        pytest.skip(f"nothing is written down for {instructions.compiler()}: just bench-instructions --write")
    try:
        counter = instructions.valgrind()
    except Missing as problem:
        pytest.skip(f"no valgrind: {problem}")
    counts = instructions.counted(instructions.built(), counter)
    assert counts.keys() == known.keys()
    more: list[Counted] = [each for each in held_against(counts, known) if each.verdict == "more"]
    assert not more, "explain it, or make it less, and then: just bench-instructions --write"
