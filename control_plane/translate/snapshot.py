"""State and node to a snapshot: everything that the node is to be told, ready to be sent."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from control_plane.registry.state import State
from control_plane.translate import resources
from control_plane.translate.node import Node
from control_plane.translate.view import MeshView, cluster_name, limits

_PREFIX: Final = "type.googleapis.com/envoy.config."
CLUSTER: Final = _PREFIX + "cluster.v3.Cluster"
ENDPOINTS: Final = _PREFIX + "endpoint.v3.ClusterLoadAssignment"
LISTENER: Final = _PREFIX + "listener.v3.Listener"
ROUTES: Final = _PREFIX + "route.v3.RouteConfiguration"
ORDER: Final = (CLUSTER, ENDPOINTS, LISTENER, ROUTES)
"""Make before break: a resource is sent before what refers to it."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a node is told, by type and name, at one revision of the store."""

    version: str
    types: Mapping[str, Mapping[str, bytes]]

    def dangling(self) -> list[str]:
        """References to resources that the snapshot does not hold; empty if it is consistent."""
        return sorted(set(self.types[CLUSTER]) & _eds(self.types[CLUSTER]) - set(self.types[ENDPOINTS]))


def _eds(clusters: Mapping[str, bytes]) -> set[str]:
    return {name for name in clusters if name.startswith("outbound|")}


def build(state: State, mesh: MeshView, node: Node) -> Snapshot:
    """The snapshot of a node; `mesh` is the view of `state`."""
    clusters = {resources.TUNNEL: resources.tunnel_cluster()}
    endpoints: dict[str, bytes] = {}
    listeners: dict[str, bytes] = {resources.OUTBOUND_MESH: resources.mesh_listener()}
    for service in mesh.services:
        name = cluster_name(service.namespace, service.name)
        clusters[name] = resources.cluster(name, service.algorithm)
        endpoints[name] = resources.endpoints(service)
    if node.inbound_port and node.app_port:
        clusters[resources.INBOUND] = resources.inbound_cluster(node.app_address, node.app_port)
        listeners[resources.INBOUND] = resources.inbound_listener(
            node.inbound_address, node.inbound_port, limits(state, node.namespace, node.service, node.version)
        )
    if node.outbound_port:
        listeners[resources.OUTBOUND] = resources.outbound_listener(node.outbound_address, node.outbound_port)
    routing = tuple(resources.routing_part(service) for service in mesh.services)
    routes = {resources.OUTBOUND: resources.route_configuration(routing, node.namespace)}
    return Snapshot(str(mesh.revision), {CLUSTER: clusters, ENDPOINTS: endpoints, LISTENER: listeners, ROUTES: routes})
