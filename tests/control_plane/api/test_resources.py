"""The operator's entrance: apply, get, list, watch, delete, and waiting for the nodes."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from control_plane.resources.kinds import KINDS
from control_plane.resources.load import load
from control_plane.translate.snapshot import LISTENER, ROUTES
from proto.mesh.v1 import api_pb2
from tests.control_plane.api.refusals import refused
from tests.control_plane.plane import Node, Plane
from tests.waiting import eventually_async

pytestmark = pytest.mark.asyncio(loop_scope="session")

SERVICE: Final = """\
apiVersion: remora.dev/v1
kind: Service
metadata: {name: name, namespace: shop}
spec: {ports: [{port: 50051}]}
"""
ROUTE: Final = """\
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: split, namespace: shop}
spec:
  parentRefs: [{name: warehouse}]
  rules: [{backendRefs: [{name: warehouse-v1, weight: 90}, {name: warehouse-v2, weight: 10}]}]
"""
CREATED, CONFIGURED, UNCHANGED = (
    api_pb2.ApplyResponse.CREATED,
    api_pb2.ApplyResponse.CONFIGURED,
    api_pb2.ApplyResponse.UNCHANGED,
)

KIND_NAMES: Final = ", ".join(kind.name for kind in KINDS)
SPEC_FIELDS: Final = " or ".join(kind.field for kind in KINDS)


def service(name: str, **metadata: Any) -> api_pb2.Resource:
    (resource,) = load(SERVICE, "f")
    resource.metadata.name = name
    for field, value in metadata.items():
        setattr(resource.metadata, field, value)
    return resource


def names(resources: Any) -> list[str]:
    return [f"{item.WhichOneof('spec')} {item.metadata.namespace}/{item.metadata.name}" for item in resources]


def conditions(resource: api_pb2.Resource) -> dict[str, str]:
    """`TYPE: STATUS REASON` of each, with the message where there is one."""
    return {
        item.type: " ".join(filter(None, (item.status, item.reason, item.message)))
        for item in resource.status.conditions
    }


async def get(plane: Plane, kind: str, name: str, namespace: str = "shop") -> api_pb2.Resource:
    found: api_pb2.Resource = await plane.resources.Get(api_pb2.GetRequest(kind=kind, namespace=namespace, name=name))
    return found


# -- apply -----------------------------------------------------------------------------------------------


async def test_what_the_control_plane_counts(plane: Plane) -> None:
    created = await plane.apply(ROUTE)
    (first,) = created.applied
    assert (first.outcome, first.resource.metadata.generation) == (CREATED, 1)
    assert first.resource.metadata.resource_version == created.revision > 0
    assert first.resource.metadata.creation_timestamp.seconds > 1_600_000_000

    again = await plane.apply(ROUTE)
    assert (again.applied[0].outcome, again.revision) == (UNCHANGED, created.revision)

    labelled = await plane.apply(ROUTE.replace("{name: split", "{labels: {team: books}, name: split"))
    assert (labelled.applied[0].outcome, labelled.applied[0].resource.metadata.generation) == (CONFIGURED, 1)

    changed = await plane.apply(ROUTE.replace("weight: 90", "weight: 50"))
    (last,) = changed.applied
    assert (last.outcome, last.resource.metadata.generation) == (CONFIGURED, 2)
    assert last.resource.metadata.creation_timestamp == first.resource.metadata.creation_timestamp
    stored = await get(plane, "GRPCRoute", "split")
    assert stored.metadata == last.resource.metadata
    assert stored.grpc_route == last.resource.grpc_route


async def test_a_request_is_one_transaction(plane: Plane) -> None:
    answer = await plane.apply(
        "---\n".join([ROUTE, SERVICE.replace("name: name", "name: a"), SERVICE.replace("name: name", "name: b")])
    )
    assert {item.resource.metadata.resource_version for item in answer.applied} == {answer.revision}

    request = api_pb2.ApplyRequest(resources=[service("c"), service("a", resource_version=1_000_000)])
    code, text = await refused(plane.resources.Apply(request))
    assert code is grpc.StatusCode.ABORTED
    assert text == (
        f"Service shop/a is at resourceVersion {answer.revision}, not at 1000000: somebody else changed it; get it and apply again"
    )
    assert (await refused(get(plane, "Service", "c")))[0] is grpc.StatusCode.NOT_FOUND

    request = api_pb2.ApplyRequest(resources=[service("d"), service("Bad")])
    assert (await refused(plane.resources.Apply(request)))[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert (await refused(get(plane, "Service", "d")))[0] is grpc.StatusCode.NOT_FOUND


async def test_optimistic_concurrency_one_of_two_wins(plane: Plane) -> None:
    version = (await plane.apply(SERVICE.replace("name: name", "name: a"))).revision
    calls = []
    for port in (1, 2):
        changed = service("a", resource_version=version)
        changed.service.ports[0].port = port
        calls.append(plane.resources.Apply(api_pb2.ApplyRequest(resources=[changed])))
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert sorted(isinstance(answer, grpc.aio.AioRpcError) for answer in answers) == [False, True]
    (lost,) = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert lost.code() is grpc.StatusCode.ABORTED
    # A version of what is not there.
    code, text = await refused(
        plane.resources.Apply(api_pb2.ApplyRequest(resources=[service("x", resource_version=1)]))
    )
    assert (code, text[:31]) == (grpc.StatusCode.ABORTED, "Service shop/x is not there, no")


async def test_without_a_version_all_writers_get_through(plane: Plane) -> None:
    def change(port: int) -> Any:
        changed = service("a")
        changed.service.ports[0].port = port
        return plane.resources.Apply(api_pb2.ApplyRequest(resources=[changed]))

    answers = await asyncio.gather(*(change(port) for port in range(1, 5)))
    assert len({answer.revision for answer in answers}) == 4
    assert (await get(plane, "Service", "a")).metadata.generation == 4


async def test_a_dry_run_checks_everything_and_stores_nothing(plane: Plane) -> None:
    text = "---\n".join(
        [
            ROUTE,
            SERVICE.replace("name: name", "name: warehouse-v1"),
            SERVICE.replace("name: name", "name: warehouse-v2"),
        ]
    )
    answer = await plane.apply(text, dry_run=True)
    assert [item.outcome for item in answer.applied] == [CREATED] * 3
    assert conditions(answer.applied[0].resource)["ResolvedRefs"] == "True ResolvedRefs", "of the file as a whole"
    assert not (await plane.resources.List(api_pb2.ListRequest())).resources
    bad = load(ROUTE, "f")
    bad[0].grpc_route.rules[0].backend_refs[0].weight = bad[0].grpc_route.rules[0].backend_refs[1].weight = 0
    code, details = await refused(plane.resources.Apply(api_pb2.ApplyRequest(resources=bad, dry_run=True)))
    assert (code, details) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "GRPCRoute shop/split: spec.rules[0].backendRefs: weights add up to 0; give at least one backend a weight above 0 (RMR0012)",
    )


async def test_what_users_may_not_set_is_not_taken_from_them(plane: Plane) -> None:
    given = service("a", generation=99)
    given.metadata.creation_timestamp.FromSeconds(1)
    given.status.conditions.add(type="Accepted", status="False")
    (applied,) = (await plane.resources.Apply(api_pb2.ApplyRequest(resources=[given]))).applied
    assert applied.resource.metadata.generation == 1
    assert applied.resource.metadata.creation_timestamp.seconds > 1
    assert conditions(applied.resource) == {"Accepted": "True Accepted"}


async def test_every_fault_of_a_request_is_told(plane: Plane) -> None:
    request = api_pb2.ApplyRequest(resources=[service("Bad"), api_pb2.Resource(), service("a"), service("a")])
    code, text = await refused(plane.resources.Apply(request))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert [re.sub(r"; it must match .*", "", line) for line in text.splitlines()] == [
        'Service shop/Bad: metadata.name: "Bad" has a form that is not allowed',
        f"resources[1]: has no spec; set {SPEC_FIELDS} (RMR0006)",
        "Service shop/a: stands twice in one request; keep one (RMR0004)",
    ]
    assert await refused(plane.resources.Apply(api_pb2.ApplyRequest())) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "no resources; give at least one (RMR0003)",
    )


# -- get, list, delete -----------------------------------------------------------------------------------


async def test_kinds_are_named_as_users_name_them(plane: Plane) -> None:
    await plane.apply(ROUTE)
    for kind in ("GRPCRoute", "grpcroute", "grpcroutes"):
        assert (await get(plane, kind, "split")).metadata.name == "split"
    assert await refused(get(plane, "Gateway", "split")) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        f'kind "Gateway" is not known; known: {KIND_NAMES} (RMR0007)',
    )
    assert await refused(get(plane, "GRPCRoute", "other")) == (grpc.StatusCode.NOT_FOUND, "no GRPCRoute shop/other")
    assert await refused(get(plane, "GRPCRoute", "split", "")) == (
        grpc.StatusCode.NOT_FOUND,
        "no GRPCRoute default/split",
    )


async def test_a_list_by_kind_and_namespace(plane: Plane) -> None:
    await plane.apply(
        "---\n".join([ROUTE, SERVICE.replace("name: name", "name: b"), SERVICE.replace("name: name", "name: a")])
    )
    await plane.apply(SERVICE.replace("name: name", "name: a").replace("shop", "office"))

    async def listed(**request: str) -> list[str]:
        return names((await plane.resources.List(api_pb2.ListRequest(**request))).resources)

    assert await listed() == ["service office/a", "service shop/a", "service shop/b", "grpc_route shop/split"]
    assert await listed(namespace="office") == ["service office/a"]
    assert await listed(kind="grpcroutes") == ["grpc_route shop/split"]
    assert await listed(kind="services", namespace="nowhere") == []


async def test_delete_and_again(plane: Plane) -> None:
    await plane.apply(ROUTE)
    asked = api_pb2.DeleteRequest(kind="grpcroute", namespace="shop", name="split")
    revision = (await plane.resources.Delete(asked)).revision
    assert revision == plane.running.mirror.state.revision
    assert (await refused(get(plane, "GRPCRoute", "split")))[0] is grpc.StatusCode.NOT_FOUND
    assert await refused(plane.resources.Delete(asked)) == (grpc.StatusCode.NOT_FOUND, "no GRPCRoute shop/split")


# -- watch -----------------------------------------------------------------------------------------------


async def events(call: Any) -> AsyncIterator[str]:
    async for event in call:
        kind = api_pb2.WatchEvent.Type.Name(event.type)
        yield " ".join([kind, *names([event.resource])]) if event.HasField("resource") else kind


async def test_a_watch_tells_what_is_there_and_then_every_change(plane: Plane) -> None:
    await plane.apply("---\n".join([ROUTE, SERVICE.replace("name: name", "name: a")]))
    call = plane.resources.Watch(api_pb2.WatchRequest())
    stream = events(call)
    assert sorted([await anext(stream), await anext(stream)]) == ["PUT grpc_route shop/split", "PUT service shop/a"]
    assert await anext(stream) == "SYNCED"
    await plane.apply(SERVICE.replace("name: name", "name: b"))
    assert await anext(stream) == "PUT service shop/b"
    await plane.apply(SERVICE.replace("name: name", "name: b"))  # unchanged: no event
    await plane.resources.Delete(api_pb2.DeleteRequest(kind="Service", namespace="shop", name="a"))
    assert await anext(stream) == "DELETED service shop/a"
    call.cancel()


async def test_a_watch_of_one_kind_hears_of_no_other(plane: Plane) -> None:
    call = plane.resources.Watch(api_pb2.WatchRequest(kind="grpcroutes"))
    stream = events(call)
    assert await anext(stream) == "SYNCED"
    await plane.apply(SERVICE.replace("name: name", "name: a"))
    await plane.register("a.shop", "a1")
    await plane.apply(ROUTE)
    assert await anext(stream) == "PUT grpc_route shop/split"
    call.cancel()


# -- status ----------------------------------------------------------------------------------------------


async def test_a_route_to_a_service_that_is_not_there_yet_says_so_until_it_is(plane: Plane) -> None:
    (applied,) = (await plane.apply(ROUTE)).applied
    missing = "False BackendNotFound spec.rules[0]: no service warehouse-v1.shop yet; calls to it get UNAVAILABLE"
    assert conditions(applied.resource)["ResolvedRefs"] == missing
    assert conditions(await get(plane, "GRPCRoute", "split")) == {
        "Accepted": "True Accepted",
        "ResolvedRefs": missing,
        "Programmed": "True Programmed",
    }
    await plane.register("warehouse-v1.shop", "w1")
    await plane.register("warehouse-v2.shop", "w2")
    await eventually_async(lambda: len(plane.running.mirror.state.instances) == 2)
    assert conditions(await get(plane, "GRPCRoute", "split"))["ResolvedRefs"] == "True ResolvedRefs"


async def test_programmed_is_false_while_a_node_has_not_acknowledged(plane: Plane) -> None:
    async with Node(plane, "silent") as node:
        await node.follow()
        await eventually_async(lambda: ROUTES in node.held)
        node.is_silent = True
        await plane.apply(ROUTE)
        shown = conditions(await get(plane, "GRPCRoute", "split"))
        assert shown["Programmed"] == "False Pending 1 of 1 nodes have not acknowledged it: silent has not answered"


async def test_programmed_says_who_refused_it_and_why(plane: Plane) -> None:
    async with Node(plane, "good") as good, Node(plane, "picky") as picky:
        for node in (good, picky):
            await node.follow()
        await eventually_async(lambda: ROUTES in good.held and ROUTES in picky.held)
        picky.refuses = ROUTES
        revision = (await plane.apply(ROUTE)).revision
        await eventually_async(lambda: [each.node.id for each in plane.running.ads.behind(revision)] == ["picky"])

        async def said() -> str:
            return conditions(await get(plane, "GRPCRoute", "split"))["Programmed"]

        expected = (
            "False Refused 1 of 2 nodes have not acknowledged it: picky refused RouteConfiguration: I do not like it"
        )
        await eventually_async(lambda: _is(said, expected))


async def _is(said: Callable[[], Awaitable[str]], expected: str) -> bool:
    return await said() == expected


# -- waiting ---------------------------------------------------------------------------------------------


def wait(plane: Plane, revision: int, seconds: float = 10.0) -> Any:
    timeout = Duration()
    timeout.FromNanoseconds(int(seconds * 1e9))
    return plane.resources.WaitProgrammed(api_pb2.WaitProgrammedRequest(revision=revision, timeout=timeout))


async def test_waiting_ends_when_every_node_has_acknowledged(plane: Plane) -> None:
    async with Node(plane, "one") as one, Node(plane, "two") as two:
        await one.follow()
        await two.follow()
        await eventually_async(lambda: ROUTES in one.held and ROUTES in two.held)
        revision = (await plane.apply(ROUTE)).revision
        assert (await wait(plane, revision)).nodes == 2
        for node in (one, two):
            assert b"shop/split/rule-0" in node.held[ROUTES]["outbound"]


async def test_waiting_names_the_nodes_that_refused_and_those_that_are_silent(plane: Plane) -> None:
    async with Node(plane, "good") as good, Node(plane, "picky") as picky, Node(plane, "silent") as silent:
        for node in (good, picky, silent):
            await node.follow()
        await eventually_async(lambda: all(ROUTES in node.held for node in (good, picky, silent)))
        picky.refuses, silent.is_silent = ROUTES, True
        revision = (await plane.apply(ROUTE)).revision
        code, text = await refused(wait(plane, revision, 0.3))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        head, _, rest = text.partition(": ")
        assert head == f"2 of 3 nodes have not acknowledged revision {revision}"
        assert sorted(rest.split("; ")) == [
            "picky refused RouteConfiguration: I do not like it",
            "silent has not answered",
        ]
        # What mends it: the next change, and the silent one going away.
        picky.refuses = None
        await silent.close()
        revision = (await plane.apply(ROUTE.replace("weight: 90", "weight: 80"))).revision
        assert (await wait(plane, revision)).nodes == 2


async def test_waiting_without_nodes_is_over_at_once(plane: Plane) -> None:
    assert (await wait(plane, (await plane.apply(ROUTE)).revision)).nodes == 0
    assert (await wait(plane, 0)).nodes == 0


async def test_waiting_for_a_revision_that_is_not_there_is_not_done(plane: Plane) -> None:
    revision = (await plane.apply(ROUTE)).revision
    assert await refused(wait(plane, revision + 100, 0.1)) == (
        grpc.StatusCode.DEADLINE_EXCEEDED,
        f"revision {revision + 100} is not served yet; revision {revision} is",
    )


async def test_a_node_whose_listener_was_refused_keeps_following_routes(plane: Plane) -> None:
    async with Node(plane, "picky", inbound_port=5001, app_port=9001) as node:
        node.refuses = LISTENER
        await node.follow()
        await plane.register("warehouse.shop", "w1")
        revision = plane.running.mirror.state.revision
        code, text = await refused(wait(plane, revision, 0.2))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "picky refused Listener: I do not like it" in text
