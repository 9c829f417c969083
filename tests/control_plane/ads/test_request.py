"""Requests are read as protobuf reads them, however they were put together; what was read before is found by its bytes."""

from typing import Any

import pytest
from envoy.service.discovery.v3 import discovery_pb2
from hypothesis import given
from hypothesis import strategies as st

from control_plane.ads import request as requests
from control_plane.ads.request import BadRequest
from control_plane.translate.snapshot import ENDPOINTS, ORDER

NAMES = st.lists(st.text(max_size=5), max_size=4)
NONCES = st.integers(0, 10**12).map(str) | st.text(max_size=30) | st.just("*\x01*")


@st.composite
def messages(draw: st.DrawFn) -> Any:
    message = discovery_pb2.DiscoveryRequest(
        version_info=draw(st.text(max_size=200)),
        type_url=draw(st.sampled_from([*ORDER, "", "*\x011"])),
        resource_names=draw(NAMES),
        response_nonce=draw(NONCES),
    )
    if draw(st.booleans()):
        message.node.id = "n"
        message.node.metadata["service"] = draw(st.text(max_size=5))
    if draw(st.booleans()):
        message.error_detail.message = draw(st.text(max_size=5) | st.just("*\x011"))
    return message


@given(messages())
def test_a_request_says_what_its_message_says(message: Any) -> None:
    for _ in range(2):  # the second time it is known
        read = requests.read(message.SerializeToString())
        assert (read.type_url, read.names, read.nonce) == (
            message.type_url,
            frozenset(message.resource_names),
            message.response_nonce,
        )
        assert read.fault == (message.error_detail.message if message.HasField("error_detail") else None)


@given(st.binary(max_size=40))
def test_any_bytes_are_read_as_protobuf_reads_them_or_refused(data: bytes) -> None:
    try:
        message = discovery_pb2.DiscoveryRequest.FromString(data)
    except Exception:  # noqa: BLE001 - whatever protobuf raises
        with pytest.raises(BadRequest, match="bytes that are no DiscoveryRequest"):
            requests.read(data)
        return
    read = requests.read(data)
    assert (read.type_url, read.names) == (message.type_url, frozenset(message.resource_names))


def test_the_same_names_are_one_object_whoever_says_them_in_whatever_order() -> None:
    def said(version: str, nonce: str, *names: str) -> frozenset[str]:
        message = discovery_pb2.DiscoveryRequest(
            type_url=ENDPOINTS, version_info=version, response_nonce=nonce, resource_names=names
        )
        return requests.read(message.SerializeToString()).names

    first = said("1", "2", "a", "b")
    assert said("300", "41", "a", "b") is first
    assert said("1", "2", "b", "a") is first


def test_what_is_remembered_has_a_limit() -> None:
    for number in range(40):
        names = [f"{number:04d}-{'x' * 250}-{name}" for name in range(1000)]
        requests.read(
            discovery_pb2.DiscoveryRequest(
                type_url=ENDPOINTS, resource_names=names, response_nonce="1"
            ).SerializeToString()
        )
        assert requests._memory.bytes <= requests.MAX_REMEMBERED_BYTES
