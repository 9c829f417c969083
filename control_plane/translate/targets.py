"""What proxyless clients of one namespace and profile have in common, kept at the cost of what changes."""

from collections.abc import Collection, Iterable

from control_plane.translate import proxyless, resources
from control_plane.translate.clients import Profile
from control_plane.translate.content import Shared
from control_plane.translate.reach import Moved, Reach
from control_plane.translate.view import Key, MeshView, cluster_name


class Targets:
    """The targets that can be called, and where they lead."""

    def __init__(self, namespace: str, profile: Profile, reach: Reach) -> None:
        self.reach = reach
        self.clusters = Shared({})
        self.endpoints = Shared({})
        self.listeners = Shared({})
        self.routes = Shared({})
        self._namespace = namespace
        self._profile = profile
        self._names: dict[Key, tuple[frozenset[str], frozenset[str]]] = {}
        """The listeners and the route tables of each service."""
        self._back(MeshView(0), reach.parts.backs, reach.parts.backs.by_name)
        self._reroute(reach.parts.calls, reach.parts.calls.by_name)

    def advance(self, change: Moved, rerouted: Collection[Key]) -> None:
        """Services changed, came or went; to some of them, also the ways."""
        self._back(change.before.backs, change.after.backs, change.backs)
        self._reroute(change.after.calls, rerouted)

    def _back(self, old: MeshView, mesh: MeshView, touched: Iterable[Key]) -> None:
        clusters: dict[str, bytes | None] = {}
        endpoints: dict[str, bytes | None] = {}
        for key in touched:
            name, before, service = cluster_name(*key), old.by_name.get(key), mesh.by_name.get(key)
            if service is None:
                clusters[name] = endpoints[name] = None
                continue
            clusters[name] = proxyless.cluster(
                resources.cluster(name, service.balancing, breaking=service.breaking), self._profile
            )
            if before is None or (before.endpoints, before.balancing) != (service.endpoints, service.balancing):
                endpoints[name] = proxyless.endpoints(resources.endpoints(service))
        self.clusters = self.clusters.replaced(clusters)
        self.endpoints = self.endpoints.replaced(endpoints)

    def _reroute(self, mesh: MeshView, rerouted: Collection[Key]) -> None:
        listeners: dict[str, bytes | None] = {}
        tables: dict[str, bytes | None] = {}
        for key in rerouted:
            gone = self._names.pop(key, (frozenset(), frozenset()))
            listeners |= dict.fromkeys(gone[0])
            tables |= dict.fromkeys(gone[1])
        for key in rerouted:
            service = mesh.by_name.get(key)
            if service is not None:
                own = dict(proxyless.listeners(service, service.namespace == self._namespace))
                routes = dict(proxyless.tables(service, self._profile))
                self._names[key] = frozenset(own), frozenset(routes)
                listeners |= own
                tables |= routes
        self.listeners = self.listeners.replaced(listeners)
        self.routes = self.routes.replaced(tables)
