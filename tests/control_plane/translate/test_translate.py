"""From resources and instances to what a node is told: pure, valid, consistent."""

import random
from io import StringIO
from pathlib import Path
from typing import Any, Final

import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from control_plane.registry.state import State
from control_plane.resources import rules
from control_plane.translate import snapshot as snapshots
from control_plane.translate import view
from control_plane.translate.snapshot import CLUSTER, ENDPOINTS, ORDER, ROUTES, Snapshot, build
from control_plane.translate.translator import Translator
from proto.mesh.v1 import api_pb2, service_pb2
from tests.control_plane import scenario, strategies
from tests.control_plane.plane import MESSAGES
from tests.control_plane.scenario import Scenario
from tests.control_plane.translate import meshes

MESHES: Final = scenario.read(Path(__file__).with_name("meshes.txt"))
GOLDEN: Final = scenario.read(Path(__file__).with_name("golden.txt"))


def whole(mesh: meshes.Mesh) -> str:
    """Everything that a node is told, every field of it."""
    snapshot = mesh.snapshot()
    plain = {
        url.rpartition(".")[2]: [
            json_format.MessageToDict(MESSAGES[url].FromString(data)) for _, data in sorted(snapshot.types[url].items())
        ]
        for url in ORDER
    }
    text = StringIO()
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style, writer.width, writer.sort_base_mapping_type_on_output = False, 1000, False  # type: ignore[assignment]
    writer.dump({"version": snapshot.version, **ordered(plain)}, text)
    return text.getvalue()


def ordered(value: Any) -> Any:
    """The same, with fields in the order of the alphabet, type and name first."""
    if isinstance(value, list):
        return [ordered(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: ordered(value[key]) for key in sorted(value, key=lambda key: (key != "@type", key != "name", key))}


@pytest.mark.parametrize("case", MESHES, ids=lambda case: case.title)
def test_a_mesh_is_told_as_written(case: Scenario) -> None:
    case.play(lambda text: meshes.written(meshes.read(text)))


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case.title)
def test_every_field_of_a_small_mesh(case: Scenario) -> None:
    case.play(lambda text: whole(meshes.read(text)))


# -- whatever the mesh ----------------------------------------------------------------------------------

NODES: Final = st.builds(
    lambda service, namespace, inbound, outbound: meshes.node_of(
        service, namespace, version="v1", inbound_port=inbound, app_port=9000, outbound_port=outbound
    ),
    strategies.NAMES,
    strategies.NAMESPACES,
    st.sampled_from([0, 50051]),
    st.sampled_from([0, 15001]),
)
RESOURCES: Final = st.lists(strategies.resources(), max_size=8)
INSTANCES: Final = st.lists(strategies.instances(), max_size=6)


def faults(snapshot: Snapshot) -> list[str]:
    return [
        f"{name}: {fault}"
        for url in ORDER
        for name, data in snapshot.types[url].items()
        for fault in rules.faults(MESSAGES[url].FromString(data))
    ]


@settings(max_examples=80, deadline=None)
@given(RESOURCES, INSTANCES, NODES)
def test_a_snapshot_is_valid_by_envoys_own_rules_and_holds_what_it_refers_to(
    resources: list[api_pb2.Resource], instances: list[service_pb2.Instance], node: Any
) -> None:
    snapshot = build(view.mesh(meshes.state_of(resources, instances)), node)
    assert faults(snapshot) == []
    assert snapshot.dangling() == []
    assert snapshot.version == str(meshes.REVISION)
    for url in ORDER:
        for name, data in snapshot.types[url].items():
            message = MESSAGES[url].FromString(data)
            assert name == (message.cluster_name if url == ENDPOINTS else message.name)
    for table in snapshot.types[ROUTES].values():
        domains = [domain for host in MESSAGES[ROUTES].FromString(table).virtual_hosts for domain in host.domains]
        assert len(domains) == len(set(domains)), "Envoy takes each domain once"


@settings(max_examples=40, deadline=None)
@given(RESOURCES, INSTANCES, NODES, st.randoms(use_true_random=False))
def test_translation_is_pure_and_blind_to_the_order_of_its_input(
    resources: list[api_pb2.Resource], instances: list[service_pb2.Instance], node: Any, chance: random.Random
) -> None:
    state = meshes.state_of(resources, instances)
    before = {
        key: item.SerializeToString(deterministic=True) for key, item in {**state.resources, **state.instances}.items()
    }
    snapshot = build(view.mesh(state), node)
    shuffled = State(
        state.revision,
        dict(chance.sample(list(state.resources.items()), len(state.resources))),
        dict(chance.sample(list(state.instances.items()), len(state.instances))),
    )
    assert build(view.mesh(shuffled), node) == snapshot
    after = {
        key: item.SerializeToString(deterministic=True) for key, item in {**state.resources, **state.instances}.items()
    }
    assert after == before


def test_a_dangling_reference_is_named() -> None:
    snapshot = meshes.read("instance warehouse.shop w1 10.0.0.1:50051").snapshot()
    without = {url: dict(items) for url, items in snapshot.types.items()}
    del without[ENDPOINTS]["outbound|warehouse.shop"]
    del without[ROUTES]["outbound"]
    assert snapshots.of("1", without).dangling() == [
        "ClusterLoadAssignment outbound|warehouse.shop",
        "RouteConfiguration outbound",
    ]
    without = {url: dict(items) for url, items in snapshot.types.items()}
    del without[CLUSTER]["outbound|warehouse.shop"]
    assert snapshots.of("1", without).dangling() == ["Cluster outbound|warehouse.shop"]


def test_what_did_not_change_is_the_same_bytes_for_every_node() -> None:
    translator = Translator()
    translator.advance(meshes.read("instance warehouse.shop w1 10.0.0.1:50051").state, None)
    mine, yours = (translator.snapshot(meshes.node_of(name, "shop", outbound_port=15001)) for name in ("cart", "audit"))
    assert mine.types[CLUSTER]["outbound|warehouse.shop"] is yours.types[CLUSTER]["outbound|warehouse.shop"]
    assert mine.types[ROUTES]["outbound"] is yours.types[ROUTES]["outbound"]


def test_an_endpoint_that_comes_touches_endpoints_only() -> None:
    one = meshes.read("instance warehouse.shop w1 10.0.0.1:50051").snapshot()
    two = meshes.read("instance warehouse.shop w1 10.0.0.1:50051\ninstance warehouse.shop w2 10.0.0.2:50051").snapshot()
    assert [url for url in ORDER if one.types[url] != two.types[url]] == [ENDPOINTS]
