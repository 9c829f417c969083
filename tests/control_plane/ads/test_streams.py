"""What one node is told, and when: the scenarios in streams.txt (state of the world) and deltas.txt."""

from pathlib import Path
from typing import Final

import pytest
from envoy.service.discovery.v3 import discovery_pb2

from control_plane.ads import core, delta, sotw
from control_plane.ads import request as requests
from control_plane.ads.core import NodeStream, Variant
from control_plane.ads.request import MAX_NAMES, MAX_REASON, BadRequest, Request
from control_plane.ads.subscription import Subscription
from control_plane.translate.content import Content
from control_plane.translate.snapshot import CLUSTER, ENDPOINTS, Snapshot
from tests.control_plane import scenario
from tests.control_plane.ads.script import NODE, Player, snapshot
from tests.control_plane.scenario import Scenario

STREAMS: Final = scenario.read_script(Path(__file__).with_name("streams.txt"))
DELTAS: Final = scenario.read_script(Path(__file__).with_name("deltas.txt"))


@pytest.mark.parametrize("case", STREAMS, ids=lambda case: case.title)
def test_a_stream_goes_as_written(case: Scenario) -> None:
    case.play(lambda script: Player().play(script))


@pytest.mark.parametrize("case", DELTAS, ids=lambda case: case.title)
def test_a_delta_stream_goes_as_written(case: Scenario) -> None:
    case.play(lambda script: Player(delta).play(script))


def test_names_without_end_end_the_stream() -> None:
    names = [str(number) for number in range(MAX_NAMES + 1)]
    request = discovery_pb2.DiscoveryRequest(type_url=ENDPOINTS, resource_names=names)
    with pytest.raises(BadRequest, match="100001 names; at most 100000 are taken"):
        requests.read(request.SerializeToString())


def said(request: discovery_pb2.DiscoveryRequest) -> Request:
    return requests.read(request.SerializeToString())


def test_a_long_reason_is_cut() -> None:
    stream = NodeStream(NODE, sotw)
    stream.set_snapshot(snapshot(1, "clusters a=1"))
    stream.on_request(said(discovery_pb2.DiscoveryRequest(type_url=CLUSTER)), 0.0)
    stream.next_response(0.0)
    nack = discovery_pb2.DiscoveryRequest(type_url=CLUSTER, response_nonce="1")
    nack.error_detail.message = "x" * 1_000_000
    stream.on_request(said(nack), 0.0)
    assert len(stream.subscriptions[CLUSTER].nack_reason) == MAX_REASON


def test_a_version_from_the_future_means_nothing() -> None:
    stream = NodeStream(NODE, sotw)
    stream.set_snapshot(snapshot(1, "clusters a=1"))
    stream.on_request(said(discovery_pb2.DiscoveryRequest(type_url=CLUSTER, version_info="999")), 0.0)
    assert stream.next_response(0.0) is not None
    assert stream.programmed == 0


@pytest.mark.parametrize("variant", [sotw, delta])
def test_what_is_too_much_for_one_response_comes_in_several(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "MAX_RESPONSE_BYTES", 6)
    assert (
        Player(variant).play("""
have 1: endpoints a=1 b=1 c=1 d=too-long-in-any-case e=1
node asks endpoints a b c d e
node acks endpoints
node acks endpoints
node acks endpoints
""")
        == """\
have 1: endpoints a=1 b=1 c=1 d=too-long-in-any-case e=1
node asks endpoints a b c d e
    send endpoints of 1, nonce 1: a=1 b=1
node acks endpoints
    send endpoints of 1, nonce 2: c=1
node acks endpoints
    send endpoints of 1, nonce 3: d=too-long-in-any-case
node acks endpoints
    send endpoints of 1, nonce 4: e=1"""
    )


@pytest.mark.parametrize("variant", [sotw, delta])
def test_what_two_nodes_have_is_one_object_in_the_form_that_came_last(variant: Variant) -> None:
    first = snapshot(1, "endpoints a=1 b=1")
    # What they do not ask for changes: nothing is sent, and the old form is held no longer.
    shared = first.types[ENDPOINTS].shared.replaced({"c": b"c=1"})
    second = Snapshot("2", {**first.types, ENDPOINTS: Content(shared, {})})
    held = [settled(variant, first, second, names) for names in (["a", "b"], ["b", "a"])]
    assert [each.sent.shared is shared for each in held if isinstance(each.sent, Content)] == [True, True]
    assert held[0].names is held[1].names


def settled(variant: Variant, first: Snapshot, second: Snapshot, names: list[str]) -> Subscription:
    """The endpoints of a node that asked for these, took the first snapshot, and was then shown the second."""
    stream = NodeStream(NODE, variant)
    stream.set_snapshot(first)
    for nonce in ("", "1"):
        if variant is delta:
            subscribe = names if not nonce else []
            data = discovery_pb2.DeltaDiscoveryRequest(
                type_url=ENDPOINTS, resource_names_subscribe=subscribe, response_nonce=nonce
            ).SerializeToString()
            stream.on_request(requests.read_delta(data), 0.0)
        else:
            data = discovery_pb2.DiscoveryRequest(
                type_url=ENDPOINTS, resource_names=names, response_nonce=nonce
            ).SerializeToString()
            stream.on_request(requests.read(data), 0.0)
        assert (stream.next_response(0.0) is None) is bool(nonce)
    stream.set_snapshot(second)
    assert stream.next_response(0.0) is None
    return stream.subscriptions[ENDPOINTS]
