"""Where policies are enforced, of all that are in force and all nodes that are connected: the matrix applied. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from control_plane.registry.state import State
from control_plane.resources import kinds
from control_plane.translate import capabilities
from control_plane.translate.capabilities import Gap, Side
from control_plane.translate.clients import Profile
from control_plane.translate.node import Node
from proto.mesh.v1 import api_pb2

MAX_NAMED: Final = 3
"""Reasons, or instances, that one message names."""


class Missing(NamedTuple):
    """A policy that a node does not enforce in full."""

    policy: str
    """`KIND NAMESPACE/NAME`."""
    gap: Gap


class Coverage:
    """At one state, with one set of nodes; what they have in common is found once."""

    def __init__(self, state: State, nodes: Iterable[Node]) -> None:
        self._state = state
        self._nodes: Mapping[str, Node] = {node.id: node for node in nodes}
        self._callers = Counter(node.profile for node in self._nodes.values() if calls(node))
        self._by_profile: dict[Profile, tuple[Missing, ...]] = {}
        self._by_node: dict[str, list[Missing]] | None = None

    def summary(self, policy: api_pb2.Resource) -> str:
        """What is missing where, in one sentence; empty if a policy is enforced wherever it concerns."""
        if not _is_policy(policy):
            return ""
        if capabilities.side(kinds.of(policy).name) is Side.CALLEE:
            return self._of_instances(policy)
        reasons: Counter[str] = Counter()
        count = 0
        for profile, nodes in self._callers.items():
            found = list(capabilities.gaps(policy, profile))
            count += nodes if found else 0
            for gap in found:
                reasons[gap.text] += nodes
        if not count:
            return ""
        return f"not enforced in full on {count} of {self._callers.total()} nodes: {_listed(reasons)}"

    def _of_instances(self, policy: api_pb2.Resource) -> str:
        count, bare, reasons = 0, [], Counter[str]()
        instances = {each.id: each for name in _targets(policy) for each in self._state.instances_of(*name)}
        for instance in instances.values():
            node = self._nodes.get(instance.node_id)
            if not instance.node_id:
                bare.append(instance.id)
            found = list(capabilities.gaps(policy, node.profile)) if node is not None else []
            count += bool(found)
            reasons.update(gap.text for gap in found)
        if not bare and not count:
            return ""
        parts = [f"no sidecar stands beside {_named(bare)}"] if bare else []
        parts += [_listed(reasons)] if reasons else []
        return f"not enforced in full on {len(bare) + count} of {len(instances)} instances: {'; '.join(parts)}"

    def of_node(self, node: Node) -> Iterator[Missing]:
        """What a node does not enforce of the policies that concern it."""
        if calls(node):
            if node.profile not in self._by_profile:
                self._by_profile[node.profile] = tuple(self._missing(Side.CALLER, node.profile))
            yield from self._by_profile[node.profile]
        if self._by_node is None:
            self._by_node = self._beside_nodes()
        yield from self._by_node.get(node.id, ())

    def _missing(self, side: Side, profile: Profile) -> Iterator[Missing]:
        for policy in self._policies(side):
            for gap in capabilities.gaps(policy, profile):
                yield Missing(kinds.describe(policy), gap)

    def _beside_nodes(self) -> dict[str, list[Missing]]:
        found: dict[str, list[Missing]] = {}
        for policy in self._policies(Side.CALLEE):
            ids = {each.node_id for name in _targets(policy) for each in self._state.instances_of(*name)}
            for node_id in ids & self._nodes.keys():
                for gap in capabilities.gaps(policy, self._nodes[node_id].profile):
                    found.setdefault(node_id, []).append(Missing(kinds.describe(policy), gap))
        return found

    def _policies(self, side: Side) -> Iterator[api_pb2.Resource]:
        for _, policy in sorted(self._state.resources.items()):
            if _is_policy(policy) and capabilities.side(kinds.of(policy).name) is side:
                yield policy


def calls(node: Node) -> bool:
    """True for a node through which calls go out."""
    return node.profile.is_proxyless or node.outbound_port > 0


def _is_policy(resource: api_pb2.Resource) -> bool:
    return not resource.HasField("service")


def _targets(policy: api_pb2.Resource) -> Iterator[tuple[str, str]]:
    spec = getattr(policy, str(policy.WhichOneof("spec")))
    for target in spec.target_refs:
        yield policy.metadata.namespace or kinds.DEFAULT_NAMESPACE, target.name


def _listed(reasons: Counter[str]) -> str:
    most = [text for text, _ in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))]
    return "; ".join(most[:MAX_NAMED]) + (f"; and {len(most) - MAX_NAMED} more" if len(most) > MAX_NAMED else "")


def _named(names: list[str]) -> str:
    rest = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(sorted(names)[:MAX_NAMED]) + rest
