"""Active health checks: how many results in a row change an endpoint's health, and when the next check is (Envoy: core.v3.HealthCheck)."""

from dataclasses import dataclass
from enum import Enum


class Result(Enum):
    """What came of one check."""

    PASSED = "passed"
    FAILED = "failed"
    """The endpoint said that it is not well: it is believed at once."""
    UNREACHABLE = "unreachable"
    """No connection, or a broken one: this must happen `unhealthy_threshold` times in a row."""
    LATE = "late"
    """No answer in time: the same."""


@dataclass(frozen=True, slots=True)
class Checking:
    """How often, and how many (Envoy: core.v3.HealthCheck). Seconds; intervals are from the end of a check to the next."""

    timeout_s: float
    interval_s: float
    unhealthy_threshold: int
    healthy_threshold: int
    unhealthy_interval_s: float
    """While it is unhealthy."""
    unhealthy_edge_interval_s: float
    """After a failure that has not changed anything yet, and after the one that has."""
    healthy_edge_interval_s: float
    """The same for a success."""
    no_traffic_interval_s: float = 60.0
    """While the cluster has had no connection."""
    no_traffic_healthy_interval_s: float = 60.0
    """The same for a healthy endpoint."""
    initial_jitter_s: float = 0.0
    """The first check is later by chance, up to this."""
    jitter_s: float = 0.0
    """Every other one too."""
    jitter_percent: float = 0.0
    """And up to this part of its interval."""


class Health:
    """What checks know of one endpoint."""

    __slots__ = ("_config", "_in_a_row", "checks", "is_passing")

    def __init__(self, config: Checking) -> None:
        self._config = config
        self._in_a_row = 0
        """Results against what it is held for."""
        self.checks = 0
        self.is_passing = False
        """False until the first check is passed."""

    @property
    def is_known(self) -> bool:
        """True once it has been checked."""
        return self.checks > 0

    def take(self, result: Result, *, has_traffic: bool) -> tuple[bool, float]:
        """A check is over: (is an end of the endpoint's health seen, seconds until the next check)."""
        config = self._config
        is_first = not self.is_known
        self.checks += 1
        is_good = result is Result.PASSED
        is_edge = has_changed = False
        if is_good == self.is_passing and not is_first:
            self._in_a_row = 0
        else:
            self._in_a_row += 1
            threshold = config.healthy_threshold if is_good else config.unhealthy_threshold
            is_edge = True
            if is_first or result is Result.FAILED or self._in_a_row >= threshold:
                has_changed = is_good != self.is_passing
                self.is_passing = is_good
                self._in_a_row = 0
        return has_changed, self._interval_s(is_edge, has_traffic)

    def _interval_s(self, is_edge: bool, has_traffic: bool) -> float:
        config = self._config
        if not has_traffic:
            return config.no_traffic_healthy_interval_s if self.is_passing else config.no_traffic_interval_s
        if is_edge:
            return config.healthy_edge_interval_s if self.is_passing else config.unhealthy_edge_interval_s
        return config.interval_s if self.is_passing else config.unhealthy_interval_s
