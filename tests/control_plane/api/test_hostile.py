"""Whatever comes in: an answer that says what is wrong, never UNKNOWN, and no traceback in the log."""

import logging
from random import Random
from typing import Any, Final

import grpc
import pytest
from google.protobuf import message_factory

from control_plane.api import server
from control_plane.api.entrance import MAX_DETAILS
from control_plane.api.service import MAX_APPLY_BYTES, MAX_RESOURCE_BYTES, MAX_RESOURCES
from control_plane.resources.load import load
from proto.mesh.v1 import api_pb2
from tests.control_plane.api.refusals import refused
from tests.control_plane.plane import Plane

pytestmark = pytest.mark.asyncio(loop_scope="session")

OURS: Final = {
    f"/{service.full_name}/{method.name}": method
    for service in api_pb2.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
"""Every method of remora.mesh.v1."""
EXTRA: Final = b"\xfa\x3f\x02hi"
"""Field 1023: of no release so far."""


async def call(plane: Plane, method: str, data: bytes) -> tuple[grpc.StatusCode, str]:
    """Send bytes to a method; how it ends, at its first answer."""
    channel: Any = plane.channel
    try:
        if OURS[method].server_streaming:
            stream = channel.unary_stream(method)(data, timeout=5)
            await stream.read()
            stream.cancel()
        else:
            await channel.unary_unary(method)(data, timeout=5)
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


def sample(method: str) -> Any:
    """A good request of a method."""
    key = api_pb2.InstanceKey(service="warehouse", namespace="shop", id="w1")
    samples: dict[str, Any] = {
        "Apply": api_pb2.ApplyRequest(
            resources=load("apiVersion: remora.dev/v1\nkind: Service\nmetadata: {name: a}\nspec: {}", "f")
        ),
        "Get": api_pb2.GetRequest(kind="Service", namespace="shop", name="a"),
        "Delete": api_pb2.DeleteRequest(kind="Service", namespace="shop", name="a"),
        "SetHealth": api_pb2.SetHealthRequest(instance=key, health=2),  # type: ignore[arg-type]
        "Deregister": api_pb2.DeregisterRequest(instance=key),
        "ListInstances": api_pb2.ListInstancesRequest(service="warehouse", namespace="shop"),
        "Register": api_pb2.RegisterRequest(
            instance={"id": "w1", "service": "warehouse", "address": "127.0.0.1", "port": 1, "labels": {"a": "b"}}  # type: ignore[arg-type]
        ),
    }
    name = method.rpartition("/")[2]
    made: Any = samples.get(name)
    if made is None:
        made = message_factory.GetMessageClass(OURS[method].input_type)()
    if name == "WaitProgrammed":
        made.timeout.FromNanoseconds(1)
    return made


@pytest.mark.parametrize("method", OURS)
async def test_bytes_that_are_no_message(plane: Plane, method: str) -> None:
    assert await call(plane, method, b"\xff\xff\xff") == (
        grpc.StatusCode.INVALID_ARGUMENT,
        f"3 bytes that are no request of {method[1:]}",
    )


@pytest.mark.parametrize("method", OURS)
async def test_an_unknown_field_is_refused_and_never_ignored(plane: Plane, method: str) -> None:
    name = OURS[method].input_type.name
    code, text = await call(plane, method, sample(method).SerializeToString() + EXTRA)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"field 1023 of {name} is not known to this release; leave it out (RMR0016)" in text


async def test_an_unknown_field_deep_inside_is_named_with_its_place(plane: Plane) -> None:
    resource = sample("/Apply").resources[0].SerializeToString()
    data = b"\x0a" + bytes([len(resource) + len(EXTRA)]) + resource + EXTRA
    code, text = await call(plane, "/remora.mesh.v1.Resources/Apply", data)
    assert (code, text) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "resources[0]: field 1023 of Resource is not known to this release; leave it out (RMR0016)",
    )


BAD_NAMES: Final = ["../etc", "a/b", "a b", "A", "ä", "a\n", "a\x00", "-a", "x" * 64, "a.b", "%00", "$(x)", "'; --"]


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
async def test_a_name_with_bad_characters_is_refused_with_field_and_value(plane: Plane, name: str) -> None:
    key = {"service": name, "namespace": name, "id": "w/1"}
    instance = {"id": "w/1", "service": name, "namespace": name, "address": name, "port": 1}
    calls = {
        ("name", "namespace"): [
            plane.resources.Get(api_pb2.GetRequest(kind="Service", namespace=name, name=name)),
            plane.resources.Delete(api_pb2.DeleteRequest(kind="Service", namespace=name, name=name)),
        ],
        ("namespace",): [plane.resources.List(api_pb2.ListRequest(namespace=name))],
        ("service", "namespace"): [
            plane.registry.ListInstances(api_pb2.ListInstancesRequest(service=name, namespace=name))
        ],
        ("instance.service", "instance.namespace", "instance.id"): [
            plane.registry.SetHealth(api_pb2.SetHealthRequest(instance=key, health=1)),  # type: ignore[arg-type]
            plane.registry.Deregister(api_pb2.DeregisterRequest(instance=key)),  # type: ignore[arg-type]
        ],
        ("instance.service", "instance.namespace", "instance.id", "instance.address"): [
            plane.registry.Register(api_pb2.RegisterRequest(instance=instance))  # type: ignore[arg-type]
        ],
    }
    for fields, made in calls.items():
        for each in made:
            code, text = await refused(each)
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            for field in fields:
                (line,) = [line for line in text.split("\n") if line.startswith(f"{field}: ")]
                assert "(RMR0010)" in line
                if field != "instance.id":
                    assert name[:40].encode("unicode_escape").decode() in line or name in line


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
async def test_a_resource_with_a_bad_name_is_refused(plane: Plane, name: str) -> None:
    request = sample("/Apply")
    request.resources[0].metadata.name = request.resources[0].metadata.namespace = name
    code, text = await refused(plane.resources.Apply(request))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "metadata.name: " in text and "metadata.namespace: " in text
    assert len(text.split("\n")) == 2, "one line for each fault, also if the name has lines of its own"


@pytest.mark.parametrize(
    ("method", "fields", "line"),
    [
        (
            "Registry/Register",
            {"instance": {"port": 0}},
            "instance.port: 0 is out of range; at least 1 is needed (RMR0010)",
        ),
        (
            "Registry/Register",
            {"instance": {"health": 9}},
            "instance.health: 9 is not allowed; allowed: HEALTH_UNKNOWN, ",
        ),
        ("Registry/Register", {"ttl": {"seconds": 4}}, "ttl: 4s is out of range; at least 5s is needed (RMR0010)"),
        (
            "Registry/Register",
            {"ttl": {"seconds": -(10**18)}},
            "ttl: -1e+18s is out of range; at least 5s is needed (RMR0010)",
        ),
        ("Registry/SetHealth", {"health": 0}, "health: HEALTH_UNKNOWN is not allowed; allowed: HEALTHY, "),
        (
            "Registry/SetHealth",
            {"wait": {"seconds": 10**12}},
            "wait: 1e+12s is out of range; at most 3600s is allowed (RMR0010)",
        ),
        ("Resources/WaitProgrammed", {"revision": -1}, "revision: -1 is out of range; at least 0 is needed (RMR0010)"),
        (
            "Resources/WaitProgrammed",
            {"timeout": {"nanos": -1}},
            "timeout: -1e-09s is out of range; at least 0s is needed",
        ),
        ("Resources/Get", {"name": ""}, "name: is missing; it must be given (RMR0010)"),
        ("Resources/Get", {"kind": "x" * 65}, "kind: "),
        ("Resources/Watch", {"kind": "Nothing"}, 'kind "Nothing" is not known; known: Service, '),
        ("Resources/List", {"kind": "Nothing"}, 'kind "Nothing" is not known; known: Service, '),
        ("Resources/Delete", {"kind": "Nothing"}, 'kind "Nothing" is not known; known: Service, '),
    ],
)
async def test_a_value_that_cannot_be(plane: Plane, method: str, fields: dict[str, Any], line: str) -> None:
    method = f"/remora.mesh.v1.{method}"
    request = sample(method)
    for field, value in fields.items():
        if isinstance(value, dict):
            for inner, item in value.items():
                setattr(getattr(request, field), inner, item)
        else:
            setattr(request, field, value)
    code, text = await call(plane, method, request.SerializeToString())
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert any(each.startswith(line) for each in text.split("\n")), text


# -- sizes -----------------------------------------------------------------------------------------------


async def test_a_message_over_the_limit(plane: Plane) -> None:
    code, text = await call(plane, "/remora.mesh.v1.Resources/Apply", b"x" * (server.MAX_MESSAGE_BYTES + 1))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(server.MAX_MESSAGE_BYTES) in text


async def test_a_resource_over_the_limit(plane: Plane) -> None:
    request = sample("/Apply")
    request.resources[0].metadata.annotations["a"] = "x" * MAX_RESOURCE_BYTES
    code, text = await refused(plane.resources.Apply(request))
    assert (code, text) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        f"Service default/a: {request.resources[0].ByteSize()} bytes; at most {MAX_RESOURCE_BYTES} are taken (RMR0001)",
    )


async def test_a_request_that_would_not_fit_into_one_transaction(plane: Plane) -> None:
    many = api_pb2.ApplyRequest()
    for number in range(MAX_RESOURCES + 1):
        many.resources.add().CopyFrom(sample("/Apply").resources[0])
        many.resources[-1].metadata.name = f"a{number}"
    assert await refused(plane.resources.Apply(many)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "101 resources in one request; at most 100 are taken: apply in parts (RMR0001)",
    )
    del many.resources[MAX_RESOURCES:]
    assert len((await plane.resources.Apply(many)).applied) == MAX_RESOURCES
    for resource in many.resources:
        resource.metadata.annotations["a"] = "x" * (MAX_APPLY_BYTES // MAX_RESOURCES)
    code, text = await refused(plane.resources.Apply(many))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text.endswith("bytes in one request; at most 1000000 are taken: apply in parts (RMR0001)")


async def test_the_largest_request_that_is_taken(plane: Plane) -> None:
    request = sample("/Apply")
    for name in "ab":
        if name == "b":
            request.resources.add().CopyFrom(request.resources[0])
        request.resources[-1].metadata.name = name
        request.resources[-1].metadata.annotations["a"] = "x" * (MAX_APPLY_BYTES // 2 - 100)
    assert len((await plane.resources.Apply(request)).applied) == 2


async def test_a_thousand_faults_make_an_answer_that_can_be_received(plane: Plane) -> None:
    request = sample("/Apply")
    for number in range(99):
        request.resources.add().CopyFrom(request.resources[0])
        request.resources[-1].metadata.name = f"Bad-{number}" + "x" * 60
    code, text = await refused(plane.resources.Apply(request))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert len(text) <= MAX_DETAILS + 20
    assert text.rpartition("\n")[2].startswith("and ") and text.endswith(" more")


# -- by chance -------------------------------------------------------------------------------------------


async def test_no_bytes_whatever_lead_to_an_unknown_status_or_a_traceback(
    plane: Plane, caplog: pytest.LogCaptureFixture
) -> None:
    chance = Random(11)
    seen: dict[grpc.StatusCode, int] = {}
    for number in range(400):
        method = chance.choice([name for name in OURS if not OURS[name].server_streaming])
        data = bytearray(sample(method).SerializeToString())
        for _ in range(chance.randint(0, 6)):
            place = chance.randrange(len(data) + 1)
            data[place : place + chance.randrange(3)] = bytes(chance.randrange(256) for _ in range(chance.randrange(3)))
        if number % 10 == 0:
            data = bytearray(chance.randbytes(chance.randrange(40)))
        code, text = await call(plane, method, bytes(data))
        seen[code] = seen.get(code, 0) + 1
        assert code not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL), (method, bytes(data), text)
    assert seen[grpc.StatusCode.INVALID_ARGUMENT] > 100 and seen[grpc.StatusCode.OK] > 20
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info]
    assert (await plane.resources.List(api_pb2.ListRequest())).revision >= 0


async def test_a_method_that_is_not_there(plane: Plane) -> None:
    channel: Any = plane.channel
    code, _ = await refused(channel.unary_unary("/remora.mesh.v1.Resources/Drop")(b""))
    assert code is grpc.StatusCode.UNIMPLEMENTED


async def test_a_method_that_fails_is_internal_and_its_traceback_is_in_the_log(
    plane: Plane, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plane.running.mirror, "state", None)
    code, text = await refused(plane.resources.List(api_pb2.ListRequest()))
    assert (code, text) == (
        grpc.StatusCode.INTERNAL,
        "remora.mesh.v1.Resources/List failed; the control plane's log says why",
    )
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.name == "remora.api" and record.exc_info is not None
