"""The classic breaker: a scenario that reads as its story, its table, and a slow model that keeps every call."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.policy.breaker import SLICES, TRANSITIONS, Breaker, BreakerConfig, Signal, State

CONFIG = BreakerConfig(
    window_s=10.0,
    minimum_calls=4,
    failure_percent=50.0,
    slow_s=1.0,
    slow_percent=75.0,
    open_s=5.0,
    max_open_s=12.0,
    probes=2,
)

STORY = """
# half of four calls fail: it opens
at  0.0  ok    -> closed
at  0.1  ok    -> closed
at  0.2  fail  -> closed
at  0.3  fail  -> open
# for five seconds nothing passes
at  1.0  ok    -> refused
at  5.2  ok    -> refused
# two probes pass, and it closes
at  5.4  ok    -> half-open
at  5.5  ok    -> closed
# what was before is forgotten
at  5.6  fail  -> closed
at  5.7  ok    -> closed
at  5.8  ok    -> closed
at  5.9  fail  -> open
# a probe fails: it opens for twice as long, then for as long as it may
at 11.0  fail  -> open
at 20.9  ok    -> refused
at 21.0  fail  -> open
at 32.9  ok    -> refused
at 33.0  slow  -> open
at 45.0  ok    -> half-open
at 45.0  ok    -> closed
# slow calls open it too
at 46.0  slow  -> closed
at 46.0  slow  -> closed
at 46.0  ok    -> closed
at 46.0  slow  -> open
"""


def test_the_story_of_a_breaker() -> None:
    breaker = Breaker(CONFIG, 0.0)
    told = []
    for line in STORY.strip().splitlines():
        if line.startswith("#"):
            told.append(line)
            continue
        words = line.split()
        now, kind = float(words[1]), words[2]
        era = breaker.enter(now)
        if era >= 0:
            breaker.leave(era, kind == "fail", 2.0 if kind == "slow" else 0.1, now)
        told.append(f"at {now:4.1f}  {kind:4}  -> {breaker.state.value if era >= 0 else 'refused'}")
    assert told == STORY.strip().splitlines()


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("signal", list(Signal))
def test_a_signal_moves_only_the_state_that_it_belongs_to(state: State, signal: Signal) -> None:
    belongs = {
        State.CLOSED: {Signal.TOO_MANY_FAILED, Signal.TOO_MANY_SLOW},
        State.OPEN: {Signal.PENALTY_SERVED},
        State.HALF_OPEN: {Signal.PROBES_PASSED, Signal.PROBE_FAILED},
    }
    assert ((state, signal) in TRANSITIONS) == (signal in belongs[state])


calls = st.lists(
    st.tuples(st.integers(0, 200).map(lambda ticks: ticks / 64), st.booleans(), st.sampled_from([0.1, 2.0])),
    max_size=80,
)


@given(calls, st.integers(1, 8), st.sampled_from([25.0, 50.0, 100.0]))
def test_it_opens_exactly_when_the_share_of_the_window_says_so(
    calls: list[tuple[float, bool, float]], minimum: int, percent: float
) -> None:
    config = replace(CONFIG, minimum_calls=minimum, failure_percent=percent)
    breaker = Breaker(config, 0.0)
    kept: list[tuple[int, bool, bool]] = []
    now = 0.0
    for gap, is_failure, seconds in calls:
        now += gap
        era = breaker.enter(now)
        assert era >= 0
        breaker.leave(era, is_failure, seconds, now)
        number = int(now * SLICES / config.window_s)
        kept.append((number, is_failure, seconds > config.slow_s))
        window = [call for call in kept if call[0] > number - SLICES]
        failed, slow = sum(call[1] for call in window), sum(call[2] for call in window)
        opens = len(window) >= minimum and (
            (failed > 0 and failed / len(window) * 100 >= percent)
            or (slow > 0 and slow / len(window) * 100 >= config.slow_percent)
        )
        assert (breaker.state is State.OPEN) == opens
        if opens:
            return


def opened(config: BreakerConfig = CONFIG) -> Breaker:
    breaker = Breaker(config, 0.0)
    for _ in range(config.minimum_calls):
        breaker.leave(breaker.enter(0.0), True, 0.1, 0.0)
    assert breaker.state is State.OPEN
    return breaker


def test_no_more_probes_than_allowed_run_at_once() -> None:
    breaker = opened()
    assert [breaker.enter(5.0) >= 0 for _ in range(4)] == [True, True, False, False]


def test_a_probe_whose_caller_went_away_makes_room_for_another() -> None:
    breaker = opened()
    first = breaker.enter(5.0)
    breaker.enter(5.0)
    assert breaker.enter(5.0) < 0
    breaker.cancel(first)
    assert breaker.enter(5.0) >= 0


def test_a_call_that_began_before_it_opened_says_nothing_of_the_probes() -> None:
    breaker = Breaker(CONFIG, 0.0)
    old = breaker.enter(0.0)
    for _ in range(CONFIG.minimum_calls):
        breaker.leave(breaker.enter(0.0), True, 0.1, 0.0)
    probe = breaker.enter(5.0)
    breaker.leave(old, True, 5.0, 5.0)
    assert breaker.state is State.HALF_OPEN
    breaker.leave(probe, False, 0.1, 5.0)
    assert breaker.state is State.HALF_OPEN


def test_it_says_why_it_refuses() -> None:
    breaker = opened()
    assert breaker.explain(2.0) == "too many calls failed; the next probe may go in 3.000 s"
