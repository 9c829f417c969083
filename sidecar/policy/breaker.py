"""The classic circuit breaker: closed while calls succeed, open when too many fail or are slow, half-open for a few probes.

States and transitions are data; the window counts calls in slices of a tenth. `now` and chance are parameters.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

SLICES: Final = 10
"""Of a window: so many parts are forgotten one by one."""


class State(Enum):
    """Whether calls are let through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Signal(Enum):
    """What moves a breaker."""

    TOO_MANY_FAILED = "too many calls failed"
    TOO_MANY_SLOW = "too many calls were slow"
    PENALTY_SERVED = "the penalty is served"
    PROBES_PASSED = "the probes passed"
    PROBE_FAILED = "a probe failed"


TRANSITIONS: Final = {
    (State.CLOSED, Signal.TOO_MANY_FAILED): State.OPEN,
    (State.CLOSED, Signal.TOO_MANY_SLOW): State.OPEN,
    (State.OPEN, Signal.PENALTY_SERVED): State.HALF_OPEN,
    (State.HALF_OPEN, Signal.PROBES_PASSED): State.CLOSED,
    (State.HALF_OPEN, Signal.PROBE_FAILED): State.OPEN,
}


@dataclass(frozen=True, slots=True)
class BreakerConfig:
    """When a breaker opens, and for how long."""

    window_s: float = 10.0
    """Calls of the last so many seconds count."""
    minimum_calls: int = 20
    """With fewer in the window it stays closed."""
    failure_percent: float = 50.0
    """This share of failures opens it."""
    slow_s: float = 0.0
    """A call that takes longer is slow; 0: none is."""
    slow_percent: float = 100.0
    """This share of slow calls opens it."""
    open_s: float = 5.0
    """How long it stays open; each time that probes fail twice as long, up to `max_open_s`."""
    max_open_s: float = 60.0
    probes: int = 3
    """Calls that are let through half-open, one after the other or at once; all must pass."""
    is_enforced: bool = True
    """False: it counts what it would refuse, and refuses nothing."""


class Breaker:
    """One breaker. `enter` before each call that it lets through, `leave` or `cancel` after it."""

    def __init__(self, config: BreakerConfig, now: float) -> None:
        self.config = config
        self.state = State.CLOSED
        self.cause: Signal | None = None
        """Why it opened last."""
        self.until = 0.0
        """Open until then."""
        self.refused = 0
        """Calls that it refused, or would have."""
        self.opened = 0
        """How often it opened."""
        self._in_a_row = 0
        """Times that it opened without having been closed."""
        self._probing = 0
        self._passed = 0
        self._era = 0
        """Grows with each change of state: calls of an earlier one say nothing of this one."""
        self._slices: list[list[int]] = []
        """Number of the slice, calls, failures, slow calls; oldest first."""
        self.calls = 0
        self.failures = 0
        self.slow = 0

    def enter(self, now: float) -> int:
        """The era of a call that may go, which `leave` is told; below 0 it may not."""
        if self.state is State.CLOSED:
            return self._era
        if self.state is State.OPEN:
            if now < self.until:
                self.refused += 1
                return -1
            self._move(Signal.PENALTY_SERVED, now)
        if self._probing + self._passed >= self.config.probes:
            self.refused += 1
            return -1
        self._probing += 1
        return self._era

    def is_passable(self, now: float) -> bool:
        """True if a call that came now might go; nothing is counted."""
        if self.state is State.OPEN:
            return now >= self.until
        return self.state is State.CLOSED or self._probing + self._passed < self.config.probes

    def leave(self, era: int, is_failure: bool, seconds: float, now: float) -> None:
        """A call is over."""
        if era != self._era:
            return
        config = self.config
        is_slow = 0.0 < config.slow_s < seconds
        if self.state is State.HALF_OPEN:
            self._probing -= 1
            if is_failure or is_slow:
                self._move(Signal.PROBE_FAILED, now)
            else:
                self._passed += 1
                if self._passed >= config.probes:
                    self._move(Signal.PROBES_PASSED, now)
            return
        self._count(is_failure, is_slow, now)
        if self.calls < config.minimum_calls:
            return
        if 100.0 * self.failures >= config.failure_percent * self.calls and self.failures:
            self._move(Signal.TOO_MANY_FAILED, now)
        elif 100.0 * self.slow >= config.slow_percent * self.calls and self.slow:
            self._move(Signal.TOO_MANY_SLOW, now)

    def cancel(self, era: int) -> None:
        """A call is over that says nothing: its caller went away."""
        if era == self._era and self.state is State.HALF_OPEN:
            self._probing -= 1

    def _count(self, is_failure: bool, is_slow: bool, now: float) -> None:
        number = int(now * SLICES / self.config.window_s)
        slices = self._slices
        while slices and slices[0][0] <= number - SLICES:
            _, calls, failures, slow = slices.pop(0)
            self.calls -= calls
            self.failures -= failures
            self.slow -= slow
        if not slices or slices[-1][0] != number:
            slices.append([number, 0, 0, 0])
        last = slices[-1]
        last[1] += 1
        self.calls += 1
        if is_failure:
            last[2] += 1
            self.failures += 1
        if is_slow:
            last[3] += 1
            self.slow += 1

    def _move(self, signal: Signal, now: float) -> None:
        self.state = TRANSITIONS[self.state, signal]
        self._era += 1
        self._probing = self._passed = 0
        if self.state is State.OPEN:
            self.cause = signal
            self.opened += 1
            config = self.config
            self.until = now + min(config.max_open_s, config.open_s * 2.0 ** min(self._in_a_row, 30))
            self._in_a_row += 1
        elif self.state is State.CLOSED:
            self._in_a_row = 0
        if self.state is not State.HALF_OPEN:
            self._slices = []
            self.calls = self.failures = self.slow = 0

    def explain(self, now: float) -> str:
        """Why it refuses, and until when."""
        cause = self.cause.value if self.cause is not None else "?"
        if self.state is State.HALF_OPEN:
            return f"{cause}; {self.config.probes} probes are on their way"
        return f"{cause}; the next probe may go in {max(0.0, self.until - now):.3f} s"
