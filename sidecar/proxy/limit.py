"""The local rate limit as a step of a call's way: a bucket, its mode, its counters; and which limits a route has."""

from random import Random

from sidecar.policy.token_bucket import TokenBucket
from sidecar.proxy.config import HttpFilter, LocalRateLimit, Route, RouteTable, VirtualHost
from sidecar.proxy.status import Status
from sidecar.telemetry.stats import LimitStats, Stats


class Limit:
    """One local rate limit in force (Envoy: extensions.filters.http.local_ratelimit.v3.LocalRateLimit)."""

    __slots__ = ("_bucket", "_chance", "_is_certain", "config", "stats", "status")

    def __init__(self, config: LocalRateLimit, stats: LimitStats, chance: Random, now: float) -> None:
        self.config = config
        self.stats = stats
        self._chance = chance
        self._bucket = TokenBucket(config.max_tokens, config.tokens_per_fill, config.fill_interval_s, now)
        self._is_certain = config.enabled >= 1.0
        self.status = Status.RESOURCE_EXHAUSTED if config.as_resource_exhausted else Status.UNAVAILABLE

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


_Place = tuple[int, str, str, LocalRateLimit]
"""Number of the filter, virtual host and route by name, and the configuration: what stays the same from one configuration to the next."""


class LimitBook:
    """The limits of one filter chain under one configuration. A limit that did not change keeps its tokens."""

    def __init__(
        self,
        filters: tuple[HttpFilter, ...],
        table: RouteTable | None,
        stats: Stats,
        chance: Random,
        now: float,
        before: "LimitBook | None" = None,
    ) -> None:
        self._count = len(filters)
        self._table = table  # held: its parts are looked up by identity, as comparing whole virtual hosts is dear
        self._places: dict[_Place, Limit] = {}
        self._limits: dict[tuple[int, int], Limit] = {}
        """By number of the filter and identity of the virtual host or route that configures it; 0 is the filter itself."""

        def keep(owner: int, number: int, host: str, route: str, config: LocalRateLimit) -> None:
            place = (number, host, route, config)
            limit = before._places.get(place) if before is not None else None
            limit = limit or Limit(config, stats.of_limit(config.stat_prefix), chance, now)
            self._limits[number, owner] = self._places[place] = limit

        for number, http_filter in enumerate(filters):
            if http_filter.limit is not None:
                keep(0, number, "", "", http_filter.limit)
            for host in table.virtual_hosts if table is not None else ():
                for name, config in host.overrides:
                    if name == http_filter.name:
                        keep(id(host), number, host.name, "", config)
                for place, route in enumerate(host.routes):
                    for name, config in route.overrides:
                        if name == http_filter.name:
                            keep(id(route), number, host.name, route.name or str(place), config)

    def of(self, host: VirtualHost | None, route: Route | None) -> tuple[Limit, ...]:
        """The limits for calls on a route, or on none: of each filter its most specific configuration."""
        found: list[Limit] = []
        for number in range(self._count):
            for owner in (id(route), id(host), 0):
                limit = self._limits.get((number, owner))
                if limit is not None:
                    found.append(limit)
                    break
        return tuple(found)
