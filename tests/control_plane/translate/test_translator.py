"""The translator that follows changes is the plain one, whatever changes, and looks only at what changed."""

from collections.abc import Iterator
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from control_plane.registry import keys, state
from control_plane.registry.state import State
from control_plane.store.contract import Event, EventType
from control_plane.translate import resources, view
from control_plane.translate.advance import advance
from control_plane.translate.snapshot import CLUSTER, ENDPOINTS, LISTENER, ORDER, ROUTES, build
from control_plane.translate.translator import Translator
from proto.mesh.v1 import api_pb2, identity_pb2, service_pb2
from tests.control_plane import strategies
from tests.control_plane.translate import meshes

NODES: Final = (
    meshes.node_of("orders", "shop", version="v1", inbound_port=50051, app_port=9000, outbound_port=15001),
    meshes.node_of("orders", "default", inbound_port=50051, app_port=9000),
    meshes.node_of("a", "a-b", outbound_port=15001),
    meshes.node_of(
        "warehouse", "shop", inbound_port=50051, app_port=9000, outbound_port=15001, identity_source="agent"
    ),
    meshes.node_of("a", "shop", "gRPC C-core linux Python", app_port=9000),
    meshes.node_of("b", "shop", "gRPC Java"),
)
FEW: Final = st.sampled_from(["orders", "warehouse", "a"])
"""Names that meet often."""
TRUSTS: Final = [
    identity_pb2.Trust(trust_domain=domain, generation=number).SerializeToString()
    for domain in ("a.test", "b.test")
    for number in (1, 2)
]
SELECTORS: Final = st.sampled_from([{"service": "orders"}, {"version": "v1"}, {"service": "a", "version": ""}])


@st.composite
def changes(draw: st.DrawFn) -> tuple[bytes, bytes | None]:
    """A key and its new value; None deletes it."""
    if draw(st.integers(0, 9)) == 0:
        return keys.TRUST, draw(st.sampled_from([*TRUSTS, None]))
    if draw(st.booleans()):
        instance = draw(strategies.instances())
        instance.service, instance.id = draw(FEW), draw(st.sampled_from("xyz"))
        instance.node_id = draw(st.sampled_from(["", NODES[0].id, NODES[1].id]))
        key, value = keys.instance(instance.namespace, instance.service, instance.id), instance.SerializeToString()
    else:
        resource = draw(strategies.resources())
        resource.metadata.name = draw(FEW)
        for target in named_by(resource):
            target.name = draw(FEW)
        if resource.HasField("service") and resource.service.selector:
            resource.service.ClearField("selector")
            resource.service.selector.update(draw(SELECTORS))
        if resource.HasField("service") and draw(st.booleans()):
            resource.service.dependencies.SetInParent()
            for name, namespace in draw(st.sets(st.tuples(FEW, strategies.NAMESPACES | st.just("")), max_size=3)):
                resource.service.dependencies.services.add(name=name, namespace=namespace)
        key, value = state.key_of(resource), state.stored(resource)
    return key, draw(st.sampled_from([value, value, None]))


def named_by(resource: api_pb2.Resource) -> Iterator[Any]:
    """What a resource names."""
    spec = getattr(resource, str(resource.WhichOneof("spec")))
    if resource.HasField("grpc_route"):
        yield from spec.parent_refs
        for rule in spec.rules:
            yield from rule.backend_refs
    elif not resource.HasField("service"):
        yield from spec.target_refs


def after(old: State, batch: list[tuple[bytes, bytes | None]]) -> State:
    return state.advance(
        old,
        [
            Event(EventType.PUT if value is not None else EventType.DELETE, key, value or b"", old.revision + 1)
            for key, value in batch
        ],
    )


BATCHES: Final = st.lists(st.tuples(st.lists(changes(), min_size=1, max_size=4), st.booleans()), max_size=8)
"""What changes at a time, and whether it is known what that is (it is not when the store was read anew)."""


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(BATCHES)
def test_whatever_changes_each_node_is_told_what_a_fresh_translation_would_tell_it(batches: Any) -> None:
    translator, now = Translator(), State()
    told: dict[str, Any] = {node.id: None for node in NODES}
    for batch, is_known in batches:
        now = after(now, batch)
        translator.advance(now, now.changed if is_known else None)
        assert translator.mesh == view.mesh(now)
        assert list(translator.mesh.by_name) == sorted(translator.mesh.by_name)
        for node in NODES:
            before, fresh = told[node.id], build(view.mesh(now), node)
            snapshot = told[node.id] = translator.snapshot(node, before)
            assert snapshot == fresh
            if before is not None:
                for url in ORDER:
                    differ = {
                        name
                        for name in before.types[url].keys() | fresh.types[url].keys()
                        if before.types[url].get(name) != fresh.types[url].get(name)
                    }
                    assert snapshot.types[url].since(before.types[url]) == differ


def of(text: str) -> State:
    return meshes.read(text).state


def test_an_instance_that_comes_is_all_that_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [f"instance service-{number}.shop i{number} 10.0.0.1:50051" for number in range(20)]
    translator = Translator()
    now = of("\n".join(many))
    translator.advance(now, None)
    first = translator.snapshot(NODES[0])
    seen: list[str] = []
    plain = resources.endpoints

    def noted(service: view.ServiceView) -> bytes:
        seen.append(service.name)
        return plain(service)

    monkeypatch.setattr(resources, "endpoints", noted)
    monkeypatch.setattr(view, "mesh", None)
    monkeypatch.setattr(view, "declared", None)
    instance = service_pb2.Instance(id="new", service="service-7", namespace="shop", address="10.0.0.2", port=1)
    now = after(now, [(keys.instance("shop", "service-7", "new"), instance.SerializeToString())])
    translator.advance(now, now.changed)
    second = translator.snapshot(NODES[0], first)
    assert seen == ["service-7"]
    assert second.types[ENDPOINTS].since(first.types[ENDPOINTS]) == {"outbound|service-7.shop"}
    for url in (CLUSTER, LISTENER, ROUTES):
        assert second.types[url].since(first.types[url]) == frozenset()
        assert second.types[url].shared is first.types[url].shared


def test_what_did_not_change_stays_the_same_view() -> None:
    before = view.mesh(of("instance a.shop a1 10.0.0.1:1\ninstance b.shop b1 10.0.0.1:2"))
    step = advance(before, of("instance a.shop a1 10.0.0.1:1\ninstance b.shop b1 10.0.0.1:3"), None)
    assert step.touched == {("shop", "b")}
    assert step.mesh.by_name["shop", "a"] is before.by_name["shop", "a"]


def test_what_the_nodes_of_a_namespace_have_in_common_goes_with_the_last_of_them() -> None:
    translator = Translator()
    translator.advance(of("instance a.shop a1 10.0.0.1:1"), None)
    first = translator.snapshot(NODES[0])
    assert first.origin is not None
    assert translator.snapshot(NODES[0]).origin.scope is first.origin.scope  # type: ignore[union-attr]
    assert list(translator._scopes) == [(None, "shop", "")]
    del first
    assert list(translator._scopes) == []


def test_an_instance_that_registers_beside_a_node_brings_the_limits_of_its_labels() -> None:
    now = of("""
---
apiVersion: remora.dev/v1
kind: Service
metadata: {name: gold, namespace: shop}
spec: {selector: {tier: gold}}
---
apiVersion: remora.dev/v1
kind: RateLimitPolicy
metadata: {name: gold, namespace: shop}
spec: {targetRefs: [{name: gold}], requests: 10}
""")
    translator = Translator()
    translator.advance(now, None)
    first = translator.snapshot(NODES[0])
    instance = service_pb2.Instance(id="o", service="orders", namespace="shop", node_id=NODES[0].id)
    instance.labels["tier"] = "gold"
    now = after(now, [(keys.instance("shop", "orders", "o"), instance.SerializeToString())])
    translator.advance(now, now.changed)
    assert translator.snapshot(NODES[0], first).types[ROUTES].since(first.types[ROUTES]) == {"inbound", "outbound"}
