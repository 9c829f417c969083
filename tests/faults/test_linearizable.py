"""The checker itself: it takes what is linearizable, and finds every fault that is planted."""

from math import inf
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.linearizable import NotLinearizable, Operation, check


def write(begin: float, end: float, value: str, key: str = "k") -> Operation:
    return Operation(key, begin, end, True, value)


def read(begin: float, end: float, value: str | None, key: str = "k") -> Operation:
    return Operation(key, begin, end, False, value)


GOOD = {
    "one after the other": [write(0, 1, "a"), read(2, 3, "a"), write(4, 5, "b"), read(6, 7, "b")],
    "nothing at first": [read(0, 1, None), write(2, 3, "a")],
    "a read beside a write may see either": [write(0, 1, "a"), write(2, 5, "b"), read(3, 4, "a"), read(3, 4, "b")],
    "two writes at once may go either way": [write(0, 5, "a"), write(0, 5, "b"), read(6, 7, "a")],
    "a lost answer, and it was done": [write(0, inf, "a"), read(5, 6, None), read(7, 8, "a"), read(9, 10, "a")],
    "a lost answer, and it was not": [write(0, 1, "a"), write(2, inf, "b"), read(3, 4, "a"), read(100, 101, "a")],
    "keys do not concern each other": [write(0, 1, "a", "x"), read(2, 3, None, "y")],
}
BAD = {
    "an acknowledged write that is lost": [write(0, 1, "a"), write(2, 3, "b"), read(4, 5, "a")],
    "an acknowledged first write that is lost": [write(0, 1, "a"), read(2, 3, None)],
    "a value that nobody wrote": [write(0, 1, "a"), read(2, 3, "z")],
    "a value before it was written": [read(0, 1, "a"), write(2, 3, "a")],
    "back and forth": [write(0, 1, "a"), write(2, 9, "b"), read(3, 4, "b"), read(5, 6, "a")],
    "two readers that disagree on the order": [
        write(0, 9, "a"), write(0, 9, "b"), read(1, 2, "a"), read(3, 4, "b"), read(5, 6, "a"),
    ],
    "a lost answer that comes and goes": [
        write(0, 1, "a"), write(2, inf, "b"), read(3, 4, "b"), read(5, 6, "a"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_what_is_in_order_is_taken(name: str) -> None:
    check(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_is_found(name: str) -> None:
    with pytest.raises(NotLinearizable, match="no order explains"):
        check(BAD[name])


def made(seed: int, clients: int = 4, length: int = 40) -> list[Operation]:
    """A history of a real register: each operation happens at one moment, some answers are lost, some of those before it happened."""
    chance = Random(seed)
    value: dict[str, str | None] = {}
    moments: list[tuple[float, int, Operation, bool]] = []
    for client in range(clients):
        now = chance.random()
        for number in range(length):
            begin = now
            moment = begin + chance.random()
            end = moment + chance.random()
            now = end + chance.random() / 10
            is_write, is_lost = chance.random() < 0.4, chance.random() < 0.1
            operation = Operation(chance.choice("xy"), begin, inf if is_lost else end, is_write, f"{client}.{number}")
            moments.append((moment, client, operation, not is_lost or chance.random() < 0.5))
    history = []
    for _, _, each, is_done in sorted(moments, key=lambda item: item[:2]):
        if each.is_write:
            history.append(each)
            if is_done:
                value[each.key] = each.value
        else:
            history.append(Operation(each.key, each.begin, each.end, False, value.get(each.key)))
    return history


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**9))
def test_a_real_register_is_linearizable(seed: int) -> None:
    check(made(seed))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**9))
def test_a_read_of_what_had_been_overwritten_long_before_is_found(seed: int) -> None:
    history = made(seed)
    end = max(each.end for each in history if each.end != inf) + 1
    history += [write(end, end + 1, "first", "x"), write(end + 2, end + 3, "second", "x")]
    check([*history, read(end + 4, end + 5, "second", "x")])
    with pytest.raises(NotLinearizable):
        check([*history, read(end + 4, end + 5, "first", "x")])
