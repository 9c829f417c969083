"""Kill -9 before and after every durable write and every send of coordinator, participants and initiator: nothing is lost, nothing is done twice.

A failure names its points; `play(scenario, points)` replays it.
"""

import itertools
import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final

import pytest

from apps.transactions.audit import Began, Ended, Logged
from tests.apps.transactions.crash.roles import COORDINATOR, Point
from tests.apps.transactions.crash.world import Result, play, points_of
from tests.postgres import Postgres

SCENARIOS: Final = (
    "saga", "saga-refused", "tcc", "tcc-refused", "xa", "xa-refused", "message", "message-refused", "outbox",
    "tcc-alone", "xa-alone", "message-alone",
)  # fmt: skip
SHORT: Final = ("saga-refused", "tcc", "tcc-refused", "xa", "message-alone", "tcc-alone", "outbox")
"""Every kind of write and of send is in these."""
AT_ONCE: Final = 6
PAIRS: Final = int(os.environ.get("CRASH_PAIRS", "25"))
"""Of each scenario in a slow run; 0: all of them, which takes hours."""
SEED: Final = int(os.environ.get("CRASH_SEED", "1"))


def fallen(scenario: str, runs: Sequence[Sequence[Point]], postgres: Postgres | None) -> list[str]:
    """Play them; what went wrong."""

    def one(points: Sequence[Point]) -> str:
        try:
            result = play(scenario, points, postgres)
        except AssertionError as error:
            return f"{points}: {error}"
        return f"{points}: {[str(each) for each in result.violations]}" if result.violations else ""

    with ThreadPoolExecutor(AT_ONCE) as threads:
        return [each for each in threads.map(one, runs) if each]


def calm(scenario: str, postgres: Postgres | None) -> Result:
    """A run in which nobody dies, and what it crosses."""
    result = play(scenario, (), postgres)
    assert result.violations == []
    return result


def needs(scenario: str, request: pytest.FixtureRequest) -> Postgres | None:
    return request.getfixturevalue("postgres") if scenario.startswith("xa") else None


@pytest.mark.parametrize("scenario", SHORT)
def test_whoever_dies_before_a_write_or_a_send_it_all_ends_well(scenario: str, request: pytest.FixtureRequest) -> None:
    # What lies behind one crossing lies before the next one of the same process: so this is every state to die in, once.
    postgres = needs(scenario, request)
    points = [each for each in points_of(calm(scenario, postgres)) if each.crossing.startswith("before")]
    assert fallen(scenario, [[each] for each in points if each.victim == each.role], postgres) == []


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_whoever_dies_before_or_after_a_write_or_a_send_it_all_ends_well(
    scenario: str, request: pytest.FixtureRequest
) -> None:
    postgres = needs(scenario, request)
    points = points_of(calm(scenario, postgres))
    assert fallen(scenario, [[each] for each in points], postgres) == []


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_two_deaths_the_second_during_recovery_and_it_all_ends_well(
    scenario: str, request: pytest.FixtureRequest
) -> None:
    postgres = needs(scenario, request)
    dice = random.Random(f"{scenario}-{SEED}")
    first = points_of(calm(scenario, postgres))
    pairs: list[tuple[Point, Point]] = []
    if PAIRS:
        # The second point is one that the recovery from the first really crosses.
        for point in dice.choices(first, k=PAIRS):
            pairs.append((point, dice.choice(points_of(play(scenario, [point], postgres)))))
    else:
        pairs = list(itertools.product(first, first))
    assert fallen(scenario, pairs, postgres) == []


def pauses(result: Result) -> list[Point]:
    own = [each for each in points_of(result) if each.role == each.victim == COORDINATOR]
    return [replace(each, is_pause=True) for each in own if "session" not in each.crossing]


def test_a_pause_is_a_pause_and_the_other_coordinator_takes_over() -> None:
    point = Point(COORDINATOR, "before write log update finishing", 1, COORDINATOR, is_pause=True)
    result = play("tcc", [point])
    assert (result.fired, result.violations) == (1, [])
    tokens = [each.token for each in result.facts if isinstance(each, Logged)]
    assert tokens[0] == 1 < max(tokens)


def test_a_coordinator_that_slept_while_another_took_over_does_no_harm() -> None:
    points = [each for each in pauses(calm("tcc", None)) if each.crossing.startswith("before write")]
    assert fallen("tcc", [[each] for each in points], None) == []


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["saga", "saga-refused", "tcc", "tcc-refused", "xa", "message"])
def test_a_coordinator_that_slept_anywhere_while_another_took_over_does_no_harm(
    scenario: str, request: pytest.FixtureRequest
) -> None:
    postgres = needs(scenario, request)
    assert fallen(scenario, [[each] for each in pauses(calm(scenario, postgres))], postgres) == []


def test_every_write_and_every_send_is_found() -> None:
    crossings = {f"{role} {crossing}" for role, crossing, _ in calm("tcc-refused", None).crossings}
    for expected in (
        "coordinator before write log create open",
        "coordinator after write log update undoing",
        "coordinator before send call credit/cancel",
        "coordinator after write log update failed",
        "shop before write barrier.commit",
        "shop after send reply",
        "accounts before send reply",
        "initiator before send add credit",
        "initiator after send abort",
    ):
        assert expected in crossings


def test_a_death_is_a_death_and_is_recovered_from() -> None:
    point = Point(COORDINATOR, "after write log create running", 1, COORDINATOR)
    result = play("saga", [point])
    assert (result.fired, result.violations) == (1, [])
    assert sum(crossing == "before write log session open" for _, crossing, _ in result.crossings) == 2, (
        "it started twice"
    )
    assert [each.state for each in result.facts if isinstance(each, Ended)] == ["succeeded"]
    assert any(isinstance(each, Began) for each in result.facts)
