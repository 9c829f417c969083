"""State and node to a snapshot: everything that the node is to be told, ready to be sent."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2

from control_plane.translate import authorization, content, proxyless, reach, resources
from control_plane.translate.content import Content
from control_plane.translate.node import Node
from control_plane.translate.reach import Parts
from control_plane.translate.view import MeshView, cluster_name, inbound_mutual_tls, inbound_tokens, limits

_PREFIX: Final = "type.googleapis.com/envoy.config."
CLUSTER: Final = _PREFIX + "cluster.v3.Cluster"
ENDPOINTS: Final = _PREFIX + "endpoint.v3.ClusterLoadAssignment"
LISTENER: Final = _PREFIX + "listener.v3.Listener"
ROUTES: Final = _PREFIX + "route.v3.RouteConfiguration"
ORDER: Final = (CLUSTER, ENDPOINTS, LISTENER, ROUTES)
"""Make before break: a resource is sent before what refers to it."""


@dataclass(frozen=True, slots=True)
class Own:
    """What no other node is told: about the application beside it, and where it listens itself."""

    clusters: Mapping[str, bytes]
    listeners: Mapping[str, bytes]
    routes: Mapping[str, bytes]


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """What a node's snapshot was made of: two of the same origin hold the same resources of the node's own."""

    scope: object
    """What it has in common with others; held so that it stays as long as a node has a snapshot of it."""
    own: Own
    limits: object
    beside: tuple[object, ...]
    shares: tuple[object, ...]
    """Of the limits that depend on how many instances there are."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a node is told, by type and name, at one revision of the store."""

    version: str
    types: Mapping[str, Content]
    origin: Origin | None = field(default=None, compare=False)

    def _references(self) -> Iterator[tuple[str, str]]:
        for name, data in self.types[CLUSTER].items():
            if cluster_pb2.Cluster.FromString(data).type == cluster_pb2.Cluster.EDS:
                yield ENDPOINTS, name
        for data in self.types[ROUTES].values():
            yield from _named(route_pb2.RouteConfiguration.FromString(data))
        for data in self.types[LISTENER].values():
            listener = listener_pb2.Listener.FromString(data)
            packed = [chain.filters[-1].typed_config for chain in listener.filter_chains]
            if listener.HasField("api_listener"):
                packed.append(listener.api_listener.api_listener)
            for each in packed:
                manager = http_connection_manager_pb2.HttpConnectionManager()
                each.Unpack(manager)
                if manager.HasField("rds"):
                    yield ROUTES, manager.rds.route_config_name
                yield from _named(manager.route_config)

    def dangling(self) -> list[str]:
        """References to resources that the snapshot does not hold, as `TYPE NAME`; empty if it is consistent."""
        return sorted(
            f"{url.rpartition('.')[2]} {name}" for url, name in self._references() if name not in self.types[url]
        )


def _named(routes: Any) -> Iterator[tuple[str, str]]:
    """The clusters that a RouteConfiguration leads to."""
    for host in routes.virtual_hosts:
        for route in filter(lambda route: route.HasField("route"), host.routes):
            chosen = route.route.weighted_clusters.clusters
            yield from ((CLUSTER, name) for name in ([share.name for share in chosen] or [route.route.cluster]))


def own(mesh: MeshView, node: Node) -> Own:
    """A node's own resources."""
    clusters: dict[str, bytes] = {}
    listeners: dict[str, bytes] = {}
    routes: dict[str, bytes] = {}
    if node.profile.is_proxyless:
        if node.app_port:
            listeners = dict(proxyless.server_listeners(node.app_address, node.app_port))
        return Own(clusters, listeners, routes)
    if node.inbound_port and node.app_port:
        clusters[resources.INBOUND] = resources.inbound_cluster(node.app_address, node.app_port)
        in_force = limits(mesh, node)
        tokens = inbound_tokens(mesh, node)
        source = node.identity_source if mesh.declared.trust_domain else ""
        mutual_tls = inbound_mutual_tls(mesh, node)
        listeners[resources.INBOUND] = resources.inbound_listener(
            node.inbound_address, node.inbound_port, len(in_force), source, mutual_tls, tokens, node.engine
        )
        access = authorization.in_force(mesh, node)
        routes[resources.INBOUND] = resources.inbound_routes(
            in_force, node.engine, access, mesh.declared.trust_domain, tokens
        )
    if node.outbound_port:
        listeners[resources.OUTBOUND] = resources.outbound_listener(node.outbound_address, node.outbound_port)
    return Own(clusters, listeners, routes)


def build(mesh: MeshView, node: Node) -> Snapshot:
    """The snapshot of a node, from nothing: the plain version of `translator.Translator`, and its oracle."""
    its_own = own(mesh, node)
    told = reach.parts(mesh, reach.called(mesh, node))
    if node.profile.is_proxyless:
        return _proxyless(told, node, its_own)
    routing = tuple(map(resources.routing_part, told.calls.services))
    source = node.identity_source
    clusters = {resources.TUNNEL: resources.tunnel_cluster(), **its_own.clusters}
    endpoints: dict[str, bytes] = {}
    for service in told.backs.services:
        name = cluster_name(service.namespace, service.name)
        clusters[name] = resources.cluster(name, service.balancing, service.peer, source, service.breaking)
        endpoints[name] = resources.endpoints(service)
    listeners = {resources.OUTBOUND_MESH: resources.mesh_listener(), **its_own.listeners}
    routes = {resources.OUTBOUND: resources.route_configuration(routing, node.namespace), **its_own.routes}
    return of(str(mesh.revision), {CLUSTER: clusters, ENDPOINTS: endpoints, LISTENER: listeners, ROUTES: routes})


def _proxyless(told: Parts, node: Node, its_own: Own) -> Snapshot:
    clusters: dict[str, bytes] = {}
    endpoints: dict[str, bytes] = {}
    listeners = dict(its_own.listeners)
    routes: dict[str, bytes] = {}
    for service in told.backs.services:
        name = cluster_name(service.namespace, service.name)
        clusters[name] = proxyless.cluster(
            resources.cluster(name, service.balancing, breaking=service.breaking), node.profile
        )
        endpoints[name] = proxyless.endpoints(resources.endpoints(service))
    for service in told.calls.services:
        listeners |= proxyless.listeners(service, service.namespace == node.namespace)
        routes |= proxyless.tables(service, node.profile)
    version = str(told.calls.revision)
    return of(version, {CLUSTER: clusters, ENDPOINTS: endpoints, LISTENER: listeners, ROUTES: routes})


def of(version: str, types: Mapping[str, Mapping[str, bytes]]) -> Snapshot:
    """A snapshot that stands alone."""
    return Snapshot(version, {url: content.of(items) for url, items in types.items()})
