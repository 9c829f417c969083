"""gRPC's own xDS client, a real one, on a real control plane: whatever the mesh, it refuses nothing that it is told."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from control_plane.resources.load import load
from control_plane.translate import view
from control_plane.translate.snapshot import LISTENER, ORDER, build
from proto.mesh.v1 import api_pb2, service_pb2
from remora.agent import bootstrap
from remora.agent.bootstrap import NodeSpec
from tests.control_plane import strategies
from tests.control_plane.api.test_engines import MESH
from tests.control_plane.plane import Plane
from tests.control_plane.translate import meshes
from tests.waiting import eventually_async

pytestmark = pytest.mark.asyncio(loop_scope="session")

NODE_ID: Final = "cart.shop~1"
MAX_TARGETS: Final = 40
_PROGRAM: Final = """
import sys, grpc
channels = {}
for target in map(str.strip, sys.stdin):
    if target not in channels:
        channels[target] = grpc.insecure_channel("xds:///" + target)
        channels[target].subscribe(lambda _: None, try_to_connect=True)
"""
"""Connects to every target that it reads, and stays."""


class Client:
    """A program with channels to targets."""

    def __init__(self, plane: Plane, process: asyncio.subprocess.Process) -> None:
        self._plane = plane
        self._process = process
        self._targets: set[str] = set()

    async def call_all(self) -> None:
        """Open a channel to each target that there is."""
        node = meshes.node_of("cart", "shop", "gRPC C-core linux Python")
        names = build(view.mesh(self._plane.running.mirror.state), node).types[LISTENER]
        assert self._process.stdin is not None
        for name in sorted(set(names) - self._targets)[: MAX_TARGETS - len(self._targets)]:
            self._targets.add(name)
            self._process.stdin.write(f"{name}\n".encode())
        await self._process.stdin.drain()

    def is_at(self, revision: int) -> bool:
        """True once every channel has got as far as endpoints, and acknowledged a revision."""
        streams = [each for each in self._plane.running.ads.streams.values() if each.node.id == NODE_ID]
        return len(streams) == len(self._targets) and all(
            each.programmed >= revision and each.subscriptions.keys() == set(ORDER) for each in streams
        )


@asynccontextmanager
async def client(plane: Plane) -> AsyncIterator[Client]:
    nowhere = ("127.0.0.1", 0)
    spec: dict[str, Any] = dict.fromkeys(("inbound", "app", "outbound", "admin"), nowhere)
    made = bootstrap.grpc(
        NodeSpec(NODE_ID, "cart", "shop", "v1", control_planes=(("127.0.0.1", plane.running.port),), **spec)
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PROGRAM, stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "GRPC_XDS_BOOTSTRAP_CONFIG": json.dumps(made)},
    )  # fmt: skip
    try:
        yield Client(plane, process)
    finally:
        process.kill()
        await process.wait()


async def settled(plane: Plane, each: Client) -> None:
    """Everything is told and taken."""
    await each.call_all()
    revision = plane.running.mirror.state.revision
    await eventually_async(lambda: each.is_at(revision), message="not acknowledged")
    assert plane.running.ads.nacks == {}


async def test_what_every_policy_says_is_taken(plane: Plane) -> None:
    await plane.resources.Apply(api_pb2.ApplyRequest(resources=load(MESH, "f")))
    for number, service in enumerate(("warehouse.shop", "anywhere.shop", "other.office")):
        await plane.register(service, f"i{number}", 5000 + number, weight=number + 1)
    await plane.register("warehouse.shop", "twice", 5000)  # at an address that another one has
    async with client(plane) as each:
        await settled(plane, each)


async def test_whatever_the_mesh_nothing_is_refused(plane: Plane) -> None:
    loop = asyncio.get_running_loop()
    async with client(plane) as each:

        async def round_of(resources: list[api_pb2.Resource], instances: list[service_pb2.Instance]) -> None:
            by_key = {
                (item.WhichOneof("spec"), item.metadata.namespace, item.metadata.name): item for item in resources
            }
            for item in by_key.values():
                item.metadata.resource_version = 0
            await plane.resources.Apply(api_pb2.ApplyRequest(resources=by_key.values()))
            for instance in instances:
                await plane.registry.Register(api_pb2.RegisterRequest(instance=instance))
            await settled(plane, each)

        @settings(
            max_examples=15,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(
            st.lists(strategies.resources(), min_size=3, max_size=10),
            st.lists(strategies.instances(), min_size=1, max_size=4),
        )
        def rounds(resources: list[api_pb2.Resource], instances: list[service_pb2.Instance]) -> None:
            asyncio.run_coroutine_threadsafe(round_of(resources, instances), loop).result(60)

        await asyncio.to_thread(rounds)
