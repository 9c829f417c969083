"""Which part of the mesh a node is told of: what its service says that it calls (`spec.dependencies`), and what stands behind that.

What is called has routes; what routes of it lead to has clusters and endpoints only, so that nothing dangles and nothing more can be called.
"""

from collections.abc import Iterator, Set
from dataclasses import dataclass, replace

from control_plane.translate.advance import Step
from control_plane.translate.node import Node
from control_plane.translate.view import Key, MeshView, ServiceView, cluster_name
from proto.mesh.v1 import route_pb2

_PREFIX_LENGTH = len(cluster_name("", "").rstrip("."))


def called(mesh: MeshView, node: Node) -> frozenset[Key] | None:
    """The services that a node may call; None for all."""
    spec = mesh.declared.services.get((node.namespace, node.service))
    if spec is None or not spec.HasField("dependencies"):
        return None
    return frozenset((each.namespace or node.namespace, each.name) for each in spec.dependencies.services)


@dataclass(frozen=True, slots=True)
class Parts:
    """Of a mesh, what some nodes are told of."""

    calls: MeshView
    """The services that they may call."""
    backs: MeshView
    """Those, and the services that stand behind them."""


def parts(mesh: MeshView, called: frozenset[Key] | None) -> Parts:
    """Of a mesh, what nodes are told of that call these (None: all)."""
    if called is None:
        return Parts(mesh, mesh)
    calls = {key: mesh.by_name[key] for key in sorted(called) if key in mesh.by_name}
    behind = {key for service in calls.values() for key in _behind(service)}
    backs = {key: mesh.by_name[key] for key in sorted(behind | calls.keys()) if key in mesh.by_name}
    return Parts(replace(mesh, by_name=calls), replace(mesh, by_name=backs))


def _behind(service: ServiceView) -> Iterator[Key]:
    """The services that the routes of a service lead to."""
    for rule in service.rules:
        for cluster, _ in rule.backends:
            name, _, namespace = cluster[_PREFIX_LENGTH:].partition(".")
            yield namespace, name
        for data in rule.filters:
            mirror = route_pb2.RouteFilter.FromString(data).request_mirror.backend_ref
            if mirror.name:
                yield mirror.namespace, mirror.name


@dataclass(frozen=True, slots=True)
class Moved:
    """What changed for some nodes."""

    before: Parts
    after: Parts
    backs: Set[Key]
    """Services whose clusters or endpoints may differ: changed, new to them, or gone from them."""
    calls: Set[Key]
    """Services that may be called and changed, that may be called now, or may no more."""

    come_or_gone: Set[Key] = frozenset()
    """Of those, the ones that may be called now and could not before, or the other way round."""

    def rerouted(self, in_mesh: Set[Key]) -> Set[Key]:
        """Services the ways to which are others now; `in_mesh` are those whose ways changed for everybody."""
        return (self.calls & in_mesh) | self.come_or_gone


class Reach:
    """What the nodes are told of that call the same services; follows the mesh."""

    def __init__(self, called: frozenset[Key] | None, mesh: MeshView) -> None:
        self.parts = parts(mesh, called)
        self._called = called

    def advance(self, step: Step) -> Moved | None:
        """Come to the next state; None if nothing changed for these nodes."""
        before = self.parts
        if self._called is None:
            self.parts = parts(step.mesh, None)
            return Moved(before, self.parts, step.touched, step.touched)  # what has come or gone was touched, too
        if step.touched.isdisjoint(self._called) and step.touched.isdisjoint(before.backs.by_name):
            return None
        self.parts = parts(step.mesh, self._called)
        return Moved(
            before,
            self.parts,
            _moved(step.touched, before.backs, self.parts.backs),
            _moved(step.touched, before.calls, self.parts.calls),
            before.calls.by_name.keys() ^ self.parts.calls.by_name.keys(),
        )


def _moved(touched: Set[Key], before: MeshView, after: MeshView) -> Set[Key]:
    """Of the services that changed, those that are in a part; and those that came into it, or left it."""
    there = before.by_name.keys() | after.by_name.keys()
    return (touched & there) | (before.by_name.keys() ^ after.by_name.keys())
