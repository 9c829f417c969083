"""The generic cell rate algorithm (ITU-T I.371): a token bucket that remembers one moment instead of a level and a moment."""

from sidecar.policy.limiting.limiter import REFUSED, Limiter


class Gcra(Limiter):
    """Calls `requests` per `interval_s`, up to `burst` at once."""

    __slots__ = ("_due", "_gap", "_tolerance")

    def __init__(self, requests: int, interval_s: float, burst: int, now: float) -> None:
        self._gap = interval_s / requests
        self._tolerance = (burst - 1) * self._gap
        self._due = now
        """When the next call is due if calls came evenly (the theoretical arrival time); one may come `_tolerance` earlier."""

    def admit(self, now: float) -> float:
        if now < self._due - self._tolerance:
            return REFUSED
        self._due = max(self._due, now) + self._gap
        return 0.0

    def retry_after_s(self, now: float) -> float:
        return max(0.0, self._due - self._tolerance - now)

    def remaining(self, now: float) -> int:
        early = now + self._tolerance - max(self._due, now)
        return int(early / self._gap) + 1 if early >= 0.0 else 0

    def is_as_new(self, now: float) -> bool:
        return now >= self._due
