"""CSDS: what each node was sent and what it said of it, over real streams; matchers as Envoy defines them."""

import json
from typing import Any, Final

import grpc
import pytest
from envoy.admin.v3 import config_dump_shared_pb2
from envoy.config.core.v3 import base_pb2
from envoy.service.status.v3 import csds_pb2, csds_pb2_grpc
from envoy.type.matcher.v3 import node_pb2
from google.protobuf import json_format

from control_plane.api import client_status
from control_plane.api.matching import MAX_DEPTH, MAX_MATCHERS, Matcher
from control_plane.api.refused import Refused
from control_plane.translate.snapshot import CLUSTER, ENDPOINTS, LISTENER, ROUTES
from tests.control_plane.api.refusals import refused
from tests.control_plane.api.test_grpcurl import call
from tests.control_plane.plane import Node, Plane
from tests.waiting import eventually_async

SERVICE: Final = "envoy.service.status.v3.ClientStatusDiscoveryService"
LOOP: Final = pytest.mark.asyncio(loop_scope="session")
SPLIT: Final = """\
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: split, namespace: shop}
spec: {parentRefs: [{name: warehouse}], rules: [{backendRefs: [{name: warehouse-v1}]}]}
"""


def request(**fields: Any) -> Any:
    return json_format.ParseDict(fields, csds_pb2.ClientStatusRequest())


async def fetch(plane: Plane, **fields: Any) -> dict[str, Any]:
    """Answers by node."""
    stub = csds_pb2_grpc.ClientStatusDiscoveryServiceStub(plane.channel)
    answer = await stub.FetchClientStatus(request(**fields))
    return {config.node.id: config for config in answer.config}


def said(config: Any, url: str) -> dict[str, str]:
    """Of each resource of a type, how far it got: as the server sees it, and as the client would say."""
    return {
        each.name: f"{csds_pb2.ConfigStatus.Name(each.config_status)} "
        f"{config_dump_shared_pb2.ClientResourceStatus.Name(each.client_status)}"
        for each in config.generic_xds_configs
        if each.type_url == url
    }


# -- what is told ---------------------------------------------------------------------------------------


@LOOP
async def test_what_was_acknowledged_is_told_with_its_content(plane: Plane) -> None:
    await plane.register("warehouse.shop", "w1")
    async with Node(plane, "good", inbound_port=5001, app_port=9001, team="books") as node:
        await node.follow()
        await eventually_async(lambda: ROUTES in node.held)  # before that it has all that it asked for, too
        await eventually_async(lambda: plane.running.ads.is_programmed(plane.running.mirror.state.revision))
        told = (await fetch(plane))["good"]
        assert told.node.metadata.fields["team"].string_value == "books"
        assert said(told, LISTENER) == dict.fromkeys(("inbound", "outbound", "outbound_mesh"), "SYNCED ACKED")
        assert said(told, ENDPOINTS) == {"outbound|warehouse.shop": "SYNCED ACKED"}
        for each in told.generic_xds_configs:
            assert each.xds_config.value == node.held[each.type_url][each.name]
            assert each.version_info and each.last_updated.seconds > 1_600_000_000
        plain = (await fetch(plane, exclude_resource_contents=True))["good"]
        assert said(plain, CLUSTER) == said(told, CLUSTER)
        assert not any(each.HasField("xds_config") for each in plain.generic_xds_configs)


@LOOP
async def test_what_was_refused_or_is_not_answered_is_told_with_the_reason(plane: Plane) -> None:
    async with Node(plane, "picky") as picky, Node(plane, "silent") as silent:
        for node in (picky, silent):
            await node.follow()
        await eventually_async(lambda: all(ROUTES in node.held for node in (picky, silent)))
        picky.refuses, silent.is_silent = ROUTES, True
        revision = (await plane.apply(SPLIT)).revision
        await eventually_async(lambda: plane.running.ads.nacks["RouteConfiguration"])
        told = await fetch(plane)
        assert said(told["picky"], ROUTES) == {"outbound": "ERROR NACKED"}
        (refusal,) = [each for each in told["picky"].generic_xds_configs if each.type_url == ROUTES]
        assert (refusal.error_state.details, refusal.error_state.version_info) == ("I do not like it", str(revision))
        assert refusal.error_state.last_update_attempt.seconds > 1_600_000_000
        statuses = said(told["silent"], CLUSTER)
        assert statuses["outbound|warehouse-v1.shop"] == "STALE REQUESTED"
        assert statuses["outbound_tunnel"] == "SYNCED ACKED", "which did not change"


@LOOP
async def test_what_is_asked_for_and_is_not_there(plane: Plane) -> None:
    await plane.register("warehouse.shop", "w1")
    async with Node(plane, "asks") as node:
        await node.say(CLUSTER, ["outbound|warehouse.shop", "outbound|nowhere.shop"])
        await node.read()
        await node.say(CLUSTER)

        async def is_known() -> bool:
            told = (await fetch(plane))["asks"]
            return said(told, CLUSTER) == {
                "outbound|warehouse.shop": "SYNCED ACKED",
                "outbound|nowhere.shop": "NOT_SENT DOES_NOT_EXIST",
            }

        await eventually_async(is_known)


@LOOP
async def test_a_stream_answers_each_request_with_what_is_so_then(plane: Plane) -> None:
    stub = csds_pb2_grpc.ClientStatusDiscoveryServiceStub(plane.channel)
    stream = stub.StreamClientStatus()
    await stream.write(request())
    assert not (await stream.read()).config
    async with Node(plane, "one") as node:
        await node.follow()
        await eventually_async(lambda: ROUTES in node.held)
        await stream.write(request())
        assert [config.node.id for config in (await stream.read()).config] == ["one"]
        await stream.write(request(node_matchers=[{"node_id": {"exact": "other"}}]))
        assert not (await stream.read()).config
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF


@LOOP
async def test_grpcurl_reads_it(plane: Plane) -> None:
    async with Node(plane, "one") as node:
        await node.follow()
        await eventually_async(lambda: ROUTES in node.held)
        matcher = {"node_matchers": [{"node_id": {"prefix": "o"}}]}
        answer = await call(plane, f"{SERVICE}/FetchClientStatus", {**matcher, "exclude_resource_contents": True})
        (config,) = answer["config"]
        kinds = {each.get("type_url", each.get("typeUrl")).rpartition(".")[2] for each in config["generic_xds_configs"]}
        assert kinds >= {"Cluster", "Listener", "RouteConfiguration"}
        # With contents: the descriptors of what is inside come by reflection too.
        answer = await call(plane, f"{SERVICE}/StreamClientStatus", matcher)
        names = [each["xds_config"]["name"] for each in answer["config"][0]["generic_xds_configs"]]
        assert "outbound_mesh" in names, json.dumps(answer)[:2000]


# -- limits ---------------------------------------------------------------------------------------------


@LOOP
async def test_an_answer_that_is_too_long_says_how_to_ask_for_less(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Node(plane, "one") as node:
        await node.follow()
        await eventually_async(lambda: ROUTES in node.held)
        monkeypatch.setattr(client_status, "MAX_BYTES", 100)
        code, text = await refused(fetch(plane))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert text.endswith("ask for less with exclude_resource_contents, or node_matchers")
        monkeypatch.setattr(client_status, "MAX_AT_ONCE", 0)
        code, text = await refused(fetch(plane))
        assert (code, text[:10]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "0 answers ")


def _nested(depth: int) -> dict[str, Any]:
    return {"list_match": {"one_of": _nested(depth - 1)}} if depth else {"bool_match": True}


def _in_metadata(value: dict[str, Any]) -> dict[str, Any]:
    return {"node_metadatas": [{"path": [{"key": "a"}], "value": value}]}


BAD: Final[dict[str, tuple[list[dict[str, Any]], str]]] = {
    "no pattern": ([{"node_id": {}}], "node_matchers[0].nodeId"),
    "no path": ([{"node_metadatas": [{"value": {"bool_match": True}}]}], "node_matchers[0].nodeMetadatas[0].path"),
    "no value": ([{"node_metadatas": [{"path": [{"key": "a"}]}]}], "node_matchers[0].nodeMetadatas[0].value"),
    "not RE2": ([{"node_id": {"safe_regex": {"regex": "(?=a)"}}}], "node_matchers[0].node_id.safe_regex"),
    "slow": ([{"node_id": {"safe_regex": {"regex": "(a*)*b"}}}], "node_matchers[0].node_id.safe_regex"),
    "slow choices": ([{"node_id": {"safe_regex": {"regex": "(a|a)*b"}}}], "it repeats repetitions or choices"),
    "too many": ([{"node_id": {"exact": "a"}}] * (MAX_MATCHERS + 1), "17 node matchers; at most 16 are taken"),
    "too deep": ([_in_metadata(_nested(MAX_DEPTH + 1))], "nested deeper than"),
}


@pytest.mark.parametrize("case", BAD)
def test_matchers_that_are_not_taken(case: str) -> None:
    given, expected = BAD[case]
    with pytest.raises(Refused) as caught:
        Matcher([json_format.ParseDict(each, node_pb2.NodeMatcher()) for each in given])
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert expected in caught.value.text


# -- matchers -------------------------------------------------------------------------------------------

METADATA: Final = {"service": "cart", "port": 80, "old": True, "no": None, "tags": ["a", 7], "in": {"side": "x"}}


def _meta(value: dict[str, Any], *path: str) -> dict[str, Any]:
    return {"node_metadatas": [{"path": [{"key": key} for key in path], "value": value}]}


MATCHES: Final[dict[str, tuple[list[dict[str, Any]], bool]]] = {
    "none means all": ([], True),
    "id": ([{"node_id": {"exact": "cart~1"}}], True),
    "another id": ([{"node_id": {"exact": "cart~2"}}], False),
    "one of several": ([{"node_id": {"exact": "cart~2"}}, {"node_id": {"suffix": "~1"}}], True),
    "case": ([{"node_id": {"prefix": "CART"}}], False),
    "any case": ([{"node_id": {"prefix": "CART", "ignore_case": True}}], True),
    "contains": ([{"node_id": {"contains": "rt~"}}], True),
    "whole regex": ([{"node_id": {"safe_regex": {"regex": r"cart~\d"}}}], True),
    "part of a regex": ([{"node_id": {"safe_regex": {"regex": "cart"}}}], False),
    "metadata": ([_meta({"string_match": {"exact": "cart"}}, "service")], True),
    "id and metadata": ([{"node_id": {"exact": "x"}, **_meta({"string_match": {"exact": "cart"}}, "service")}], False),
    "a path": ([_meta({"string_match": {"exact": "x"}}, "in", "side")], True),
    "a path beside": ([_meta({"string_match": {"exact": "x"}}, "in", "out")], False),
    "a path through what is no struct": ([_meta({"string_match": {"exact": "x"}}, "service", "side")], False),
    "number": ([_meta({"double_match": {"exact": 80}}, "port")], True),
    "range": ([_meta({"double_match": {"range": {"start": 80, "end": 81}}}, "port")], True),
    "end of a range": ([_meta({"double_match": {"range": {"start": 79, "end": 80}}}, "port")], False),
    "bool": ([_meta({"bool_match": True}, "old")], True),
    "another kind": ([_meta({"bool_match": True}, "port")], False),
    "null": ([_meta({"null_match": {}}, "no")], True),
    "present": ([_meta({"present_match": True}, "port")], True),
    "not present": ([_meta({"present_match": True}, "nothing")], False),
    "in a list": ([_meta({"list_match": {"one_of": {"double_match": {"exact": 7}}}}, "tags")], True),
    "or": (
        [_meta({"or_match": {"value_matchers": [{"bool_match": True}, {"string_match": {"prefix": "c"}}]}}, "service")],
        True,
    ),
}


@pytest.mark.parametrize("case", MATCHES)
def test_matchers_as_envoy_defines_them(case: str) -> None:
    given, expected = MATCHES[case]
    node = base_pb2.Node(id="cart~1")
    node.metadata.update(METADATA)
    matcher = Matcher([json_format.ParseDict(each, node_pb2.NodeMatcher()) for each in given])
    assert matcher.matches(node) is expected
