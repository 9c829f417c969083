"""Fields of another release are refused by their number."""

from control_plane.resources import unknown
from proto.mesh.v1 import api_pb2

EXTRA = b"\xfa\x3f\x02hi"
"""Field 1023, two bytes."""


def length_delimited(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2, len(data)]) + data


def test_a_message_of_this_release_has_none() -> None:
    request = api_pb2.ApplyRequest(resources=[api_pb2.Resource()])
    request.resources[0].metadata.labels["a"] = "b"
    request.resources[0].grpc_route.rules.add().matches.add().method.service = "x"
    assert list(unknown.faults(request)) == []


def test_a_field_is_named_with_its_place() -> None:
    resource = length_delimited(1, b"\x0a\x01x" + EXTRA) + EXTRA
    request = api_pb2.ApplyRequest.FromString(length_delimited(1, resource))
    assert [str(fault) for fault in unknown.faults(request)] == [
        "resources[0]: field 1023 of Resource is not known to this release; leave it out (RMR0016)",
        "resources[0].metadata: field 1023 of Metadata is not known to this release; leave it out (RMR0016)",
    ]


def test_a_field_that_stands_many_times_is_one_fault() -> None:
    assert len(list(unknown.faults(api_pb2.GetRequest.FromString(EXTRA * 5)))) == 1
