"""Whether and when a call that failed is tried again (Envoy: route.v3.RetryPolicy; push-back: gRFC A6). Chance is a parameter."""

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Final


class Cause(Enum):
    """Why one try of a call came to nothing, other than by an answer."""

    CONNECT = "connect-failure"
    """The connection could not be made: nothing was sent."""
    REFUSED = "refused-stream"
    """The peer said that it did not process the call."""
    RESET = "reset"
    """The stream or its connection ended, or the answer was broken: what happened to the call is not known."""
    TIMEOUT = "per-try-timeout"
    """There was no answer within the time of one try."""


_EVERY: Final = frozenset(Cause)
CAUSES: Final[Mapping[str, frozenset[Cause]]] = {
    "connect-failure": frozenset((Cause.CONNECT,)),
    "reset-before-request": frozenset((Cause.CONNECT,)),
    "refused-stream": frozenset((Cause.REFUSED,)),
    "reset": _EVERY,
    "5xx": _EVERY,
    "gateway-error": _EVERY,
}
"""What each condition takes of tries that got no answer."""
GRPC_STATUSES: Final[Mapping[str, int]] = {
    "cancelled": 1,
    "deadline-exceeded": 4,
    "internal": 13,
    "resource-exhausted": 8,
    "unavailable": 14,
}
HTTP_STATUSES: Final[Mapping[str, frozenset[int]]] = {
    "5xx": frozenset(range(500, 600)),
    "gateway-error": frozenset((502, 503, 504)),
    "retriable-4xx": frozenset((409,)),
}
BY_POLICY: Final = ("retriable-status-codes", "retriable-headers", "envoy-ratelimited")
"""Conditions whose details stand in other fields of the policy, or that are read from an answer's headers."""
CONDITIONS: Final = tuple(sorted({*CAUSES, *GRPC_STATUSES, *HTTP_STATUSES, *BY_POLICY}))
"""All that `retry_on` may name."""

NEVER: Final = -1.0
"""Instead of seconds: no further try."""
MAX_PUSHBACK_DIGITS: Final = 9


class Rules:
    """A policy's conditions, made ready to be asked."""

    def __init__(self, conditions: Iterable[str], status_codes: Iterable[int] = ()) -> None:
        on = frozenset(conditions)
        self.causes: frozenset[Cause] = frozenset().union(*(CAUSES.get(name, frozenset()) for name in on))
        self.grpc_statuses = frozenset(GRPC_STATUSES[name] for name in on if name in GRPC_STATUSES)
        codes: frozenset[int] = frozenset().union(*(HTTP_STATUSES.get(name, frozenset()) for name in on))
        self.http_statuses = codes | (frozenset(status_codes) if "retriable-status-codes" in on else frozenset())
        self.reads_headers = "retriable-headers" in on
        self.takes_ratelimited = "envoy-ratelimited" in on
        self.reads_answers = bool(
            self.grpc_statuses or self.http_statuses or self.reads_headers or self.takes_ratelimited
        )
        """False: no answer leads to another try, whatever it says."""

    def takes(self, http_status: int, grpc_status: int) -> bool:
        """True if an answer with these is a reason for another try; -1 for no grpc-status among the headers."""
        return http_status in self.http_statuses or grpc_status in self.grpc_statuses


class Backoff:
    """Waits between tries: by chance up to a bound that doubles from `base_s` to `max_s`."""

    __slots__ = ("_bound", "_max")

    def __init__(self, base_s: float, max_s: float) -> None:
        self._bound = base_s
        self._max = max_s

    def draw(self, chance: float) -> float:
        """Seconds until the next try, for a number between 0 and 1."""
        bound = self._bound
        self._bound = min(bound * 2.0, self._max)
        return bound * chance


def told_to_wait(seconds: float, chance: float) -> float:
    """The wait where the server named one: not less, and by chance up to half more, so that callers do not all return at once."""
    return seconds * (1.0 + 0.5 * chance)


def pushback(value: bytes) -> float:
    """Seconds that `grpc-retry-pushback-ms` asks for; NEVER if it is negative or no number."""
    return int(value) / 1000 if value.isdigit() and len(value) <= MAX_PUSHBACK_DIGITS else NEVER


def reset_after(value: bytes, is_time: bool, now_unix: float) -> float:
    """Seconds that a rate limit's header speaks of: a number of them, or a point in time; NEVER if it is neither, or over."""
    if not value.isdigit() or len(value) > MAX_PUSHBACK_DIGITS + 3:
        return NEVER
    seconds = int(value) - (now_unix if is_time else 0.0)
    return seconds if seconds > 0.0 or not is_time else NEVER


def most_retries(active: int, percent: float, least: int) -> int:
    """Retries at once that a budget allows while so many calls run (Envoy: CircuitBreakers.Thresholds.RetryBudget)."""
    return max(int(percent / 100.0 * active), least)
