"""Snapshots at the cost of what changed: what nodes have in common is made once, and only what changed is made again.

Nodes that may call the same services share clusters and endpoints (`_Backends`); those of them that are in one namespace share the route
table too (`_Scope`), since the short names of services are different in each namespace. Both are kept as long as a node has a snapshot of
them. What only one node is told is made for it alone, and again when what it is made of changed.
"""

from collections.abc import Collection, Iterable
from typing import Final
from weakref import WeakValueDictionary

from control_plane.registry.state import State
from control_plane.translate import reach, resources
from control_plane.translate import snapshot as snapshots
from control_plane.translate.advance import advance
from control_plane.translate.clients import Profile
from control_plane.translate.content import Content, Shared, field
from control_plane.translate.node import Node
from control_plane.translate.reach import Reach
from control_plane.translate.snapshot import CLUSTER, ENDPOINTS, LISTENER, ROUTES, Origin, Own, Snapshot
from control_plane.translate.targets import Targets
from control_plane.translate.view import (
    Key,
    MeshView,
    ServiceView,
    cluster_name,
    inbound_mutual_tls,
    inbound_tokens,
    limits,
)

_LISTENERS: Final = Shared({resources.OUTBOUND_MESH: resources.mesh_listener()})
_NONE: Final[dict[str, bytes]] = {}
_Called = frozenset[Key] | None
"""The services that a node may call; None for all."""


class _Backends:
    """Clusters and endpoints of all services."""

    def __init__(self, identity_source: str, reach: Reach) -> None:
        self.clusters = Shared({resources.TUNNEL: resources.tunnel_cluster()})
        self.endpoints = Shared({})
        self._identity_source = identity_source
        self.advance(MeshView(0), reach.parts.backs, reach.parts.backs.by_name)

    def advance(self, old: MeshView, mesh: MeshView, touched: Iterable[Key]) -> None:
        """These services changed, came or went."""
        clusters: dict[str, bytes | None] = {}
        endpoints: dict[str, bytes | None] = {}
        for key in touched:
            name, before, service = cluster_name(*key), old.by_name.get(key), mesh.by_name.get(key)
            if service is None:
                clusters[name] = endpoints[name] = None
                continue
            clusters[name] = resources.cluster(
                name, service.balancing, service.peer, self._identity_source, service.breaking
            )
            if before is None or (before.endpoints, before.balancing) != (service.endpoints, service.balancing):
                endpoints[name] = resources.endpoints(service)
        self.clusters = self.clusters.replaced(clusters)
        self.endpoints = self.endpoints.replaced(endpoints)


class _Scope:
    """What the nodes of a namespace have in common."""

    def __init__(self, namespace: str, reach: Reach, backends: _Backends) -> None:
        self.reach = reach
        self.backends = backends
        self.routes = Shared({})
        self._namespace = namespace
        self._hosts: dict[Key, bytes] = {}
        self.advance(reach.parts.calls, reach.parts.calls.by_name)

    def advance(self, mesh: MeshView, rerouted: Collection[Key]) -> None:
        """The ways to these services changed, or they came or went."""
        if not rerouted and self.routes.items:
            return
        is_new = False
        for key in rerouted:
            service = mesh.by_name.get(key)
            if service is None:
                self._hosts.pop(key, None)
                continue
            is_new |= key not in self._hosts
            has_short_name = service.namespace == self._namespace
            self._hosts[key] = resources.virtual_hosts(resources.routing_part(service), has_short_name)
        if is_new:
            self._hosts = dict(sorted(self._hosts.items()))
        table = b"".join((field(1, resources.OUTBOUND.encode()), *self._hosts.values()))
        self.routes = self.routes.replaced({resources.OUTBOUND: table})


class Translator:
    """Follows the state; gives each node its snapshot of it."""

    def __init__(self) -> None:
        self.mesh = MeshView(0)
        self._reaches: WeakValueDictionary[_Called, Reach] = WeakValueDictionary()
        self._backends: WeakValueDictionary[tuple[_Called, str], _Backends] = WeakValueDictionary()
        """By what is called, and where the callers' certificates come from."""
        self._scopes: WeakValueDictionary[tuple[_Called, str, str], _Scope] = WeakValueDictionary()
        self._targets: WeakValueDictionary[tuple[_Called, str, Profile], Targets] = WeakValueDictionary()

    def advance(self, state: State, changed: frozenset[bytes] | None) -> None:
        """Come to a state that differs from the one before in these keys at most (None: in any)."""
        old, step = self.mesh, advance(self.mesh, state, changed)
        self.mesh = step.mesh
        if not step.touched:
            return
        rerouted = {key for key in step.touched if _routing(old, key) != _routing(step.mesh, key)}
        moved = {called: change for called, reach in self._reaches.items() if (change := reach.advance(step))}
        for (called, _), backends in self._backends.items():
            if change := moved.get(called):
                backends.advance(change.before.backs, change.after.backs, change.backs)
        for (called, *_), scope in self._scopes.items():
            if change := moved.get(called):
                scope.advance(change.after.calls, change.rerouted(rerouted))
        for (called, *_), targets in self._targets.items():
            if change := moved.get(called):
                targets.advance(change, change.rerouted(rerouted))

    def snapshot(self, node: Node, last: Snapshot | None = None) -> Snapshot:
        """What a node is to be told. `last` is what it was told before: of that is used again what still holds."""
        if node.profile.is_proxyless:
            return self._proxyless(node, last)
        scope = self._scope(node)
        own = self._own(node, last)
        return Snapshot(
            str(self.mesh.revision),
            {
                CLUSTER: Content(scope.backends.clusters, own.clusters),
                ENDPOINTS: Content(scope.backends.endpoints, _NONE),
                LISTENER: Content(_LISTENERS, own.listeners),
                ROUTES: Content(scope.routes, own.routes),
            },
            Origin(scope, own, *self._basis(node)),
        )

    def _reach(self, node: Node) -> tuple[_Called, Reach]:
        called = reach.called(self.mesh, node)
        found = self._reaches.get(called)
        if found is None:
            found = self._reaches[called] = Reach(called, self.mesh)
        return called, found

    def _scope(self, node: Node) -> _Scope:
        called, reach = self._reach(node)
        key = called, node.namespace, node.identity_source
        scope = self._scopes.get(key)
        if scope is None:
            backends = self._backends.get((called, node.identity_source))
            if backends is None:
                backends = self._backends[called, node.identity_source] = _Backends(node.identity_source, reach)
            scope = self._scopes[key] = _Scope(node.namespace, reach, backends)
        return scope

    def _proxyless(self, node: Node, last: Snapshot | None) -> Snapshot:
        called, reach = self._reach(node)
        key = called, node.namespace, node.profile
        targets = self._targets.get(key)
        if targets is None:
            targets = self._targets[key] = Targets(node.namespace, node.profile, reach)
        own = self._own(node, last)
        return Snapshot(
            str(self.mesh.revision),
            {
                CLUSTER: Content(targets.clusters, own.clusters),
                ENDPOINTS: Content(targets.endpoints, _NONE),
                LISTENER: Content(targets.listeners, own.listeners),
                ROUTES: Content(targets.routes, own.routes),
            },
            Origin(targets, own, *self._basis(node)),
        )

    def _own(self, node: Node, last: Snapshot | None) -> Own:
        if last is None or last.origin is None:
            return snapshots.own(self.mesh, node)
        limits, beside, shares = self._basis(node)
        if last.origin.limits is limits and last.origin.beside == beside and last.origin.shares == shares:
            return last.origin.own
        own = snapshots.own(self.mesh, node)
        return last.origin.own if own == last.origin.own else own

    def _basis(self, node: Node) -> tuple[object, tuple[object, ...], tuple[object, ...]]:
        """All that a node's own resources are made of, beside what it says of itself."""
        declared = self.mesh.declared
        shares = limits(self.mesh, node) if declared.has_shares else ()
        peer = (declared.trust_domain, inbound_mutual_tls(self.mesh, node)) if declared.trust_domain else ()
        return (
            declared.limits,
            self.mesh.present.by_node.get(node.id, ()),
            (
                *shares,
                *peer,
                declared.access,
                inbound_tokens(self.mesh, node),
            ),
        )


def _routing(mesh: MeshView, key: Key) -> ServiceView | None:
    service = mesh.by_name.get(key)
    return resources.routing_part(service) if service is not None else None
