"""Groups in flight: which a sync covers, which are durable, and which the kernel has taken."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from kimberlite import _native
from kimberlite.log.flights import Flight, Flights


@dataclass
class Numbered:
    """All that is asked of a sealed group here."""

    number: int


def flight(flights: Flights, number: int, *, durable: bool) -> Flight:
    made = Flight(cast(_native.Sealed, Numbered(number)), _native.Buffer(4096), durable, 0.0)
    flights.add(made)
    return made


def numbers(flights: list[Flight]) -> list[int]:
    return [each.sealed.number for each in flights]


def test_a_durable_write_is_alone_only_if_all_before_it_are() -> None:
    flights = Flights()
    first, loose, last = (flight(flights, n, durable=n != 2) for n in (1, 2, 3))
    assert (first.alone, loose.alone, last.alone) == (True, False, False)
    for each in (last, first):
        flights.written(each)
    assert (first.synced, last.synced) == (True, False)
    assert numbers(flights.covered()) == [3]


def test_a_group_is_durable_when_it_and_all_before_it_are_synced() -> None:
    flights = Flights()
    first, second, third = (flight(flights, n, durable=True) for n in (1, 2, 3))
    for each in (second, third):
        flights.written(each)
    assert flights.synced() == []
    flights.written(first)
    assert numbers(flights.synced()) == [1, 2, 3]
    flights.leaves(first)
    assert numbers(list(flights)) == [2, 3]


def test_a_sync_is_due_for_what_somebody_waits_for_and_not_behind_it() -> None:
    flights = Flights()
    loose = flight(flights, 1, durable=False)
    flights.written(loose)
    assert not flights.sync_due(everything=False)
    assert flights.sync_due(everything=True)
    flights.written(flight(flights, 2, durable=True))
    assert flights.sync_due(everything=False)


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_what_the_kernel_has_taken_is_told_once_and_in_order(policies: list[bool], random: Random) -> None:
    flights = Flights()
    flying = [flight(flights, number, durable=durable) for number, durable in enumerate(policies, 1)]
    told: list[int] = []
    landed: set[int] = set()
    order = list(flying)
    random.shuffle(order)
    for each in order:
        flights.written(each)
        landed.add(each.sealed.number)
        taken = numbers(flights.take_taken())
        assert all(set(range(1, number + 1)) <= landed for number in taken)
        told += taken
    assert told == [number for number, durable in enumerate(policies, 1) if not durable]
