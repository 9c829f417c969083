"""Adaptive concurrency: as many calls at once as do not make them slower (Envoy: extensions.filters.http.adaptive_concurrency.v3).

Now and then the limit is taken down to `min_concurrency`, to see how long a call takes when nobody is in its way. Between these times the limit
follows the ratio of that to what calls take now. Whoever owns a `Gradient` calls `tick` at `next_tick`. `now` and chance are parameters.
"""

from dataclasses import dataclass
from math import sqrt
from random import Random
from typing import Final

WINDOWS_AT_LEAST: Final = 5
"""After so many intervals at `min_concurrency` the least time is measured anew: it must have been wrong."""
MAX_SAMPLES: Final = 10_000
"""Of an interval; of more, some are kept by chance."""
LARGEST_STEP: Final = 2.0
SMALLEST_STEP: Final = 0.5


@dataclass(frozen=True, slots=True)
class AdaptiveConcurrency:
    """Envoy: GradientControllerConfig."""

    update_interval_s: float
    """How often the limit follows."""
    percentile: float = 0.5
    """Which of the times of an interval counts."""
    max_limit: int = 1000
    min_rtt_interval_s: float = 0.0
    """How often the least time is measured; 0 if it is fixed."""
    fixed_min_rtt_s: float = 0.0
    """The least time, if it is not measured."""
    min_rtt_calls: int = 50
    """Calls that a measurement takes."""
    min_rtt_jitter: float = 0.15
    """Each interval is longer by chance, up to this share."""
    min_concurrency: int = 3
    """The limit while the least time is measured, and the least there ever is."""
    buffer: float = 0.25
    """So much slower than the least time is normal."""
    refuses_with: int = 503
    """HTTP status of a refusal."""


class Gradient:
    """The limit of one service, and the calls under it."""

    def __init__(self, config: AdaptiveConcurrency, chance: Random, now: float) -> None:
        self.config = config
        self.limit = config.min_concurrency
        self.running = 0
        self.min_rtt_s = config.fixed_min_rtt_s
        self.is_measuring = False
        """The least time is being measured."""
        self.next_tick = 0.0
        self._chance = chance
        self._samples: list[float] = []
        self._seen = 0
        self._deferred = config.min_concurrency
        self._measuring_since = now
        self._measure_at = 0.0
        self._update_at = now + config.update_interval_s
        self._times_least = 0
        if config.fixed_min_rtt_s:
            self._schedule()
        else:
            self._measure(now)

    def enter(self) -> bool:
        """One more call; False if there are as many as may be."""
        if self.running >= self.limit:
            return False
        self.running += 1
        return True

    def leave(self, started: float, now: float) -> None:
        """A call is over, and was answered."""
        self.running -= 1
        if self.is_measuring and started < self._measuring_since:
            return  # it ran beside too many others
        self._keep(now - started)
        if self.is_measuring and self._seen >= self.config.min_rtt_calls:
            self.min_rtt_s = self._take()
            self.is_measuring = False
            jitter = 1.0 + self._chance.random() * self.config.min_rtt_jitter
            self._measure_at = now + self.config.min_rtt_interval_s * jitter
            self._update_at = now + self.config.update_interval_s
            self._set(self._deferred, now)
            self._schedule()

    def cancel(self) -> None:
        """A call is over that says nothing of how long one takes."""
        self.running -= 1

    def tick(self, now: float) -> None:
        """A time is over: measure the least time, or follow."""
        if self.is_measuring:
            return
        if self._measure_at and now >= self._measure_at:
            self._measure(now)
            return
        if now >= self._update_at:
            self._update_at = now + self.config.update_interval_s
            if self._seen:
                self._set(self.next_limit(self._take()), now)
        self._schedule()

    def next_limit(self, rtt_s: float) -> int:
        """The limit after an interval in which calls took so long."""
        config = self.config
        normal = self.min_rtt_s * (1.0 + config.buffer)
        ratio = normal / rtt_s if rtt_s > 0.0 else LARGEST_STEP
        limit = self.limit * max(SMALLEST_STEP, min(LARGEST_STEP, ratio))
        return max(config.min_concurrency, min(config.max_limit, int(limit + sqrt(limit))))

    def _keep(self, seconds: float) -> None:
        self._seen += 1
        if len(self._samples) < MAX_SAMPLES:
            self._samples.append(seconds)
        else:
            place = int(self._chance.random() * self._seen)
            if place < MAX_SAMPLES:
                self._samples[place] = seconds

    def _take(self) -> float:
        """The percentile of what was kept, which is forgotten."""
        samples, self._samples = sorted(self._samples), []
        self._seen = 0
        return samples[min(len(samples) - 1, int(self.config.percentile * len(samples)))]

    def _measure(self, now: float) -> None:
        self.is_measuring = True
        self._measuring_since = now
        self._deferred = self.limit
        self.limit = self.config.min_concurrency
        self._samples = []
        self._seen = 0
        self._times_least = 0
        self.next_tick = 0.0

    def _set(self, limit: int, now: float) -> None:
        least = self.config.min_concurrency
        self._times_least = self._times_least + 1 if self.limit == least and limit == least else 0
        self.limit = limit
        if self._times_least >= WINDOWS_AT_LEAST and not self.config.fixed_min_rtt_s:
            self._measure(now)

    def _schedule(self) -> None:
        if not self.is_measuring:
            self.next_tick = min(self._update_at, self._measure_at) if self._measure_at else self._update_at
