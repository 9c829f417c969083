"""A leaky bucket as a queue: calls leave it evenly spaced, who would wait too long is refused."""

from sidecar.policy.limiting.limiter import REFUSED, Limiter


class LeakyBucket(Limiter):
    """Calls leave at most every `interval_s / requests`; none waits longer than `max_wait_s`."""

    __slots__ = ("_free", "_gap", "_max_wait")

    def __init__(self, requests: int, interval_s: float, max_wait_s: float, now: float) -> None:
        self._gap = interval_s / requests
        self._max_wait = max_wait_s
        self._free = now
        """When the next call may leave."""

    def admit(self, now: float) -> float:
        wait = self._free - now
        if wait > self._max_wait:
            return REFUSED
        if wait < 0.0:
            wait = 0.0
        self._free = now + wait + self._gap
        return wait

    def wait_s(self, now: float) -> float:
        """How long a call that came now would wait, if that is not too long."""
        return max(0.0, self._free - now)

    def retry_after_s(self, now: float) -> float:
        return max(0.0, self._free - self._max_wait - now)

    def remaining(self, now: float) -> int:
        left = now + self._max_wait - max(self._free, now)
        return int(left / self._gap) + 1 if left >= 0.0 else 0

    def is_as_new(self, now: float) -> bool:
        return now >= self._free
