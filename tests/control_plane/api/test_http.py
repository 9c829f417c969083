"""/metrics and /healthz of the control plane."""

import asyncio
import re
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from control_plane.api import server
from control_plane.registry import state
from control_plane.resources.load import load
from control_plane.store import open_store
from control_plane.translate.snapshot import LISTENER, ROUTES
from proto.mesh.v1 import api_pb2
from tests.control_plane.api.refusals import refused
from tests.control_plane.plane import Node, Plane, plane_on
from tests.control_plane.registry.subject import Outage
from tests.waiting import eventually_async

pytestmark = pytest.mark.asyncio(loop_scope="session")

UNIMPLEMENTED: Final = grpc.StatusCode.UNIMPLEMENTED
TYPES: Final = {"Cluster", "ClusterLoadAssignment", "Listener", "RouteConfiguration"}
LIMIT: Final = """\
apiVersion: remora.dev/v1
kind: RateLimitPolicy
metadata: {name: limit, namespace: shop}
spec: {targetRefs: [{name: warehouse}], requests: 10}
"""


@pytest_asyncio.fixture(loop_scope="session")
async def outage(monkeypatch: pytest.MonkeyPatch) -> list[Outage]:
    """Filled with the store of the control plane, which can be sent away."""
    found: list[Outage] = []

    async def opened(target: str) -> Outage:
        found.append(Outage(await open_store(target)))
        return found[0]

    monkeypatch.setattr(server, "open_store", opened)
    return found


@pytest_asyncio.fixture(loop_scope="session")
async def plane(tmp_path: Path, outage: list[Outage]) -> AsyncIterator[Plane]:
    async with plane_on(tmp_path / "store", has_http=True) as running:
        yield running


async def fetch(plane: Plane, path: str) -> tuple[int, str]:
    def read() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{plane.running.http_port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    return await asyncio.to_thread(read)


async def metrics(plane: Plane) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample, by name without `remora_control_plane_` and labels."""
    code, text = await fetch(plane, "/metrics")
    assert code == 200
    return {
        (sample.name.removeprefix("remora_control_plane_"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def labels(**values: str) -> frozenset[tuple[str, str]]:
    return frozenset(values.items())


async def test_the_numbers_of_a_mesh(plane: Plane) -> None:
    await plane.apply(LIMIT)
    await plane.register("warehouse.shop", "w1")
    async with Node(plane, "good") as good, Node(plane, "picky") as picky:
        picky.refuses = LISTENER
        await good.follow()
        await picky.follow()
        await eventually_async(lambda: ROUTES in good.held and plane.running.ads.nacks["Listener"] == 1)
        revision = plane.running.mirror.state.revision
        await eventually_async(lambda: len(plane.running.ads.behind(revision)) == 1)
        seen = await metrics(plane)
    assert seen["nodes", labels(engine="envoy")] == 2
    assert seen["nodes", labels(engine="grpc")] == seen["nodes", labels(engine="remora")] == 0
    assert seen["nodes_behind", labels()] == 1
    assert seen["revision", labels()] == revision > 0
    assert seen["instances", labels()] == 1
    assert seen["resources", labels(kind="RateLimitPolicy")] == 1
    assert (seen["stale", labels()], seen["stale_seconds", labels()]) == (0, 0)
    assert seen["pushes_total", labels(type="Listener")] == 2
    assert seen["nacks_total", labels(type="Listener")] == 1
    assert seen["nacks_total", labels(type="Cluster")] == 0
    assert seen["ack_seconds_count", labels(type="Cluster")] >= 2
    assert 0 < seen["ack_seconds_sum", labels(type="Cluster")] < 10
    assert seen["requests_total", labels(method="remora.mesh.v1.Resources/Apply", code="OK")] == 1
    assert seen["slow_readers_total", labels()] == 0
    assert any(name == "process_cpu_seconds_total" for name, _ in seen)


async def test_labels_take_few_values_whatever_comes_in(plane: Plane) -> None:
    for number in range(20):
        async with Node(plane, f"node-{number}", version=f"v{number}") as node:
            await node.say(f"type.googleapis.com/nonsense.{number}")
        await plane.register(f"service-{number}.ns-{number}", f"i{number}")
        channel: Any = plane.channel
        assert (await refused(channel.unary_unary(f"/remora.mesh.v1.Resources/Drop{number}")(b"")))[0] is UNIMPLEMENTED
    seen = await metrics(plane)
    values = {(name, value) for _, found in seen for name, value in found}
    assert {value for name, value in values if name == "type"} <= TYPES
    assert {value for name, value in values if name == "engine"} == {"envoy", "grpc", "remora"}
    for name, value in values:
        if name == "method":
            assert re.fullmatch(r"(remora\.mesh\.v1|envoy\.service\.discovery\.v3|grpc\.[a-z0-9.]+)\.\w+/\w+", value)
            assert "Drop" not in value
    assert len(seen) < 250


async def test_health_is_told_and_unknown_paths_say_what_there_is(plane: Plane) -> None:
    assert await fetch(plane, "/healthz") == (200, "ok\n")
    assert await fetch(plane, "/") == (404, "known paths: /metrics /healthz\n")


async def test_while_the_store_is_away(plane: Plane, outage: list[Outage]) -> None:
    await plane.register("warehouse.shop", "w1")
    (store,) = outage
    await store.go_away()
    for call in (
        plane.resources.Apply(api_pb2.ApplyRequest(resources=load(LIMIT, "f"))),
        plane.resources.Delete(api_pb2.DeleteRequest(kind="Service", name="a")),
        plane.register("warehouse.shop", "w2"),
        plane.registry.KeepAlive(api_pb2.KeepAliveRequest(lease_id=1)),
    ):
        assert await refused(call) == (grpc.StatusCode.UNAVAILABLE, "store 127.0.0.1:2379 cannot be reached")
    # The watch finds out with the next event; until then nothing is known to be stale.
    await store.breaks_watches()
    await eventually_async(lambda: plane.running.mirror.stale_since is not None)
    code, text = await fetch(plane, "/healthz")
    assert code == 503
    assert re.fullmatch(r"the store has not been reached for \d+ s; the last state is served\n", text)
    seen = await metrics(plane)
    assert seen["stale", labels()] == 1 and seen["stale_seconds", labels()] > 0
    # Reads and nodes are served from the last state.
    assert len((await plane.resources.List(api_pb2.ListRequest())).resources) == 0
    async with Node(plane, "late") as node:
        await node.follow()
        await eventually_async(lambda: ROUTES in node.held)
        revision = plane.running.mirror.state.revision
        code_, text = await refused(
            plane.resources.WaitProgrammed(api_pb2.WaitProgrammedRequest(revision=revision + 1, timeout={"nanos": 1}))  # type: ignore[arg-type]
        )
        assert code_ is grpc.StatusCode.DEADLINE_EXCEEDED
        assert text.startswith(
            f"revision {revision + 1} is not served yet; revision {revision} is; the store has not been reached"
        )
    await store.come_back()
    await eventually_async(lambda: plane.running.mirror.stale_since is None)
    await plane.apply(LIMIT)
    assert await fetch(plane, "/healthz") == (200, "ok\n")


async def test_a_bug_in_following_the_store_is_loud(
    plane: Plane, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(state, "advance", None)
    await plane.registry.Register(
        api_pb2.RegisterRequest(instance={"id": "w1", "service": "warehouse", "address": "::1", "port": 1})  # type: ignore[arg-type]
    )
    await eventually_async(lambda: plane.running.mirror.stale_since is not None)
    assert (await fetch(plane, "/healthz"))[0] == 503
    assert "the store is not followed any more; restart this control plane" in caplog.text
