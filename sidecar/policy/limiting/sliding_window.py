"""Sliding windows: the exact one, which remembers every call, and the one that counts, which estimates."""

from collections import deque

from sidecar.policy.limiting.limiter import REFUSED, Limiter


class SlidingLog(Limiter):
    """At most `requests` calls in any span of `interval_s`, exactly. Holds the time of each call in the span."""

    __slots__ = ("_interval", "_requests", "_times")

    def __init__(self, requests: int, interval_s: float) -> None:
        self._requests = requests
        self._interval = interval_s
        self._times: deque[float] = deque()

    def _forget(self, now: float) -> None:
        times = self._times
        before = now - self._interval
        while times and times[0] <= before:
            times.popleft()

    def admit(self, now: float) -> float:
        self._forget(now)
        if len(self._times) >= self._requests:
            return REFUSED
        self._times.append(now)
        return 0.0

    def retry_after_s(self, now: float) -> float:
        self._forget(now)
        return 0.0 if len(self._times) < self._requests else self._times[0] + self._interval - now

    def remaining(self, now: float) -> int:
        self._forget(now)
        return self._requests - len(self._times)

    def is_as_new(self, now: float) -> bool:
        self._forget(now)
        return not self._times


class SlidingWindow(Limiter):
    """About `requests` calls in any span of `interval_s`: two counters, the calls of the last whole window taken as spread evenly.

    Calls that all came at a window's edge are seen as earlier or later than they were: in the worst case one span holds nearly twice as many.
    """

    __slots__ = ("_count", "_interval", "_last", "_requests", "_start")

    def __init__(self, requests: int, interval_s: float, now: float) -> None:
        self._requests = requests
        self._interval = interval_s
        self._start = now
        self._count = 0
        """Calls since `_start`."""
        self._last = 0
        """Calls in the window before."""

    def _turn(self, now: float) -> None:
        passed = now - self._start
        if passed < self._interval:
            return
        windows = int(passed / self._interval)
        self._last = self._count if windows == 1 else 0
        self._count = 0
        self._start += windows * self._interval

    def _estimate(self, now: float) -> float:
        return self._count + self._last * (1.0 - (now - self._start) / self._interval)

    def admit(self, now: float) -> float:
        self._turn(now)
        if self._estimate(now) + 1.0 > self._requests:
            return REFUSED
        if not self._count and not self._last:
            self._start = now
        self._count += 1
        return 0.0

    def retry_after_s(self, now: float) -> float:
        self._turn(now)
        excess = self._estimate(now) + 1.0 - self._requests
        if excess <= 0.0:
            return 0.0
        window_end = self._start + self._interval - now
        if self._last:
            within = excess * self._interval / self._last
            if within <= window_end:
                return within
        # In the next window what was counted in this one runs off.
        excess = self._count + 1.0 - self._requests
        return window_end + max(0.0, excess * self._interval / max(1, self._count))

    def remaining(self, now: float) -> int:
        self._turn(now)
        return max(0, int(self._requests - self._estimate(now)))

    def is_as_new(self, now: float) -> bool:
        self._turn(now)
        return not self._count and not self._last
