"""The local rate limit as a step of a call's way: a bucket, its mode, its counters."""

from random import Random
from typing import TYPE_CHECKING

from sidecar.policy.token_bucket import TokenBucket
from sidecar.proxy.config import LocalRateLimit
from sidecar.proxy.route import Request
from sidecar.proxy.status import Status
from sidecar.proxy.step import Filter, Step
from sidecar.telemetry.stats import LimitStats

if TYPE_CHECKING:
    from sidecar.proxy.call import Call


class LimitFilter(Filter):
    """A local rate limit: the same bucket for all calls on its way."""

    def __init__(self, limit: "Limit") -> None:
        super().__init__()
        self._limit = limit

    def step_for(self, request: Request) -> Step | None:
        return self._limit


class Limit(Step):
    """One local rate limit in force (Envoy: extensions.filters.http.local_ratelimit.v3.LocalRateLimit)."""

    def __init__(self, config: LocalRateLimit, stats: LimitStats, chance: Random, now: float) -> None:
        super().__init__()
        self.config = config
        self.stats = stats
        self._chance = chance
        self._bucket = TokenBucket(config.max_tokens, config.tokens_per_fill, config.fill_interval_s, now)
        self._is_certain = config.enabled >= 1.0
        self.status = Status.RESOURCE_EXHAUSTED if config.as_resource_exhausted else Status.UNAVAILABLE

    def enter(self, call: "Call") -> bool:
        now = call.down.worker.now
        if self.allows(now):
            return True
        call.answer(self.status, self.explain(now), "RL")
        return False

    def allows(self, now: float) -> bool:
        """Count one call; False if it is to be refused."""
        if not self._is_certain and self._chance.random() >= self.config.enabled:
            return True
        if self._bucket.take(now):
            self.stats.allowed += 1
            return True
        enforced = self.config.enforced
        if enforced >= 1.0 or (enforced > 0.0 and self._chance.random() < enforced):
            self.stats.refused += 1
            return False
        self.stats.would_refuse += 1
        return True

    def explain(self, now: float) -> str:
        """The sentence that a refused caller reads."""
        config = self.config
        return (
            f'rate limit "{config.stat_prefix}": {config.tokens_per_fill} calls per {config.fill_interval_s:g} s '
            f"at this instance are used up; try again in {self._bucket.retry_after_s(now):.3f} s (flag RL)"
        )
