"""The proxy of a process: takes a `Configuration`, swaps it in at once, drains.

Invariants: a configuration is swapped, never edited. New calls go by the new one from one wake-up to the next; running calls
finish as they were decided. A listener whose address stays keeps its socket and its connections; a cluster whose settings stay keeps
its connections, whatever happens to its endpoints.
"""

import asyncio
from collections.abc import Iterator, Sequence
from time import monotonic
from typing import Final

from sidecar.inherited import Sockets
from sidecar.proxy import state
from sidecar.proxy.chain import Chain
from sidecar.proxy.cluster import Cluster
from sidecar.proxy.config import (
    Configuration,
    Direction,
    HttpManager,
    Limits,
    ListenerConfig,
    LoadAssignment,
    RouteTable,
)
from sidecar.proxy.filters import FilterBook
from sidecar.proxy.listener import Listener, calls_of
from sidecar.proxy.route import Router
from sidecar.proxy.worker import Worker

DRAIN_POLL_S: Final = 0.02
GRACE_S: Final = 0.25
"""A connection that was accepted just before the end gets so long to say what it is."""

_Key = tuple[str, int]
"""A filter chain: its listener's name, and its place there."""


class Proxy:
    """All listeners and clusters of a process."""

    def __init__(self, worker: Worker, limits: Limits | None = None, inherited: Sockets | None = None) -> None:
        self.worker = worker
        self.limits = limits or Limits()
        self._inherited = inherited or Sockets()
        self._accepts = not self._inherited
        """False while connections that wait in inherited sockets are better left to a process that knows its configuration."""
        worker.stats.running = self._running
        worker.stats.live_peers = self._live_peers
        worker.stats.clusters = lambda: state.of_clusters(list(self.clusters.values()))
        self.configuration = Configuration()
        self.listeners: dict[str, Listener] = {}
        self.clusters: dict[str, Cluster] = {}
        self._routers: dict[_Key, Router] = {}
        self._filters: dict[_Key, FilterBook] = {}

    async def apply(self, configuration: Configuration) -> None:
        """Swap in a configuration. Raises ListenError if an address cannot be had; then nothing has changed."""
        opened: dict[str, Listener] = {}
        try:
            for config in configuration.listeners:
                old = self.listeners.get(config.name)
                if old is None or not _same_address(old.config, config):
                    opened[config.name] = Listener(
                        config,
                        self.worker,
                        self.limits,
                        self._internal_listener,
                        lambda name: self.clusters.get(name),
                        self._inherited,
                    )
                    await opened[config.name].open(accepts=self._accepts)
        except BaseException:
            for listener in opened.values():
                listener.stop_accepting()
            raise
        self._swap(configuration, opened)

    def _swap(self, configuration: Configuration, opened: dict[str, Listener]) -> None:
        previous, self.configuration = self.configuration, configuration
        self.worker.secrets = dict(configuration.secrets)
        tables = {table.name: table for table in configuration.route_tables}
        for name, listener in list(self.listeners.items()):
            if name in opened or all(name != config.name for config in configuration.listeners):
                listener.drain()
                del self.listeners[name]
        self.listeners.update(opened)
        ready = [(config, self.listeners[config.name].update(config)) for config in configuration.listeners]
        routers: dict[_Key, Router] = {}
        for config, chains in ready:
            for number, chain in enumerate(chains):
                manager = chain.config.manager
                if manager is not None:
                    table = manager.routes if manager.rds_name is None else tables.get(manager.rds_name)
                    twin = _twin(chains, number)
                    key = (config.name, number if twin is None else twin)
                    chain.router = routers.get(key) or self._router(key, table, routers)
        self._routers = routers
        self._swap_clusters(previous, configuration, ready)
        filters: dict[_Key, FilterBook] = {}
        for config, chains in ready:
            for number, chain in enumerate(chains):
                manager = chain.config.manager
                if manager is not None:
                    missing = f'the routes "{manager.rds_name}" have not come from the control plane yet'
                    chain.cache.what_is_missing = missing
                    twin = _twin(chains, number)
                    key = (config.name, number if twin is None else twin)
                    if twin is None:
                        filters[key] = self._filters_of(key, manager, chain.router)
                    chain.cache.max_duration_s = manager.max_stream_duration_s
                    chain.cache.max_fields = manager.http2.max_header_fields
                    chain.cache.max_bytes = manager.http2.max_header_bytes
                    chain.cache.reconfigure(chain.router, self.clusters, filters[key])
                    chain.keep_times()
        self._filters = filters

    def _router(self, key: _Key, table: RouteTable | None, fresh: dict[_Key, Router]) -> Router | None:
        """The router for a table; the old one if the table did not change."""
        if table is None:
            return None
        known = self._routers.get(key)
        if known is None or known.table != table:
            known = Router(table)
        fresh[key] = known
        return known

    def _filters_of(self, key: _Key, manager: HttpManager, router: Router | None) -> FilterBook:
        table = router.table if router is not None else None
        return FilterBook(manager.filters, table, self.worker, monotonic(), self._filters.get(key))

    def filters_of(self, listener: str, chain: Chain) -> FilterBook | None:
        """The HTTP filters in force on a chain of a listener."""
        known = list(self.listeners[listener].chains.values())
        return self._filters.get((listener, known.index(chain)))

    def _swap_clusters(
        self,
        previous: Configuration,
        configuration: Configuration,
        ready: Sequence[tuple[ListenerConfig, Sequence[Chain]]],
    ) -> None:
        directions: dict[str, str] = {}
        for listener, chains in ready:
            for chain in chains:
                direction = listener.direction
                label = direction.value if direction is not Direction.UNSPECIFIED else chain.config.stat_prefix
                for name in _cluster_names(chain):
                    directions.setdefault(name, label)
        endpoints = {assigned.name: assigned for assigned in configuration.endpoints}
        endpoints_before = {assigned.name: assigned for assigned in previous.endpoints}
        clusters: dict[str, Cluster] = {}
        for config in configuration.clusters:
            cluster = self.clusters.get(config.name)
            is_new = cluster is None or cluster.config != config
            if cluster is None or is_new:
                if cluster is not None:
                    cluster.close()
                cluster = Cluster(config, self.worker, directions.get(config.name, "outbound"), self.limits)
            elif config.name in directions:
                cluster.set_direction(directions[config.name])
            if config.eds_name is not None:
                assigned = endpoints.get(config.eds_name)
                if is_new or assigned != endpoints_before.get(config.eds_name):
                    cluster.update_endpoints(assigned or LoadAssignment(config.eds_name))
            clusters[config.name] = cluster
        for name, cluster in self.clusters.items():
            if name not in clusters:
                cluster.close()
        self.clusters = clusters
        own = clusters.get(configuration.local_cluster)
        home = own.home(configuration.locality) if own is not None else None
        for cluster in clusters.values():
            cluster.place(home if cluster is not own else None)

    def _running(self) -> tuple[int, int]:
        listeners = list(self.listeners.values())
        return sum(each.connections for each in listeners), sum(each.calls for each in listeners)

    def _live_peers(self) -> list[tuple[str, str, int]]:
        inbound = [each for each in list(self.listeners.values()) if each.config.direction is Direction.INBOUND]
        open_ones = [downstream for listener in inbound for downstream in list(listener.downstreams)]
        return [(each.identity, each.security, calls_of(each)) for each in open_ones]

    def _internal_listener(self, cluster_name: str) -> Listener | None:
        """The listener of this process behind a cluster."""
        cluster = self.clusters.get(cluster_name)
        if cluster is None or cluster.config.internal_listener is None:
            return None
        return self.listeners.get(cluster.config.internal_listener)

    async def drain_inbound(self, timeout_s: float) -> bool:
        """Send inbound clients elsewhere and let their calls finish; True if they did within `timeout_s`.

        Outbound goes on: an application that finishes its calls may still need to make some.
        """
        inbound = [listener for listener in self.listeners.values() if listener.config.direction is Direction.INBOUND]
        return await _drain(inbound, monotonic() + timeout_s)

    async def drain(self, timeout_s: float) -> bool:
        """Finish what runs, inbound first; True if every call finished within `timeout_s`, what is left then is cut."""
        end = monotonic() + timeout_s
        is_inbound_clean = await self.drain_inbound(timeout_s)
        return await _drain(list(self.listeners.values()), end) and is_inbound_clean

    async def accept(self) -> None:
        """The configuration is whole: take connections from inherited sockets."""
        self._accepts = True
        for listener in list(self.listeners.values()):
            await listener.accept()

    async def hand_over(self, timeout_s: float) -> bool:
        """Finish what runs while another process takes all that is new: inbound and outbound at once; as `drain` otherwise."""
        return await _drain(list(self.listeners.values()), monotonic() + timeout_s)

    def close(self) -> None:
        """Stop at once."""
        for listener in self.listeners.values():
            listener.stop_accepting()
            listener.cut()
        for cluster in self.clusters.values():
            cluster.close()


def _cluster_names(chain: Chain) -> Iterator[str]:
    """Every cluster that a chain may send to."""
    if chain.config.tcp is not None:
        yield chain.config.tcp.cluster
    for host in chain.router.table.virtual_hosts if chain.router else ():
        for route in host.routes:
            for name, _ in route.clusters:
                yield name


def _twin(chains: Sequence[Chain], number: int) -> int | None:
    """An earlier chain of the listener that does the same with calls from the same routes, such as the one for TLS on a port that takes
    both: a limit is for the two together (as in Envoy, whose limits belong to the routes)."""
    manager = chains[number].config.manager
    if manager is None or manager.rds_name is None:
        return None
    for place, other in enumerate(chains[:number]):
        twin = other.config.manager
        if twin is not None and (twin.rds_name, twin.filters) == (manager.rds_name, manager.filters):
            return place
    return None


def _same_address(one: ListenerConfig, other: ListenerConfig) -> bool:
    return (one.host, one.port, one.is_internal) == (other.host, other.port, other.is_internal)


async def _drain(listeners: Sequence[Listener], end: float) -> bool:
    await asyncio.sleep(0)  # connections that the kernel has taken are accepted first
    for listener in listeners:
        listener.drain()
        listener.let_go()
    settled = monotonic() + GRACE_S
    while monotonic() < end:
        is_early = monotonic() < settled and any(listener.accepted for listener in listeners)
        if not is_early and all(listener.is_drained for listener in listeners):
            break
        await asyncio.sleep(DRAIN_POLL_S)
    return not any(listener.calls for listener in listeners)
