"""What proxyless clients of one namespace and profile have in common, kept at the cost of what changes."""

from collections.abc import Collection, Iterable

from control_plane.translate import proxyless, resources
from control_plane.translate.clients import Profile
from control_plane.translate.content import Shared
from control_plane.translate.view import Key, MeshView, cluster_name


class Targets:
    """The targets that can be called, and where they lead."""

    def __init__(self, namespace: str, profile: Profile, mesh: MeshView) -> None:
        self.clusters = Shared({})
        self.endpoints = Shared({})
        self.listeners = Shared({})
        self.routes = Shared({})
        self._namespace = namespace
        self._profile = profile
        self._names: dict[Key, tuple[frozenset[str], frozenset[str]]] = {}
        """The listeners and the route tables of each service."""
        self.advance(MeshView(0), mesh, mesh.by_name, mesh.by_name)

    def advance(self, old: MeshView, mesh: MeshView, touched: Iterable[Key], rerouted: Collection[Key]) -> None:
        """Services changed, came or went; to some of them, also the ways."""
        clusters: dict[str, bytes | None] = {}
        endpoints: dict[str, bytes | None] = {}
        for key in touched:
            name, before, service = cluster_name(*key), old.by_name.get(key), mesh.by_name.get(key)
            if service is None:
                clusters[name] = endpoints[name] = None
                continue
            clusters[name] = proxyless.cluster(resources.cluster(name, service.balancing), self._profile)
            if before is None or (before.endpoints, before.balancing) != (service.endpoints, service.balancing):
                endpoints[name] = proxyless.endpoints(resources.endpoints(service))
        self.clusters = self.clusters.replaced(clusters)
        self.endpoints = self.endpoints.replaced(endpoints)
        self._reroute(mesh, rerouted)

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
