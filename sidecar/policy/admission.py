"""Admission control: the more of the last calls failed, the more new ones are refused (Envoy: extensions.filters.http.admission_control.v3).

A caller that does so leaves a service that fails the air to recover, without a switch that is either open or closed. `now` and chance are parameters.
"""

from collections import deque
from typing import Final

SLICE_S: Final = 1.0
"""Seconds of a window that are forgotten together."""


class Admission:
    """The calls of the last `window_s` seconds, and the chance with which the next one is refused."""

    def __init__(self, window_s: float, threshold: float, aggression: float, rps_threshold: int, most: float) -> None:
        """`threshold`: share of successes from which on nothing is refused. `most`: largest chance of a refusal."""
        self._window_s = window_s
        self._threshold = threshold
        self._aggression = aggression
        self._rps_threshold = rps_threshold
        self._most = most
        self._slices: deque[list[float]] = deque()
        """Start, calls, successes."""
        self.calls = 0
        self.successes = 0

    def record(self, is_success: bool, now: float) -> None:
        """A call that was let go is over."""
        self._forget(now)
        slices = self._slices
        if not slices or now - slices[-1][0] >= SLICE_S:
            slices.append([now, 0, 0])
        slices[-1][1] += 1
        self.calls += 1
        if is_success:
            slices[-1][2] += 1
            self.successes += 1

    def _forget(self, now: float) -> None:
        slices = self._slices
        while slices and now - slices[0][0] >= self._window_s:
            _, calls, successes = slices.popleft()
            self.calls -= int(calls)
            self.successes -= int(successes)

    def chance(self, now: float) -> float:
        """The chance of the next call to be refused, 0 to 1."""
        self._forget(now)
        if not self._slices:
            return 0.0
        age = max(now - self._slices[0][0], 1.0)
        if self.calls // int(age) < self._rps_threshold:
            return 0.0
        share = (self.calls - self.successes / self._threshold) / (self.calls + 1)
        if share <= 0.0:
            return 0.0
        return min(float(share ** (1.0 / self._aggression)), self._most)
