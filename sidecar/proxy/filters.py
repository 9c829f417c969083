"""The HTTP filters of one filter chain under one configuration: which steps a route's calls have in their way, in order."""

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
    assert isinstance(config, LocalRateLimit)
    return LimitFilter(config, worker, now)


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
            for owner in (id(route), id(host), 0):
                known = self._filters.get((number, owner))
                if known is not None:
                    step = known.step_for(request, host, route)
                    break
            found.append((http_filter, step))
        return found
