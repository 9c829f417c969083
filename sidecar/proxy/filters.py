"""The HTTP filters of one filter chain under one configuration: which steps a route's calls have in their way, in order."""

from dataclasses import replace
from typing import NamedTuple

from sidecar.proxy.access import Access
from sidecar.proxy.access_filter import AccessFilter
from sidecar.proxy.config import (
    AdaptiveConcurrency,
    AdmissionControl,
    Fault,
    FilterConfig,
    HttpFilter,
    LocalRateLimit,
    PythonFilter,
    Route,
    RouteTable,
    VirtualHost,
)
from sidecar.proxy.fault import FaultFilter
from sidecar.proxy.limit import LimitFilter
from sidecar.proxy.limit_actions import names_read
from sidecar.proxy.route import Request
from sidecar.proxy.shedding import AdaptiveFilter, AdmissionFilter
from sidecar.proxy.step import Filter, Step
from sidecar.proxy.token_filter import TokenFilter
from sidecar.proxy.tokens import Tokens, TokensOfRoute
from sidecar.proxy.worker import Worker


def make(config: FilterConfig, worker: Worker, now: float) -> Filter:
    """The filter that a configuration asks for."""
    if isinstance(config, Fault):
        return FaultFilter(config, worker)
    if isinstance(config, AdmissionControl):
        return AdmissionFilter(config, worker)
    if isinstance(config, AdaptiveConcurrency):
        return AdaptiveFilter(config, worker, now)
    if isinstance(config, Access):
        return AccessFilter(config, worker)
    if isinstance(config, PythonFilter):
        # Imported here: a sidecar without one does not pay for it.
        from sidecar.proxy.python_filter import PythonFilterHost

        return PythonFilterHost(config, worker)
    if isinstance(config, Tokens):
        return TokenFilter(config, worker)
    assert isinstance(config, LocalRateLimit)
    return LimitFilter(config, worker, now)


def _whole(config: FilterConfig, chains: FilterConfig | None) -> FilterConfig:
    """What a place configures, with what it takes from the chain's configuration of the filter."""
    if not isinstance(config, TokensOfRoute):
        return config
    return replace(chains, route=config) if isinstance(chains, Tokens) else Tokens(route=config)


class _Place(NamedTuple):
    """What stays the same from one configuration to the next: a filter whose place is the same keeps its state."""

    number: int
    """Of the filter in the chain."""
    host: str
    route: str
    config: FilterConfig


class FilterBook:
    """All filters of a chain, in all places that configure them. What did not change keeps its state: tokens, windows, counters."""

    def __init__(
        self,
        filters: tuple[HttpFilter, ...],
        table: RouteTable | None,
        worker: Worker,
        now: float,
        before: "FilterBook | None" = None,
    ) -> None:
        self._chain = filters
        self._table = table  # held: its parts are looked up by identity, as comparing whole virtual hosts is dear
        self._places: dict[_Place, Filter] = {}
        self._filters: dict[tuple[int, int], Filter] = {}
        """By number of the filter and identity of the virtual host or route that configures it; 0 is the chain itself."""

        def keep(owner: int, place: _Place) -> None:
            place = place._replace(config=_whole(place.config, filters[place.number].config))
            known = before._places.get(place) if before is not None else None
            known = known or make(place.config, worker, now)
            self._filters[place.number, owner] = self._places[place] = known

        for number, http_filter in enumerate(filters):
            if http_filter.config is not None:
                keep(0, _Place(number, "", "", http_filter.config))
            for host in table.virtual_hosts if table is not None else ():
                for name, config in host.overrides:
                    if name == http_filter.name:
                        keep(id(host), _Place(number, host.name, "", config))
                for order, route in enumerate(host.routes):
                    for name, config in route.overrides:
                        if name == http_filter.name:
                            keep(id(route), _Place(number, host.name, route.name or str(order), config))
        every = list(self._places.values())
        self.header_names: frozenset[bytes] = frozenset(name for known in every for name in known.header_names)
        """Names of all headers that decide which steps a request has."""
        values = {name for known in every for name in known.value_names}
        for host in table.virtual_hosts if table is not None and every else ():
            values |= names_read(host.limit_actions)
            for route in host.routes:
                values |= names_read(route.limit_actions)
        self.value_names = frozenset(values)
        """Names of all headers whose values steps read."""

        self._made: tuple[frozenset[bytes], ...] = tuple(
            frozenset(
                name
                for place, known in self._places.items()
                if place.number < number and isinstance(known, TokenFilter)
                for name in known.made_headers
            )
            for number in range(len(filters))
        )
        """By number of a filter: headers that filters before it set anew, whatever a caller says there."""

    def of(self, host: VirtualHost | None, route: Route | None, request: Request) -> tuple[Step, ...]:
        """The steps for such requests on a route, or on none: of each filter by its most specific configuration."""
        return tuple(step for _, step in self.named(host, route, request) if step is not None)

    def named(
        self, host: VirtualHost | None, route: Route | None, request: Request
    ) -> list[tuple[HttpFilter, Step | None]]:
        """Every filter in order, with its step; None where it has nothing to do with such requests."""
        found: list[tuple[HttpFilter, Step | None]] = []
        for number, http_filter in enumerate(self._chain):
            step: Step | None = None
            made = self._made[number]
            if made and not made.isdisjoint(request.headers):
                left = {name: values for name, values in request.headers.items() if name not in made}
                request = replace(request, headers=left)
            for owner in (id(route), id(host), 0):
                known = self._filters.get((number, owner))
                if known is not None:
                    step = known.step_for(request, host, route)
                    break
            found.append((http_filter, step))
        return found
