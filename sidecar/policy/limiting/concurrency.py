"""A limit on calls at once."""

from sidecar.policy.limiting.limiter import REFUSED, Limiter


class Concurrency(Limiter):
    """At most `most` calls run at the same time."""

    __slots__ = ("_most", "_running")

    def __init__(self, most: int) -> None:
        self._most = most
        self._running = 0

    def admit(self, now: float) -> float:
        if self._running >= self._most:
            return REFUSED
        self._running += 1
        return 0.0

    def retry_after_s(self, now: float) -> float:
        """Nobody knows when a call ends: 0."""
        return 0.0

    def remaining(self, now: float) -> int:
        return self._most - self._running

    def is_as_new(self, now: float) -> bool:
        return not self._running

    def release(self) -> None:
        self._running -= 1
